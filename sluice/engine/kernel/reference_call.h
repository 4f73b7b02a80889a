// What the reference operators of all families (reference_<family>.cpp) are written with.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/bundle/bundle.h"
#include "sluice/engine/kernel/kernel.h"

namespace sluice::engine {

/// One node on one sample, with its operands at hand. Between compact_rows and scatter_rows
/// `inputs` hold the rows that are left, fewer than shape() says: operators that take rows apart go
/// by the number of elements.
struct ReferenceCall {
  const bundle::Bundle& bundle;
  const bundle::Node& node;
  std::span<const std::vector<double>* const> inputs;

  const std::vector<double>& x() const { return *inputs[0]; }
  const Shape& shape(size_t i = 0) const { return bundle.info().shapes.at(node.inputs[i]); }
  const Shape& out_shape() const { return bundle.info().shapes.at(node.output); }
  size_t out_count() const { return static_cast<size_t>(numel(out_shape())); }
  bool has(const std::string& role) const { return node.tensors.count(role) > 0; }
  /// Values of a tensor of two dimensions in any format.
  std::vector<float> weights(const std::string& role) const;
  /// One row of the input as the node's attribute 'activations' rounds it.
  std::vector<double> rounded(std::span<const double> row) const;
  std::span<const float> tensor(const std::string& role) const {
    return bundle.tensor(node.tensors.at(role)).f32();
  }
  const Shape& tensor_shape(const std::string& role) const {
    return bundle.graph().tensors.at(node.tensors.at(role)).shape;
  }
  std::vector<int64_t> pair(const std::string& name, int64_t fallback) const {
    return bundle::attr_ints(node.attrs, name, 2, fallback);
  }
};

struct ReferenceEntry {
  std::string_view op;
  std::vector<double> (*run)(const ReferenceCall& call);
};

double activate_one(Activation kind, double x);

/// The window of a convolution whose weight is [O,C,kh,kw], as its node declares it.
class ReferenceWindow {
 public:
  explicit ReferenceWindow(const ReferenceCall& call);
  /// Of a conv2d whose values are these.
  ReferenceWindow(const ReferenceCall& call, const std::vector<double>& x,
                  std::span<const float> weight, const Shape& weight_shape);
  /// Products of channel `channel` of the input [C,H,W] with kernel `plane` of the weight's O C,
  /// for output place (i, j); outside the picture there is nothing.
  double sum(int64_t plane, int64_t channel, int64_t i, int64_t j) const;

 private:
  const std::vector<double>& x_;
  std::span<const float> weight_;
  int64_t height_, width_;
  std::vector<int64_t> kernel_, stride_, padding_, dilation_;
};

// One source file each.
std::vector<ReferenceEntry> dense_references();
std::vector<ReferenceEntry> binary_references();
std::vector<ReferenceEntry> sparse_references();
std::vector<ReferenceEntry> conditional_references();
std::vector<ReferenceEntry> rows_references();
std::vector<ReferenceEntry> attention_references();
std::vector<ReferenceEntry> text_references();
std::vector<ReferenceEntry> array_references();
std::vector<ReferenceEntry> recurrent_references();

}  // namespace sluice::engine
