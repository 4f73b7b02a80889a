// Layers with one bit per weight and per activation: sums of +-1 products by exclusive or and bit
// counts.
//
//   y[o] = w_scale[o] * x_scale * sum over the window of sign(x) * sign(w)  + bias[o]
//
// sign(x) is +1 for x >= 0 (also -0), else -1; NaN counts as -1. x_scale is `scale`, times the mean
// of |x| over the sample (convolution) or over the row (linear) where `mean_scale` is set; a NaN in
// x then makes that sample's results NaN. Taps in the zero padding contribute 0, exactly: the sum
// is an integer, right for any channel count, stride, padding and dilation.
//
// Bits of 64 channels of a pixel are one word, so a channel count far below the next multiple of 64
// wastes work. Vectors hold output channels: no sums over lanes. x and y: channels last.
#pragma once
#include <functional>
#include <span>

#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {

struct XnorOptions {
  Activation activation = Activation::none;
  bool mean_scale = false;
  float scale = 1;
  int threads = 1;
  /// Tests: leave the 512-bit popcount instruction alone where the machine has it.
  bool plain_vectors = false;
};

/// The 1-bit weights: row o into `values` as +-s[o], in the order [channel][kh][kw]. Rows are asked
/// for once, in order. Throws Error{format} naming `what` where a row has two magnitudes.
using BinaryRows = std::function<void(int64_t row, std::span<float> values)>;

/// `bias` [O] or empty. One input when bound. Groups must be 1. Throws Error{limit} for more than
/// 2^29 weights per output, and for a padded picture above 2^32 bytes.
Kernel make_xnor_conv(const onednn::ConvShape& shape, const BinaryRows& weight,
                      std::span<const float> bias, const XnorOptions& options,
                      const std::string& what);
/// x [rows][in], y [rows][out].
Kernel make_xnor_linear(int64_t rows, int64_t in, int64_t out, const BinaryRows& weight,
                        std::span<const float> bias, const XnorOptions& options,
                        const std::string& what);

}  // namespace sluice::engine
