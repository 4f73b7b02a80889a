// The dense product under our own convolutions and prefix-width layers:
//
//   out[p][o] = bias[o] + sum over k of x[p][k] * weight[o][k]
//
// Weights lie in panels of 32 outputs, [o / 32][k][o % 32], so that any leading part of outputs and
// of k is a view. What k means is the caller's: runs of numbers relative to each pixel's first.
// Each sum is added up in the order of k whatever the numbers of pixels and outputs are, so
// splitting the work never changes a bit.
#pragma once
#include <cstdint>
#include <span>

#include "sluice/engine/kernel/buffer.h"

namespace sluice::engine {

inline constexpr int64_t kPanel = 32;

/// Outputs rounded up to whole panels.
inline int64_t panel_outputs(int64_t outputs) { return (outputs + kPanel - 1) / kPanel * kPanel; }

struct PanelRun {
  int64_t offset = 0, count = 0;
};

struct PanelCall {
  const float* weight = nullptr;  ///< of the first output, 64-byte aligned
  int64_t panel_stride = 0;       ///< floats from panel to panel, a multiple of 32
  int64_t outputs = 0;
  const float* bias = nullptr;  ///< [panel_outputs(outputs)] or null
  std::span<const PanelRun> runs;
  const float* const* x = nullptr;  ///< where each pixel begins
  int64_t pixels = 0;
  float* out = nullptr;
  int64_t out_stride = 0;   ///< floats from pixel to pixel
  bool accumulate = false;  ///< onto what is in `out`, instead of the bias
  /// Weights that are wanted after these, or null: the last panel asks for as many as it has.
  const float* next = nullptr;
};

/// Reads and writes exactly `outputs` numbers a pixel of `out`, whole panels of weights.
void panel_products(const PanelCall& call);

/// weight [outputs][depth] -> panels; the rest of the last one is 0.
Buffer pack_panels(std::span<const float> weight, int64_t outputs, int64_t depth);

}  // namespace sluice::engine
