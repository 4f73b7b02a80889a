#include "sluice/engine/kernel/reference.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/reference_call.h"

namespace sluice::engine {
namespace {

std::vector<ReferenceEntry> collect() {
  std::vector<ReferenceEntry> entries;
  for (const auto family : {dense_references, binary_references, sparse_references, rows_references,
                            attention_references, conditional_references, text_references}) {
    for (const ReferenceEntry& entry : family()) entries.push_back(entry);
  }
  return entries;
}

}  // namespace

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
  static const std::vector<ReferenceEntry> entries = collect();
  for (const ReferenceEntry& entry : entries) {
    if (entry.op == node.op) return entry.run({bundle, node, inputs});
  }
  fail(Code::unsupported, "{}: operator '{}' has no reference", node.path, node.op);
}

std::vector<float> reference_run(const bundle::Bundle& bundle, std::span<const float> input,
                                 int64_t count) {
  const bundle::Graph& graph = bundle.graph();
  const size_t each = static_cast<size_t>(numel(graph.inputs[0].shape));
  std::vector<float> result;
  for (size_t sample = 0; sample < static_cast<size_t>(count); ++sample) {
    std::map<std::string, std::vector<double>> values;
    values[graph.inputs[0].name] =
        std::vector<double>(input.begin() + static_cast<std::ptrdiff_t>(sample * each),
                            input.begin() + static_cast<std::ptrdiff_t>((sample + 1) * each));
    for (const bundle::Node& node : graph.nodes) {
      std::vector<const std::vector<double>*> inputs;
      for (const std::string& name : node.inputs) inputs.push_back(&values.at(name));
      // A sample that left has no values until scatter_rows.
      const bool left = inputs[0]->empty() && node.op != "scatter_rows" && node.op != "pool_rows";
      if (left) {
        values[node.output] = {};
        continue;
      }
      values[node.output] = reference_node(bundle, node, inputs);
    }
    const std::vector<double>& out = values.at(graph.outputs[0]);
    result.insert(result.end(), out.begin(), out.end());
  }
  return result;
}

}  // namespace sluice::engine
