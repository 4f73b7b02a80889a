// Norms over the last dimension.
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// y = x / sqrt(mean of x^2 + eps) * weight (Zhang & Sennrich 2019). A last dimension that is a
/// multiple of `width` is normed in parts of `width`, all with the same weight: the heads of
/// queries and keys.
class RmsNorm final : public Brick {
 public:
  explicit RmsNorm(int64_t width, double eps = 1e-5, bool weight = true);
  std::string kind() const override { return "rms_norm"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  int64_t width() const { return width_; }
  double eps() const { return eps_; }

  at::Tensor weight;  ///< [width]; undefined when absent

 private:
  int64_t width_;
  double eps_;
};

/// y = (x - mean) / sqrt(var + eps) * weight + bias, var divides by the width (Ba et al. 2016).
class LayerNorm final : public Brick {
 public:
  explicit LayerNorm(int64_t width, double eps = 1e-5, bool weight = true, bool bias = true);
  std::string kind() const override { return "layer_norm"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  int64_t width() const { return width_; }
  double eps() const { return eps_; }

  at::Tensor weight, bias;  ///< [width]; undefined when absent

 private:
  int64_t width_;
  double eps_;
};

}  // namespace sluice::lab
