#include "sluice/lab/brick/choice.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

constexpr int64_t kMostOptions = 16;

std::string option_name(int64_t index) { return fmt::format("option{}", index); }

}  // namespace

Route Route::always(int64_t option) {
  return given(at::full({}, option, at::TensorOptions().dtype(at::kLong)));
}

Choice::Choice(int64_t options)
    : options_(require_range(options, 2, kMostOptions, "options", "choice")) {
  router_ = &add_slot("router", nullptr);
  for (int64_t i = 0; i < options; ++i) option_.push_back(&add_slot(option_name(i), nullptr));
}

BrickPtr make_choice(const Json& attributes) {
  const AttributeReader read(attributes, "choice", {"options"});
  return std::make_shared<Choice>(read.integer("options"));
}

void Choice::check_slots() const {
  for (const Slot* each : option_) {
    if (!each->empty()) return;
  }
  fail(Code::config, "choice: all {} options are empty; at least one computes something", options_);
}

Slot& Choice::option(int64_t index) const {
  if (index < 0 || index >= options_) {
    fail(Code::usage, "choice: there are options 0 to {}, no option {}", options_ - 1, index);
  }
  return *option_[static_cast<size_t>(index)];
}

void Choice::set_route(Route route) {
  if (route.kind == Route::Kind::soft) {
    if (!(route.temperature > 0)) {
      fail(Code::config, "choice: a temperature of {}; expected a number above 0",
           route.temperature);
    }
    if (!routed()) fail(Code::config, "choice: a soft route needs a router; its slot is empty");
  }
  if (route.kind == Route::Kind::given &&
      (!route.choice.defined() || route.choice.scalar_type() != at::kLong)) {
    fail(Code::config, "choice: given choices are int64 numbers of options");
  }
  route_ = std::move(route);
}

at::Tensor Choice::run_option(int64_t index, const at::Tensor& x, Context& context) const {
  const Slot& slot = option(index);
  return slot.empty() ? at::zeros_like(x) : slot.forward(x, context);
}

at::Tensor Choice::routed_choice(const at::Tensor& x, Context& context) const {
  if (!routed()) return at::zeros(x.sizes().slice(0, x.dim() - 1), x.options().dtype(at::kLong));
  // argmax() promises nothing about which of equal ones it takes; in the engine it is the first.
  const at::Tensor logits = router_->forward(x, context).detach();
  const at::Tensor most = std::get<0>(logits.max(-1, /*keepdim=*/true));
  const at::Tensor order = at::arange(options_, 0, -1, logits.options());
  return ((logits == most) * order).argmax(-1);
}

void Choice::log(const at::Tensor& x, const at::Tensor& probability, const at::Tensor& decision,
                 Context& context) const {
  if (context.gate_log == nullptr) return;
  std::vector<double> macs;
  for (const Slot* each : option_) {
    macs.push_back(each->empty() ? 0 : double(each->cost({1, x.size(-1)}).macs));
  }
  const at::Tensor unit_macs = at::tensor(at::ArrayRef<double>(macs)).to(probability.options());
  context.gate_log->add({context.path(), probability, decision, unit_macs});
}

// x [rows, D]
at::Tensor Choice::mixed(const at::Tensor& x, Context& context) const {
  const at::Tensor p = at::softmax(router_->forward(x, context) / route_.temperature, -1);
  log(x, p, at::one_hot(p.detach().argmax(-1), options_).to(p.scalar_type()), context);
  at::Tensor y;
  for (int64_t i = 0; i < options_; ++i) {
    if (option(i).empty()) continue;
    const at::Tensor part = option(i).forward(x, context) * p.narrow(-1, i, 1);
    y = y.defined() ? y + part : part;
  }
  return y;
}

at::Tensor Choice::chosen(const at::Tensor& rows, Context& context) const {
  const int64_t count = rows.size(0);
  switch (route_.kind) {
    case Route::Kind::given: {
      const at::Tensor choice = route_.choice.to(rows.device()).flatten();
      if (choice.numel() != 1 && choice.numel() != count) {
        fail(Code::shape, "choice: {} choices are given for {} rows", choice.numel(), count);
      }
      return choice.expand({count});
    }
    case Route::Kind::random: {
      const at::Tensor u = uniform_noise(rows.detach().select(1, 0), context);
      return (u * options_).to(at::kLong).clamp_max(options_ - 1);
    }
    default:
      return routed_choice(rows, context);
  }
}

at::Tensor Choice::forward(const at::Tensor& x, Context& context) {
  const at::Tensor rows = x.reshape({-1, x.size(-1)});
  if (route_.kind == Route::Kind::soft) return mixed(rows, context).reshape(x.sizes());
  if (route_.kind == Route::Kind::given && route_.choice.numel() == 1 &&
      context.gate_log == nullptr) {
    return run_option(route_.choice.item<int64_t>(), x, context);
  }
  const at::Tensor choice = chosen(rows, context);
  if (context.gate_log != nullptr) {
    const at::Tensor decision = at::one_hot(choice, options_).to(rows.scalar_type());
    log(rows, decision, decision, context);
  }
  at::Tensor y = at::zeros_like(rows);
  int64_t done = 0;
  for (int64_t i = 0; i < options_; ++i) {
    const at::Tensor index = (choice == i).nonzero().flatten();
    done += index.numel();
    if (index.numel() == 0 || option(i).empty()) continue;
    const at::Tensor part = option(i).forward(rows.index_select(0, index), context);
    y = y.index_copy(0, index, part.to(y.scalar_type()));
  }
  if (done != rows.size(0)) {
    fail(Code::usage, "choice: {} rows are given options outside of 0 to {}", rows.size(0) - done,
         options_ - 1);
  }
  return y.reshape(x.sizes());
}

Shape Choice::output_shape(const Shape& input) const {
  for (const Slot* each : option_) {
    if (each->empty()) continue;
    const Shape output = each->output_shape(input);
    if (output != input) {
      fail(Code::shape, "choice: {} makes {} of {}; rows keep their width", each->name(),
           to_string(output), to_string(input));
    }
  }
  if (routed() && router_->output_shape(input).back() != options_) {
    fail(Code::shape, "choice: the router gives {} logits for {} options",
         router_->output_shape(input).back(), options_);
  }
  return input;
}

Cost Choice::cost(const Shape& input) const {
  Cost total = routed() ? router_->cost(input) : Cost{};
  int64_t most = 0;
  for (const Slot* each : option_) {
    if (each->empty()) continue;
    const Cost cost = each->cost(input);
    most = std::max(most, cost.macs);
    total.params += cost.params;
    total.weight_bytes += cost.weight_bytes;
  }
  total.macs += most;
  return total;
}

bundle::Value Choice::lower(bundle::Builder& builder, const bundle::Value& x,
                            const std::string& path) const {
  const auto at = [&](const std::string& name) { return join_path(path, name); };
  if (!routed()) {
    if (!option(0).empty()) return option(0).lower(builder, x, path);
    return builder.node("unary", at("nothing"), {x}, {{"kind", std::string("linear")}});
  }
  const bundle::Value logits = router_->lower(builder, x, path);
  const int64_t axis = std::ssize(x.shape) - 1;
  std::vector<bundle::Value> columns, negated;
  for (int64_t i = 0; i < options_; ++i) {
    columns.push_back(builder.node("slice", at(fmt::format("logit{}", i)), {logits},
                                   {{"axis", axis}, {"start", i}, {"size", int64_t{1}}}));
    negated.push_back(builder.node("unary", at(fmt::format("minus{}", i)), {columns.back()},
                                   {{"kind", std::string("linear")}, {"alpha", -1.0}}));
  }
  // above(i, j): 1 where logit i exceeds logit j; made once, its complement says "i does not".
  std::map<std::pair<int64_t, int64_t>, bundle::Value> made;
  const auto above = [&](int64_t i, int64_t j) {
    const auto known = made.find({i, j});
    if (known != made.end()) return known->second;
    const std::string name = fmt::format("{}_above_{}", i, j);
    const bundle::Value difference =
        builder.node("add", at(name + "_by"), {columns[size_t(i)], negated[size_t(j)]});
    return made[{i, j}] = builder.node("threshold", at(name), {difference});
  };
  // Of equal logits the first wins: i has to exceed those before it, and those behind not exceed i.
  const auto wins = [&](int64_t i) {
    bundle::Value all;
    for (int64_t j = 0; j < options_; ++j) {
      if (j == i) continue;
      bundle::Value one = above(std::max(i, j), std::min(i, j));
      if (j > i) {
        one = builder.node("unary", at(fmt::format("{}_holds_{}", i, j)), {one},
                           {{"kind", std::string("linear")}, {"alpha", -1.0}, {"beta", 1.0}});
      }
      all = all.name.empty() ? one
                             : builder.node("mul", at(fmt::format("{}_wins_{}", i, j)), {all, one});
    }
    return all;
  };
  bundle::Value y = builder.node("unary", at("nothing"), {x}, {{"kind", std::string("linear")}});
  for (int64_t i = 0; i < options_; ++i) {
    if (option(i).empty()) continue;
    const bundle::Value keep = wins(i);
    const bundle::Value rows =
        builder.node("compact_rows", at(option_name(i) + "_rows"), {x, keep});
    y = builder.node("scatter_rows", at(option_name(i) + "_back"),
                     {y, option(i).lower(builder, rows, path), keep});
  }
  return y;
}

std::vector<ChoiceRef> choices_of(Brick& root) {
  std::vector<ChoiceRef> result;
  for (const SlotRef& ref : walk(root)) {
    if (auto* choice = dynamic_cast<Choice*>(ref.slot->get().get())) {
      result.push_back({ref.path, choice});
    }
  }
  return result;
}

void set_routes(Brick& root, const Route& route) {
  for (const ChoiceRef& ref : choices_of(root)) ref.choice->set_route(route);
}

at::Tensor choice_budget_loss(const GateLog& log, int64_t option, double target) {
  std::vector<at::Tensor> all;
  for (const GateRecord& record : log.records()) {
    if (option < 0 || option >= record.probability.size(-1)) {
      fail(Code::usage, "choice_budget_loss: {} has {} options, no option {}", record.path,
           record.probability.size(-1), option);
    }
    all.push_back(record.probability.select(-1, option).flatten());
  }
  return all.empty() ? at::zeros({}) : (at::cat(all).mean() - target).pow(2);
}

}  // namespace sluice::lab
