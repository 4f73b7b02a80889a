#include "sluice/lab/brick/ffn.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {

Ffn::Ffn(const std::string& activation) : activation_(activation) {
  const Activation check(activation);  // throws for an unknown name
  gate_ = &add_slot("gate", nullptr);
  up_ = &add_slot("up", nullptr);
  down_ = &add_slot("down", nullptr);
  neuron_gate_ = &add_slot("neuron_gate", nullptr);
}

Json Ffn::attributes() const { return {{"activation", activation_}}; }

BrickPtr make_ffn(const Json& attributes) {
  const AttributeReader read(attributes, "ffn", {"activation"});
  return std::make_shared<Ffn>(read.text("activation"));
}

BrickPtr make_ffn(int64_t width, int64_t neurons, const std::string& activation, bool gated,
                  bool bias) {
  auto result = std::make_shared<Ffn>(activation);
  if (gated) result->slot("gate").exchange(std::make_shared<Linear>(width, neurons, bias));
  result->slot("up").exchange(std::make_shared<Linear>(width, neurons, bias));
  result->slot("down").exchange(std::make_shared<Linear>(neurons, width, bias));
  return result;
}

void Ffn::check_slots() const {
  for (const Slot* slot : {up_, down_}) {
    if (slot->empty()) fail(Code::config, "{}: must be filled", slot->name());
  }
  if (!neuron_gate_->empty()) neuron_gate_->as<GateBrick>();
}

at::Tensor Ffn::forward(const at::Tensor& x, Context& context) {
  at::Tensor h = gated()
                     ? activate(activation_, gate_->forward(x, context)) * up_->forward(x, context)
                     : activate(activation_, up_->forward(x, context));
  if (!neuron_gate_->empty()) {
    double per_unit = 0;
    if (context.gate_log != nullptr) {
      const Shape shape(x.sizes().begin() + 1, x.sizes().end());
      per_unit = static_cast<double>(cost(shape).macs) / static_cast<double>(h.size(-1));
    }
    h = apply_unit_gate(*neuron_gate_, x, h, per_unit, context);
  }
  return down_->forward(h, context);
}

Shape Ffn::output_shape(const Shape& input) const {
  const Shape hidden = up_->output_shape(input);
  if (gated() && gate_->output_shape(input) != hidden) {
    fail(Code::shape, "ffn: gate gives {}, up {}", to_string(gate_->output_shape(input)),
         to_string(hidden));
  }
  if (!neuron_gate_->empty() && neuron_gate_->as<GateBrick>().units() != hidden.back()) {
    fail(Code::shape, "ffn: neuron_gate has {} units for {} neurons",
         neuron_gate_->as<GateBrick>().units(), hidden.back());
  }
  return down_->output_shape(hidden);
}

Cost Ffn::cost(const Shape& input) const {
  Cost total = up_->cost(input) + down_->cost(up_->output_shape(input));
  if (gated()) total += gate_->cost(input);
  if (!neuron_gate_->empty()) total += neuron_gate_->cost(input);
  return total;
}

bundle::Value Ffn::lower(bundle::Builder& builder, const bundle::Value& x,
                         const std::string& path) const {
  const auto act = [&](const bundle::Value& value) {
    return builder.node("activation", join_path(path, "act"), {value}, {{"kind", activation_}});
  };
  bundle::Value h;
  if (gated()) {
    const bundle::Value gate = act(gate_->lower(builder, x, path));
    h = builder.node("mul", join_path(path, "mul"), {gate, up_->lower(builder, x, path)});
  } else {
    h = act(up_->lower(builder, x, path));
  }
  return lower_masked(*down_, *neuron_gate_, builder, h, path);
}

std::vector<ChannelGroup> Ffn::channel_groups() const {
  ChannelGroup group;
  group.name = "neurons";
  group.unit = "neuron";
  group.producers = {"up"};
  if (gated()) group.producers.insert(group.producers.begin(), "gate");
  group.consumers = {"down"};
  group.gate = "neuron_gate";
  for (const Slot* slot : {gate_, up_, down_}) {
    if (!slot->empty() && dynamic_cast<const Linear*>(slot->get().get()) == nullptr) return {};
  }
  group.channels = up_->as<Linear>().outputs();
  return {group};
}

}  // namespace sluice::lab
