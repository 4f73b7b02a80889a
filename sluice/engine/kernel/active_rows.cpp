#include "sluice/engine/kernel/active_rows.h"

#include <algorithm>
#include <cstring>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/threads.h"

namespace sluice::engine {
namespace {

// Bytes of rows that stay in the second-level cache while every token uses them.
constexpr size_t kBlockBytes = 256 << 10;
// Share of the (token, row) pairs of the union that were asked for from which on the union is
// computed whole. Eight tokens, 1024 -> 4096 -> 1024, one thread of a Zen 5, weights out of cache
// (active_rows_bench.cpp), union over lists: f32 1.2 at 0.20, 1.0 at 0.31, 0.65 at 0.70; i8 1.9 at
// 0.14, 1.1 at 0.31, 0.87 at 0.70; i4-32 2.8, 1.6 and 1.05.
double shared_from(bundle::Format format) {
  return format == bundle::Format::f32 || format == bundle::Format::bf16 ? 0.3 : 0.65;
}

size_t block_rows(const bundle::PackedMatrix& m) {
  return std::clamp<size_t>(kBlockBytes / static_cast<size_t>(m.row_bytes()), 8, 1 << 20);
}

// Rows that are asked for early while so many others are multiplied. Longer ones are left to the
// processor, which finds out by itself how they go on.
constexpr size_t kAheadRows = 8;
constexpr int64_t kAheadBytes = 4096;

void prefetch_row(const bundle::PackedMatrix& m, int32_t row) {
  const std::byte* codes = m.codes + row * m.code_stride;
  for (int64_t i = 0; i < m.code_stride; i += 64) __builtin_prefetch(codes + i, 0, 2);
  const std::byte* scales = m.scales + row * m.scale_stride;
  for (int64_t i = 0; i < m.scale_stride; i += 64) __builtin_prefetch(scales + i, 0, 2);
}

/// Dots of one list, [first, last) of it.
void dot_list(const bundle::PackedMatrix& m, const DotInput& x, const int32_t* list, size_t first,
              size_t last, float* out, size_t stride) {
  const size_t step = m.code_stride > kAheadBytes ? last - first : kAheadRows;
  for (size_t at = first; at < last; at += step) {
    const size_t end = std::min(at + step, last);
    for (size_t next = end; next < std::min(end + step, last); ++next) prefetch_row(m, list[next]);
    packed_dot_rows(m, x, {list + at, end - at}, out + at, static_cast<int64_t>(stride));
  }
}

/// Calls use(token, first, last) for pieces of all tokens' lists, block of rows by block of rows.
template <class Use>
void by_blocks(const ActiveRows& rows, size_t block, size_t from, size_t to, Use use) {
  size_t at[kMaxTokens];
  for (size_t t = 0; t < rows.tokens; ++t) {
    const int32_t* list = rows.list(t);
    at[t] = static_cast<size_t>(
        std::lower_bound(list, list + rows.length(t), static_cast<int32_t>(from)) - list);
  }
  for (size_t first = from; first < to; first += block) {
    const auto end = static_cast<int32_t>(std::min(first + block, to));
    for (size_t t = 0; t < rows.tokens; ++t) {
      const int32_t* list = rows.list(t);
      size_t last = at[t];
      while (last < rows.length(t) && list[last] < end) ++last;
      if (last > at[t]) use(t, at[t], last);
      at[t] = last;
    }
  }
}

}  // namespace

int64_t ActiveRows::scratch_bytes(int64_t tokens, int64_t rows) {
  return align_up((tokens + 1) * rows * static_cast<int64_t>(sizeof(int32_t)) + rows);
}

void ActiveRows::bind(std::byte* scratch, size_t most_tokens, size_t row_count) {
  rows = row_count;
  index = reinterpret_cast<int32_t*>(scratch);
  merged = index + most_tokens * rows;
  uses = reinterpret_cast<uint8_t*>(merged + rows);
}

void ActiveRows::settle(bundle::Format format) {
  shared = false;
  merged_count = count[0];
  if (tokens < 2) return;
  std::memset(uses, 0, rows);
  size_t asked_for = 0;
  for (size_t t = 0; t < tokens; ++t) {
    const int32_t* mine = index + t * rows;
    for (size_t j = 0; j < count[t]; ++j) uses[mine[j]] |= static_cast<uint8_t>(1 << t);
    asked_for += count[t];
  }
  merged_count = 0;
  for (size_t i = 0; i < rows; ++i) {
    merged[merged_count] = static_cast<int32_t>(i);
    merged_count += uses[i] != 0;
  }
  shared = static_cast<double>(asked_for) >=
           shared_from(format) * static_cast<double>(merged_count) * static_cast<double>(tokens);
}

size_t ActiveRows::pairs() const {
  size_t total = 0;
  for (size_t t = 0; t < tokens; ++t) total += length(t);
  return total;
}

int64_t ActiveInput::scratch_bytes(bundle::Format format, DotKind kind, int64_t columns,
                                   int64_t tokens) {
  return std::max(dot_scratch_bytes(format, kind, columns, tokens),
                  tokens * align_up(dot_scratch_bytes(format, kind, columns, 1)));
}

ActiveInput prepare_active(const bundle::PackedMatrix& m, DotKind kind, const float* x,
                           int64_t x_stride, const ActiveRows& rows, std::byte* scratch) {
  ActiveInput input;
  if (rows.shared || rows.tokens == 1) {
    input.together = prepare_dot(m, kind, x, x_stride, static_cast<int64_t>(rows.tokens), scratch);
    input.alone[0] = input.together;
    return input;
  }
  const int64_t each = align_up(dot_scratch_bytes(m.format, kind, m.columns, 1));
  for (size_t t = 0; t < rows.tokens; ++t) {
    const int64_t i = static_cast<int64_t>(t);
    input.alone[t] = prepare_dot(m, kind, x + i * x_stride, x_stride, 1, scratch + i * each);
  }
  return input;
}

void dot_active(const bundle::PackedMatrix& m, const ActiveInput& x, const ActiveRows& rows,
                float* out, int threads) {
  const size_t stride = rows.rows;
  in_parts(threads, [&](size_t part, size_t parts) {
    if (rows.shared || rows.tokens == 1) {
      const size_t length = rows.length(0);
      const size_t first = length * part / parts, last = length * (part + 1) / parts;
      if (last > first) dot_list(m, x.together, rows.list(0), first, last, out, stride);
    } else {
      by_blocks(rows, block_rows(m), stride * part / parts, stride * (part + 1) / parts,
                [&](size_t t, size_t first, size_t last) {
                  packed_dot_rows(m, x.alone[t], {rows.list(t) + first, last - first},
                                  out + t * stride + first, static_cast<int64_t>(stride));
                });
    }
  });
}

void accumulate_active(const bundle::PackedMatrix& m, const ActiveRows& rows, const float* factor,
                       float* y, size_t y_stride, std::byte* scratch, int threads) {
  const size_t stride = rows.rows;
  if (rows.shared || rows.tokens == 1) {
    return packed_accumulate(m, {rows.list(0), rows.length(0)}, {factor, rows.tokens, stride}, y,
                             y_stride, scratch, threads);
  }
  const size_t columns = static_cast<size_t>(m.columns);
  in_parts(threads, [&](size_t part, size_t parts) {
    const size_t first_column = column_part(columns, part, parts),
                 last_column = column_part(columns, part + 1, parts);
    std::byte* mine = scratch + static_cast<size_t>(packed_accumulate_scratch(m, 1)) * part;
    // Blocks do not depend on the number of threads: they fix the order of the sums. Rows that add
    // up as integers stay together.
    const size_t block = (block_rows(m) + kSumRange - 1) / kSumRange * kSumRange;
    by_blocks(rows, block, 0, stride, [&](size_t t, size_t first, size_t last) {
      packed_accumulate_columns(m, {rows.list(t) + first, last - first},
                                {factor + t * stride + first, 1, stride}, y + t * y_stride,
                                y_stride, mine, first_column, last_column);
    });
  });
}

void count_active(const bundle::PackedMatrix& m, const ActiveRows& rows, Work* work) {
  if (!work) return;
  work->macs += static_cast<int64_t>(rows.pairs()) * m.columns;
  work->bytes += static_cast<int64_t>(rows.merged_count) * m.row_bytes();
}

}  // namespace sluice::engine
