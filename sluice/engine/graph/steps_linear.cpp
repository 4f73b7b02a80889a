// The linear operator: f32 weights through oneDNN or, pruned, from compressed rows; packed weights
// and rounded activations through the kernels of gemm.h.
#include "sluice/engine/graph/steps_linear.h"

#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/block_sparse.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/gemm.h"
#include "sluice/engine/kernel/sparse.h"

namespace sluice::engine {
namespace {

void plan_sparse(Planner& planner, size_t index, Step step, int64_t rows, int64_t in,
                 Layout layout) {
  struct Operands {
    SparseWeights weight;
    std::vector<float> bias;
  };
  const Group& group = planner.group(index);
  const int64_t out = static_cast<int64_t>(group.weight.size()) / in;
  auto operands = std::make_shared<Operands>();
  operands->weight = compress(group.weight, out, in);
  operands->bias = group.bias;
  const SparseWeights& weight = operands->weight;
  Cost cost = step.info.cost;
  cost.macs = weight.nonzero() * (rows / planner.options().samples);
  cost.weight_bytes += weight.bytes() - out * in * static_cast<int64_t>(sizeof(float));
  planner.set_cost(step, cost);
  if (group.adds) step.inputs.push_back(planner.fetch(group.inputs.back(), layout));
  step.kernel.name = fmt::format("sluice csr (density {:.2g})", weight.density());
  step.kernel.scratch_bytes =
      static_cast<int64_t>(sparse_scratch(weight, static_cast<size_t>(rows)) * sizeof(float));
  step.kernel.counts_rows = true;
  step.kernel.bind = [operands, samples = planner.options().samples,
                      each = rows / planner.options().samples, adds = group.adds,
                      activation = group.activation](const Binding& b) -> std::function<void()> {
    const float* x = b.inputs[0];
    const float* other = adds ? b.inputs[1] : nullptr;
    float* y = b.output;
    float* scratch = reinterpret_cast<float*>(b.scratch);
    const LiveRows* live = b.rows;
    return [=] {
      const size_t rows = static_cast<size_t>((live ? live->count : samples) * each);
      const float* bias = operands->bias.empty() ? nullptr : operands->bias.data();
      linear_sparse(x, operands->weight, bias, other ? Activation::none : activation, y, rows,
                    scratch);
      if (other) add(y, other, activation, y, rows * static_cast<size_t>(operands->weight.out));
    };
  };
  planner.finish(index, std::move(step), layout);
}

void plan_blocks(Planner& planner, size_t index, Step step, int64_t rows, int64_t in, Layout layout,
                 BlockShape shape) {
  struct Operands {
    BlockWeights weight;
    std::vector<float> bias;
  };
  const Group& group = planner.group(index);
  const int64_t out = static_cast<int64_t>(group.weight.size()) / in,
                samples = planner.options().samples;
  auto operands = std::make_shared<Operands>();
  operands->weight = compress_blocks(group.weight, out, in, shape);
  operands->bias = group.bias;
  const BlockWeights& weight = operands->weight;
  Cost cost = step.info.cost;
  const int threads = planner.threads_for(cost.macs);
  cost.macs = std::min(cost.macs, weight.blocks() * kBlock * (rows / samples));
  cost.weight_bytes += weight.bytes() - out * in * static_cast<int64_t>(sizeof(float));
  planner.set_cost(step, cost);
  if (group.adds) step.inputs.push_back(planner.fetch(group.inputs.back(), layout));
  step.kernel.name =
      fmt::format("sluice {} blocks (density {:.2g})", shape == BlockShape::tall ? "16x1" : "1x16",
                  static_cast<double>(weight.blocks() * kBlock) / static_cast<double>(out * in));
  step.kernel.counts_rows = true;
  step.kernel.bind = [operands, samples, each = rows / samples, threads, adds = group.adds,
                      activation = group.activation](const Binding& b) -> std::function<void()> {
    const float* x = b.inputs[0];
    const float* other = adds ? b.inputs[1] : nullptr;
    float* y = b.output;
    const LiveRows* live = b.rows;
    return [=] {
      const size_t rows = static_cast<size_t>((live ? live->count : samples) * each);
      const float* bias = operands->bias.empty() ? nullptr : operands->bias.data();
      linear_blocks(x, operands->weight, bias, other ? Activation::none : activation, y, rows,
                    threads);
      if (other) add(y, other, activation, y, rows * static_cast<size_t>(operands->weight.out));
    };
  };
  planner.finish(index, std::move(step), layout);
}

/// From the bytes of the file, in any format.
void plan_mapped(Planner& planner, size_t index, Step step, int64_t rows) {
  const Group& group = planner.group(index);
  const bundle::Node& node = planner.node(index);
  const std::string& name = node.tensors.at("weight");
  const bundle::TensorSpec& spec = planner.bundle().graph().tensors.at(name);
  PackedLinear layer;
  // Network has checked codes and scales.
  layer.weight =
      bundle::view_packed(*bundle::format_from_name(spec.format), spec.shape[0], spec.shape[1],
                          planner.bundle().tensor(name).bytes, "tensor '" + name + "'", true);
  layer.kind = dot_kind_from_name(bundle::attr_string(node.attrs, "activations", "f32"));
  layer.bias = group.bias;
  layer.activation = group.activation;
  layer.adds = group.adds;
  layer.threads = planner.threads_for(step.info.cost.macs);
  if (group.adds) step.inputs.push_back(planner.fetch(group.inputs.back(), Layout::plain));
  const int64_t samples = planner.options().samples;
  step.kernel = make_packed_linear(layer, samples, rows / std::max<int64_t>(samples, 1),
                                   planner.cache(), planner.cache_key(index));
  planner.finish(index, std::move(step), Layout::plain);
}

}  // namespace

SparseChoice pruned_choice(const Planner& planner, size_t index, int64_t rows, int64_t in) {
  if (!planner.options().sparse) return SparseChoice::dense;
  const Group& group = planner.group(index);
  return choose_sparse(group.weight, static_cast<int64_t>(group.weight.size()) / in, in, rows,
                       group.density);
}

void plan_pruned(Planner& planner, size_t index, Step step, int64_t rows, int64_t in, Layout layout,
                 SparseChoice choice) {
  SLUICE_CHECK(choice != SparseChoice::dense);
  if (choice == SparseChoice::rows) {
    return plan_sparse(planner, index, std::move(step), rows, in, layout);
  }
  plan_blocks(planner, index, std::move(step), rows, in, layout,
              choice == SparseChoice::tall ? BlockShape::tall : BlockShape::wide);
}

void plan_linear(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  const Shape& shape = planner.shape_of(step.inputs[0]);
  const int64_t in = shape.back(),
                rows = planner.options().samples * (numel(shape) / std::max<int64_t>(in, 1));
  if (group.packed) return plan_mapped(planner, index, std::move(step), rows);
  const int64_t out = static_cast<int64_t>(group.weight.size()) / in;
  const SparseChoice choice = pruned_choice(planner, index, rows, in);
  if (choice != SparseChoice::dense) {
    return plan_pruned(planner, index, std::move(step), rows, in, Layout::plain, choice);
  }
  if (planner.options().mapped && group.folded.empty())
    return plan_mapped(planner, index, std::move(step), rows);
  const onednn::Tail tail = planner.tail_of(index, Layout::plain, step);
  step.kernel = onednn::make_linear(rows, in, out, tail, group.weight, group.bias,
                                    planner.threads_for(step.info.cost.macs), planner.cache(),
                                    planner.cache_key(index),
                                    /*weight_stays=*/group.folded.empty());
  planner.finish(index, std::move(step), Layout::plain);
}

}  // namespace sluice::engine
