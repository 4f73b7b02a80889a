#include "sluice/engine/kernel/reference.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/reference_call.h"

namespace sluice::engine {
namespace {

std::vector<ReferenceEntry> all_references() {
  std::vector<ReferenceEntry> entries;
  for (const auto family : {dense_references, binary_references, sparse_references, rows_references,
                            attention_references, conditional_references, text_references,
                            array_references, recurrent_references}) {
    for (const ReferenceEntry& entry : family()) entries.push_back(entry);
  }
  return entries;
}

}  // namespace

ReferenceWindow::ReferenceWindow(const ReferenceCall& call)
    : ReferenceWindow(call, call.x(), call.tensor("weight"), call.tensor_shape("weight")) {}

ReferenceWindow::ReferenceWindow(const ReferenceCall& call, const std::vector<double>& x,
                                 std::span<const float> weight, const Shape& weight_shape)
    : x_(x),
      weight_(weight),
      height_(call.shape()[1]),
      width_(call.shape()[2]),
      kernel_{weight_shape[2], weight_shape[3]},
      stride_(call.pair("stride", 1)),
      padding_(call.pair("padding", 0)),
      dilation_(call.pair("dilation", 1)) {}

double ReferenceWindow::sum(int64_t plane, int64_t channel, int64_t i, int64_t j) const {
  double sum = 0;
  for (int64_t u = 0; u < kernel_[0]; ++u) {
    for (int64_t v = 0; v < kernel_[1]; ++v) {
      const int64_t row = i * stride_[0] + u * dilation_[0] - padding_[0];
      const int64_t column = j * stride_[1] + v * dilation_[1] - padding_[1];
      if (row < 0 || row >= height_ || column < 0 || column >= width_) continue;
      sum += static_cast<double>(
                 weight_[static_cast<size_t>((plane * kernel_[0] + u) * kernel_[1] + v)]) *
             x_[static_cast<size_t>((channel * height_ + row) * width_ + column)];
    }
  }
  return sum;
}

double activate_one(Activation kind, double x) {
  switch (kind) {
    case Activation::none:
      return x;
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::gelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::sigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::tanh:
      return std::tanh(x);
    case Activation::hard_swish:
      return x * std::clamp(x + 3, 0.0, 6.0) / 6;
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  return x;
}

std::vector<double> reference_node(const bundle::Bundle& bundle, const bundle::Node& node,
                                   std::span<const std::vector<double>* const> inputs) {
  static const std::vector<ReferenceEntry> entries = all_references();
  for (const ReferenceEntry& entry : entries) {
    if (entry.op == node.op) return entry.run({bundle, node, inputs});
  }
  fail(Code::unsupported, "{}: operator '{}' has no reference", node.path, node.op);
}

std::vector<std::vector<float>> reference_run_all(const bundle::Bundle& bundle,
                                                  std::span<const std::span<const float>> inputs,
                                                  int64_t count) {
  const bundle::Graph& graph = bundle.graph();
  std::vector<std::vector<float>> results(graph.outputs.size());
  for (size_t sample = 0; sample < static_cast<size_t>(count); ++sample) {
    std::map<std::string, std::vector<double>> values;
    for (size_t i = 0; i < graph.inputs.size(); ++i) {
      const auto each = static_cast<std::ptrdiff_t>(numel(graph.inputs[i].shape));
      const auto first = inputs[i].begin() + static_cast<std::ptrdiff_t>(sample) * each;
      values[graph.inputs[i].name] = std::vector<double>(first, first + each);
    }
    for (const bundle::Node& node : graph.nodes) {
      std::vector<const std::vector<double>*> operands;
      for (const std::string& name : node.inputs) operands.push_back(&values.at(name));
      // A sample that left has no values until scatter_rows.
      const bool left = operands[0]->empty() && node.op != "scatter_rows" && node.op != "pool_rows";
      if (left) {
        values[node.output] = {};
        continue;
      }
      values[node.output] = reference_node(bundle, node, operands);
    }
    for (size_t i = 0; i < results.size(); ++i) {
      const std::vector<double>& out = values.at(graph.outputs[i]);
      results[i].insert(results[i].end(), out.begin(), out.end());
    }
  }
  return results;
}

std::vector<float> reference_run(const bundle::Bundle& bundle, std::span<const float> input,
                                 int64_t count) {
  return reference_run_all(bundle, std::span(&input, 1), count)[0];
}

}  // namespace sluice::engine
