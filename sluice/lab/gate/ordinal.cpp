#include "sluice/lab/gate/ordinal.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/gate/parts.h"

namespace sluice::lab {
namespace {

void log_choice(Context& context, const at::Tensor& probability, const at::Tensor& decision,
                const at::Tensor& macs) {
  if (context.gate_log == nullptr) return;
  context.gate_log->add({context.path(), probability, decision, macs});
}

struct Choices {
  at::Tensor decision;  ///< [batch, rows, choices]
  at::Tensor macs;      ///< [choices]
};

std::vector<Choices> choices_in(const GateLog& log) {
  std::vector<Choices> all;
  for (const GateRecord& record : log.records()) {
    const at::Tensor& g = record.decision;
    if (g.dim() < 2 || !record.unit_macs.defined() || record.unit_macs.size(0) != g.size(-1)) {
      fail(Code::shape, "{}: expected choices [batch, rows, n] with the cost of each", record.path);
    }
    all.push_back(
        {g.dim() == 2 ? g.unsqueeze(1) : g.flatten(1, -2), record.unit_macs.to(g.options())});
  }
  return all;
}

}  // namespace

at::Tensor one_hot(const at::Tensor& choice, int64_t choices, const at::Tensor& like) {
  std::vector<int64_t> sizes = choice.sizes().vec();
  sizes.push_back(choices);
  return at::zeros(sizes, like.options().requires_grad(false))
      .scatter(-1, choice.unsqueeze(-1), 1.0);
}

at::Tensor ChoiceGate::forward(const at::Tensor& x, Context& context) {
  return choose(x, at::ones({choices()}, x.options()), context);
}

Shape ChoiceGate::output_shape(const Shape& input) const {
  Shape shape = input;
  shape.back() = choices();
  return shape;
}

// ---- OrdinalGate ----

OrdinalGate::OrdinalGate(const Json& attributes) {
  const AttributeReader read(attributes, "ordinal_gate",
                             {"score", "temperature", "noise", "least", "sizes"});
  score_ = make_score(read.object("score"));
  temperature_ =
      require_range(read.number("temperature", 0.8), 1e-3, 1e3, "temperature", "ordinal_gate");
  set_noise(read.number("noise", 1.0));
  least_ = require_range(read.integer("least", 0), 0, score_->units() - 1, "least", "ordinal_gate");
  register_module("score", score_);
  make_sizes(*score_, attributes, "ordinal_gate");
}

BrickPtr make_ordinal_gate(const Json& attributes) {
  return std::make_shared<OrdinalGate>(attributes);
}

Json OrdinalGate::attributes() const {
  Json json = {{"score", score_->attributes()},
               {"temperature", temperature_},
               {"noise", noise_},
               {"least", least_}};
  if (score_->sizes() > 1) json["sizes"] = score_->sizes();
  return json;
}

bool OrdinalGate::steer(const std::vector<double>& prices) {
  const double most = std::max<double>(1, static_cast<double>(choices() - 1));
  return steer_score(*score_, prices, at::arange(choices(), at::kFloat) / most);
}

void OrdinalGate::set_noise(double noise) {
  noise_ = require_range(noise, 0.0, 100.0, "noise", "ordinal_gate");
}

at::Tensor OrdinalGate::logits(const at::Tensor& x, int64_t size) {
  const at::Tensor z = score_->logits(x, size);
  if (least_ == 0) return z;
  const at::Tensor low =
      at::full_like(z.slice(-1, 0, least_), -std::numeric_limits<float>::infinity());
  return at::cat({low, z.slice(-1, least_)}, -1);
}

at::Tensor OrdinalGate::choose(const at::Tensor& x, const at::Tensor& choice_macs,
                               Context& context) {
  if (context.gates_forced_open) {
    const at::Tensor all = at::full(x.sizes().slice(0, static_cast<size_t>(x.dim() - 1)),
                                    choices() - 1, x.options().dtype(at::kLong));
    return one_hot(all, choices(), x);
  }
  const Cost price = score_->cost(Shape(x.sizes().begin() + 1, x.sizes().end()));
  if (context.meter != nullptr) {
    context.meter->add(context.path(), price.macs * x.size(0), price.weight_bytes);
  }
  const at::Tensor z = logits(x, score_size(*score_, context, "ordinal_gate"));
  at::Tensor noisy = z;
  if (is_training() && noise_ > 0) {
    constexpr double kEdge = 1e-6;
    const at::Tensor u = uniform_noise(z, context).clamp(kEdge, 1 - kEdge);
    noisy = z - noise_ * at::log(-at::log(u));
  }
  const at::Tensor hard = one_hot(noisy.detach().argmax(-1), choices(), z);
  at::Tensor decision = hard;
  if (is_training()) {
    const at::Tensor soft = at::softmax(noisy / temperature_, -1);
    decision = hard + (soft - soft.detach());
  }
  if (context.gate_log != nullptr) {
    const auto rows = static_cast<double>(x.numel() / (x.size(0) * x.size(-1)));
    const double own = static_cast<double>(price.macs) / rows;
    log_choice(context, at::softmax(z, -1), decision,
               choice_macs.defined() ? choice_macs + own : choice_macs);
  }
  return decision;
}

bundle::Value OrdinalGate::lower(bundle::Builder& builder, const bundle::Value& x,
                                 const std::string& path) const {
  bundle::Value z = score_->lower(builder, x, join_path(path, "score"));
  if (least_ > 0) z = builder.node("slice", join_path(path, "allowed"), {z}, {{"start", least_}});
  const std::vector<int64_t> last = {static_cast<int64_t>(z.shape.size()) - 1};
  bundle::Value choice = builder.node("reduce", join_path(path, "choice"), {z},
                                      {{"kind", std::string("argmax")}, {"axes", last}});
  if (least_ > 0) {
    choice = builder.node(
        "unary", join_path(path, "least"), {choice},
        {{"kind", std::string("linear")}, {"alpha", 1.0}, {"beta", static_cast<double>(least_)}});
  }
  return choice;
}

// ---- ConstantChoice ----

ConstantChoice::ConstantChoice(int64_t choices, int64_t choice)
    : choices_(require_range(choices, 2, kMaxChannels, "choices", "constant_choice")),
      choice_(require_range(choice, 0, choices - 1, "choice", "constant_choice")) {}

BrickPtr make_constant_choice(const Json& attributes) {
  const AttributeReader read(attributes, "constant_choice", {"choices", "choice"});
  return std::make_shared<ConstantChoice>(read.integer("choices"), read.integer("choice"));
}

at::Tensor ConstantChoice::choose(const at::Tensor& x, const at::Tensor& choice_macs,
                                  Context& context) {
  const at::Tensor same = at::full(x.sizes().slice(0, static_cast<size_t>(x.dim() - 1)), choice_,
                                   x.options().dtype(at::kLong));
  const at::Tensor decision = one_hot(same, choices_, x);
  if (!context.gates_forced_open) log_choice(context, decision, decision, choice_macs);
  return decision;
}

bundle::Value ConstantChoice::lower(bundle::Builder&, const bundle::Value&,
                                    const std::string& path) const {
  fail(Code::state, "{}: a constant choice is lowered by the brick that holds it", path);
}

// ---- losses ----

at::Tensor ordinal_budget_loss(const GateLog& log, double budget) {
  if (log.empty()) return at::zeros({});
  at::Tensor expected, most;
  for (const Choices& each : choices_in(log)) {
    const at::Tensor cost = at::matmul(each.decision, each.macs).mean();
    const at::Tensor range = each.macs.max() - each.macs.min();
    expected = expected.defined() ? expected + cost : cost;
    most = most.defined() ? most + range : range;
  }
  return (expected / most.clamp_min(1e-12) - budget).abs();
}

at::Tensor ordinal_entropy_loss(const GateLog& log) {
  if (log.empty()) return at::zeros({});
  std::vector<at::Tensor> all;
  for (const Choices& each : choices_in(log)) {
    const at::Tensor share = each.decision.mean(1);  // [batch, choices]
    const at::Tensor entropy = -(share * at::log(share.clamp_min(1e-8))).sum(-1);
    all.push_back(-entropy.mean() / std::log(static_cast<double>(share.size(-1))));
  }
  return at::stack(all).mean();
}

at::Tensor ordinal_diversity_loss(const GateLog& log) {
  if (log.empty()) return at::zeros({});
  at::Tensor load, most;
  for (const Choices& each : choices_in(log)) {
    const at::Tensor cost = at::matmul(each.decision, each.macs - each.macs.min()).mean(1);
    const at::Tensor range = each.macs.max() - each.macs.min();
    load = load.defined() ? load + cost : cost;
    most = most.defined() ? most + range : range;
  }
  const at::Tensor u = load / most.clamp_min(1e-12);
  const int64_t n = u.size(0);
  if (n < 2) return u.sum() * 0;
  const at::Tensor sum = (u.unsqueeze(0) - u.unsqueeze(1)).abs().sum();
  return -sum / static_cast<double>(n * (n - 1));
}

}  // namespace sluice::lab
