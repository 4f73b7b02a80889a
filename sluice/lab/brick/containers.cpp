#include "sluice/lab/brick/containers.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {
namespace {

bool is_norm(const Brick& brick) { return dynamic_cast<const BatchNorm*>(&brick) != nullptr; }

// Output channels of a layer that a norm or a mask may follow; 0 for other bricks.
int64_t output_channels(const Brick& brick) {
  if (const auto* linear = dynamic_cast<const Linear*>(&brick)) return linear->outputs();
  if (const auto* conv = dynamic_cast<const Conv2d*>(&brick)) return conv->options().outputs;
  return 0;
}

int64_t input_channels(const Brick& brick) {
  if (const auto* linear = dynamic_cast<const Linear*>(&brick)) return linear->inputs();
  if (const auto* conv = dynamic_cast<const Conv2d*>(&brick)) return conv->options().inputs;
  return 0;
}

bool can_slice(const Brick& brick) {
  const auto* conv = dynamic_cast<const Conv2d*>(&brick);
  return conv == nullptr || conv->options().groups == 1;
}

// Acts on every channel alone, the same for each.
bool passes_channels(const Brick& brick) {
  return dynamic_cast<const Activation*>(&brick) != nullptr ||
         dynamic_cast<const Pool2d*>(&brick) != nullptr ||
         dynamic_cast<const Identity*>(&brick) != nullptr;
}

std::string mask_slot(const ChannelGroup& group) { return group.consumers.front() + "_mask"; }

}  // namespace

// ---- Sequential ----

Sequential& Sequential::append(const std::string& name, BrickPtr child) {
  add_slot(name, std::move(child));
  return *this;
}

Json Sequential::attributes() const { return Json::object(); }

BrickPtr make_sequential(const Json& attributes) {
  const AttributeReader read(attributes, "sequential", {});
  return std::make_shared<Sequential>();
}

at::Tensor Sequential::forward(const at::Tensor& x, Context& context) {
  at::Tensor y = x;
  for (const auto& slot : slots()) y = slot->forward(y, context);
  return y;
}

Shape Sequential::output_shape(const Shape& input) const {
  Shape shape = input;
  for (const auto& slot : slots()) shape = slot->output_shape(shape);
  return shape;
}

Cost Sequential::cost(const Shape& input) const {
  Cost total;
  Shape shape = input;
  for (const auto& slot : slots()) {
    total += slot->cost(shape);
    shape = slot->output_shape(shape);
  }
  return total;
}

bundle::Value Sequential::lower(bundle::Builder& builder, const bundle::Value& x,
                                const std::string& path) const {
  bundle::Value y = x;
  for (const auto& slot : slots()) y = slot->lower(builder, y, path);
  return y;
}

std::vector<ChannelGroup> Sequential::channel_groups() const {
  std::vector<ChannelGroup> groups;
  for (size_t i = 0; i < slots().size(); ++i) {
    const Brick& producer = **slots()[i];
    const int64_t channels = output_channels(producer);
    if (channels == 0 || !can_slice(producer)) continue;
    ChannelGroup group;
    group.name = slots()[i]->name();
    group.channels = channels;
    group.producers = {group.name};
    for (size_t j = i + 1; j < slots().size(); ++j) {
      const Brick& next = **slots()[j];
      const std::string& name = slots()[j]->name();
      if (const auto* norm = dynamic_cast<const BatchNorm*>(&next)) {
        if (norm->channels() != channels) break;
        group.carriers.push_back(name);
      } else if (const auto* mask = dynamic_cast<const ChannelMask*>(&next)) {
        if (mask->mask.numel() != channels || !group.gate.empty()) break;
        group.gate = name;
      } else if (output_channels(next) != 0) {
        if (input_channels(next) == channels && can_slice(next)) group.consumers = {name};
        break;
      } else if (!passes_channels(next)) {
        break;
      }
    }
    if (!group.consumers.empty()) groups.push_back(std::move(group));
  }
  return groups;
}

std::vector<FoldPair> Sequential::fold_pairs() const {
  std::vector<FoldPair> pairs;
  for (size_t i = 0; i + 1 < slots().size(); ++i) {
    const auto* norm = dynamic_cast<const BatchNorm*>(&**slots()[i + 1]);
    if (norm != nullptr && output_channels(**slots()[i]) == norm->channels()) {
      pairs.push_back({slots()[i]->name(), slots()[i + 1]->name()});
    }
  }
  return pairs;
}

void Sequential::set_channel_mask(const ChannelGroup& group, const at::Tensor& mask) {
  auto brick = std::make_shared<ChannelMask>(mask);
  if (!group.gate.empty()) {
    slot(group.gate).exchange(std::move(brick));
    return;
  }
  // Right before the consumer: whatever lies between could turn a zero into something else
  // (sigmoid).
  size_t index = 0;
  while (slots()[index]->name() != group.consumers.front()) ++index;
  insert_slot(index, mask_slot(group), std::move(brick));
}

at::Tensor Sequential::channel_mask(const ChannelGroup& group) const {
  if (group.gate.empty()) return {};
  return slot(group.gate).as<ChannelMask>().mask;
}

void Sequential::clear_channel_mask(const ChannelGroup& group) { remove_slot(group.gate); }

void Sequential::adopt(const std::string& name, BrickPtr child) {
  add_slot(name, std::move(child));
}

void Sequential::check_slots() const {
  for (const auto& slot : slots()) {
    if (slot->empty())
      fail(Code::config, "{}: empty; a sequential has no use for that", slot->name());
  }
}

// ---- ResidualBlock ----

ResidualBlock::ResidualBlock(const std::string& activation) : activation_(activation) {
  const Activation check(activation);  // throws for an unknown name
  conv1_ = &add_slot("conv1", nullptr);
  norm1_ = &add_slot("norm1", nullptr);
  conv2_ = &add_slot("conv2", nullptr);
  norm2_ = &add_slot("norm2", nullptr);
  shortcut_ = &add_slot("shortcut", nullptr);
  channel_gate_ = &add_slot("channel_gate", nullptr);
  block_gate_ = &add_slot("block_gate", nullptr);
}

Json ResidualBlock::attributes() const { return {{"activation", activation_}}; }

BrickPtr make_residual_block(const Json& attributes) {
  const AttributeReader read(attributes, "residual_block", {"activation"});
  return std::make_shared<ResidualBlock>(read.text("activation", "relu"));
}

void ResidualBlock::check_slots() const {
  for (const Slot* slot : {conv1_, norm1_, conv2_, norm2_}) {
    if (slot->empty()) fail(Code::config, "{}: must be filled", slot->name());
  }
  const int64_t hidden = output_channels(**conv1_);
  for (const Slot* slot : {channel_gate_, block_gate_}) {
    if (slot->empty()) continue;
    const auto* gate = dynamic_cast<const GateBrick*>(slot->get().get());
    if (gate == nullptr) {
      fail(Code::config, "{}: expected a gate, found a {}", slot->name(), (**slot).kind());
    }
    const int64_t units = slot == block_gate_ ? 1 : hidden;
    if (gate->units() != units && units != 0) {
      fail(Code::config, "{}: expected {} units, found {}", slot->name(), units, gate->units());
    }
  }
  if (!block_gate_->empty() && !shortcut_->empty()) {
    fail(Code::config, "block_gate: only a block with an identity shortcut can be skipped");
  }
}

at::Tensor ResidualBlock::gate(const Slot& slot, const at::Tensor& x, const at::Tensor& gated,
                               Context& context) const {
  at::Tensor unit_macs;
  if (context.gate_log != nullptr) {
    const Shape shape(x.sizes().begin() + 1, x.sizes().end());
    const int64_t first = conv1_->cost(shape).macs;
    const int64_t second = conv2_->cost(conv1_->output_shape(shape)).macs;
    const int64_t units = slot.as<GateBrick>().units();
    unit_macs = at::full({units}, static_cast<double>(first + second) / static_cast<double>(units),
                         x.options());
  }
  const Context::Scope scope(context, slot.name());
  const at::Tensor decision = slot.as<GateBrick>().decide(x, unit_macs, context);
  std::vector<int64_t> broadcast(static_cast<size_t>(gated.dim()), 1);
  broadcast[0] = decision.size(0);
  broadcast[1] = decision.size(1);
  return gated * decision.reshape(broadcast);
}

at::Tensor ResidualBlock::forward(const at::Tensor& x, Context& context) {
  at::Tensor h = norm1_->forward(conv1_->forward(x, context), context);
  h = activate(activation_, h);
  if (!channel_gate_->empty()) h = gate(*channel_gate_, x, h, context);
  h = norm2_->forward(conv2_->forward(h, context), context);
  if (!block_gate_->empty()) h = gate(*block_gate_, x, h, context);
  const at::Tensor passed = shortcut_->empty() ? x : shortcut_->forward(x, context);
  return activate(activation_, passed + h);
}

Shape ResidualBlock::output_shape(const Shape& input) const {
  const Shape hidden = norm1_->output_shape(conv1_->output_shape(input));
  const Shape output = norm2_->output_shape(conv2_->output_shape(hidden));
  const Shape passed = shortcut_->empty() ? input : shortcut_->output_shape(input);
  if (passed != output) {
    fail(Code::shape, "residual_block: the shortcut gives {}, the branch {}", to_string(passed),
         to_string(output));
  }
  return output;
}

Cost ResidualBlock::cost(const Shape& input) const {
  const Shape hidden = conv1_->output_shape(input);
  const Shape output = conv2_->output_shape(hidden);
  Cost total =
      conv1_->cost(input) + norm1_->cost(hidden) + conv2_->cost(hidden) + norm2_->cost(output);
  if (!shortcut_->empty()) total += shortcut_->cost(input);
  if (!channel_gate_->empty()) total += channel_gate_->cost(input);
  if (!block_gate_->empty()) total += block_gate_->cost(input);
  return total;
}

bundle::Value ResidualBlock::lower_gate(const Slot& slot, bundle::Builder& builder,
                                        const bundle::Value& x, const bundle::Value& gated,
                                        const std::string& path) const {
  const std::string gate_path = join_path(path, slot.name());
  if (const auto* mask = dynamic_cast<const ConstantMask*>(slot.get().get())) {
    const std::string name = join_path(gate_path, "mask");
    add_tensor(builder, name, mask->mask);
    return builder.node("scale", gate_path, {gated}, {}, {{"scale", name}});
  }
  const bundle::Value decision = slot.lower(builder, x, path);
  return builder.node("mul", gate_path + ".mul", {gated, decision});
}

bundle::Value ResidualBlock::lower(bundle::Builder& builder, const bundle::Value& x,
                                   const std::string& path) const {
  const bundle::Attributes kind = {{"kind", activation_}};
  bundle::Value h = norm1_->lower(builder, conv1_->lower(builder, x, path), path);
  h = builder.node("activation", join_path(path, "act1"), {h}, kind);
  if (!channel_gate_->empty()) h = lower_gate(*channel_gate_, builder, x, h, path);
  h = norm2_->lower(builder, conv2_->lower(builder, h, path), path);
  if (!block_gate_->empty()) h = lower_gate(*block_gate_, builder, x, h, path);
  const bundle::Value passed = shortcut_->empty() ? x : shortcut_->lower(builder, x, path);
  h = builder.node("add", join_path(path, "add"), {passed, h});
  return builder.node("activation", join_path(path, "act2"), {h}, kind);
}

std::vector<ChannelGroup> ResidualBlock::channel_groups() const {
  if (!can_slice(**conv1_) || !can_slice(**conv2_)) return {};
  ChannelGroup group;
  group.name = "hidden";
  group.channels = output_channels(**conv1_);
  group.producers = {"conv1"};
  if (is_norm(**norm1_)) group.carriers = {"norm1"};
  group.consumers = {"conv2"};
  group.gate = "channel_gate";
  if (group.channels == 0 || input_channels(**conv2_) != group.channels) return {};
  return {group};
}

std::vector<FoldPair> ResidualBlock::fold_pairs() const {
  std::vector<FoldPair> pairs;
  if (is_norm(**norm1_) && output_channels(**conv1_) != 0) pairs.push_back({"conv1", "norm1"});
  if (is_norm(**norm2_) && output_channels(**conv2_) != 0) pairs.push_back({"conv2", "norm2"});
  return pairs;
}

BrickPtr make_residual_block(int64_t inputs, int64_t hidden, int64_t outputs, int64_t stride) {
  auto block = std::make_shared<ResidualBlock>();
  const auto conv = [](int64_t from, int64_t to, int64_t kernel, int64_t step) {
    return std::make_shared<Conv2d>(Conv2dOptions{.inputs = from,
                                                  .outputs = to,
                                                  .kernel = kernel,
                                                  .stride = step,
                                                  .padding = kernel / 2,
                                                  .bias = false});
  };
  block->slot("conv1").exchange(conv(inputs, hidden, 3, stride));
  block->slot("norm1").exchange(std::make_shared<BatchNorm>(hidden));
  block->slot("conv2").exchange(conv(hidden, outputs, 3, 1));
  block->slot("norm2").exchange(std::make_shared<BatchNorm>(outputs));
  if (stride != 1 || inputs != outputs) {
    auto shortcut = std::make_shared<Sequential>();
    shortcut->append("conv", conv(inputs, outputs, 1, stride));
    shortcut->append("norm", std::make_shared<BatchNorm>(outputs));
    block->slot("shortcut").exchange(std::move(shortcut));
  }
  return block;
}

}  // namespace sluice::lab
