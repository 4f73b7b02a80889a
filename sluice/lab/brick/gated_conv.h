// Convolutions whose filters run only where a gate asks for them, per sample. What one layer leaves
// out the next one does not read: masks go from unit to unit, so savings multiply. In a bundle they
// are gathered_conv2d nodes (docs/formats.md), and the meter counts kept inputs times kept outputs,
// as the engine runs them. In the lab everything is computed and then masked.
#pragma once
#include <optional>
#include <utility>

#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// y = mask * act(norm(conv(x))), the mask decided from x by the gate. Slots: conv (Conv2d; groups
/// 1 where there is a gate), norm (BatchNorm, Identity or empty), act (an Activation that leaves 0
/// at 0, or Identity), gate (a GateBrick with one unit per filter; empty: all run). The mask comes
/// last, so that statistics of the norm are those of whole outputs. A constant mask is computed
/// whole and zeroed: slice it away to save anything.
class GatedConvUnit final : public Brick {
 public:
  GatedConvUnit();
  std::string kind() const override { return "gated_conv_unit"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  std::vector<FoldPair> fold_pairs() const override;
  void check_slots() const override;

  /// Channels of x whose entry of `mask` [batch, channels] is 0 are zero and are not counted;
  /// undefined: all are. Gives the output and its own mask, undefined where all filters run.
  std::pair<at::Tensor, at::Tensor> forward_masked(const at::Tensor& x, const at::Tensor& mask,
                                                   Context& context);
  /// The same as nodes.
  std::pair<bundle::Value, std::optional<bundle::Value>> lower_masked(
      bundle::Builder& builder, const bundle::Value& x, const std::optional<bundle::Value>& mask,
      const std::string& path) const;

 private:
  bool skips() const;  ///< its gate looks at the input
  Slot *conv_, *norm_, *act_, *gate_;
};

/// Conv (without bias), batch norm, relu and no gate.
BrickPtr make_gated_conv_unit(int64_t inputs, int64_t outputs, int64_t kernel = 3,
                              int64_t stride = 1);

/// Children one after another; masks go from unit to unit, through pools. With `residual` the
/// input, or what the slot "shortcut" makes of it, is added at the end and a relu follows: the last
/// unit's mask then acts before the sum, and none goes on from there.
class GatedConvChain final : public Brick {
 public:
  explicit GatedConvChain(bool residual = false);
  GatedConvChain& append(const std::string& name, BrickPtr child);
  std::string kind() const override { return "gated_conv_chain"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void adopt(const std::string& name, BrickPtr child) override;
  void check_slots() const override;

 private:
  bool residual_;
  Slot* shortcut_ = nullptr;
};

}  // namespace sluice::lab
