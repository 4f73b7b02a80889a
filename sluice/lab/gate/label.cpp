#include "sluice/lab/gate/label.h"

#include <torch/types.h>

#include <algorithm>

#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/gated_conv.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {
namespace {

constexpr double kTolerance = 1e-5;

at::Tensor heat(const at::Tensor& output) { return output.detach().abs().flatten(2).amax(-1); }

/// The mask that it is given, at the price of the gate it stands for.
class GivenMask final : public GateBrick {
 public:
  GivenMask(BrickPtr gate, at::Tensor mask) : gate_(std::move(gate)), mask_(std::move(mask)) {}
  std::string kind() const override { return "given_mask"; }
  Json attributes() const override { return Json::object(); }
  int64_t units() const override { return mask_.size(1); }
  at::Tensor decide(const at::Tensor& x, const at::Tensor&, Context& context) override {
    if (gate_ != nullptr && context.meter != nullptr) {
      const Cost price = cost(Shape(x.sizes().begin() + 1, x.sizes().end()));
      context.meter->add(context.path(), price.macs * x.size(0), price.weight_bytes);
    }
    return mask_;
  }
  Cost cost(const Shape& input) const override {
    return gate_ == nullptr ? Cost{} : gate_->cost(input);
  }
  bundle::Value lower(bundle::Builder&, const bundle::Value&,
                      const std::string& path) const override {
    fail(Code::unsupported, "{}: a mask of certain samples is no part of a network", path);
  }

 private:
  BrickPtr gate_;
  at::Tensor mask_;
};

}  // namespace

LabelRule heat_mass_label(double mass) {
  require_range(mass, 0.0, 1.0, "mass", "heat_mass_label");
  return [mass](const std::string&, const at::Tensor& output) {
    const at::Tensor a = heat(output);
    const at::Tensor q = a / a.sum(-1, /*keepdim=*/true).clamp_min(1e-12);
    const auto [sorted, order] = q.sort(/*dim=*/-1, /*descending=*/true);
    // A zero never adds to the sum: mass 1 keeps what is there and drops what is not.
    const at::Tensor kept = (sorted.cumsum(-1) <= mass + kTolerance) & (sorted > 0);
    return at::zeros_like(q).scatter(-1, order, kept.to(q.scalar_type()));
  };
}

LabelRule heat_share_label(double share) {
  require_range(share, 0.0, 1.0, "share", "heat_share_label");
  return [share](const std::string&, const at::Tensor& output) {
    const at::Tensor a = heat(output);
    const auto count = std::max<int64_t>(1, std::llround(share * static_cast<double>(a.size(1))));
    return at::zeros_like(a).scatter(-1, std::get<1>(a.topk(count, -1)), 1.0);
  };
}

at::Tensor MaskTeacher::label(const GateRecord& record) const {
  const std::string unit = record.path.substr(0, record.path.find_last_of('.'));
  const auto found = recorder_.records().find(unit + ".act");
  if (found == recorder_.records().end()) {
    fail(Code::usage,
         "{}: no activation of a gated convolution unit beside it; run the forward with the "
         "teacher's watcher",
         record.path);
  }
  return rule_(unit, found->second);
}

at::Tensor MaskTeacher::loss(const GateLog& log) const {
  if (log.empty()) return at::zeros({});
  std::vector<at::Tensor> all;
  for (const GateRecord& record : log.records()) {
    // Back to logits: the usual form, whose gradient p - label does not divide.
    constexpr double kTiny = 1e-7;
    const at::Tensor logits = at::logit(record.probability, kTiny);
    const at::Tensor each =
        at::binary_cross_entropy_with_logits(logits, label(record), {}, {}, at::Reduction::Sum);
    all.push_back(each / static_cast<double>(logits.size(0)));
  }
  return at::stack(all).mean();
}

double MaskTeacher::agreement(const GateLog& log) const {
  double sum = 0;
  for (const GateRecord& record : log.records()) {
    sum += (record.decision == label(record)).to(at::kDouble).mean().item<double>();
  }
  return log.empty() ? 0 : sum / static_cast<double>(log.records().size());
}

MaskEstimate estimate_macs(const Model& model, const at::Tensor& inputs, const LabelRule& rule) {
  const at::NoGradGuard no_grad;
  Model copy = clone(model);
  copy.root->eval();
  Recorder recorder({"**.act"});
  {
    Context context;
    context.gates_forced_open = true;
    context.watcher = &recorder;
    copy.forward(inputs, context);
  }
  MaskEstimate estimate;
  for (const SlotRef& ref : walk(*copy.root)) {
    auto* unit = dynamic_cast<GatedConvUnit*>(ref.slot->get().get());
    if (unit == nullptr) continue;
    Slot& gate = unit->slot("gate");
    if (dynamic_cast<const ConstantMask*>(gate.get().get()) != nullptr) continue;
    const at::Tensor mask = rule(ref.path, recorder.records().at(ref.path + ".act"));
    estimate.kept[ref.path] = mask.mean().item<double>();
    gate.exchange(std::make_shared<GivenMask>(gate.get(), mask));
  }
  if (estimate.kept.empty()) {
    fail(Code::usage, "estimate_macs: the model has no gated convolution unit to mask");
  }
  Meter meter;
  Context context;
  context.meter = &meter;
  copy.forward(inputs, context);
  estimate.macs = meter.macs_per_sample();
  return estimate;
}

}  // namespace sluice::lab
