// Windows that slide over pictures and sequences: what convolutions and pools share.
#pragma once
#include <vector>

#include "sluice/bundle/import/onnx/lowering.h"

namespace sluice::bundle::onnx {

/// Height, then width; a sequence has height 1.
struct Window {
  std::vector<int64_t> kernel, stride, dilation, begin, end;
  bool ceil = false;
};

/// Attributes of the node. `kernel` is used where the attribute kernel_shape is left out; `slides`
/// false: pads are not derived from auto_pad.
Window read_window(const Call& call, std::vector<int64_t> kernel, size_t dims, bool slides = true);

/// [1,C,W] or [1,C,H,W] as [1,C,H,W]; anything else is refused.
Val picture(const Call& call, const Val& x);
/// The node's [C,H,W] as the ONNX value of that rank.
Val unpicture(const Call& call, int node, size_t rank);

/// The input with what of the padding is not the same at both sides.
struct Placed {
  Val x;
  std::vector<int64_t> padding;
};
Placed place(const Call& call, const Val& x, const Window& window, double value = 0);

}  // namespace sluice::bundle::onnx
