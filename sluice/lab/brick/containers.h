// Bricks made of bricks.
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// Children one after another, each in a named slot. Declares a channel group wherever a Linear or
/// Conv2d feeds, through norms, activations and pools only, the next one; and a fold pair wherever
/// a norm directly follows one.
class Sequential final : public Brick {
 public:
  Sequential() = default;
  Sequential& append(const std::string& name, BrickPtr child);
  std::string kind() const override { return "sequential"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  std::vector<ChannelGroup> channel_groups() const override;
  std::vector<FoldPair> fold_pairs() const override;
  /// A group's mask is a ChannelMask in a slot of its own before the consumer: "<consumer>_mask".
  void set_channel_mask(const ChannelGroup& group, const at::Tensor& mask) override;
  at::Tensor channel_mask(const ChannelGroup& group) const override;
  void clear_channel_mask(const ChannelGroup& group) override;
  void adopt(const std::string& name, BrickPtr child) override;
  void check_slots() const override;
};

/// y = act(shortcut(x) + G * F(x)), F = conv1, norm1, act, (channel gate), conv2, norm2 (He et al.
/// 2016). Slots: conv1 norm1 conv2 norm2, and shortcut (empty: identity), channel_gate (empty: all
/// open; one unit per output channel of conv1, decided from the block's input and multiplied in
/// after norm1 and act), block_gate (empty: always runs; one unit per sample multiplying F(x); only
/// where the shortcut is the identity). Closed channels are exactly zero, so slicing them changes
/// nothing but rounding.
class ResidualBlock final : public Brick {
 public:
  /// Empty slots, filled by adopt(); use make_residual_block for a fresh one.
  explicit ResidualBlock(const std::string& activation = "relu");
  std::string kind() const override { return "residual_block"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  std::vector<ChannelGroup> channel_groups() const override;
  std::vector<FoldPair> fold_pairs() const override;
  void check_slots() const override;
  const std::string& activation() const { return activation_; }
  bool identity_shortcut() const { return shortcut_->empty(); }

 private:
  at::Tensor gate(const Slot& slot, const at::Tensor& x, const at::Tensor& gated,
                  Context& context) const;
  bundle::Value lower_gate(const Slot& slot, bundle::Builder& builder, const bundle::Value& x,
                           const bundle::Value& gated, const std::string& path) const;
  std::string activation_;
  Slot *conv1_, *norm1_, *conv2_, *norm2_, *shortcut_, *channel_gate_, *block_gate_;
};

/// 3x3 convolutions without bias, batch norms, and a 1x1 convolution + norm shortcut where stride
/// or width changes.
BrickPtr make_residual_block(int64_t inputs, int64_t hidden, int64_t outputs, int64_t stride);

}  // namespace sluice::lab
