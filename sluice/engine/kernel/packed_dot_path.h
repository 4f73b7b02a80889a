// The implementations behind packed_dot.h; internal to the kernels. Each prepares its own form of
// the activations.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sluice/engine/kernel/packed_dot.h"

namespace sluice::engine {

/// Which rows: a list, or `count` from `first` on.
struct DotRows {
  const int32_t* list = nullptr;
  int64_t first = 0, count = 0;
  int64_t at(int64_t k) const { return list ? list[k] : first + k; }
};

struct DotPath {
  /// Bytes of one prepared row, a multiple of 64.
  int64_t (*stride)(bundle::Format format, DotKind kind, int64_t columns);
  /// One row of x; `out` is aligned to 64 bytes.
  void (*prepare)(const bundle::PackedMatrix& weights, DotKind kind, const float* x,
                  std::byte* out);
  void (*run)(const bundle::PackedMatrix& weights, const DotInput& x, const DotRows& rows, float* y,
              int64_t y_stride);
};

const DotPath& portable_dot();
/// Runs only where chosen_target_has_avx2().
const DotPath& avx2_dot();
/// Runs only where dot_vnni_usable().
const DotPath& vnni_dot();
/// The CPU has AVX-512 F, BW, VL, DQ and VNNI, and the chosen vector target is AVX-512.
bool dot_vnni_usable();
bool chosen_target_is_avx512();
/// The chosen vector target is AVX2, which comes with FMA and F16C, or better.
bool chosen_target_has_avx2();

/// How weights are read.
struct Reading {
  int rows;       ///< that go by side by side for one row of x, streams for the memory
  int64_t ahead;  ///< bytes of codes in each to those that are asked for; of a list: of its rows
  bool closest = false;  ///< into the first-level cache, not only the second; with AVX2 always
};
inline constexpr int kMostStreams = 4;

/// Bytes of one bit plane of a row.
inline int64_t bit_plane_bytes(int64_t columns) { return (columns + 63) / 64 * 8; }

/// What every prepared row starts with.
struct alignas(64) DotHeader {
  float scale = 1;       ///< of the activations: results are multiplied by it
  float sum = 0;         ///< of the activations (mixed: of those that meet 1-bit weights)
  int64_t code_sum = 0;  ///< the same of int8 codes
  int64_t salient_sum = 0;
};
static_assert(sizeof(DotHeader) == 64);

}  // namespace sluice::engine
