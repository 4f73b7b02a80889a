#include "sluice/lab/brick/steps.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {

at::Tensor unit_decision(const Slot& slot, const at::Tensor& x, double macs_per_unit,
                         Context& context) {
  auto& gate = slot.as<GateBrick>();
  at::Tensor unit_macs;
  if (context.gate_log != nullptr) unit_macs = at::full({gate.units()}, macs_per_unit, x.options());
  const Context::Scope scope(context, slot.name());
  at::Tensor decision = gate.decide(x, unit_macs, context);
  while (decision.dim() < x.dim()) decision = decision.unsqueeze(1);
  return decision;
}

at::Tensor times_units(const at::Tensor& gated, const at::Tensor& decision) {
  const int64_t units = decision.size(-1);
  if (gated.size(-1) == units) return gated * decision;
  return (gated.unflatten(-1, {units, -1}) * decision.unsqueeze(-1)).flatten(-2);
}

void meter_units(const at::Tensor& x, const at::Tensor& decision, int64_t macs_per_unit,
                 int64_t bytes_per_unit, Context& context) {
  if (context.meter == nullptr) return;
  const at::Tensor open = decision.detach() != 0;
  const int64_t alike = x.dim() > 2 ? x.size(1) / decision.size(1) : 1;
  const int64_t pairs = open.sum().item<int64_t>() * alike;
  const int64_t read = open.flatten(0, -2).any(0).sum().item<int64_t>();
  context.meter->add(context.path(), pairs * macs_per_unit,
                     2 * tensor_bytes(x) + read * bytes_per_unit);
}

bool decides_by_input(const Slot& gate) {
  return !gate.empty() && dynamic_cast<const ConstantMask*>(gate.get().get()) == nullptr;
}

bundle::Value lower_masked(const Slot& slot, const Slot& gate, bundle::Builder& builder,
                           const bundle::Value& x, const std::string& path) {
  if (gate.empty()) return slot.lower(builder, x, path);
  const std::string layer_path = join_path(path, slot.name());
  const auto* mask = dynamic_cast<const ConstantMask*>(gate.get().get());
  const auto* layer = dynamic_cast<const Linear*>(slot.get().get());
  if (mask == nullptr || layer == nullptr) {
    fail(Code::unsupported, "{}: a {} on the inputs of a {} has no node in the engine",
         join_path(path, gate.name()), (*gate).kind(), (*slot).kind());
  }
  const at::Tensor columns =
      mask->mask.repeat_interleave(layer->inputs() / mask->units()).to(layer->weight.device());
  std::map<std::string, std::string> tensors = {{"weight", join_path(layer_path, "masked_weight")}};
  add_tensor(builder, tensors["weight"], layer->weight.detach() * columns);
  if (layer->bias.defined()) {
    tensors["bias"] = join_path(layer_path, "bias");
    add_tensor(builder, tensors["bias"], layer->bias);
  }
  return builder.node("linear", layer_path, {x}, {}, std::move(tensors));
}

}  // namespace sluice::lab
