// The feed-forward network of a transformer block.
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// y = down(act(up(x))); with a layer in `gate` y = down(act(gate(x)) * up(x)) (Shazeer 2020).
/// Slots: gate (empty: plain), up, down: linear layers; neuron_gate (empty: all open): one unit per
/// neuron, multiplied in before down. A gate that looks at its input decides token by token; what
/// it closes is counted as not computed, and in the engine is neither computed nor read
/// (`sparse_ffn`, linear layers only). Several tokens at once then share the neurons that any of a
/// few asks for, so that the engine may count more than the lab does; for one at a time both are
/// equal.
class Ffn final : public Brick {
 public:
  /// Empty slots, filled by adopt(); use make_ffn for a fresh one.
  explicit Ffn(const std::string& activation);
  std::string kind() const override { return "ffn"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  /// One group "neurons".
  std::vector<ChannelGroup> channel_groups() const override;
  void check_slots() const override;
  const std::string& activation() const { return activation_; }
  bool gated() const { return !gate_->empty(); }

 private:
  int64_t neuron_macs(int64_t width) const;  ///< of one neuron for one row
  bundle::Value lower_sparse(bundle::Builder& builder, const bundle::Value& x,
                             const std::string& path) const;
  std::string activation_;
  Slot *gate_, *up_, *down_, *neuron_gate_;
};

BrickPtr make_ffn(int64_t width, int64_t neurons, const std::string& activation, bool gated,
                  bool bias);

}  // namespace sluice::lab
