// The operator table: one entry per node kind the graph may use. Adding an operator = one entry in
// ops.cpp (checked shapes and cost), a kernel in engine/kernel, a line in docs/formats.md.
//
//   op             inputs                 tensors               attributes
//   conv2d         x [C,H,W]              weight [O,C/g,kh,kw], bias? [O]   stride [2]=1, padding
//   [2]=0, dilation [2]=1, groups=1 linear         x [..,I]               weight [O,I], bias? [O] -
//   batch_norm     x [C,..]               weight?, bias?, running_mean, running_var [C]   eps=1e-5
//   layer_norm     x [..,D]               weight?, bias? [D]                eps=1e-5
//   activation     x                      -                     kind:
//   relu|gelu|silu|sigmoid|tanh|hard_swish add            a, b same shape        - - mul a [C,..],
//   b [C] or [1] or same shape   -     -           (b broadcasts over trailing dimensions) scale x
//   [C,..]               scale [C] or [1]      -           constant per-channel factor (frozen
//   gates) max_pool2d     x [C,H,W]              -                     kernel [2], stride
//   [2]=kernel, padding [2]=0 avg_pool2d     x [C,H,W]              -                     kernel
//   [2], stride [2]=kernel, padding [2]=0 (padding not counted) global_avg_pool x [C,H,W] - - ->
//   [C] flatten        x                      -                     -           -> [numel] softmax
//   x [..,D]               -                     - threshold      x                      - value=0
//   x > value ? 1 : 0
#pragma once
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/bundle/graph.h"

namespace sluice::bundle {

struct OpInput {
  const Node& node;
  std::span<const Shape> inputs;                     ///< per-sample shapes
  const std::map<std::string, TensorSpec>& tensors;  ///< by role, already looked up
};

struct Operator {
  std::string_view name;
  size_t min_inputs, max_inputs;
  std::vector<std::string_view> required_tensors, optional_tensors;
  std::vector<std::string_view> attributes;  ///< known ones; others are refused
  /// Output shape; throws Error{shape} (message without the node's name: the caller adds it).
  Shape (*shape)(const OpInput&);
  int64_t (*macs)(const OpInput&, const Shape& output);
};

/// nullptr when unknown.
const Operator* find_operator(std::string_view name);
std::span<const Operator> all_operators();

}  // namespace sluice::bundle
