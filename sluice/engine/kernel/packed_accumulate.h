// y += sum_j c_j * row(i_j): the transposed partner of packed_dot. Weights that are stored by input
// (W^T), or by neuron on the way down, meet a list of rows that are worth reading; the others are
// never touched. Eight rows at a time stream past y, which stays in the cache, while the next eight
// are prefetched.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sluice/bundle/packed.h"

namespace sluice::engine {

/// Rows of the matrix that add up as integers (i8, i8-32, i4-32, i4-32-min) do so within ranges of
/// as many.
inline constexpr size_t kSumRange = 1024;

struct RowList {
  const int32_t* index = nullptr;  ///< rows, any order; null: 0, 1, .. count - 1
  size_t count = 0;
};

/// Coefficients of one or several tokens: [tokens][stride], entry j belongs to the list's row j.
struct RowFactors {
  const float* values = nullptr;
  size_t tokens = 1, stride = 0;
};

/// Bytes of scratch for that matrix; one thread needs none for f32, bf16, i8, i8-32, i4-32 and
/// i4-32-min.
int64_t packed_accumulate_scratch(const bundle::PackedMatrix& matrix, int threads);

/// y[t][c] += sum over j of factors[t][j] * matrix[index[j]][c]; y [tokens][y_stride]. Each row is
/// read once for all tokens. A factor of zero contributes nothing. Each number of y is added up in
/// the order of the list, so neither the number of threads nor rows with factor zero nor the other
/// tokens change a bit of it. Indices must be inside the matrix.
///
/// i8, i8-32, i4-32 and i4-32-min on x86: successive rows (without those of factor zero) of one
/// range of kSumRange rows of the matrix, up to 256 (8 bits: 128), add up as integers. Of such
/// rows, with scales s_j of a group of columns, f_j s_j is rounded to a multiple of max |f_j| max
/// |s_j| / 32767, the latter of 16 rows (i8, with one scale for a row: of max |f_j s_j| / 32767),
/// so that a row is off by half of that times its largest code: 8 with 4 bits (i4-32-min: 15), 128
/// with 8 bits. A row's weights were rounded by more wherever its f_j s_j is above 1/4096, or
/// 1/256, of the largest. Factors of 1e30 and more, infinities and NaN make their rows add up in
/// floats.
void packed_accumulate(const bundle::PackedMatrix& matrix, const RowList& rows,
                       const RowFactors& factors, float* y, size_t y_stride, std::byte* scratch,
                       int threads);

/// The same for columns [first, last) of y, on the calling thread. `first` is a multiple of
/// bundle::kGroup, `last` too or the number of columns.
void packed_accumulate_columns(const bundle::PackedMatrix& matrix, const RowList& rows,
                               const RowFactors& factors, float* y, size_t y_stride,
                               std::byte* scratch, size_t first, size_t last);

/// First column of part `part` of `parts`: a multiple of bundle::kGroup, or `columns`.
size_t column_part(size_t columns, size_t part, size_t parts);

}  // namespace sluice::engine
