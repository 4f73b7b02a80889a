// Convolution whose output channels do not fill vectors: what slicing leaves behind (16 -> 7, 32 ->
// 13, 64 -> 37). oneDNN puts output channels into the lanes of a vector and pays for 16 where 7 are
// wanted. Here the lanes hold input channels, which in a sliced residual network keep their full
// width; the work is then proportional to the output channels. Each sum over lanes costs some three
// shuffles an output, which nine taps of 16 channels outweigh. Channels-last memory, one group,
// input channels a multiple of 16, 512-bit vectors; any kernel, stride, padding, dilation.
#pragma once
#include <memory>
#include <optional>
#include <span>

#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {

/// Whether this kernel can run `shape` here at all.
bool narrow_conv_fits(const onednn::ConvShape& shape);
/// Whether it is expected to be faster than oneDNN: a fixed rule from conv_bench.cpp, so that plans
/// do not vary.
bool narrow_conv_pays(const onednn::ConvShape& shape);

/// `weight` [O,C,kh,kw], `bias` [O] or empty. One input when bound.
Kernel make_narrow_conv(const onednn::ConvShape& shape, Activation activation,
                        std::span<const float> weight, std::span<const float> bias, int threads);

}  // namespace sluice::engine
