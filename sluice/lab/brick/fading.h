// An activation that fades out while a network trains, so that the layers around it end as one
// linear map and fold into one layer (deep training of VanillaNet: Chen et al. 2023).
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// y = (1 - amount) f(x) + amount x. The amount is state of the brick, not of a forward: it is
/// saved, copied and evaluated with the weights that were trained under it. Gradients do not reach
/// it. Lowers to the activation (amount 0), nothing (1), or for relu in between a leaky relu;
/// Error{unsupported} for other functions.
class FadingActivation final : public Brick {
 public:
  explicit FadingActivation(const std::string& function = "relu");
  std::string kind() const override { return "fading_activation"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override { return input; }
  Cost cost(const Shape&) const override { return {}; }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  const std::string& function() const { return function_; }
  /// Throws Error{config} outside of 0 to 1.
  void set_amount(double value);
  double value() const;  ///< of the amount; waits for a GPU
  bool faded() const { return value() == 1; }

  at::Tensor amount;  ///< buffer [1]

 private:
  std::string function_;
};

/// Sets the amount of every fading activation below `root`, itself included; returns how many there
/// are. Throws Error{config} outside of 0 to 1.
int64_t set_fade(Brick& root, double amount);

}  // namespace sluice::lab
