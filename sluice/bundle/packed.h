// Packed weight formats: matrices in few bits, with their scales beside the codes in one run of
// bytes. Bit layouts: docs/formats.md. Plain C++: training code, tools and the engine share it, so
// that all of them compute with the same numbers.
//
// A stored matrix [rows][columns] is two planes, codes then scales, each row at a fixed stride:
//
//   format      code of a weight                     scales of a row          value
//   f32, bf16   the value itself (dtype F32, BF16)   -                        code
//   i8          int8, -127..127                      1 x f32                  s q
//   i8-32       int8, groups of 32 columns           1 x f16 a group          s q
//   i4-32       4 bits, -8..7, groups of 32          1 x f16 a group          s q
//   i4-32-min   4 bits, 0..15, groups of 32          2 x f16 a group: s, m    s q + m
//   ternary     2 bits, -1, 0, 1                     1 x f32                  s q
//   binary      1 bit, -1 or 1                       1 x f32                  s q
//   binary-2    two bit planes (residual basis)      2 x f32                  s1 q1 + s2 q2
//   mixed       salient columns int8, rest 1 bit     2 x f32: s8, s1          s8 q8 or s1 q1
//
// mixed ends with a third part, the list of its salient columns.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/base/shape.h"
#include "sluice/bundle/dtype.h"

namespace sluice::bundle {

enum class Format : uint8_t {
  f32,
  bf16,
  i8,
  i8_group,
  i4_group,
  i4_group_min,
  ternary,
  binary,
  binary2,
  mixed
};
inline constexpr int64_t kGroup = 32;  ///< columns that share a scale in the grouped formats

std::string_view format_name(Format format);
std::optional<Format> format_from_name(std::string_view name);
/// All of them, in the order above.
std::span<const Format> all_formats();

/// How a tensor of logical shape [.., rows, columns] lies in the file: f32 and bf16 as they are,
/// the others as U8 of shape [.., bytes of one matrix], except mixed, whose list of columns wants
/// alignment: U32 of shape [.., bytes / 4]. Throws Error{shape} for a packed format (all but f32)
/// and a shape of rank < 2 or an empty dimension, Error{limit} where a product overflows.
DType stored_dtype(Format format);
Shape stored_shape(Format format, const Shape& logical);
/// Bytes of the whole tensor; throws as stored_shape.
int64_t stored_bytes(Format format, const Shape& logical);

/// Bytes from row to row of the two planes. `columns` is 1 to 2^31 - 1.
int64_t code_stride(Format format, int64_t columns);
int64_t scale_stride(Format format, int64_t columns);
/// How many columns of a mixed matrix are salient: a sixteenth, rounded up to a multiple of 4.
int64_t salient_columns(int64_t columns);

/// A matrix in its stored form; owns nothing. Any alignment.
struct PackedMatrix {
  Format format = Format::f32;
  int64_t rows = 0, columns = 0;
  const std::byte* codes = nullptr;
  int64_t code_stride = 0;  ///< bytes from row to row
  const std::byte* scales = nullptr;
  int64_t scale_stride = 0;
  /// mixed: the salient columns, ascending, and how many there are; else empty.
  std::span<const uint32_t> salient;

  /// Leading rows: a view, nothing is copied.
  PackedMatrix head(int64_t count) const;
  /// Bytes that one row's codes and scales take: what a kernel reads.
  int64_t row_bytes() const { return code_stride + scale_stride; }
};

/// Throws Error{shape} naming `what` when `bytes` is not the stored size, Error{format} when codes
/// are impossible (a ternary 3, an int8 of -128, salient columns out of order) or a mixed matrix is
/// not aligned to 4 bytes, and Error{numeric} for scales (f32, bf16: values) that are not finite.
/// `trusted` skips the pass over codes and scales, for bytes that were checked before.
PackedMatrix view_packed(Format format, int64_t rows, int64_t columns,
                         std::span<const std::byte> bytes, const std::string& what,
                         bool trusted = false);

struct PackOptions {
  /// Importance of each column, for `mixed`; empty: the column's sum of squares.
  std::span<const float> saliency;
};
/// Throws Error{numeric} for weights that are not finite, Error{limit} where a scale does not fit
/// its type.
std::vector<std::byte> pack(Format format, std::span<const float> values, int64_t rows,
                            int64_t columns, const PackOptions& options = {});
/// The values the codes stand for, rows x columns.
void unpack(const PackedMatrix& matrix, std::span<float> out);
void unpack_row(const PackedMatrix& matrix, int64_t row, std::span<float> out);

/// Dynamic activations: codes = round to nearest, ties to even, of x / scale, scale = max |x| /
/// 127. A row of zeros has scale 0; NaN or infinity give scale NaN, and with it results that are
/// NaN.
float quantize_activations(std::span<const float> x, int8_t* codes);

float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);  ///< round to nearest, ties to even
float bf16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float value);

}  // namespace sluice::bundle
