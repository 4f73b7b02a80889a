// Internal: what several bricks do.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// A node needs a path even where the brick is the whole model.
inline std::string node_path_of(const std::string& path, const Brick& brick) {
  return path.empty() ? brick.kind() : path;
}

inline int64_t tensor_bytes(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.numel() * static_cast<int64_t>(tensor.element_size()) : 0;
}

/// A float64 copy without a gradient, for what is solved or folded exactly.
inline at::Tensor in_doubles(const at::Tensor& tensor) { return tensor.detach().to(at::kDouble); }

/// `gated` [B, T, units * n] times the decision of the gate in `slot` ([B, units] or [B, T, units])
/// for the brick's input `x`, each unit's n columns alike. `macs_per_unit`: what a closed unit
/// saves per sample.
at::Tensor apply_unit_gate(const Slot& slot, const at::Tensor& x, const at::Tensor& gated,
                           double macs_per_unit, Context& context);

/// The linear layer in `slot` on what the constant mask of `gate` (one entry per unit of its input
/// columns; an empty slot masks nothing) leaves of `x`: a node whose weight has zeros in closed
/// columns. Throws Error{unsupported} for another gate or a layer that is no Linear.
bundle::Value lower_masked(const Slot& slot, const Slot& gate, bundle::Builder& builder,
                           const bundle::Value& x, const std::string& path);

}  // namespace sluice::lab
