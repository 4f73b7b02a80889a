// A linear layer whose bias depends on the size that the network runs at (Context::size): what
// turns a gate's scores into cheaper or dearer decisions (pass calibrate-gates).
#pragma once
#include <vector>

#include "sluice/lab/brick/layers.h"

namespace sluice::lab {

/// y = W x + b_s over the last dimension, s the size. With one size an ordinary layer with a bias.
class SizedLinear final : public Brick {
 public:
  SizedLinear(int64_t inputs, int64_t outputs, int64_t sizes = 1);
  /// The same weight and bias (zeros where the layer has none), copied.
  static std::shared_ptr<SizedLinear> of(const Linear& layer);
  /// A copy with as many sizes as there are offsets ([outputs] each), b_s = bias + offset s. One of
  /// zeros gives the ordinary layer back. Throws Error{config} for none or more than 256.
  std::shared_ptr<SizedLinear> with_offsets(const std::vector<at::Tensor>& offsets) const;

  std::string kind() const override { return "sized_linear"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  /// The same unmetered; `size` -1 is the last.
  at::Tensor at_size(const at::Tensor& x, int64_t size = -1) const;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  /// One layer per size, of which a size_switch runs one.
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;

  int64_t inputs() const { return weight.size(1); }
  int64_t outputs() const { return weight.size(0); }
  int64_t sizes() const { return std::max<int64_t>(1, std::ssize(bias_at_)); }

  at::Tensor weight;  ///< [outputs, inputs]
  at::Tensor bias;    ///< [outputs], as trained

 private:
  std::vector<at::Tensor> bias_at_;  ///< buffers [outputs], by size; empty with one
};

}  // namespace sluice::lab
