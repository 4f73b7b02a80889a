// Sums of rows of 4-bit weights.
#include "sluice/bundle/packed.h"
#include "sluice/engine/kernel/packed_accumulate_integers.h"
#include "sluice/engine/kernel/packed_dot_path.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/packed_accumulate_nibbles.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#include "sluice/engine/kernel/packed_accumulate_sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR || !HWY_ARCH_X86
void SumNibbles(const SumBlock& block, const SumPlace& place, const SumBlock*, bool, float* out) {
  const auto code = [&](size_t r, size_t c) {
    const auto byte = static_cast<int32_t>(block.codes[r][c / 32 * 16 + c % 16]);
    return (c % 32 < 16 ? byte & 15 : byte >> 4) - 8;
  };
  const auto scale = [&](size_t r, size_t g) { return plain_scale(block.scales[r], g); };
  const auto middle = [&](size_t r, size_t g) {
    return place.minimum_at > 0
               ? 8 * scale(r, g) + plain_scale(block.scales[r] + place.minimum_at, g)
               : 0.0f;
  };
  sum_plainly(block, place, kSumStep, code, scale, middle, out);
}
#else

constexpr size_t kGroups = 4, kChunk = kGroups * bundle::kGroup;
// Pairs of rows that go by together. With 16 registers sums have to be stored often anyway, and
// rows whose addresses agree in the lowest 12 bits are better read few at a time.
constexpr size_t kPairs = kBytes == 64 ? 8 : 2;

/// In block b of a vector: number `kBlocks part + b` of four.
HWY_INLINE hn::Vec<D8> spread_pattern(size_t part) {
  HWY_ALIGN static constexpr uint8_t kSpread[4 * 16] = {
#define SLUICE_FOUR(i) i, i + 1, i + 2, i + 3
#define SLUICE_SPREAD(i) SLUICE_FOUR(i), SLUICE_FOUR(i), SLUICE_FOUR(i), SLUICE_FOUR(i)
      SLUICE_SPREAD(0), SLUICE_SPREAD(4), SLUICE_SPREAD(8), SLUICE_SPREAD(12)};
#undef SLUICE_SPREAD
#undef SLUICE_FOUR
  return hn::Load(D8(), kSpread + part * kBytes);
}

template <class D>
HWY_INLINE hn::Vec<D> spread(D d, const hn::TFromD<D>* four, hn::Vec<D8> pattern) {
  return hn::BitCast(d, hn::TableLookupBytes(hn::BitCast(D8(), hn::LoadDup128(d, four)), pattern));
}

// Interleaved by 16 bits, a block of 16 bytes of two rows holds in word i the codes of four
// columns of the first row and of four of the second: 2 i, 2 i + 16, 2 i + 1 and 2 i + 17 from the
// lowest bits on, the lower half those of words 0..3. What a shift leaves above a code belongs to
// the next one: products of it are taken off at the end, once for all rows, modulo 2^32.
constexpr size_t kSums = 8;  // vectors: four codes of both halves

/// Where a chunk's sums go.
struct Sums {
  int32_t* integers;  ///< of a step, [part][kSums] vectors
  float* floats;      ///< of all, in the same order
};

/// floats += step (sums - 8 sum of coefficients)
HWY_INLINE void finish(const int32_t* sum, const float* step, hn::Vec<D8> pattern, VI* s,
                       float* floats) {
  const DF d;
  const DI di;
  const VI offset = hn::ShiftLeft<3>(spread(di, sum, pattern));
  const VF factor = spread(d, step, pattern);
  // Sum i above 0 has 16 times sum i + 1 in it.
#pragma GCC unroll 2
  for (size_t half = 0; half < kSums; half += 4) {
    s[half + 1] = hn::Sub(s[half + 1], hn::ShiftLeft<4>(s[half + 2]));
    s[half + 2] = hn::Sub(s[half + 2], hn::ShiftLeft<4>(s[half + 3]));
  }
#pragma GCC unroll 8
  for (size_t i = 0; i < kSums; ++i) {
    float* to = floats + i * hn::Lanes(d);
    hn::Store(hn::MulAdd(hn::ConvertTo(d, hn::Sub(s[i], offset)), factor, hn::Load(d, to)), d, to);
  }
}

/// Adds the chunk of P pairs of rows, `at` bytes behind their first codes, to the sums of the step.
template <size_t P, bool kStart, bool kFinish, bool kVnni>
HWY_INLINE void add_chunk(const std::byte* const* codes, size_t at, const std::byte* const* ahead,
                          size_t ahead_at, const Coefficients& c, size_t pair, size_t group,
                          const Sums& sums) {
  const D8 d8;
  const D16 d16;
  const DI di;
  const DS ds;
  const auto low = hn::Set(d16, 15);
#pragma GCC unroll 1  // registers do not suffice for two at a time
  for (size_t part = 0; part < kParts; ++part) {
    const auto pattern = spread_pattern(part);
    int32_t* to = sums.integers + part * kSums * hn::Lanes(di);
    const auto start = [&](size_t i) {
      return kStart ? hn::Zero(di) : hn::Load(di, to + i * hn::Lanes(di));
    };
    VI s0 = start(0), s1 = start(1), s2 = start(2), s3 = start(3), s4 = start(4), s5 = start(5),
       s6 = start(6), s7 = start(7);
#pragma GCC unroll 8
    for (size_t p = 0; p < P; ++p) {
      if (part == 0) {
        __builtin_prefetch(ahead[2 * p] + ahead_at, 0, 2);
        __builtin_prefetch(ahead[2 * p + 1] + ahead_at, 0, 2);
      }
      const size_t from = at + part * kBytes;
      const auto first = hn::BitCast(
                     d16, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(codes[2 * p] + from))),
                 second = hn::BitCast(
                     d16, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(codes[2 * p + 1] + from)));
      const auto factor = hn::BitCast(ds, spread(di, c.pair[pair + p] + group, pattern));
      const auto lower = hn::InterleaveLower(d16, first, second),
                 upper = hn::InterleaveUpper(d16, first, second);
      s0 = add_products<kVnni>(s0, hn::And(lower, low), factor);
      s1 = add_products<kVnni>(s1, hn::ShiftRight<4>(lower), factor);
      s2 = add_products<kVnni>(s2, hn::ShiftRight<8>(lower), factor);
      s3 = add_products<kVnni>(s3, hn::ShiftRight<12>(lower), factor);
      s4 = add_products<kVnni>(s4, hn::And(upper, low), factor);
      s5 = add_products<kVnni>(s5, hn::ShiftRight<4>(upper), factor);
      s6 = add_products<kVnni>(s6, hn::ShiftRight<8>(upper), factor);
      s7 = add_products<kVnni>(s7, hn::ShiftRight<12>(upper), factor);
    }
    VI s[kSums] = {s0, s1, s2, s3, s4, s5, s6, s7};
    if (kFinish) {
      finish(c.sum + group, c.step + group, pattern, s, sums.floats + part * kSums * hn::Lanes(di));
    } else {
#pragma GCC unroll 8
      for (size_t i = 0; i < kSums; ++i) hn::Store(s[i], di, to + i * hn::Lanes(di));
    }
  }
}

/// Blocks of 16 bytes of vectors 2 i and 2 i + 1 one behind the other: out = values, of kBlocks
/// groups. Four columns of a group lie in each block of each vector.
HWY_INLINE void store_groups(const VF* values, float* out) {
  const DF d;
#if HWY_TARGET == HWY_AVX2
#pragma GCC unroll 4
  for (size_t i = 0; i < kSums; i += 2) {
    hn::StoreU(hn::ConcatLowerLower(d, values[i + 1], values[i]), d, out + 4 * i);
    hn::StoreU(hn::ConcatUpperUpper(d, values[i + 1], values[i]), d, out + 4 * i + bundle::kGroup);
  }
#else
  const hn::FixedTag<float, 4> four;
  HWY_ALIGN float all[kSums][hn::MaxLanes(DF())];
#pragma GCC unroll 8
  for (size_t i = 0; i < kSums; ++i) hn::Store(values[i], d, all[i]);
  for (size_t b = 0; b < kBlocks; ++b) {
    float* to = out + b * bundle::kGroup;
#pragma GCC unroll 8
    for (size_t i = 0; i < kSums; ++i) hn::StoreU(hn::Load(four, all[i] + 4 * b), four, to + 4 * i);
  }
#endif
}

/// out = sums + shift over the chunk's 128 columns.
template <bool kMinima>
HWY_INLINE void put_chunk(const float* floats, const float* shift, float* out) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
#pragma GCC unroll 1
  for (size_t part = 0; part < kParts; ++part) {
    const float* at = floats + part * kSums * lanes;
    const VF more = kMinima ? spread(d, shift, spread_pattern(part)) : hn::Zero(d);
    const auto sum = [&](size_t i) {
      const VF value = hn::Load(d, at + i * lanes);
      return kMinima ? hn::Add(value, more) : value;
    };
    VF values[kSums];
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      const VF s0 = sum(4 * half), s1 = sum(4 * half + 1), s2 = sum(4 * half + 2),
               s3 = sum(4 * half + 3);
      values[2 * half] = hn::InterleaveLower(d, s0, s2);
      values[2 * half + 1] = hn::InterleaveUpper(d, s0, s2);
      values[4 + 2 * half] = hn::InterleaveLower(d, s1, s3);
      values[4 + 2 * half + 1] = hn::InterleaveUpper(d, s1, s3);
    }
    store_groups(values, out + part * kBlocks * bundle::kGroup);
  }
}

/// P pairs of rows over some chunks.
template <size_t P, bool kStart, bool kFinish, bool kVnni>
void add_chunks(const RowsTogether& rows, size_t chunks, const Coefficients& c, size_t pair,
                size_t group, Sums sums) {
  each_chunk(rows, chunks, [&](size_t k, const std::byte* const* ahead, size_t at) {
    add_chunk<P, kStart, kFinish, kVnni>(rows.codes, k * kChunkBytes, ahead, at, c, pair,
                                         group + k * kGroups,
                                         {sums.integers + k * kChunk, sums.floats + k * kChunk});
  });
}

template <size_t P, bool kVnni, class... More>
void add_pairs(const RowsTogether& rows, More&&... more) {
  if (rows.pairs == P) {
    const auto run = rows.start    ? rows.finish ? add_chunks<P, true, true, kVnni>
                                                 : add_chunks<P, true, false, kVnni>
                        : rows.finish ? add_chunks<P, false, true, kVnni>
                                   : add_chunks<P, false, false, kVnni>;
    return run(rows, more...);
  }
  if constexpr (P > 1) add_pairs<P / 2, kVnni>(rows, more...);
}

template <bool kMinima, bool kVnni>
void sum_nibbles(const SumBlock& block, const SumPlace& place, const SumBlock* next, float* out) {
  const size_t groups = (place.columns + bundle::kGroup - 1) / bundle::kGroup;
  const Rows rows{block, next};
  HWY_ALIGN Coefficients c;
  HWY_ALIGN int32_t integers[kSumColumns];
  HWY_ALIGN float floats[kSumColumns] = {}, shift[kGroupStride] = {};
  for (size_t first = 0; first < block.count; first += kSumStep) {
    const size_t count = std::min(kSumStep, block.count - first);
    find_coefficients<kMinima>(rows, first, count, place, groups, c, shift);
    add_step<kPairs>(rows, first, count, 16 * groups,
                     [&](const RowsTogether& together, size_t pair, size_t chunks, size_t chunk) {
                       add_pairs<kPairs, kVnni>(
                           together, chunks, c, pair, chunk * kGroups,
                           Sums{integers + chunk * kChunk, floats + chunk * kChunk});
                     });
  }
  for (size_t k = 0; k * kChunk < place.columns; ++k) {
    const size_t columns = std::min(kChunk, place.columns - k * kChunk);
    HWY_ALIGN float copy[kChunk];
    float* to = columns < kChunk ? copy : out + k * kChunk;
    put_chunk<kMinima>(floats + k * kChunk, shift + k * kGroups, to);
    if (columns < kChunk) std::memcpy(out + k * kChunk, copy, columns * sizeof(float));
  }
}

void SumNibbles(const SumBlock& block, const SumPlace& place, const SumBlock* next, bool vnni,
                float* out) {
  choose_vnni(vnni, [&](auto use) {
    (place.minimum_at > 0 ? sum_nibbles<true, use()> : sum_nibbles<false, use()>)(block, place,
                                                                                  next, out);
  });
}

#endif  // vectors
}  // namespace
}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(SumNibbles);

void sum_nibbles(const SumBlock& block, const SumPlace& place, const SumBlock* next, float* out) {
  HWY_DYNAMIC_DISPATCH(SumNibbles)(block, place, next, dot_vnni_usable(), out);
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
