#include "sluice/engine/kernel/packed_accumulate.h"

#include <algorithm>
#include <cstring>

#include "sluice/engine/kernel/packed_accumulate_integers.h"
#include "sluice/engine/kernel/packed_accumulate_pass.h"
#include "sluice/engine/kernel/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/packed_accumulate.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#include "sluice/engine/kernel/packed_accumulate-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
/// The scales of the next pass, which it wants all at once.
template <class Read>
HWY_INLINE void prefetch_scales(const Pass& pass) {
  const size_t bytes = 2 * ((pass.columns + kBlock - 1) / kBlock);
  for (size_t r = 0; r < kRows; ++r) {
    const std::byte* at = pass.ahead_scales[r];
    if (Read::kGroupScales == 0) {  // i8: one
      if (at) __builtin_prefetch(at);
      continue;
    }
    for (size_t line = 0; line < bytes; line += 64) {
      __builtin_prefetch(at + line);
      if (Read::kGroupScales > 1) __builtin_prefetch(at + pass.minimum + line);
    }
    __builtin_prefetch(at + bytes - 1);
  }
}

template <class Read>
HWY_INLINE void prefetch_block(const Pass& pass, size_t block) {
  // Once per cache line.
  if (Read::kBlockBytes < 64 && block * Read::kBlockBytes % 64 != 0) return;
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (size_t line = 0; line < Read::kBlockBytes; line += 64)
      __builtin_prefetch(pass.ahead[r] + block * Read::kBlockBytes + line, 0, 2);
  }
}

/// Codes and converted scales of the rows from some block on, and where their sums go.
template <class Read>
struct Source {
  static constexpr size_t kScales = Read::kGroupScales == 0 ? 1 : Read::kGroupScales * kMinimum;
  const std::byte* const* codes;
  const float (*scales)[kScales];
  float* const* y;
};

/// A cache line or two of kTogether tokens from `token` on, vectors [v, v + kSide) of a block:
/// their chains of sums take turns, because each waits four cycles for the row before, and a line
/// is read and written once, because those of other tokens and rows may lie in the same set of the
/// cache.
template <class Read, size_t kTogether, size_t kSide>
HWY_INLINE void add_tokens(const Pass& pass, const Source<Read>& source, size_t token, size_t block,
                           size_t v, size_t scale_block) {
  const D d;
  constexpr size_t kLanes = hn::MaxLanes(D());
  const size_t column = block * kBlock + v * kLanes;
  V sum[kTogether][kSide];
#pragma GCC unroll 8
  for (size_t t = 0; t < kTogether; ++t) {
#pragma GCC unroll 2
    for (size_t k = 0; k < kSide; ++k)
      sum[t][k] = hn::LoadU(d, source.y[token + t] + column + k * kLanes);
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
    const typename Read::Block values(source.codes[r] + block * Read::kBlockBytes,
                                      source.scales[r] + scale_block);
    V w[kSide];
#pragma GCC unroll 2
    for (size_t k = 0; k < kSide; ++k) w[k] = values.value(v + k);
#pragma GCC unroll 8
    for (size_t t = 0; t < kTogether; ++t) {
      float f = pass.factor[token + t][r];
      if (Read::kFolded) f *= source.scales[r][scale_block];
      const V factor = hn::Set(d, f);
#pragma GCC unroll 2
      for (size_t k = 0; k < kSide; ++k) sum[t][k] = hn::MulAdd(factor, w[k], sum[t][k]);
    }
  }
#pragma GCC unroll 8
  for (size_t t = 0; t < kTogether; ++t) {
#pragma GCC unroll 2
    for (size_t k = 0; k < kSide; ++k)
      hn::StoreU(sum[t][k], d, source.y[token + t] + column + k * kLanes);
  }
}

/// Blocks of 32 columns, `block` blocks behind the source's first. One chain of sums per column,
/// in the order of the list: what a token gets does not depend on which rows or tokens it is
/// grouped with.
template <class Read, bool kSingle, size_t kBlocks>
HWY_INLINE void add_blocks(const Pass& pass, const Source<Read>& source, const V* factors,
                           size_t block, size_t scale_block) {
  const D d;
  constexpr size_t kLanes = hn::MaxLanes(D()), kVectors = kBlock / kLanes;
  const size_t offset = block * Read::kBlockBytes;
  if (kSingle) {
    float* y = source.y[0] + block * kBlock;
    V sum[kBlocks][kVectors];
#pragma GCC unroll 8
    for (size_t k = 0; k < kBlocks; ++k) {
#pragma GCC unroll 32
      for (size_t v = 0; v < kVectors; ++v) sum[k][v] = hn::LoadU(d, y + k * kBlock + v * kLanes);
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (size_t k = 0; k < kBlocks; ++k) {
        const float* scale = source.scales[r] + (Read::kGroupScales == 0 ? 0 : scale_block + k);
        const typename Read::Block values(source.codes[r] + offset + k * Read::kBlockBytes, scale);
        const V factor = Read::kFolded ? hn::Set(d, scale[0]) : factors[r];
#pragma GCC unroll 32
        for (size_t v = 0; v < kVectors; ++v)
          sum[k][v] = hn::MulAdd(factor, values.value(v), sum[k][v]);
      }
    }
#pragma GCC unroll 8
    for (size_t k = 0; k < kBlocks; ++k) {
#pragma GCC unroll 32
      for (size_t v = 0; v < kVectors; ++v) hn::StoreU(sum[k][v], d, y + k * kBlock + v * kLanes);
    }
  } else {
    constexpr size_t kSide = std::min<size_t>(2, kVectors), kMost = kLanes == 16 ? 8 : 4;
    for (size_t v = 0; v < kVectors; v += kSide) {
      size_t t = 0;
      for (; t + kMost <= pass.tokens; t += kMost)
        add_tokens<Read, kMost, kSide>(pass, source, t, block, v, scale_block);
      if (kMost > 4 && t + 4 <= pass.tokens) {
        add_tokens<Read, 4, kSide>(pass, source, t, block, v, scale_block);
        t += 4;
      }
      if (t + 2 <= pass.tokens) {
        add_tokens<Read, 2, kSide>(pass, source, t, block, v, scale_block);
        t += 2;
      }
      if (t < pass.tokens) add_tokens<Read, 1, kSide>(pass, source, t, block, v, scale_block);
    }
  }
}

template <class Read, bool kSingle>
HWY_INLINE void run_pass(const Pass& pass) {
  const D d;
  HWY_ALIGN float scale[kRows][Source<Read>::kScales];
  const size_t blocks = pass.columns / kBlock, rest = pass.columns % kBlock;
  for (size_t r = 0; r < kRows && Read::kGroupScales > 0; ++r) {
    const size_t groups = blocks + (rest > 0);
    load_scales(pass.scales[r], scale[r], groups);
    if (Read::kFolded && kSingle) scale_by(pass.factor[0][r], scale[r], groups);
    if (Read::kGroupScales > 1)
      load_scales(pass.scales[r] + pass.minimum, scale[r] + kMinimum, groups);
  }
  V factors[kRows];
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) factors[r] = hn::Set(d, pass.factor[0][r]);
  const auto scale_of = [](size_t block) { return Read::kGroupScales == 0 ? 0 : block; };
  const Source<Read> source{pass.codes, scale, pass.y};
  prefetch_scales<Read>(pass);
  // Eight sums at once: each is ready for the next row by the time the others have had theirs.
  constexpr size_t kVectors = kBlock / hn::MaxLanes(D());
  constexpr size_t kBlocks = kSingle ? std::max<size_t>(1, 8 / kVectors) : 1;
  size_t b = 0;
  for (; b + kBlocks <= blocks; b += kBlocks) {
#pragma GCC unroll 8
    for (size_t k = 0; k < kBlocks; ++k) prefetch_block<Read>(pass, b + k);
    add_blocks<Read, kSingle, kBlocks>(pass, source, factors, b, scale_of(b));
  }
  for (; b < blocks; ++b) add_blocks<Read, kSingle, 1>(pass, source, factors, b, scale_of(b));
  if (rest == 0) return;
  // The last columns through copies: neither codes nor y may be read or written past the end.
  std::byte code_copy[kRows][Read::kBlockBytes] = {};
  HWY_ALIGN float y_copy[kTokens][kBlock] = {};
  const std::byte* codes[kRows];
  float* y[kTokens];
  const size_t bytes = Read::kBlockBytes == 16 ? 16 : rest * Read::kBlockBytes / kBlock;
  for (size_t r = 0; r < kRows; ++r) {
    std::memcpy(code_copy[r], pass.codes[r] + blocks * Read::kBlockBytes, bytes);
    codes[r] = code_copy[r];
  }
  for (size_t t = 0; t < pass.tokens; ++t) {
    std::memcpy(y_copy[t], pass.y[t] + blocks * kBlock, rest * sizeof(float));
    y[t] = y_copy[t];
  }
  add_blocks<Read, kSingle, 1>(pass, {codes, scale, y}, factors, 0, scale_of(blocks));
  for (size_t t = 0; t < pass.tokens; ++t)
    std::memcpy(pass.y[t] + blocks * kBlock, y_copy[t], rest * sizeof(float));
}

template <class Read>
HWY_INLINE void choose(const Pass& pass) {
  if (pass.tokens == 1) {
    run_pass<Read, true>(pass);
  } else {
    run_pass<Read, false>(pass);
  }
}

void AddRows(bundle::Format format, const Pass& pass) {
  switch (format) {
    case bundle::Format::bf16:
      return choose<ReadBf16>(pass);
    case bundle::Format::i8:
      return choose<ReadI8<false>>(pass);
    case bundle::Format::i8_group:
      return choose<ReadI8<true>>(pass);
    case bundle::Format::i4_group:
      return choose<ReadI4<false>>(pass);
    case bundle::Format::i4_group_min:
      return choose<ReadI4<true>>(pass);
    default:
      return choose<ReadF32>(pass);
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(AddRows);

namespace {

using bundle::Format;
using bundle::PackedMatrix;

/// Bytes of codes and scales in front of a column, which is a multiple of kBlock.
size_t code_offset(Format format, size_t column) {
  switch (format) {
    case Format::bf16:
      return 2 * column;
    case Format::i8:
    case Format::i8_group:
      return column;
    case Format::i4_group:
    case Format::i4_group_min:
      return column / 2;
    default:
      return 4 * column;
  }
}

size_t scale_offset(Format format, size_t column) {
  switch (format) {
    case Format::i8_group:
    case Format::i4_group:
    case Format::i4_group_min:
      return column / kBlock * 2;
    default:
      return 0;
  }
}

bool read_directly(Format format) {
  switch (format) {
    case Format::f32:
    case Format::bf16:
    case Format::i8:
    case Format::i8_group:
    case Format::i4_group:
    case Format::i4_group_min:
      return true;
    default:
      return false;
  }
}

struct Job {
  const PackedMatrix& m;
  const RowList& rows;
  const RowFactors& factors;
  float* y;  // of the first token's column `origin`
  size_t y_stride, origin;

  size_t row(size_t j) const { return rows.index ? static_cast<size_t>(rows.index[j]) : j; }

  /// Factors of rows [j, j + count) for the tokens from `token` on; those whose factors are all
  /// zero are left out. Returns the token after the last one looked at.
  size_t fill(Pass& pass, size_t j, size_t count, size_t token, size_t first) const {
    pass.tokens = 0;
    for (; token < factors.tokens && pass.tokens < kTokens; ++token) {
      const float* f = factors.values + token * factors.stride + j;
      float* to = pass.factor[pass.tokens];
      bool any = false;
      for (size_t r = 0; r < kRows; ++r) {
        to[r] = r < count ? f[r] : 0.0f;
        any |= to[r] != 0.0f;
      }
      if (!any) continue;
      if (m.format == Format::i8) {
        for (size_t r = 0; r < count; ++r) {
          float scale;
          std::memcpy(&scale, pass.scales[r], sizeof scale);
          to[r] *= scale;
        }
      }
      pass.y[pass.tokens++] = y + token * y_stride + (first - origin);
    }
    return token;
  }

  /// Rows [j, j + kRows) from a column on; missing ones repeat the last.
  void point(const std::byte** codes, const std::byte** scales, size_t j, size_t first) const {
    for (size_t r = 0; r < kRows; ++r) {
      const size_t at = row(std::min(j + r, rows.count - 1));
      codes[r] = m.codes + at * static_cast<size_t>(m.code_stride) + code_offset(m.format, first);
      scales[r] = m.scale_stride == 0 ? nullptr
                                      : m.scales + at * static_cast<size_t>(m.scale_stride) +
                                            scale_offset(m.format, first);
    }
  }

  void columns(size_t first, size_t last) const {
    Pass pass;
    pass.columns = last - first;
    pass.minimum = static_cast<size_t>(m.scale_stride / 2);
    for (size_t j = 0; j < rows.count; j += kRows) {
      const size_t count = std::min(kRows, rows.count - j);
      pass.count = count;
      point(pass.codes, pass.scales, j, first);
      point(pass.ahead, pass.ahead_scales, std::min(j + kRows, rows.count - 1), first);
      for (size_t token = 0; token < factors.tokens;) {
        token = fill(pass, j, count, token, first);
        if (pass.tokens > 0) HWY_DYNAMIC_DISPATCH(AddRows)(m.format, pass);
      }
    }
  }
};

}  // namespace

size_t column_part(size_t columns, size_t part, size_t parts) {
  const size_t blocks = (columns + kBlock - 1) / kBlock;
  return std::min(columns, blocks * part / parts * kBlock);
}

int64_t packed_accumulate_scratch(const PackedMatrix& m, int threads) {
  if (read_directly(m.format)) return sum_scratch(m, threads);
  return static_cast<int64_t>(threads) * static_cast<int64_t>(kRows) * m.columns *
         static_cast<int64_t>(sizeof(float));
}

void accumulate_floats(const PackedMatrix& m, const RowList& rows, const RowFactors& factors,
                       float* y, size_t y_stride, size_t first, size_t last) {
  const Job job{m, rows, factors, y, y_stride, first};
  // Many tokens: a narrower piece of y, so that all of them stay in the second-level cache.
  const size_t width = std::max<size_t>(256, kColumns / ((factors.tokens + 15) / 16));
  for (size_t from = first; from < last; from += width)
    job.columns(from, std::min(from + width, last));
}

void packed_accumulate_columns(const PackedMatrix& m, const RowList& rows,
                               const RowFactors& factors, float* y, size_t y_stride,
                               std::byte* scratch, size_t first, size_t last) {
  if (rows.count == 0 || factors.tokens == 0) return;
  if (!read_directly(m.format)) {
    // Rows of the other formats are unpacked eight at a time.
    float* values = reinterpret_cast<float*>(scratch);
    const size_t columns = static_cast<size_t>(m.columns);
    PackedMatrix plain;
    plain.rows = kRows;
    plain.columns = m.columns;
    plain.codes = scratch;
    plain.code_stride = m.columns * static_cast<int64_t>(sizeof(float));
    for (size_t j = 0; j < rows.count; j += kRows) {
      const size_t count = std::min(kRows, rows.count - j);
      for (size_t r = 0; r < count; ++r) {
        const int64_t row = rows.index ? rows.index[j + r] : static_cast<int64_t>(j + r);
        bundle::unpack_row(m, row, {values + r * columns, columns});
      }
      packed_accumulate_columns(plain, {nullptr, count},
                                {factors.values + j, factors.tokens, factors.stride}, y, y_stride,
                                nullptr, first, last);
    }
    return;
  }
  if (sums_integers(m.format))
    return accumulate_integers(m, rows, factors, y, y_stride, first, last);
  accumulate_floats(m, rows, factors, y + first, y_stride, first, last);
}

void packed_accumulate(const PackedMatrix& m, const RowList& rows, const RowFactors& factors,
                       float* y, size_t y_stride, std::byte* scratch, int threads) {
  const size_t columns = static_cast<size_t>(m.columns);
  const bool in_team = threads > 1 && factors.tokens == 1 && scratch && sums_integers(m.format);
  in_parts(threads, [&](size_t part, size_t parts) {
    if (in_team) {
      accumulate_integers_in_team(m, rows, factors, y, scratch, part, parts);
    } else {
      const size_t mine = static_cast<size_t>(packed_accumulate_scratch(m, 1)) * part;
      packed_accumulate_columns(m, rows, factors, y, y_stride, scratch ? scratch + mine : nullptr,
                                column_part(columns, part, parts),
                                column_part(columns, part + 1, parts));
    }
  });
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
