#include "sluice/lab/brick/exits.h"

#include <algorithm>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

constexpr int64_t kStatistics = 4;
constexpr double kLeast = 1e-12;  // of a probability whose logarithm is taken
constexpr std::string_view kHead = "_exit", kGate = "_gate";

at::Tensor entropy(const at::Tensor& p) {
  return -(p * p.clamp_min(kLeast).log()).sum(-1, /*keepdim=*/true);
}

int64_t classes_of(const Shape& input, std::string_view kind) {
  if (input.size() != 1 || input[0] < 2)
    fail(Code::shape, "{}: expected logits of at least 2 classes, found {}", kind,
         to_string(input));
  return input[0];
}

}  // namespace

at::Tensor prediction_statistics(const at::Tensor& logits) {
  const at::Tensor p = at::softmax(logits.detach(), -1);
  const auto [largest, index] = p.max(-1, /*keepdim=*/true);
  const at::Tensor others = p.scatter(-1, index, 0.0);
  const at::Tensor square = p.square();
  return at::cat({largest, entropy(p), largest - others.amax(-1, true),
                  entropy(square / square.sum(-1, true))},
                 -1);
}

at::Tensor prediction_score(const at::Tensor& logits, const std::string& statistic) {
  const at::Tensor x = logits.detach();
  if (statistic == "entropy") {
    // Where p is 0 its logarithm must not be infinite.
    const at::Tensor log = at::log_softmax(x, -1);
    return (log.exp() * log.clamp_min(-200)).sum(-1, /*keepdim=*/true);
  }
  const at::Tensor total = at::logsumexp(x, -1, /*keepdim=*/true);
  if (statistic == "confidence") return (x.amax(-1, true) - total).exp();
  SLUICE_CHECK(statistic == "margin");
  const at::Tensor two = (std::get<0>(x.topk(2, -1)) - total).exp();
  // Where one is no number a sort may hide it; the sum does not.
  return two.narrow(-1, 0, 1) - two.narrow(-1, 1, 1) + (total - total);
}

at::Tensor exit_mass(const at::Tensor& g) {
  const at::Tensor left = (1 - (g.cumsum(-1) - g)).clamp_min(0);
  const at::Tensor early = at::minimum(g, left);
  return at::cat({early, (1 - g.sum(-1, true)).clamp_min(0)}, -1);
}

at::Tensor chosen_exit(const at::Tensor& g) {
  const at::Tensor stays = (1 - (g.cumsum(-1) - g)) - 2 * g > 0;
  // How many exits in a row were passed.
  return stays.to(at::kLong).cumprod(-1).sum(-1);
}

// ---- ExitGate ----

ExitGate::ExitGate(const std::string& statistic) : statistic_(statistic) {
  if (statistic.empty()) {
    weight = register_parameter("weight", initial_uniform({1, kStatistics}, kStatistics));
    bias = register_parameter("bias", initial_uniform({1}, kStatistics));
  } else if (statistic != "confidence" && statistic != "entropy" && statistic != "margin") {
    fail(Code::config,
         "statistic of exit_gate: '{}' is unknown; known: confidence, entropy, margin",
         statistic.substr(0, 60));
  }
}

Json ExitGate::attributes() const {
  return statistic_.empty() ? Json::object() : Json{{"statistic", statistic_}};
}

BrickPtr make_exit_gate(const Json& attributes) {
  const AttributeReader read(attributes, "exit_gate", {"statistic"});
  return std::make_shared<ExitGate>(read.text("statistic", ""));
}

at::Tensor ExitGate::forward(const at::Tensor& x, Context& context) {
  classes_of(Shape(x.sizes().begin() + 1, x.sizes().end()), "exit_gate");
  if (!statistic_.empty()) return prediction_score(x, statistic_);
  if (context.meter != nullptr)
    context.meter->add(context.path(), x.size(0) * kStatistics,
                       tensor_bytes(weight) + tensor_bytes(bias));
  return at::linear(prediction_statistics(x), weight, bias);
}

Shape ExitGate::output_shape(const Shape& input) const {
  classes_of(input, "exit_gate");
  return {1};
}

Cost ExitGate::cost(const Shape& input) const {
  classes_of(input, "exit_gate");
  if (!statistic_.empty()) return {};
  const int64_t parameters = kStatistics + 1;
  return {kStatistics, parameters, parameters * static_cast<int64_t>(sizeof(float))};
}

bundle::Value ExitGate::lower(bundle::Builder& builder, const bundle::Value& x,
                              const std::string& path) const {
  const std::string base = node_path_of(path, *this);
  if (!statistic_.empty())
    return builder.node("prediction_score", base, {x}, {{"statistic", statistic_}});
  const auto at_path = [&](const char* name) { return join_path(base, name); };
  const std::vector<int64_t> axes = {0};
  const auto reduced = [&](const char* name, const char* kind, const bundle::Value& value) {
    return builder.node("reduce", at_path(name), {value}, {{"kind", kind}, {"axes", axes}});
  };
  const auto binary = [&](const std::string& name, const char* kind, const bundle::Value& a,
                          const bundle::Value& b) {
    return builder.node("binary", at_path(name.c_str()), {a, b}, {{"kind", kind}});
  };
  const auto negative_entropy = [&](const std::string& name, const bundle::Value& p) {
    const bundle::Value log =
        builder.node("unary", at_path((name + "_log").c_str()),
                     {builder.node("unary", at_path((name + "_clip").c_str()), {p},
                                   {{"kind", "clip"}, {"alpha", kLeast}, {"beta", 1.0}})},
                     {{"kind", "log"}});
    const bundle::Value product = builder.node("mul", at_path((name + "_mul").c_str()), {p, log});
    return reduced((name + "_sum").c_str(), "sum", product);
  };
  const bundle::Value p = builder.node("softmax", at_path("softmax"), {x});
  const bundle::Value largest = reduced("max", "max", p);
  // The largest but one: that of the first of the largest set to -1.
  const std::string classes = join_path(base, "classes");
  add_tensor(builder, classes, at::arange(x.shape[0], at::kFloat));
  const bundle::Value is_largest =
      builder.node("binary", at_path("is_max"), {reduced("argmax", "argmax", p)},
                   {{"kind", "equal"}}, {{"other", classes}});
  const bundle::Value second = reduced("second", "max", binary("others", "sub", p, is_largest));
  const bundle::Value square = builder.node("unary", at_path("square"), {p}, {{"kind", "square"}});
  const bundle::Value sharper = binary("sharper", "div", square, reduced("total", "sum", square));
  const bundle::Value statistics = builder.node(
      "concat", at_path("statistics"),
      {largest, negative_entropy("entropy", p), binary("margin", "sub", largest, second),
       negative_entropy("sharp_entropy", sharper)});
  // The sums above are negative entropies.
  const std::string weights = join_path(base, "signed_weight"), biases = join_path(base, "bias");
  add_tensor(builder, weights,
             weight.detach() *
                 at::tensor({1.0f, -1.0f, 1.0f, -1.0f}, weight.options().requires_grad(false)));
  add_tensor(builder, biases, bias);
  return builder.node("linear", at_path("score"), {statistics}, {},
                      {{"weight", weights}, {"bias", biases}});
}

// ---- ExitChain ----

ExitChain::ExitChain(const std::string& rule, std::vector<ExitThresholds> sizes) : rule_(rule) {
  sizes_ = std::move(sizes);
  if (rule != "mass" && rule != "threshold")
    fail(Code::config, "rule of exit_chain: '{}' is unknown; known: mass, threshold",
         rule.substr(0, 60));
}

ExitChain& ExitChain::append(const std::string& name, BrickPtr child) {
  add_slot(name, std::move(child));
  return *this;
}

ExitChain& ExitChain::append_exit(BrickPtr head, BrickPtr gate) {
  if (slots().empty() || slots().back()->name().ends_with(kGate))
    fail(Code::usage, "exit_chain: an exit needs a child before it; append one first");
  const std::string name = slots().back()->name();
  add_slot(name + std::string(kHead), std::move(head));
  add_slot(name + std::string(kGate), std::move(gate));
  return *this;
}

Json ExitChain::attributes() const {
  Json json = {{"rule", rule_}};
  if (!sizes_.empty()) json["thresholds"] = exit_sizes_json(sizes_);
  return json;
}

BrickPtr make_exit_chain(const Json& attributes) {
  const AttributeReader read(attributes, "exit_chain", {"rule", "thresholds"});
  return std::make_shared<ExitChain>(read.text("rule", "mass"),
                                     read_exit_sizes(attributes, "exit_chain"));
}

int64_t ExitChain::exit_count() const {
  const std::vector<Stage> all = stages();
  return std::count_if(all.begin(), all.end(), [](const Stage& s) { return s.head != nullptr; });
}

std::string ExitChain::exit_name(int64_t index) const {
  for (const Stage& stage : stages())
    if (stage.head != nullptr && index-- == 0) return stage.child->name();
  SLUICE_CHECK(false);
}

DepthTable ExitChain::exit_table(const at::Tensor& x, Context& context) const {
  std::vector<at::Tensor> scores, choices;
  at::Tensor y = x, left;
  const auto add = [&](const at::Tensor& logits, const at::Tensor& score) {
    scores.push_back(score);
    choices.push_back(logits.argmax(-1));
  };
  for (const Stage& stage : stages()) {
    y = stage.child->forward(y, context);
    if (stage.head == nullptr) continue;
    const at::Tensor logits = stage.head->forward(y, context);
    const at::Tensor score = stage.gate->forward(logits, context).detach().select(-1, 0);
    if (rule_ != "mass") {
      add(logits, score);
      continue;
    }
    if (!left.defined()) left = at::ones_like(score);
    const at::Tensor g = at::sigmoid(score);
    add(logits, 2 * g - left);
    left = left - g;
  }
  add(y, at::zeros({y.size(0)}, y.options()));
  return {at::stack(scores, 1), at::stack(choices, 1)};
}

void ExitChain::adopt(const std::string& name, BrickPtr child) { add_slot(name, std::move(child)); }

std::vector<ExitChain::Stage> ExitChain::stages() const {
  std::vector<Stage> result;
  for (size_t i = 0; i < slots().size(); ++i) {
    Stage stage{slots()[i].get(), nullptr, nullptr};
    const std::string head = stage.child->name() + std::string(kHead);
    if (i + 2 < slots().size() && slots()[i + 1]->name() == head) {
      stage.head = slots()[i + 1].get();
      stage.gate = slots()[i + 2].get();
      i += 2;
    }
    result.push_back(stage);
  }
  return result;
}

void ExitChain::check_slots() const {
  const std::vector<Stage> all = stages();
  if (all.empty() || all.back().head != nullptr)
    fail(Code::config, "exit_chain: expected a last head behind the last exit");
  for (const auto& slot : slots()) {
    if (slot->empty())
      fail(Code::config, "{}: empty; a chain of exits has no use for that", slot->name());
  }
  for (const Stage& stage : all) {
    const std::string name = stage.child->name() + std::string(kGate);
    if (stage.gate != nullptr && stage.gate->name() != name)
      fail(Code::config, "{}: expected the gate '{}' behind its head", stage.gate->name(), name);
  }
  check_exit_sizes(sizes_);
}

at::Tensor ExitChain::forward(const at::Tensor& x, Context& context) {
  at::Tensor y = x, rows, left;
  std::vector<at::Tensor> left_rows, left_logits;
  const ExitThresholds* thresholds = thresholds_for(context, kind());
  size_t exit = 0;
  for (const Stage& stage : stages()) {
    y = stage.child->forward(y, context);
    if (stage.head == nullptr) continue;
    const std::optional<double> threshold = thresholds ? (*thresholds)[exit] : 0.0;
    ++exit;
    if (context.gates_forced_open || !threshold) continue;
    const at::Tensor logits = stage.head->forward(y, context);
    const at::Tensor score = stage.gate->forward(logits, context).detach().select(-1, 0);
    if (!rows.defined()) {
      rows = at::arange(x.size(0), x.options().dtype(at::kLong));
      left = at::ones_like(score);
    }
    const at::Tensor g = at::sigmoid(score);
    const at::Tensor doubt = rule_ == "mass" ? left - 2 * g : -score;
    const at::Tensor stays = doubt > static_cast<float>(-*threshold);
    const at::Tensor staying = stays.nonzero().select(-1, 0),
                     leaving = stays.logical_not().nonzero().select(-1, 0);
    left_rows.push_back(rows.index_select(0, leaving));
    left_logits.push_back(logits.index_select(0, leaving));
    rows = rows.index_select(0, staying);
    left = (left - g).index_select(0, staying);
    y = y.index_select(0, staying);
    if (rows.numel() == 0) break;
  }
  if (!rows.defined()) return y;
  if (rows.numel() > 0) {
    left_rows.push_back(rows);
    left_logits.push_back(y);
  }
  return at::cat(left_logits).index_select(0, at::cat(left_rows).argsort());
}

Shape ExitChain::output_shape(const Shape& input) const {
  Shape shape = input;
  std::vector<std::pair<std::string, Shape>> ends;
  for (const Stage& stage : stages()) {
    shape = stage.child->output_shape(shape);
    if (stage.head == nullptr) continue;
    ends.emplace_back(stage.head->name(), stage.head->output_shape(shape));
    const Shape score = stage.gate->output_shape(ends.back().second);
    if (score != Shape{1})
      fail(Code::shape, "{}: expected one number per input, found {}", stage.gate->name(),
           to_string(score));
  }
  for (const auto& [name, end] : ends) {
    if (end != shape)
      fail(Code::shape, "{}: it gives {}, the last head {}", name, to_string(end),
           to_string(shape));
  }
  return shape;
}

Cost ExitChain::cost(const Shape& input) const {
  Cost total;
  Shape shape = input;
  for (const Stage& stage : stages()) {
    total += stage.child->cost(shape);
    shape = stage.child->output_shape(shape);
    if (stage.head == nullptr) continue;
    total += stage.head->cost(shape) + stage.gate->cost(stage.head->output_shape(shape));
  }
  return total;
}

std::vector<int64_t> ExitChain::exit_macs(const Shape& input) const {
  const auto costs = exit_costs(input, std::vector<bool>(static_cast<size_t>(exit_count()), true));
  return {costs.begin(), costs.end()};
}

std::vector<double> ExitChain::exit_costs(const Shape& input, const std::vector<bool>& open) const {
  std::vector<double> result;
  Shape shape = input;
  int64_t total = 0;
  for (const Stage& stage : stages()) {
    total = checked_add(total, stage.child->cost(shape).macs, "MACs of exit_chain");
    shape = stage.child->output_shape(shape);
    if (stage.head == nullptr) continue;
    const Shape end = stage.head->output_shape(shape);
    if (open.at(result.size())) total += stage.head->cost(shape).macs + stage.gate->cost(end).macs;
    result.push_back(static_cast<double>(total));
  }
  result.push_back(static_cast<double>(total));
  return result;
}

bundle::Value ExitChain::lower(bundle::Builder& builder, const bundle::Value& x,
                               const std::string& path) const {
  struct Level {
    std::string name;
    bundle::Value base, keep;
  };
  std::vector<Level> levels;
  bundle::Value y = x, left;
  const bool mass = rule_ == "mass", sized = !sizes_.empty();
  const int64_t count = exit_count();
  for (const Stage& stage : stages()) {
    y = stage.child->lower(builder, y, path);
    if (stage.head == nullptr) continue;
    const size_t exit = levels.size();
    const bundle::Value logits = stage.head->lower(builder, y, path);
    const bundle::Value score = stage.gate->lower(builder, logits, path);
    const std::string gate = join_path(path, stage.gate->name());
    const auto node = [&](const char* op, const char* name,
                          const std::vector<bundle::Value>& inputs, bundle::Attributes attributes) {
      return builder.node(op, join_path(gate, name), inputs, std::move(attributes));
    };
    const auto affine = [&](const char* name, const bundle::Value& value, double alpha,
                            double beta) {
      return node("unary", name, {value}, {{"kind", "linear"}, {"alpha", alpha}, {"beta", beta}});
    };
    // In sizes where the exit is closed neither its head nor its gate runs; then `open` stands for
    // what they give.
    const auto unless_closed = [&](const char* name, const bundle::Value& value,
                                   const bundle::Value& otherwise) {
      return node("size_switch", name, {value, otherwise}, {{"choice", closed_list(exit)}});
    };
    bundle::Value zero, one;  // [1], whatever the input
    if (sized) {
      bundle::Value any = exit > 0 && mass ? left : y;
      if (any.shape.size() == 3) any = node("global_avg_pool", "any_pool", {any}, {});
      if (any.shape.size() == 2)
        any = node("pool_rows", "any_row", {any}, {{"kind", std::string("first")}});
      any = node("slice", "any", {any}, {{"start", int64_t{0}}, {"size", int64_t{1}}});
      zero = affine("zero", node("threshold", "finite", {any}, {}), 0, 0);
      one = affine("one", zero, 0, 1);
    }
    bundle::Value doubt, rest;
    if (!mass) {
      doubt = node("unary", sized ? "doubt" : "keep", {score}, {{"kind", "neg"}});
    } else {
      const bundle::Value g = node("activation", "g", {score}, {{"kind", "sigmoid"}});
      const auto minus = [&](const char* name, const char* part, double factor) {
        if (exit == 0) return affine(name, g, -factor, 1);
        return node("add", name, {left, affine(part, g, -factor, 0)}, {});
      };
      doubt = minus(sized ? "doubt" : "keep", "twice", 2);
      rest = minus("rest", "part", 1);
      if (sized) rest = unless_closed("rest_or_all", rest, exit == 0 ? one : left);
    }
    bundle::Value keep = doubt, base = logits;
    if (sized) {
      const bundle::Value stays =
          node("threshold", "stays", {doubt}, {{"value", threshold_list(exit)}});
      keep = unless_closed("keep", stays, one);
      const std::string nothing = join_path(gate, "nothing");
      builder.tensor(nothing, {1, logits.shape[0]},
                     std::vector<float>(static_cast<size_t>(logits.shape[0]), 0.0f));
      const bundle::Value row =
          builder.node("embedding", join_path(gate, "no_row"), {zero}, {}, {{"weight", nothing}});
      base = unless_closed(
          "base", logits,
          node("reshape", "no_logits", {row}, {{"shape", std::vector<int64_t>{logits.shape[0]}}}));
    }
    y = node("compact_rows", "stay", {y, keep}, {});
    // What no later exit reads is not compacted: sizes may not leave a compact_rows out.
    if (mass && static_cast<int64_t>(exit) + 1 < count)
      left = node("compact_rows", "left", {rest, keep}, {});
    levels.push_back({stage.child->name(), base, keep});
  }
  for (size_t i = levels.size(); i-- > 0;) {
    y = builder.node("scatter_rows", join_path(path, levels[i].name + "_join"),
                     {levels[i].base, y, levels[i].keep});
  }
  return y;
}

}  // namespace sluice::lab
