#include "sluice/lab/brick/steps.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {

at::Tensor apply_unit_gate(const Slot& slot, const at::Tensor& x, const at::Tensor& gated,
                           double macs_per_unit, Context& context) {
  auto& gate = slot.as<GateBrick>();
  const int64_t units = gate.units();
  at::Tensor unit_macs;
  if (context.gate_log != nullptr) unit_macs = at::full({units}, macs_per_unit, x.options());
  const Context::Scope scope(context, slot.name());
  at::Tensor decision = gate.decide(x, unit_macs, context);
  if (decision.dim() == 2) decision = decision.unsqueeze(1);
  return (gated.unflatten(-1, {units, -1}) * decision.unsqueeze(-1)).flatten(-2);
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
