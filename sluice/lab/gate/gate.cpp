#include "sluice/lab/gate/gate.h"

#include <cmath>

#include "sluice/base/path_pattern.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/gate/parts.h"

namespace sluice::lab {

at::Tensor GateBrick::forward(const at::Tensor& x, Context& context) {
  return decide(x, at::ones({units()}, x.options()), context);
}

at::Tensor price_offset(double price, const at::Tensor& cost) {
  constexpr double kDecides = 1e6;  // beside every logit
  return cost.to(at::kFloat) * (std::isinf(price) && price < 0 ? kDecides : -price);
}

void make_sizes(Score& score, const Json& attributes, std::string_view kind) {
  if (!attributes.is_object() || !attributes.contains("sizes")) return;
  const Json& given = attributes.at("sizes");
  const int64_t sizes =
      require_range(given.is_number_integer() ? given.get<int64_t>() : int64_t{0}, int64_t{1},
                    static_cast<int64_t>(bundle::kMaxSizes), "sizes", kind);
  if (sizes == 1) return;
  const std::vector<at::Tensor> zeros(static_cast<size_t>(sizes), at::zeros({score.units()}));
  if (!score.steer(zeros)) {
    fail(Code::config, "sizes of {}: a score of kind {} has one size", kind, score.kind());
  }
}

bool steer_score(Score& score, const std::vector<double>& prices, const at::Tensor& cost) {
  std::vector<at::Tensor> offsets;
  for (const double price : prices) offsets.push_back(price_offset(price, cost));
  return score.steer(offsets);
}

int64_t score_size(const Score& score, const Context& context, std::string_view kind) {
  return score.sizes() == 1 ? -1 : chosen_size(context, score.sizes(), kind);
}

// ---- Gate ----

namespace {

const Json& part(const Json& attributes, std::string_view key) {
  return AttributeReader(attributes, "gate", {"score", "decision", "estimator", "noise", "sizes"})
      .object(key);
}

Json part_or(const Json& attributes, const char* key, const char* kind) {
  return attributes.is_object() && attributes.contains(key) ? part(attributes, key)
                                                            : Json{{"kind", kind}};
}

}  // namespace

Gate::Gate(const Json& attributes)
    : score_(make_score(part(attributes, "score"))),
      decision_(make_decision(part_or(attributes, "decision", "threshold"))),
      estimator_(make_estimator(part_or(attributes, "estimator", "ste_sigmoid"))),
      noise_(require_range(
          AttributeReader(attributes, "gate", {"score", "decision", "estimator", "noise", "sizes"})
              .number("noise", 0.0),
          0.0, 100.0, "noise", "gate")) {
  register_module("score", score_);
  require_units(decision_->attributes(), score_->units());
  make_sizes(*score_, attributes, "gate");
}

Json Gate::attributes() const {
  Json json = {{"score", score_->attributes()},
               {"decision", decision_->attributes()},
               {"estimator", estimator_->attributes()},
               {"noise", noise_}};
  if (score_->sizes() > 1) json["sizes"] = score_->sizes();
  return json;
}

bool Gate::steer(const std::vector<double>& prices) {
  const Json kind = decision_->attributes().at("kind");
  if (kind != "threshold" && kind != "sample") return false;
  return steer_score(*score_, prices, at::ones({units()}));
}

BrickPtr make_gate(const Json& attributes) { return std::make_shared<Gate>(attributes); }

int64_t Gate::units() const { return score_->units(); }

at::Tensor Gate::decide(const at::Tensor& x, const at::Tensor& unit_macs, Context& context) {
  if (context.gates_forced_open) return at::ones({x.size(0), units()}, x.options());
  const at::Tensor logits = score_->logits(x, score_size(*score_, context, "gate"));
  if (context.meter != nullptr) {
    const Cost cost = score_->cost(Shape(x.sizes().begin() + 1, x.sizes().end()));
    context.meter->add(context.path(), cost.macs * x.size(0), cost.weight_bytes);
  }
  at::Tensor noisy = logits;
  if (is_training() && noise_ > 0) {
    constexpr double kEdge = 1e-6;
    const at::Tensor u = uniform_noise(logits, context).clamp(kEdge, 1 - kEdge);
    noisy = logits + noise_ * (at::log(u) - at::log1p(-u));
  }
  const at::Tensor hard = decision_->decide(noisy.detach(), is_training(), context);
  at::Tensor decision = estimator_->apply(hard, noisy);
  if (context.gate_log != nullptr) {
    // The probability is that of the undisturbed logits: what the gate will say without noise.
    context.gate_log->add({context.path(), decision_->probability(logits), decision, unit_macs});
  }
  return decision;
}

Cost Gate::cost(const Shape& input) const { return score_->cost(input); }

void Gate::require_hard(const std::string& path) const {
  if (estimator_->attributes().at("kind") != "sigmoid") return;
  fail(Code::unsupported,
       "{}: a gate with estimator 'sigmoid' is soft and never skips; the engine runs hard gates. "
       "Train it on with 'ste_sigmoid', or freeze it",
       path);
}

bundle::Value Gate::lower(bundle::Builder& builder, const bundle::Value& x,
                          const std::string& path) const {
  require_hard(path);
  const bundle::Value logits = score_->lower(builder, x, join_path(path, "score"));
  return decision_->lower(builder, logits, path);
}

Gate::Lowered Gate::lower_logits(bundle::Builder& builder, const bundle::Value& x,
                                 const std::string& path) const {
  require_hard(path);
  const Selector selector = decision_->selector(units(), path);
  return {score_->lower(builder, x, join_path(path, "score")), selector};
}

int64_t Gate::most_open() const {
  const Json decision = decision_->attributes();
  if (decision.at("kind") == "softmax") return 1;
  return decision.at("kind") == "top_k" ? decision.at("k").get<int64_t>() : units();
}

// ---- ConstantMask ----

at::Tensor checked_mask(const at::Tensor& values, std::string_view what) {
  if (!values.defined() || values.dim() != 1 || values.numel() == 0) {
    fail(Code::shape, "mask of {}: expected [units], found {}", what,
         values.defined() ? to_string(values.sizes()) : "nothing");
  }
  const at::Tensor mask = values.detach().to(at::kFloat).clone();
  if (!((mask == 0) | (mask == 1)).all().item<bool>()) {
    fail(Code::numeric, "mask of {}: values other than 0 and 1", what);
  }
  return mask;
}

ConstantMask::ConstantMask(int64_t units)
    : ConstantMask(at::ones({require_range(units, 1, kMaxChannels, "units", "constant_mask")})) {}

ConstantMask::ConstantMask(const at::Tensor& values)
    : mask(register_buffer("mask", checked_mask(values, "constant_mask"))) {}

Json ConstantMask::attributes() const { return {{"units", mask.numel()}}; }

BrickPtr make_constant_mask(const Json& attributes) {
  const AttributeReader read(attributes, "constant_mask", {"units"});
  return std::make_shared<ConstantMask>(read.integer("units"));
}

int64_t ConstantMask::units() const { return mask.numel(); }

at::Tensor ConstantMask::decide(const at::Tensor& x, const at::Tensor& unit_macs,
                                Context& context) {
  const at::Tensor decision = mask.to(x.scalar_type()).expand({x.size(0), mask.numel()});
  if (context.gate_log != nullptr && !context.gates_forced_open) {
    context.gate_log->add({context.path(), decision, decision, unit_macs});
  }
  return decision;
}

bundle::Value ConstantMask::lower(bundle::Builder&, const bundle::Value&,
                                  const std::string& path) const {
  fail(Code::state, "{}: a constant mask is lowered by the brick that holds it", path);
}

}  // namespace sluice::lab
