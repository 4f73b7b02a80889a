// Sums of rows of 8-bit weights.
#include "sluice/bundle/packed.h"
#include "sluice/engine/kernel/packed_accumulate_integers.h"
#include "sluice/engine/kernel/packed_dot_path.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/packed_accumulate_bytes.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#include "sluice/engine/kernel/packed_accumulate_sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR || !HWY_ARCH_X86
void SumBytes(const SumBlock& block, const SumPlace& place, const SumBlock*, bool, float* out) {
  const auto code = [&](size_t r, size_t c) {
    return static_cast<int32_t>(static_cast<int8_t>(block.codes[r][c]));
  };
  const bool groups = place.format == bundle::Format::i8_group;
  const auto scale = [&](size_t r, size_t g) {
    return groups ? plain_scale(block.scales[r], g) : 1.0f;
  };
  sum_plainly(
      block, place, groups ? kSumStep : kSumRows, code, scale, [](size_t, size_t) { return 0.0f; },
      out);
}
#else

constexpr size_t kGroups = 2, kChunk = kChunkBytes;  // of columns
constexpr size_t kPairs = 8;                         // that go by together
// Vectors of a chunk at once: of 16 rows, a line each, not all stay in the first-level cache.
constexpr size_t kAtOnce = kBytes == 32 ? 2 : 1;
constexpr size_t kSums = 4;  // vectors of a vector of bytes, see add_chunk

/// For |x| below 2^22; without the call of the C library that lrint() is.
HWY_INLINE int32_t nearest(float x) {
  const float sum = x + kMagicFloat;
  uint32_t bits;
  std::memcpy(&bits, &sum, 4);
  return static_cast<int32_t>(bits - kMagic);
}

/// What pairs of rows are multiplied by: coefficients of groups, or one for all columns.
template <bool kGrouped>
struct Factors;

template <>
struct Factors<true> {
  Coefficients c;

  /// 16 bytes of a vector are half of a group.
  template <class D>
  static HWY_INLINE hn::Vec<D> spread(D d, const hn::TFromD<D>* two, size_t part) {
    if (kBytes <= 32) return hn::Set(d, two[part * kBytes / 32]);
    HWY_ALIGN static constexpr int32_t kPlace[16] = {0, 0, 0, 0, 0, 0, 0, 0,
                                                     1, 1, 1, 1, 1, 1, 1, 1};
    return hn::TableLookupLanes(hn::LoadDup128(d, two), hn::SetTableIndices(d, kPlace));
  }
  HWY_INLINE VI pair(size_t p, size_t chunk, size_t part) const {
    return spread(DI(), c.pair[p] + chunk * kGroups, part);
  }
  HWY_INLINE VI sum(size_t chunk, size_t part) const {
    return spread(DI(), c.sum + chunk * kGroups, part);
  }
  HWY_INLINE VF step(size_t chunk, size_t part) const {
    return spread(DF(), c.step + chunk * kGroups, part);
  }
};

template <>
struct Factors<false> {
  int32_t pairs[kSumRows / 2], all = 0;
  float one = 0;

  explicit Factors(const SumBlock& block) : one(block.most / 32767) {
    for (size_t r = 0; r < block.count; r += 2) {
      const auto rounded = [&](size_t row) {
        return row < block.count ? nearest(32767.0f * block.share[row]) : 0;
      };
      const int32_t first = rounded(r), second = rounded(r + 1);
      all += first + second;
      pairs[r / 2] = static_cast<int32_t>((static_cast<uint32_t>(first) & 0xFFFF) |
                                          static_cast<uint32_t>(second) << 16);
    }
  }
  HWY_INLINE VI pair(size_t p, size_t, size_t) const { return hn::Set(DI(), pairs[p]); }
  HWY_INLINE VI sum(size_t, size_t) const { return hn::Set(DI(), all); }
  HWY_INLINE VF step(size_t, size_t) const { return hn::Set(DF(), one); }
};

/// Where the sums of the first chunk go.
struct Sums {
  int32_t* integers;  ///< of a step, [chunk][part][kSums] vectors
  float* floats;      ///< of all, in the same order
};

// Interleaved by 16 bits, a block of 16 bytes of two rows holds two successive columns of the first
// row, then of the second: word 2 i + k of the lower half columns 2 i and 2 i + 1 of row k, the
// upper half the other eight. Shifted down a word is its second column; as it is, with the first
// made unsigned, it is q + 128 + 256 times the second: what is too much is taken off at the end of
// a step, once for all rows, modulo 2^32.
template <size_t P, bool kStart, bool kFinish, bool kVnni, bool kGrouped>
HWY_INLINE void add_chunk(const std::byte* const* codes, size_t at, const std::byte* const* ahead,
                          size_t ahead_at, const Factors<kGrouped>& factors, size_t pair,
                          size_t chunk, const Sums& sums) {
  const D8 d8;
  const D16 d16;
  const DF d;
  const DI di;
  const DS ds;
  const auto flip = hn::Set(d16, 0x80);
#pragma GCC unroll 1
  for (size_t half = 0; half < kParts; half += kAtOnce) {
    const size_t place = chunk * kChunk + half * kSums * hn::Lanes(di);
    int32_t* integers = sums.integers + place;
    VI s[kAtOnce * kSums];
#pragma GCC unroll 8
    for (size_t i = 0; i < kAtOnce * kSums; ++i)
      s[i] = kStart ? hn::Zero(di) : hn::Load(di, integers + i * hn::Lanes(di));
#pragma GCC unroll 8
    for (size_t p = 0; p < P; ++p) {
      if (half == 0) {
        __builtin_prefetch(ahead[2 * p] + ahead_at, 0, 2);
        __builtin_prefetch(ahead[2 * p + 1] + ahead_at, 0, 2);
      }
#pragma GCC unroll 2
      for (size_t k = 0; k < kAtOnce; ++k) {
        const auto load = [&](size_t r) {
          const auto* from = reinterpret_cast<const uint8_t*>(codes[r] + at + (half + k) * kBytes);
          return hn::Xor(hn::BitCast(d16, hn::LoadU(d8, from)), flip);
        };
        const auto one = load(2 * p), two = load(2 * p + 1);
        const auto factor = hn::BitCast(ds, factors.pair(pair + p, chunk, half + k));
        const auto lower = hn::InterleaveLower(d16, one, two),
                   upper = hn::InterleaveUpper(d16, one, two);
        const auto above = [&](auto words) {
          return hn::BitCast(d16, hn::ShiftRight<8>(hn::BitCast(ds, words)));
        };
        VI* to = s + k * kSums;
        to[0] = add_products<kVnni>(to[0], lower, factor);
        to[1] = add_products<kVnni>(to[1], above(lower), factor);
        to[2] = add_products<kVnni>(to[2], upper, factor);
        to[3] = add_products<kVnni>(to[3], above(upper), factor);
      }
    }
    if (!kFinish) {
#pragma GCC unroll 8
      for (size_t i = 0; i < kAtOnce * kSums; ++i)
        hn::Store(s[i], di, integers + i * hn::Lanes(di));
      continue;
    }
#pragma GCC unroll 2
    for (size_t k = 0; k < kAtOnce; ++k) {
      const VI offset = hn::ShiftLeft<7>(factors.sum(chunk, half + k));
      const VF step = factors.step(chunk, half + k);
      VI* of = s + k * kSums;
      of[0] = hn::Sub(hn::Sub(of[0], hn::ShiftLeft<8>(of[1])), offset);
      of[2] = hn::Sub(hn::Sub(of[2], hn::ShiftLeft<8>(of[3])), offset);
#pragma GCC unroll 4
      for (size_t i = 0; i < kSums; ++i) {
        float* to = sums.floats + place + (k * kSums + i) * hn::Lanes(d);
        hn::Store(hn::MulAdd(hn::ConvertTo(d, of[i]), step, hn::Load(d, to)), d, to);
      }
    }
  }
}

/// The chunk's columns, in their order.
HWY_INLINE void put_chunk(const float* floats, float* out) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
#pragma GCC unroll 1
  for (size_t part = 0; part < kParts; ++part) {
    const float* at = floats + part * kSums * lanes;
    HWY_ALIGN float all[kSums][hn::MaxLanes(DF())];  // 4 i .. 4 i + 3 of each block
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      const VF even = hn::Load(d, at + 2 * half * lanes),
               odd = hn::Load(d, at + (2 * half + 1) * lanes);
      hn::Store(hn::InterleaveLower(d, even, odd), d, all[2 * half]);
      hn::Store(hn::InterleaveUpper(d, even, odd), d, all[2 * half + 1]);
    }
    const hn::FixedTag<float, 4> four;
    for (size_t b = 0; b < kBlocks; ++b) {
#pragma GCC unroll 4
      for (size_t i = 0; i < kSums; ++i)
        hn::StoreU(hn::Load(four, all[i] + 4 * b), four, out + part * kBytes + 16 * b + 4 * i);
    }
  }
}

template <size_t P, bool kStart, bool kFinish, bool kVnni, bool kGrouped>
void add_chunks(const RowsTogether& rows, size_t chunks, const Factors<kGrouped>& factors,
                size_t pair, size_t chunk, const Sums& sums) {
  each_chunk(rows, chunks, [&](size_t k, const std::byte* const* ahead, size_t at) {
    add_chunk<P, kStart, kFinish, kVnni>(rows.codes, k * kChunkBytes, ahead, at, factors, pair,
                                         chunk + k, sums);
  });
}

template <size_t P, bool kVnni, bool kGrouped>
void add_pairs(const RowsTogether& rows, size_t chunks, const Factors<kGrouped>& factors,
               size_t pair, size_t chunk, const Sums& sums) {
  if (rows.pairs == P) {
    const auto run = rows.start    ? rows.finish ? add_chunks<P, true, true, kVnni, kGrouped>
                                                 : add_chunks<P, true, false, kVnni, kGrouped>
                        : rows.finish ? add_chunks<P, false, true, kVnni, kGrouped>
                                   : add_chunks<P, false, false, kVnni, kGrouped>;
    return run(rows, chunks, factors, pair, chunk, sums);
  }
  if constexpr (P > 1) add_pairs<P / 2, kVnni>(rows, chunks, factors, pair, chunk, sums);
}

template <bool kGrouped, bool kVnni>
void sum_bytes(const SumBlock& block, const SumPlace& place, const SumBlock* next, float* out) {
  const size_t groups = (place.columns + bundle::kGroup - 1) / bundle::kGroup;
  const Rows rows{block, next};
  HWY_ALIGN int32_t integers[kSumColumns];
  HWY_ALIGN float floats[kSumColumns] = {};
  const Sums sums{integers, floats};
  // The last group of i8-32 is whole.
  const size_t bytes = kGrouped ? groups * bundle::kGroup : place.columns;
  const auto step = [&](size_t first, size_t count, const Factors<kGrouped>& factors) {
    add_step<kPairs>(rows, first, count, bytes,
                     [&](const RowsTogether& together, size_t pair, size_t chunks, size_t chunk) {
                       add_pairs<kPairs, kVnni>(together, chunks, factors, pair, chunk, sums);
                     });
  };
  if constexpr (kGrouped) {
    HWY_ALIGN Factors<true> factors;
    for (size_t first = 0; first < block.count; first += kSumStep) {
      const size_t count = std::min(kSumStep, block.count - first);
      find_coefficients<false>(rows, first, count, place, groups, factors.c, nullptr);
      step(first, count, factors);
    }
  } else {
    step(0, block.count, Factors<false>(block));
  }
  for (size_t k = 0; k * kChunk < place.columns; ++k) {
    const size_t columns = std::min(kChunk, place.columns - k * kChunk);
    HWY_ALIGN float copy[kChunk];
    float* to = columns < kChunk ? copy : out + k * kChunk;
    put_chunk(floats + k * kChunk, to);
    if (columns < kChunk) std::memcpy(out + k * kChunk, copy, columns * sizeof(float));
  }
}

void SumBytes(const SumBlock& block, const SumPlace& place, const SumBlock* next, bool vnni,
              float* out) {
  const bool groups = place.format == bundle::Format::i8_group;
  choose_vnni(vnni, [&](auto use) {
    (groups ? sum_bytes<true, use()> : sum_bytes<false, use()>)(block, place, next, out);
  });
}

#endif  // vectors

}  // namespace
}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(SumBytes);

void sum_bytes(const SumBlock& block, const SumPlace& place, const SumBlock* next, float* out) {
  HWY_DYNAMIC_DISPATCH(SumBytes)(block, place, next, dot_vnni_usable(), out);
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
