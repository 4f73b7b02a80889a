#include "sluice/engine/kernel/packed_accumulate_integers.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "sluice/bundle/packed.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/packed_accumulate_integers.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET == HWY_AVX3_DL && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx512vnni")  // CPUs of this target have it
#define SLUICE_SUM_VNNI 1
#else
#define SLUICE_SUM_VNNI 0
#endif
namespace sluice::engine::HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR || !HWY_ARCH_X86
float scale_of(const std::byte* scales, size_t group) {
  uint16_t bits;
  std::memcpy(&bits, scales + 2 * group, 2);
  return bundle::f16_to_f32(bits);
}

/// Plain: what the vectors do, number by number.
void AddSumBlock(const SumBlock& block, const SumPlace& place, const SumBlock*) {
  for (size_t g = 0; g * bundle::kGroup < place.columns; ++g) {
    float most = 0, shift = 0;
    for (size_t r = 0; r < block.count; ++r) {
      most = std::max(most, std::fabs(scale_of(block.scales[r], g)));
      if (place.minima)
        shift += block.factor[r] * (8 * scale_of(block.scales[r], g) +
                                    scale_of(block.scales[r] + place.minimum_at, g));
    }
    int32_t sums[bundle::kGroup] = {};
    for (size_t r = 0; r < block.count && most > 0; ++r) {
      const auto c = static_cast<int32_t>(
          std::lrint(scale_of(block.scales[r], g) * (32767.0f / most) * block.share[r]));
      for (size_t i = 0; i < bundle::kGroup; ++i) {
        const auto byte = static_cast<int32_t>(block.codes[r][16 * g + i % 16]);
        sums[i] += c * ((i < 16 ? byte & 15 : byte >> 4) - 8);
      }
    }
    for (size_t i = 0; i < bundle::kGroup && g * bundle::kGroup + i < place.columns; ++i) {
      float& y = place.y[g * bundle::kGroup + i];
      y += static_cast<float>(sums[i]) * (most * (1.0f / 32767)) * block.most + shift;
    }
  }
}
#else
namespace hn = hwy::HWY_NAMESPACE;
using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using D8 = hn::Repartition<uint8_t, DF>;
using D16 = hn::Repartition<uint16_t, DF>;
using DS = hn::Repartition<int16_t, DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;

// A chunk is four groups, 128 columns, 64 bytes of codes of a row: one, two or four vectors.
constexpr size_t kGroups = 4, kChunk = kGroups * bundle::kGroup, kChunkBytes = kChunk / 2;
constexpr size_t kMostChunks = kSumColumns / kChunk, kMostGroups = kMostChunks * kGroups;
constexpr size_t kBytes = hn::MaxLanes(D8()), kParts = kChunkBytes / kBytes, kBlocks = kBytes / 16;
// Pairs of rows that go by together, so that their sums stay in registers meanwhile.
constexpr size_t kPairs = 2;
constexpr size_t kAhead = 24;  // chunks

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

/// sum + a_2i b_2i + a_2i+1 b_2i+1
HWY_INLINE VI add_products(VI sum, hn::Vec<D16> a, hn::Vec<DS> b) {
#if SLUICE_SUM_VNNI
  return VI{_mm512_dpwssd_epi32(sum.raw, a.raw, b.raw)};
#else
  VI unused = hn::Zero(DI());
  sum = hn::ReorderWidenMulAccumulate(DI(), hn::BitCast(DS(), a), b, sum, unused);
#if defined(__GNUC__)
  // Else gcc adds up products before it adds them to sums, for which there are too few registers.
  asm("" : "+v"(sum.raw));
#endif
  return sum;
#endif
}

/// What the codes of a block are multiplied by. A pair of rows has an int32 for a group: the first
/// row's coefficient below, the second one's above.
struct Coefficients {
  HWY_ALIGN int32_t pair[kSumRows / 2][kMostGroups];
  HWY_ALIGN int32_t offset[kMostGroups];  ///< subtracted from the sums of codes
  HWY_ALIGN float step[kMostGroups];      ///< S / 32767
  HWY_ALIGN float shift[kMostGroups];     ///< sum of f_j (8 s_j + m_j)
};

/// Of N vectors of groups from group g on. load(r, i, at) gives the scales of row r, or what lies
/// `at` bytes behind them.
template <size_t N, bool kMinima, class Load>
HWY_INLINE void find_some(const SumBlock& block, const SumPlace& place, size_t g, const Load& load,
                          Coefficients& out) {
  const DF d;
  const DI di;
  const size_t lanes = hn::Lanes(d), rows = block.count;
  VF most[N], shift[N], inverse[N];
  VI sum[N];
#pragma GCC unroll 4
  for (size_t i = 0; i < N; ++i) {
    most[i] = shift[i] = hn::Zero(d);
    sum[i] = hn::Zero(di);
  }
  for (size_t r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (size_t i = 0; i < N; ++i) {
      const VF scale = load(r, i, 0);
      most[i] = hn::Max(most[i], hn::Abs(scale));
      if (kMinima) {
        const VF middle = hn::MulAdd(hn::Set(d, 8.0f), scale, load(r, i, place.minimum_at));
        shift[i] = hn::MulAdd(hn::Set(d, block.factor[r]), middle, shift[i]);
      }
    }
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < N; ++i) {
    // Where all scales are zero the coefficients are, too.
    inverse[i] =
        hn::IfThenZeroElse(hn::Eq(most[i], hn::Zero(d)), hn::Div(hn::Set(d, 32767.0f), most[i]));
  }
  // Behind 1.5 x 2^23 + v, in the lowest bits, stands v rounded to an integer.
  constexpr uint32_t kMagic = 0x4B400000;
  const VF magic = hn::Set(d, 12582912.0f);
  for (size_t r = 0; r < rows; r += 2) {
    const bool both = r + 1 < rows;
    const VF first_share = hn::Set(d, block.share[r]),
             second_share = hn::Set(d, both ? block.share[r + 1] : 0.0f);
    const size_t other = both ? r + 1 : r;
#pragma GCC unroll 4
    for (size_t i = 0; i < N; ++i) {
      const auto rounded = [&](size_t row, VF share) {
        return hn::BitCast(di, hn::MulAdd(hn::Mul(load(row, i, 0), inverse[i]), share, magic));
      };
      const VI first = rounded(r, first_share), second = rounded(other, second_share);
      sum[i] = hn::Add(sum[i], hn::Add(first, second));
      hn::Store(hn::Or(hn::And(first, hn::Set(di, 0xFFFF)), hn::ShiftLeft<16>(second)), di,
                out.pair[r / 2] + g + i * lanes);
    }
  }
  const auto magics =
      hn::Set(di, static_cast<int32_t>(kMagic * static_cast<uint32_t>((rows + 1) / 2 * 2)));
#pragma GCC unroll 4
  for (size_t i = 0; i < N; ++i) {
    const size_t at = g + i * lanes;
    const VI codes = hn::ShiftLeft<3>(hn::Sub(sum[i], magics));
    hn::Store(codes, di, out.offset + at);
    hn::Store(hn::Mul(most[i], hn::Set(d, 1.0f / 32767)), d, out.step + at);
    hn::Store(shift[i], d, out.shift + at);
  }
}

template <bool kMinima>
HWY_INLINE void find_coefficients(const SumBlock& block, const SumPlace& place, size_t groups,
                                  Coefficients& out) {
  const DF d;
  const hn::Rebind<hwy::float16_t, DF> d16;
  const size_t lanes = hn::Lanes(d);
  size_t g = 0;
  const auto there = [&](size_t r, size_t i, size_t at) {
    const std::byte* from = block.scales[r] + at + 2 * (g + i * lanes);
    return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
  };
  for (; g + 4 * lanes <= groups; g += 4 * lanes)
    find_some<4, kMinima>(block, place, g, there, out);
  for (; g + lanes <= groups; g += lanes) find_some<1, kMinima>(block, place, g, there, out);
  if (g == groups) return;
  // Nothing is read behind the last group.
  const auto copied = [&](size_t r, size_t, size_t at) {
    HWY_ALIGN hwy::float16_t part[hn::MaxLanes(DF())] = {};
    std::memcpy(part, block.scales[r] + at + 2 * g, 2 * (groups - g));
    return hn::PromoteTo(d, hn::Load(d16, part));
  };
  find_some<1, kMinima>(block, place, g, copied, out);
}

// Interleaved by 16 bits, a block of 16 bytes of two rows holds in word i the codes of four
// columns of the first row and of four of the second: 2 i, 2 i + 16, 2 i + 1 and 2 i + 17 from the
// lowest bits on, the lower half those of words 0..3. What a shift leaves above a code belongs to
// the next one: products of it are taken off at the end, once for all rows, modulo 2^32.
constexpr size_t kSums = 8;  // vectors: four codes of both halves

/// Adds the chunk of P pairs of rows to the sums, which start at zero with kStart. Codes lie `at`
/// bytes behind those pointers, and `ahead_at` behind others is asked for.
template <size_t P, bool kStart>
HWY_INLINE void add_chunk(const std::byte* const* codes, size_t at, const std::byte* const* ahead,
                          size_t ahead_at, const int32_t* coefficients, int32_t* sums) {
  const D8 d8;
  const D16 d16;
  const DI di;
  const DS ds;
  const auto low = hn::Set(d16, 15);
#pragma GCC unroll 8
  for (size_t r = 0; r < 2 * P; ++r) __builtin_prefetch(ahead[r] + ahead_at, 0, 2);
#pragma GCC unroll 1  // registers do not suffice for two at a time
  for (size_t part = 0; part < kParts; ++part) {
    const auto pattern = spread_pattern(part);
    int32_t* to = sums + part * kSums * hn::Lanes(di);
    const auto start = [&](size_t i) {
      return kStart ? hn::Zero(di) : hn::Load(di, to + i * hn::Lanes(di));
    };
    VI s0 = start(0), s1 = start(1), s2 = start(2), s3 = start(3), s4 = start(4), s5 = start(5),
       s6 = start(6), s7 = start(7);
#pragma GCC unroll 8
    for (size_t p = 0; p < P; ++p) {
      const size_t from = at + part * kBytes;
      const auto first = hn::BitCast(
                     d16, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(codes[2 * p] + from))),
                 second = hn::BitCast(
                     d16, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(codes[2 * p + 1] + from)));
      const auto factor = hn::BitCast(ds, spread(di, coefficients + p * kMostGroups, pattern));
      const auto lower = hn::InterleaveLower(d16, first, second),
                 upper = hn::InterleaveUpper(d16, first, second);
      s0 = add_products(s0, hn::And(lower, low), factor);
      s1 = add_products(s1, hn::ShiftRight<4>(lower), factor);
      s2 = add_products(s2, hn::ShiftRight<8>(lower), factor);
      s3 = add_products(s3, hn::ShiftRight<12>(lower), factor);
      s4 = add_products(s4, hn::And(upper, low), factor);
      s5 = add_products(s5, hn::ShiftRight<4>(upper), factor);
      s6 = add_products(s6, hn::ShiftRight<8>(upper), factor);
      s7 = add_products(s7, hn::ShiftRight<12>(upper), factor);
    }
    hn::Store(s0, di, to);
    hn::Store(s1, di, to + hn::Lanes(di));
    hn::Store(s2, di, to + 2 * hn::Lanes(di));
    hn::Store(s3, di, to + 3 * hn::Lanes(di));
    hn::Store(s4, di, to + 4 * hn::Lanes(di));
    hn::Store(s5, di, to + 5 * hn::Lanes(di));
    hn::Store(s6, di, to + 6 * hn::Lanes(di));
    hn::Store(s7, di, to + 7 * hn::Lanes(di));
  }
}

/// Blocks of 16 bytes of vectors 2 i and 2 i + 1 one behind the other: y += values, of kBlocks
/// groups. Four columns of a group lie in each block of each vector.
HWY_INLINE void add_to_groups(const VF* values, float* y) {
  const DF d;
#if HWY_TARGET == HWY_AVX2
#pragma GCC unroll 4
  for (size_t i = 0; i < kSums; i += 2) {
    float* first = y + 4 * i;
    float* second = first + bundle::kGroup;
    hn::StoreU(hn::Add(hn::LoadU(d, first), hn::ConcatLowerLower(d, values[i + 1], values[i])), d,
               first);
    hn::StoreU(hn::Add(hn::LoadU(d, second), hn::ConcatUpperUpper(d, values[i + 1], values[i])), d,
               second);
  }
#else
  const hn::FixedTag<float, 4> four;
  HWY_ALIGN float all[kSums][hn::MaxLanes(DF())];
#pragma GCC unroll 8
  for (size_t i = 0; i < kSums; ++i) hn::Store(values[i], d, all[i]);
  for (size_t b = 0; b < kBlocks; ++b) {
    float* to = y + b * bundle::kGroup;
#pragma GCC unroll 8
    for (size_t i = 0; i < kSums; ++i)
      hn::StoreU(hn::Add(hn::LoadU(four, to + 4 * i), hn::Load(four, all[i] + 4 * b)), four,
                 to + 4 * i);
  }
#endif
}

/// y += F step (sums - offset) + shift over the chunk's 128 columns.
template <bool kMinima>
HWY_INLINE void finish_chunk(const Coefficients& c, size_t group, float most, const int32_t* sums,
                             float* y) {
  const DF d;
  const DI di;
  const VF factor = hn::Set(d, most);
#pragma GCC unroll 1
  for (size_t part = 0; part < kParts; ++part) {
    const auto pattern = spread_pattern(part);
    const int32_t* at = sums + part * kSums * hn::Lanes(di);
    const VI offset = spread(di, c.offset + group, pattern);
    const VF step = spread(d, c.step + group, pattern), shift = spread(d, c.shift + group, pattern);
    VF values[kSums];
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      VI s[4];
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) s[i] = hn::Load(di, at + (4 * half + i) * hn::Lanes(di));
      // Sum i above 0 has 16 times sum i + 1 in it.
      s[1] = hn::Sub(s[1], hn::ShiftLeft<4>(s[2]));
      s[2] = hn::Sub(s[2], hn::ShiftLeft<4>(s[3]));
      const auto value = [&](VI sum) {
        const VF whole = hn::Mul(hn::ConvertTo(d, hn::Sub(sum, offset)), step);
        return kMinima ? hn::MulAdd(whole, factor, shift) : hn::Mul(whole, factor);
      };
      values[2 * half] = value(hn::InterleaveLower(di, s[0], s[2]));
      values[2 * half + 1] = value(hn::InterleaveUpper(di, s[0], s[2]));
      values[4 + 2 * half] = value(hn::InterleaveLower(di, s[1], s[3]));
      values[4 + 2 * half + 1] = value(hn::InterleaveUpper(di, s[1], s[3]));
    }
    add_to_groups(values, y + part * kBlocks * bundle::kGroup);
  }
}

/// Some pairs of rows over all whole chunks. `ahead` are the rows of the next call.
template <size_t P, bool kStart>
void add_chunks(const std::byte* const* codes, const std::byte* const* ahead, size_t chunks,
                const int32_t* coefficients, int32_t* sums) {
  const size_t distance = std::min(kAhead, chunks);
  for (size_t k = 0; k < chunks; ++k) {
    const bool same = k + distance < chunks;
    const size_t then = same ? k + distance : k + distance - chunks;
    add_chunk<P, kStart>(codes, k * kChunkBytes, same ? codes : ahead, then * kChunkBytes,
                         coefficients + k * kGroups, sums + k * kChunk);
  }
}

/// The same of any number of pairs up to kPairs.
void add_pairs(size_t pairs, bool start, const std::byte* const* codes,
               const std::byte* const* ahead, size_t chunks, const int32_t* coefficients,
               int32_t* sums) {
  if (pairs == kPairs) {
    return start ? add_chunks<kPairs, true>(codes, ahead, chunks, coefficients, sums)
                 : add_chunks<kPairs, false>(codes, ahead, chunks, coefficients, sums);
  }
  for (size_t p = 0; p < pairs; ++p) {
    const auto run = start && p == 0 ? add_chunks<1, true> : add_chunks<1, false>;
    run(codes + 2 * p, ahead + 2 * p, chunks, coefficients + p * kMostGroups, sums);
  }
}

void AddSumBlock(const SumBlock& block, const SumPlace& place, const SumBlock* next) {
  constexpr size_t kTogether = 2 * kPairs;
  const size_t groups = (place.columns + bundle::kGroup - 1) / bundle::kGroup;
  const size_t whole = groups / kGroups, chunks = (groups + kGroups - 1) / kGroups;
  HWY_ALIGN Coefficients coefficients;
  if (place.minima) {
    find_coefficients<true>(block, place, groups, coefficients);
  } else {
    find_coefficients<false>(block, place, groups, coefficients);
  }
  HWY_ALIGN int32_t sums[kMostChunks * kChunk];
  const size_t scale_lines = (2 * groups + 63) / 64 + 1;
  for (size_t first = 0; first < block.count; first += kTogether) {
    const size_t count = std::min(kTogether, block.count - first), pairs = (count + 1) / 2;
    const std::byte *codes[kTogether], *ahead[kTogether];
    const bool last = first + kTogether >= block.count;
    const SumBlock& then = last && next ? *next : block;
    const size_t from = last && next ? 0 : first + kTogether;
    for (size_t r = 0; r < 2 * pairs; ++r) {
      codes[r] = block.codes[std::min(first + r, block.count - 1)];
      ahead[r] = then.codes[std::min(from + r, then.count - 1)];
    }
    // The scales of the next block, which it wants all at once.
    for (size_t r = first; next && r < first + count; ++r) {
      const std::byte* at = next->scales[std::min(r, next->count - 1)];
      for (size_t line = 0; line < scale_lines; ++line) {
        const size_t byte = std::min(64 * line, 2 * groups - 1);
        __builtin_prefetch(at + byte, 0, 3);
        if (place.minima) __builtin_prefetch(at + place.minimum_at + byte, 0, 3);
      }
    }
    const int32_t* pair = coefficients.pair[first / 2];
    add_pairs(pairs, first == 0, codes, ahead, whole, pair, sums);
    if (whole == chunks) continue;
    HWY_ALIGN std::byte copies[kTogether][kChunkBytes] = {};
    for (size_t r = 0; r < 2 * pairs; ++r) {
      std::memcpy(copies[r], codes[r] + whole * kChunkBytes, (groups - whole * kGroups) * 16);
      codes[r] = copies[r];
    }
    add_pairs(pairs, first == 0, codes, codes, 1, pair + whole * kGroups, sums + whole * kChunk);
  }
  for (size_t k = 0; k < chunks; ++k) {
    float* y = place.y + k * kChunk;
    const size_t columns = std::min(kChunk, place.columns - k * kChunk);
    HWY_ALIGN float copy[kChunk];
    if (columns < kChunk) {
      std::memset(copy, 0, sizeof copy);
      std::memcpy(copy, y, columns * sizeof(float));
    }
    float* to = columns < kChunk ? copy : y;
    if (place.minima) {
      finish_chunk<true>(coefficients, k * kGroups, block.most, sums + k * kChunk, to);
    } else {
      finish_chunk<false>(coefficients, k * kGroups, block.most, sums + k * kChunk, to);
    }
    if (columns < kChunk) std::memcpy(y, copy, columns * sizeof(float));
  }
}

#endif  // vectors
}  // namespace
}  // namespace sluice::engine::HWY_NAMESPACE
#if SLUICE_SUM_VNNI
#pragma GCC pop_options
#endif
#undef SLUICE_SUM_VNNI
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(AddSumBlock);

void add_sum_block(const SumBlock& block, const SumPlace& place, const SumBlock* next) {
  if (block.count > 0) HWY_DYNAMIC_DISPATCH(AddSumBlock)(block, place, next);
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
