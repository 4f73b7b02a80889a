// A linear layer that reads only the columns of its weight whose inputs matter.
#pragma once
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/gate/selector.h"

namespace sluice::lab {

struct SparseLinearOptions {
  int64_t inputs = 1, outputs = 1;
  bool bias = true;
  bool scored = false;      ///< an input's score is |x_j| * column_norm[j]; else |x_j|
  Selector select;          ///< all: the dense layer
  int64_t dense_first = 0;  ///< rows at the front of a sequence that keep every input
  /// One per size of the network (Context::size chooses, the last without a choice) in place of
  /// `select`; `all` among them: the dense layer at that size. Empty: the network has one size.
  std::vector<Selector> sizes = {};
};

/// y = W (x * m(x)) + b over the last dimension, m 1 for the inputs that the selector keeps and 0
/// for the others. The weight is stored by input [inputs, outputs], as the engine reads it, so that
/// a skipped input is a run of bytes nobody touches. The mask passes no gradient. NaN inputs are
/// skipped. For [B, T, inputs] the first `dense_first` of T rows keep everything.
class SparseLinear final : public Brick {
 public:
  explicit SparseLinear(const SparseLinearOptions& options);
  /// The layer's weights with a selector before them; `column_norm` [inputs] (numbers >= 0) or
  /// undefined. Throws Error{shape|numeric} for norms that do not fit or are no such numbers.
  static std::shared_ptr<SparseLinear> of(const Linear& layer, const Selector& select,
                                          const at::Tensor& column_norm = {},
                                          int64_t dense_first = 0);

  std::string kind() const override { return "sparse_linear"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  /// With every input that the selector of the last size may keep.
  Cost cost(const Shape& input) const override;
  /// As `sparse_input_linear`, with k = inputs where the selector keeps all.
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;

  /// What forward() keeps of x at the size: [.., inputs] of bool.
  at::Tensor kept(const at::Tensor& x, int64_t size = -1) const;
  /// Nothing is left out, whatever the input (at the last size).
  bool keeps_all() const;
  /// An ordinary layer of the same weights.
  std::shared_ptr<Linear> dense() const;
  const SparseLinearOptions& options() const { return options_; }
  void set_select(const Selector& select);
  /// Throws Error{config} for selectors of several kinds, fewer than 2 or more than 256.
  void set_sizes(std::vector<Selector> sizes);

  at::Tensor weight;       ///< [inputs, outputs]
  at::Tensor bias;         ///< undefined when absent
  at::Tensor column_norm;  ///< buffer [inputs]; undefined unless scored

 private:
  const Selector& selector(int64_t size) const;
  SparseLinearOptions options_;
};

}  // namespace sluice::lab
