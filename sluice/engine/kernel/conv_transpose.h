// Transposed convolution: a product that makes every input position's window, and an addition of
// the windows where they lie.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sluice::engine {

struct ConvTransposeShape {
  int64_t groups = 1, in_channels = 1, out_channels = 1;  ///< channels over all groups
  int64_t in_height = 1, in_width = 1, out_height = 1, out_width = 1;
  int64_t kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
};

/// weight [C, O/groups, kh, kw] -> per group [O/groups kh kw][C/groups], what conv_transpose reads.
std::vector<float> pack_conv_transpose(const ConvTransposeShape& shape,
                                       std::span<const float> weight);
/// Floats of scratch.
size_t conv_transpose_scratch(const ConvTransposeShape& shape);
/// One sample, in [C][H][W] -> out [O][H'][W']; `bias` [O] may be null.
void conv_transpose(const ConvTransposeShape& shape, const float* packed, const float* bias,
                    const float* in, float* out, float* scratch);

}  // namespace sluice::engine
