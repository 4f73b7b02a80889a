// Low-rank adaptation (Hu et al. 2022, arXiv 2106.09685): a linear layer with a side path of few
// weights, which learns while the layer stays as it is. Passes add-lora and fold-lora put it in
// and take it out.
#pragma once
#include "sluice/lab/brick/layers.h"

namespace sluice::lab {

struct LoraOptions {
  int64_t inputs = 1, outputs = 1, rank = 8;
  double scale = 1;  ///< alpha / rank of the paper; kept as a buffer
};

/// y = base(x) + scale * B A x over the last dimension. Slot base: a linear layer, whose
/// parameters are not trained (requires_grad is off). A starts as a linear layer's weight does, B
/// at 0: a fresh one changes nothing.
class LoraLinear final : public Brick {
 public:
  explicit LoraLinear(const LoraOptions& options);
  static std::shared_ptr<LoraLinear> of(std::shared_ptr<Linear> base, int64_t rank, double scale);

  std::string kind() const override { return "lora_linear"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  /// The layer, and beside it two small ones whose sum with it is the output.
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void adopt(const std::string& name, BrickPtr child) override;
  void check_slots() const override;

  const LoraOptions& options() const { return options_; }
  Linear& base() const { return slot("base").as<Linear>(); }
  /// One layer W + scale * B A with the base's bias; the product in float64.
  std::shared_ptr<Linear> folded() const;

  at::Tensor lora_a;      ///< [rank, inputs]
  at::Tensor lora_b;      ///< [outputs, rank]
  at::Tensor lora_scale;  ///< buffer [1]

 private:
  LoraOptions options_;
};

}  // namespace sluice::lab
