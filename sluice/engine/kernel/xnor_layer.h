// What the vector versions of xnor.h share.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {

inline constexpr int64_t kXnorBlock = 16;  ///< output channels side by side
inline constexpr int64_t kXnorStrip = 32;  ///< pixels that pass all blocks before the next ones

/// Words that lie together in the padded picture.
struct XnorRun {
  int64_t offset = 0, words = 0;
};

struct XnorLayer {
  onednn::ConvShape shape;
  int64_t words = 0;  ///< of a pixel
  int64_t padded_height = 0, padded_width = 0;
  std::vector<XnorRun> runs;  ///< the window, relative to its first tap
  int64_t depth = 0;          ///< words of the window
  Buffer bits;                ///< [block][depth][16]; 1 is +1, bits past the channels are 0
  /// Sum of a window = base - 2 * differing bits. Padded pixels are words of zeros, whose bits are
  /// counted as -1: the base takes that back. One row [blocks * 16] for each set of padded taps.
  std::vector<int32_t> base;
  std::vector<uint32_t> row_class, column_class;  ///< by output row and column
  uint32_t column_classes = 1;
  Buffer scale, bias;  ///< [blocks * 16]
  int64_t blocks = 0;
  Activation activation = Activation::none;
  bool mean_scale = false, scale_by_row = false;
  float factor = 1;
  int threads = 1;
  bool popcnt = false;  ///< 512-bit popcount
};

// With the 512-bit popcount instruction; only where xnor_popcnt_here().
bool xnor_popcnt_here();
/// counts[pixel][16] = differing bits between the windows and the block's weights.
void xnor_count_popcnt(const XnorLayer& layer, int64_t block, const uint64_t* const* corners,
                       int64_t pixels, uint32_t* counts);
/// Signs of `channels` numbers, (channels + 63) / 64 words.
void xnor_pack_popcnt(const float* x, int64_t channels, uint64_t* words);

}  // namespace sluice::engine
