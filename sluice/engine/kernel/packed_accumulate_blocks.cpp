// Which rows add up together where packed_accumulate sums integers, and on which thread.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/packed_accumulate_integers.h"

namespace sluice::engine {
namespace {

using bundle::Format;
using bundle::PackedMatrix;

constexpr size_t kTokensTogether = 16;
// Blocks of every thread between two barriers, where threads share out the rows.
constexpr size_t kBlocksInTurn = 4;

bool is_bytes(Format format) { return format == Format::i8 || format == Format::i8_group; }

void sum_block(const SumBlock& block, const SumPlace& place, const SumBlock* next, float* out) {
  (is_bytes(place.format) ? sum_bytes : sum_nibbles)(block, place, next, out);
}

// Successive rows of the list in one range of kSumRange rows of the matrix make up a run, which is
// cut into as few blocks of equal size as will do; rows whose factor is zero are in none. So a
// token's blocks are the same whoever else reads the rows, and however the list is cut where the
// ranges begin.
class Blocks {
 public:
  Blocks(const PackedMatrix& matrix, const RowList& rows, const RowFactors& factors, size_t token,
         size_t column)
      : m_(matrix),
        rows_(rows),
        factors_(factors),
        first_(token),
        tokens_(std::min(kTokensTogether, factors.tokens - token)),
        code_at_(is_bytes(matrix.format) ? column : column / 2),
        scale_at_(matrix.format == Format::i8 ? 0 : column / bundle::kGroup * 2) {}

  /// The next block, of the token that is furthest behind: its rows are the most likely to be in a
  /// cache. False at the end.
  bool take(SumBlock& block) {
    Place* const place = furthest_behind();
    if (!place) return false;
    block.token = first_ + static_cast<size_t>(place - at_);
    fill(block, *place, std::min(place->size, place->left));
    return true;
  }

  /// Passes by what take() would give.
  bool pass() {
    Place* const place = furthest_behind();
    if (!place) return false;
    const float* factor = factors_of(first_ + static_cast<size_t>(place - at_));
    size_t count = std::min(place->size, place->left);
    place->left -= count;
    for (; count > 0; ++place->next) count -= factor[place->next] != 0;
    return true;
  }

  /// How many there are of the first token.
  size_t count() const {
    Blocks copy(*this);
    size_t blocks = 0;
    while (copy.pass()) ++blocks;
    return blocks;
  }

 private:
  struct Place {
    size_t next = 0;  // of the list
    size_t left = 0;  // rows of this run
    size_t size = 0;  // of its blocks
  };

  const float* factors_of(size_t token) const { return factors_.values + token * factors_.stride; }
  size_t row(size_t j) const { return rows_.index ? static_cast<size_t>(rows_.index[j]) : j; }

  Place* furthest_behind() {
    for (;;) {
      Place* const place = std::min_element(
          at_, at_ + tokens_, [](const Place& a, const Place& b) { return a.next < b.next; });
      if (place->next >= rows_.count) return nullptr;
      if (place->left > 0) return place;
      start_run(*place, factors_of(first_ + static_cast<size_t>(place - at_)));
    }
  }

  void start_run(Place& place, const float* factor) const {
    while (place.next < rows_.count && factor[place.next] == 0) ++place.next;
    if (place.next == rows_.count) return;
    const size_t range = row(place.next) / kSumRange;
    for (size_t j = place.next; j < rows_.count; ++j) {
      if (factor[j] == 0) continue;
      if (row(j) / kSumRange != range) break;
      ++place.left;
    }
    // Several tokens find the rows of a block in the second-level cache: half a megabyte of them.
    const size_t most = is_bytes(m_.format) ? kSumRows / 2 : kSumRows;
    const size_t blocks = (place.left + most - 1) / most;
    place.size = ((place.left + blocks - 1) / blocks + kSumStep - 1) / kSumStep * kSumStep;
  }

  void fill(SumBlock& block, Place& place, size_t count) const {
    const float* factor = factors_of(block.token);
    block.count = 0;
    block.finite = true;
    block.most = 0;
    place.left -= count;
    for (size_t j = place.next; block.count < count; ++j) {
      const float f = factor[j];
      place.next = j + 1;
      if (f == 0) continue;
      const size_t i = block.count++, at = row(j);
      block.row[i] = static_cast<int32_t>(at);
      block.codes[i] = m_.codes + at * static_cast<size_t>(m_.code_stride) + code_at_;
      block.scales[i] = m_.scales + at * static_cast<size_t>(m_.scale_stride) + scale_at_;
      block.factor[i] = block.share[i] = f;
      if (m_.format == Format::i8) {
        float scale;
        std::memcpy(&scale, block.scales[i], sizeof scale);
        block.share[i] *= scale;
      }
      const float size = std::fabs(block.share[i]);
      block.finite = block.finite && size < 1e30f;  // false for what is not a number, too
      block.most = std::max(block.most, size);
    }
    // Factors so small that a product with a scale is zero.
    const float inverse = block.most > 0 ? 1 / block.most : 0.0f;
    if (!std::isfinite(inverse)) block.finite = false;
    for (size_t r = 0; r < count; ++r) block.share[r] *= inverse;
  }

  const PackedMatrix& m_;
  const RowList& rows_;
  const RowFactors& factors_;
  const size_t first_, tokens_, code_at_, scale_at_;
  Place at_[kTokensTogether] = {};
};

/// values[c] = sum of a block's rows, `columns` of them from column `first` on.
struct Sum {
  const PackedMatrix& m;
  size_t first;
  SumPlace place;

  Sum(const PackedMatrix& matrix, size_t from, size_t last) : m(matrix), first(from) {
    place.format = m.format;
    place.columns = last - from;
    if (m.format == Format::i4_group_min)
      place.minimum_at = static_cast<size_t>(m.scale_stride / 2);
  }
  void of(const SumBlock& block, const SumBlock* next, float* values) const {
    if (block.finite) return sum_block(block, place, next, values);
    std::fill_n(values, place.columns, 0.0f);
    accumulate_floats(m, {block.row, block.count}, {block.factor, 1, block.count}, values, 0, first,
                      first + place.columns);
  }
};

/// How many threads share out the rows of one token; the others share out the columns.
size_t row_parts(size_t blocks, size_t parts) {
  for (const size_t some : {4, 2}) {
    if (parts % some == 0 && (blocks % some == 0 ? blocks >= some : blocks > 3 * some)) return some;
  }
  return 1;
}

}  // namespace

bool sums_integers([[maybe_unused]] Format format) {
#if defined(__x86_64__)
  return is_bytes(format) || format == Format::i4_group || format == Format::i4_group_min;
#else
  return false;  // no vectors for it
#endif
}

void accumulate_integers(const PackedMatrix& m, const RowList& rows, const RowFactors& factors,
                         float* y, size_t y_stride, size_t first, size_t last) {
  SumBlock memory[2];
  alignas(64) float values[kSumColumns];
  for (size_t from = first; from < last; from += kSumColumns) {
    const Sum sum(m, from, std::min(from + kSumColumns, last));
    for (size_t token = 0; token < factors.tokens; token += kTokensTogether) {
      Blocks blocks(m, rows, factors, token, from);
      SumBlock *now = memory, *next = memory + 1;
      for (bool any = blocks.take(*now); any; std::swap(now, next)) {
        any = blocks.take(*next);
        sum.of(*now, any ? next : nullptr, values);
        float* to = y + now->token * y_stride + from;
        add(to, values, Activation::none, to, sum.place.columns);
      }
    }
  }
}

int64_t sum_scratch(const PackedMatrix& m, int threads) {
  if (threads == 1 || !sums_integers(m.format)) return 0;
  return align_up(std::min<int64_t>(kSumColumns, m.columns) * int64_t{sizeof(float)}) * threads *
         static_cast<int64_t>(kBlocksInTurn);
}

void accumulate_integers_in_team(const PackedMatrix& m, const RowList& rows,
                                 const RowFactors& factors, float* y, std::byte* scratch,
                                 size_t part, size_t parts) {
  const size_t columns = static_cast<size_t>(m.columns);
  const size_t count = Blocks(m, rows, factors, 0, 0).count(), sharing = row_parts(count, parts);
  // Threads [first_part, first_part + sharing) have the same columns.
  const size_t row_part = part % sharing, column_of = part / sharing, pieces = parts / sharing;
  const size_t first = column_part(columns, column_of, pieces),
               last = column_part(columns, column_of + 1, pieces);
  if (sharing == 1) return accumulate_integers(m, rows, factors, y, 0, first, last);
  const size_t stride =
      static_cast<size_t>(sum_scratch(m, 2)) / (2 * kBlocksInTurn * sizeof(float));
  float* const values =
      reinterpret_cast<float*>(scratch) + column_of * sharing * kBlocksInTurn * stride;
  // Every thread takes as many pieces of columns, and each of them for as many turns: for the
  // barriers.
  const size_t widest = (columns + pieces - 1) / pieces + bundle::kGroup;
  for (size_t done = 0; done < widest; done += kSumColumns) {
    const size_t from = std::min(first + done, last), to = std::min(from + kSumColumns, last);
    const Sum sum(m, from, to);
    Blocks blocks(m, rows, factors, 0, from);
    SumBlock memory[2];
    SumBlock *now = memory, *next = memory + 1;
    // Blocks go to the threads in turn.
    const auto take = [&](SumBlock& block, size_t others) {
      while (others > 0 && blocks.pass()) --others;
      return others == 0 && blocks.take(block);
    };
    bool any = take(*now, row_part);
    for (size_t block = 0; block < count; block += sharing * kBlocksInTurn) {
      for (size_t i = 0; i < kBlocksInTurn && any; ++i, std::swap(now, next)) {
        any = take(*next, sharing - 1);
        if (from < to)
          sum.of(*now, any ? next : nullptr, values + (i * sharing + row_part) * stride);
      }
#pragma omp barrier
      const size_t begin = column_part(to - from, row_part, sharing),
                   end = column_part(to - from, row_part + 1, sharing);
      for (size_t i = 0; i < std::min(sharing * kBlocksInTurn, count - block); ++i)
        add(y + from + begin, values + i * stride + begin, Activation::none, y + from + begin,
            end - begin);
#pragma omp barrier
    }
  }
}

}  // namespace sluice::engine
