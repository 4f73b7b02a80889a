// Which rows add up together where packed_accumulate sums integers.
#include <algorithm>
#include <cmath>

#include "sluice/engine/kernel/packed_accumulate_integers.h"

namespace sluice::engine {
namespace {

using bundle::Format;
using bundle::PackedMatrix;

constexpr size_t kTokensTogether = 16;

// A row's range of kSumRange rows of the matrix decides about its block, and rows whose factor is
// zero are in none: so a token's blocks are the same whoever else reads the rows, and however the
// list is cut where the ranges begin.
class Blocks {
 public:
  Blocks(const PackedMatrix& matrix, const RowList& rows, const RowFactors& factors, size_t token,
         size_t column)
      : m_(matrix),
        rows_(rows),
        factors_(factors),
        first_(token),
        tokens_(std::min(kTokensTogether, factors.tokens - token)),
        code_at_(column / 2),
        scale_at_(column / bundle::kGroup * 2) {}

  /// The next block, of the token that is furthest behind: its rows are the most likely to be in a
  /// cache. False at the end.
  bool take(SumBlock& block) {
    for (;;) {
      const size_t t = static_cast<size_t>(std::min_element(at_, at_ + tokens_) - at_);
      if (at_[t] >= rows_.count) return false;
      block.token = first_ + t;
      at_[t] = fill(block, at_[t]);
      if (block.count > 0) return true;
    }
  }

 private:
  /// Returns where the next block begins.
  size_t fill(SumBlock& block, size_t j) const {
    const float* factor = factors_.values + block.token * factors_.stride;
    block.count = 0;
    block.finite = true;
    block.most = 0;
    size_t range = 0;
    for (; j < rows_.count; ++j) {
      const float f = factor[j];
      if (f == 0) continue;
      const size_t row = rows_.index ? static_cast<size_t>(rows_.index[j]) : j;
      if (block.count == 0) range = row / kSumRange;
      if (row / kSumRange != range || block.count == kSumRows) break;
      block.row[block.count] = static_cast<int32_t>(row);
      block.codes[block.count] = m_.codes + row * static_cast<size_t>(m_.code_stride) + code_at_;
      block.scales[block.count] =
          m_.scales + row * static_cast<size_t>(m_.scale_stride) + scale_at_;
      block.factor[block.count++] = f;
      block.finite = block.finite && std::fabs(f) < 1e30f;  // false for what is not a number, too
      block.most = std::max(block.most, std::fabs(f));
    }
    for (size_t r = 0; r < block.count; ++r) block.share[r] = block.factor[r] / block.most;
    return j;
  }

  const PackedMatrix& m_;
  const RowList& rows_;
  const RowFactors& factors_;
  const size_t first_, tokens_, code_at_, scale_at_;
  size_t at_[kTokensTogether] = {};
};

}  // namespace

bool sums_integers([[maybe_unused]] Format format) {
#if defined(__x86_64__)
  return format == Format::i4_group || format == Format::i4_group_min;
#else
  return false;  // no vectors for it
#endif
}

void accumulate_integers(const PackedMatrix& m, const RowList& rows, const RowFactors& factors,
                         float* y, size_t y_stride, size_t first, size_t last) {
  SumPlace place;
  place.minima = m.format == Format::i4_group_min;
  place.minimum_at = static_cast<size_t>(m.scale_stride / 2);
  SumBlock memory[2];
  for (size_t from = first; from < last; from += kSumColumns) {
    place.columns = std::min(kSumColumns, last - from);
    for (size_t token = 0; token < factors.tokens; token += kTokensTogether) {
      Blocks blocks(m, rows, factors, token, from);
      SumBlock *now = memory, *next = memory + 1;
      for (bool any = blocks.take(*now); any; std::swap(now, next)) {
        any = blocks.take(*next);
        float* row = y + now->token * y_stride;
        if (!now->finite) {
          accumulate_floats(m, {now->row, now->count}, {now->factor, 1, now->count}, row, y_stride,
                            from, from + place.columns);
          continue;
        }
        place.y = row + from;
        add_sum_block(*now, place, any ? next : nullptr);
      }
    }
  }
}

}  // namespace sluice::engine
