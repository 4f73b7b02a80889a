// Many rows of 4- and 8-bit weights added up as integers, for packed_accumulate.cpp.
//
// Of rows j of one block, each with a factor f_j, and of a group of 32 columns with scales s_j:
//   c_j = round(32767 (f_j / F) (s_j / S)),  F = max |f_j| of the block, S = max |s_j| of kSumStep
//   rows sum_j f_j s_j q_j[c]  ~  F (S / 32767) sum_j c_j q_j[c]
// where q is the integer that a code stands for and the sum on the right is of integers and exact.
// What a row adds is off by at most F S / 65534 times its |q_j[c]|. i8 has one scale for a row:
// there f_j s_j takes the place of f_j, S = 1, and all rows of a block share the step. Minima, of a
// row's middle m_j + 8 s_j, are added up in floats.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sluice/engine/kernel/packed_accumulate.h"

namespace sluice::engine {

inline constexpr size_t kSumRows = 256;      // of a block: 2^15 x 2^7 x 256 is below 2^31
inline constexpr size_t kSumStep = 16;       // rows of a block whose scales share a step
inline constexpr size_t kSumColumns = 4096;  // that one call takes at most

/// The rows of a block from one column on, for one token.
struct SumBlock {
  size_t token = 0, count = 0;
  bool finite = true;  ///< and so small that no product with a scale is infinite
  float most = 0;      ///< F
  int32_t row[kSumRows];
  const std::byte* codes[kSumRows];
  const std::byte* scales[kSumRows];
  float factor[kSumRows];  ///< f_j
  float share[kSumRows];   ///< f_j / F, or f_j s_j / F
};

/// How the columns of a block lie.
struct SumPlace {
  bundle::Format format{};
  size_t columns = 0;     ///< the last group may be cut off
  size_t minimum_at = 0;  ///< bytes from a group's scale to its minimum
};

/// out[c] = sum_j f_j row_j[c] of i4-32 and i4-32-min, or of i8 and i8-32, for a block that is
/// finite. `next` is read ahead: the block of the next call, or null.
void sum_nibbles(const SumBlock& block, const SumPlace& place, const SumBlock* next, float* out);
void sum_bytes(const SumBlock& block, const SumPlace& place, const SumBlock* next, float* out);

/// Formats that are added up this way.
bool sums_integers(bundle::Format format);
/// packed_accumulate_columns() for them. `y` is where column 0 goes.
void accumulate_integers(const bundle::PackedMatrix& matrix, const RowList& rows,
                         const RowFactors& factors, float* y, size_t y_stride, size_t first,
                         size_t last);
/// The same of all columns for one token, by all threads of an OpenMP team: where there are blocks
/// enough, threads share out the rows. `scratch`: sum_scratch() bytes, the same for all.
void accumulate_integers_in_team(const bundle::PackedMatrix& matrix, const RowList& rows,
                                 const RowFactors& factors, float* y, std::byte* scratch,
                                 size_t part, size_t parts);
int64_t sum_scratch(const bundle::PackedMatrix& matrix, int threads);

/// The same for any format that packed_accumulate.cpp reads directly, one row of floats after the
/// other: for factors that no integer stands for. `y` is where column `first` goes.
void accumulate_floats(const bundle::PackedMatrix& matrix, const RowList& rows,
                       const RowFactors& factors, float* y, size_t y_stride, size_t first,
                       size_t last);

}  // namespace sluice::engine
