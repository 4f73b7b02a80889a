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

int64_t Ffn::neuron_macs(int64_t width) const {
  const Shape row = {1, width}, hidden = up_->output_shape(row);
  int64_t macs = up_->cost(row).macs + down_->cost(hidden).macs;
  if (gated()) macs += gate_->cost(row).macs;
  return macs / hidden.back();
}

at::Tensor Ffn::forward(const at::Tensor& x, Context& context) {
  const bool skips = decides_by_input(*neuron_gate_);
  at::Tensor h, y, decision;
  {
    const Unmetered unmetered(context, skips);
    h = gated() ? activate(activation_, gate_->forward(x, context)) * up_->forward(x, context)
                : activate(activation_, up_->forward(x, context));
  }
  if (!neuron_gate_->empty()) {
    const int64_t rows = x.dim() > 2 ? x.size(1) : 1;  // of a sample
    decision = unit_decision(*neuron_gate_, x, static_cast<double>(rows * neuron_macs(x.size(-1))),
                             context);
    h = times_units(h, decision);
  }
  if (!skips) return down_->forward(h, context);
  {
    const Unmetered unmetered(context, true);
    y = down_->forward(h, context);
  }
  const int64_t macs = neuron_macs(x.size(-1));
  meter_units(x, decision, macs, macs * static_cast<int64_t>(x.element_size()), context);
  return y;
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
  const Shape hidden = up_->output_shape(input);
  Cost total = up_->cost(input) + down_->cost(hidden);
  if (gated()) total += gate_->cost(input);
  if (const auto* gate = dynamic_cast<const Gate*>(neuron_gate_->get().get())) {
    total.macs = total.macs / hidden.back() * gate->most_open();
  }
  if (!neuron_gate_->empty()) total += neuron_gate_->cost(input);
  return total;
}

bundle::Value Ffn::lower_sparse(bundle::Builder& builder, const bundle::Value& x,
                                const std::string& path) const {
  const std::string gate_path = join_path(path, neuron_gate_->name());
  const auto* gate = dynamic_cast<const Gate*>(neuron_gate_->get().get());
  if (gate == nullptr) {
    fail(Code::unsupported, "{}: a {} of neurons has no node in the engine; it has those of a gate",
         gate_path, (**neuron_gate_).kind());
  }
  std::map<std::string, std::string> tensors;
  const auto add = [&](const std::string& role, const Slot& slot) {
    const auto* layer = dynamic_cast<const Linear*>(slot.get().get());
    const std::string layer_path = join_path(path, slot.name());
    if (layer == nullptr) {
      fail(
          Code::unsupported,
          "{}: a {} whose neurons a gate closes one by one has no node in the engine; it has those "
          "of ordinary linear layers (dequantize first)",
          layer_path, (*slot).kind());
    }
    const std::string weight = join_path(layer_path, "weight");
    const bool by_input = role == "down";  // a row for each neuron, as the others have
    tensors[role] = by_input ? stored_by_input(weight) : weight;
    add_tensor(builder, tensors[role], by_input ? layer->weight.detach().t() : layer->weight);
    if (!layer->bias.defined()) return;
    tensors[role + "_bias"] = join_path(layer_path, "bias");
    add_tensor(builder, tensors[role + "_bias"], layer->bias);
  };
  add("up", *up_);
  if (gated()) add("gate", *gate_);
  add("down", *down_);
  const Gate::Lowered scores = gate->lower_logits(builder, x, gate_path);
  bundle::Attributes attributes = {{"activation", activation_}};
  add_selector(scores.selector, attributes);
  return builder.node("sparse_ffn", node_path_of(path, *this), {x, scores.logits},
                      std::move(attributes), std::move(tensors));
}

bundle::Value Ffn::lower(bundle::Builder& builder, const bundle::Value& x,
                         const std::string& path) const {
  if (decides_by_input(*neuron_gate_)) return lower_sparse(builder, x, path);
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
