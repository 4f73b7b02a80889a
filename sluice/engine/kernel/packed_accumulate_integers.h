// Many rows of 4-bit weights added up as integers, for packed_accumulate.cpp.
//
// Of rows j of one block, each with a factor f_j, and of a group of 32 columns with scales s_j:
//   c_j = round(32767 (f_j / F) (s_j / S)),  F = max |f_j|, S = max |s_j|
//   sum_j f_j s_j q_j[c]  ~  F (S / 32767) sum_j c_j q_j[c]
// where q is the code - 8 and the sum on the right is of integers and exact. What a row adds is off
// by at most F S / 65534 times its |q_j[c]|. Minima, of a row's middle m_j + 8 s_j, are added up in
// floats.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sluice/engine/kernel/packed_accumulate.h"

namespace sluice::engine {

inline constexpr size_t kSumRows = 256;      // of a block: 2^15 x 15 x 256 is below 2^31
inline constexpr size_t kSumColumns = 4096;  // that one call takes at most

/// The rows of a block from one column on, for one token.
struct SumBlock {
  size_t token = 0, count = 0;
  bool finite = true;  ///< and so small that no product with a scale is infinite
  float most = 0;      ///< F
  int32_t row[kSumRows];
  const std::byte* codes[kSumRows];
  const std::byte* scales[kSumRows];
  float factor[kSumRows];
  float share[kSumRows];  ///< f_j / F
};

/// Where the sums go, and how a group lies.
struct SumPlace {
  float* y = nullptr;
  size_t columns = 0;     ///< the last group may be cut off
  bool minima = false;    ///< a group has a minimum, too
  size_t minimum_at = 0;  ///< bytes from a group's scale to its minimum
};

/// y[c] += sum_j f_j row_j[c], of a block that is finite. `next` is read ahead: the block of the
/// next call, or null.
void add_sum_block(const SumBlock& block, const SumPlace& place, const SumBlock* next);

/// Formats that are added up this way.
bool sums_integers(bundle::Format format);
/// packed_accumulate_columns() for them.
void accumulate_integers(const bundle::PackedMatrix& matrix, const RowList& rows,
                         const RowFactors& factors, float* y, size_t y_stride, size_t first,
                         size_t last);
/// The same for any format that packed_accumulate.cpp reads directly, one row of floats after the
/// other: for factors that no integer stands for.
void accumulate_floats(const bundle::PackedMatrix& matrix, const RowList& rows,
                       const RowFactors& factors, float* y, size_t y_stride, size_t first,
                       size_t last);

}  // namespace sluice::engine
