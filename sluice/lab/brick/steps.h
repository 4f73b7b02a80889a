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

/// What the gate in `slot` says for the brick's input `x` [B, T, D] or rows [N, D]: [.., units]
/// with the dimensions of x, of size 1 where it says the same for all rows of a sample.
/// `macs_per_unit`: what a unit saves per sample that is closed for all of it.
at::Tensor unit_decision(const Slot& slot, const at::Tensor& x, double macs_per_unit,
                         Context& context);
/// `gated` [.., units * n] times it, each unit's n columns alike.
at::Tensor times_units(const at::Tensor& gated, const at::Tensor& decision);

/// What the meter counts for rows [.., D] of which each runs the open units of a decision as above:
/// a unit's multiplications, and its weights' bytes where any row has it open.
void meter_units(const at::Tensor& x, const at::Tensor& decision, int64_t macs_per_unit,
                 int64_t bytes_per_unit, Context& context);

/// Nothing is counted while one lives, where `off` says so: its brick counts by itself.
class Unmetered {
 public:
  Unmetered(Context& context, bool off) : context_(context), meter_(context.meter) {
    if (off) context.meter = nullptr;
  }
  ~Unmetered() { context_.meter = meter_; }
  Unmetered(const Unmetered&) = delete;
  Unmetered& operator=(const Unmetered&) = delete;

 private:
  Context& context_;
  Meter* meter_;
};

/// A gate sits in the slot that is no constant mask: what is open depends on the input.
bool decides_by_input(const Slot& gate);

/// The name under which the weight `name` of a linear layer is stored by its inputs (transposed),
/// in place of itself, where a node reads it so; load_model() turns it back.
inline std::string stored_by_input(const std::string& name) { return name + "_by_input"; }

/// The linear layer in `slot` on what the constant mask of `gate` (one entry per unit of its input
/// columns; an empty slot masks nothing) leaves of `x`: a node whose weight has zeros in closed
/// columns. Throws Error{unsupported} for another gate or a layer that is no Linear.
bundle::Value lower_masked(const Slot& slot, const Slot& gate, bundle::Builder& builder,
                           const bundle::Value& x, const std::string& path);

}  // namespace sluice::lab
