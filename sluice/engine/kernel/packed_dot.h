// Products of packed weights (bundle/packed.h) with a few rows of activations: what decoding does,
// where the time is that of reading the weights once. For W [rows][columns] and x
// [batch][columns]:
//   y[b][o] = sum_i W[o][i] x[b][i]
//
// x is prepared once per call (rounded, quantized, padded, permuted as the kernel likes it) and
// then serves any number of products, also with other matrices of the same format and number of
// columns (mixed: of the same salient columns too), and may be shared by threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "sluice/bundle/packed.h"

namespace sluice::engine {

/// What the activations are rounded to before they meet the weights. f32: not at all. bf16: each to
/// nearest. i8: each row as bundle::quantize_activations does; sums within a group of weights (or a
/// row, where the format has no groups) are then exact integers and scaled in f32.
enum class DotKind : uint8_t { f32, bf16, i8 };
/// "f32", "bf16", "i8"; throws Error{unsupported} for another name.
DotKind dot_kind_from_name(std::string_view name);

inline constexpr int64_t kMaxDotBatch = 8;

/// Prepared activations; points into the caller's scratch (and to the caller's x).
struct DotInput {
  bundle::Format format = bundle::Format::f32;
  DotKind kind = DotKind::f32;
  int64_t batch = 0, columns = 0;
  const std::byte* data = nullptr;
  int64_t stride = 0;  ///< bytes from row to row of `data`
  uint8_t path = 0;    ///< which implementation it was prepared for
};

/// Bytes that prepare_dot needs, 64-byte aligned. Throws Error{limit} on overflow.
int64_t dot_scratch_bytes(bundle::Format format, DotKind kind, int64_t columns, int64_t batch);
/// `x` [batch][columns] with `x_stride` floats from row to row, any alignment; batch is 0 to
/// kMaxDotBatch. `weights` gives format, columns and salient columns.
DotInput prepare_dot(const bundle::PackedMatrix& weights, DotKind kind, const float* x,
                     int64_t x_stride, int64_t batch, std::byte* scratch);

/// Rows first..last-1 of the matrix on the calling thread: y[b * y_stride + o - first]. No
/// allocation. A row of x gives the same numbers in a batch of any size. NaN and infinity in a row
/// of x give NaN or infinity in that row of y.
void packed_dot_range(const bundle::PackedMatrix& weights, const DotInput& x, int64_t first,
                      int64_t last, float* y, int64_t y_stride);
/// The listed rows only, in the order given: y[b * y_stride + k] belongs to row rows[k]. Other rows
/// are not read. The list may repeat rows and be empty.
void packed_dot_rows(const bundle::PackedMatrix& weights, const DotInput& x,
                     std::span<const int32_t> rows, float* y, int64_t y_stride);
/// All rows over `threads` threads; the result does not depend on their number.
void packed_dot(const bundle::PackedMatrix& weights, const DotInput& x, float* y, int64_t y_stride,
                int threads);

/// "sluice gemv avx512-vnni", "sluice gemv avx2" or "sluice gemv", for plans and tables.
std::string_view dot_name();

}  // namespace sluice::engine
