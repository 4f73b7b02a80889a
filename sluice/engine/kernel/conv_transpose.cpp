#include "sluice/engine/kernel/conv_transpose.h"

#include <algorithm>

#include "sluice/engine/kernel/onednn.h"
#include "sluice/engine/kernel/reduce.h"

namespace sluice::engine {
namespace {

size_t window(const ConvTransposeShape& s) {
  return static_cast<size_t>(s.kernel[0] * s.kernel[1]);
}

/// Adds one tap's plane to the output where it lies.
void add_tap(const ConvTransposeShape& s, const float* plane, int64_t ky, int64_t kx, float* out) {
  for (int64_t y = 0; y < s.in_height; ++y) {
    const int64_t to_y = y * s.stride[0] + ky * s.dilation[0] - s.padding[0];
    if (to_y < 0 || to_y >= s.out_height) continue;
    for (int64_t x = 0; x < s.in_width; ++x) {
      const int64_t to_x = x * s.stride[1] + kx * s.dilation[1] - s.padding[1];
      if (to_x < 0 || to_x >= s.out_width) continue;
      out[to_y * s.out_width + to_x] += plane[y * s.in_width + x];
    }
  }
}

}  // namespace

std::vector<float> pack_conv_transpose(const ConvTransposeShape& s, std::span<const float> weight) {
  const size_t in = static_cast<size_t>(s.in_channels / s.groups),
               rows = static_cast<size_t>(s.out_channels / s.groups) * window(s);
  std::vector<float> packed(weight.size());
  for (size_t g = 0; g < static_cast<size_t>(s.groups); ++g)
    transpose(weight.data() + g * in * rows, packed.data() + g * in * rows, 1, in, rows);
  return packed;
}

size_t conv_transpose_scratch(const ConvTransposeShape& s) {
  const size_t pixels = static_cast<size_t>(s.in_height * s.in_width);
  return pixels * static_cast<size_t>(s.in_channels / s.groups) +
         pixels * static_cast<size_t>(s.out_channels / s.groups) * window(s);
}

void conv_transpose(const ConvTransposeShape& s, const float* packed, const float* bias,
                    const float* in, float* out, float* scratch) {
  const int64_t channels = s.in_channels / s.groups, outputs = s.out_channels / s.groups,
                pixels = s.in_height * s.in_width, taps = static_cast<int64_t>(window(s)),
                out_pixels = s.out_height * s.out_width;
  float* turned = scratch;  // [pixels][channels]
  float* planes = scratch + pixels * channels;
  for (int64_t g = 0; g < s.groups; ++g) {
    transpose(in + g * channels * pixels, turned, 1, static_cast<size_t>(channels),
              static_cast<size_t>(pixels));
    onednn::multiply_rows(packed + g * outputs * taps * channels, turned, outputs * taps, channels,
                          pixels, planes, pixels);
    for (int64_t o = 0; o < outputs; ++o) {
      float* plane = out + (g * outputs + o) * out_pixels;
      std::fill(plane, plane + out_pixels, bias ? bias[g * outputs + o] : 0.0f);
      for (int64_t k = 0; k < taps; ++k)
        add_tap(s, planes + (o * taps + k) * pixels, k / s.kernel[1], k % s.kernel[1], plane);
    }
  }
}

}  // namespace sluice::engine
