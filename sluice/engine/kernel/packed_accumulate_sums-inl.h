// What the sums of 4-bit and of 8-bit rows share, for inclusion by packed_accumulate_nibbles.cpp
// and packed_accumulate_bytes.cpp (once per target, hence the toggled guard).
#if defined(SLUICE_ENGINE_KERNEL_PACKED_ACCUMULATE_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_ENGINE_KERNEL_PACKED_ACCUMULATE_SUMS_INL_H_
#undef SLUICE_ENGINE_KERNEL_PACKED_ACCUMULATE_SUMS_INL_H_
#else
#define SLUICE_ENGINE_KERNEL_PACKED_ACCUMULATE_SUMS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "sluice/engine/kernel/packed_accumulate_integers.h"

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR || !HWY_ARCH_X86

/// Plain: what the vectors do, number by number. `code(r, c)` is the integer that the code stands
/// for, `scale(r, group)` and `middle(r, group)` are what belongs to it. `steps` rows share a step.
template <class Code, class Scale, class Middle>
void sum_plainly(const SumBlock& block, const SumPlace& place, size_t steps, const Code& code,
                 const Scale& scale, const Middle& middle, float* out) {
  constexpr size_t kGroup = bundle::kGroup;
  for (size_t g = 0; g * kGroup < place.columns; ++g) {
    const size_t columns = std::min(kGroup, place.columns - g * kGroup);
    float shift = 0, values[kGroup] = {};
    for (size_t r = 0; r < block.count; ++r) shift += block.factor[r] * middle(r, g);
    for (size_t first = 0; first < block.count; first += steps) {
      const size_t last = std::min(first + steps, block.count);
      float most = 0;
      for (size_t r = first; r < last; ++r) most = std::max(most, std::fabs(scale(r, g)));
      int32_t sums[kGroup] = {};
      for (size_t r = first; r < last && most > 0; ++r) {
        const auto c =
            static_cast<int32_t>(std::lrint(scale(r, g) * (32767.0f / most) * block.share[r]));
        for (size_t i = 0; i < columns; ++i) sums[i] += c * code(r, g * kGroup + i);
      }
      for (size_t i = 0; i < columns; ++i)
        values[i] += static_cast<float>(sums[i]) * (most * (block.most / 32767));
    }
    for (size_t i = 0; i < columns; ++i) out[g * kGroup + i] = values[i] + shift;
  }
}

inline float plain_scale(const std::byte* scales, size_t group) {
  uint16_t bits;
  std::memcpy(&bits, scales + 2 * group, 2);
  return bundle::f16_to_f32(bits);
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

// A chunk is 64 bytes of codes of a row: one, two or four vectors.
constexpr size_t kChunkBytes = 64;
constexpr size_t kBytes = hn::MaxLanes(D8()), kParts = kChunkBytes / kBytes, kBlocks = kBytes / 16;
constexpr size_t kMostGroups = kSumColumns / bundle::kGroup;
constexpr size_t kGroupStride = kMostGroups + 16;  // of pairs: a vector more, aligned

/// sum + a_2i b_2i + a_2i+1 b_2i+1, with AVX-512 VNNI where that is there.
template <bool kVnni>
HWY_INLINE VI add_products(VI sum, hn::Vec<D16> a, hn::Vec<DS> b) {
#if defined(__GNUC__)
  if constexpr (kVnni) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
    return sum;
  }
#endif
  VI unused = hn::Zero(DI());
  sum = hn::ReorderWidenMulAccumulate(DI(), hn::BitCast(DS(), a), b, sum, unused);
#if defined(__GNUC__)
  // Else gcc adds up products before it adds them to sums, for which there are too few registers.
  asm("" : "+v"(sum.raw));
#endif
  return sum;
}

/// Calls run(std::true_type) where add_products may use VNNI.
template <class Run>
HWY_INLINE void choose_vnni([[maybe_unused]] bool vnni, const Run& run) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  if (vnni) return run(std::true_type());
#endif
  run(std::false_type());
}

/// What the codes of kSumStep rows are multiplied by. A pair of rows has an int32 for a group: the
/// first row's coefficient below, the second one's above. What follows the last group is read and
/// not used.
struct Coefficients {
  HWY_ALIGN int32_t pair[kSumStep / 2][kGroupStride];
  HWY_ALIGN int32_t sum[kGroupStride];  ///< of the coefficients
  HWY_ALIGN float step[kGroupStride];   ///< F S / 32767
};

// Behind 1.5 x 2^23 + v, in the lowest bits, stands v rounded to an integer.
constexpr uint32_t kMagic = 0x4B400000;
constexpr float kMagicFloat = 12582912.0f;

/// The rows of a block, and after them those of the next.
struct Rows {
  const SumBlock& block;
  const SumBlock* next;
  const std::byte* codes(size_t r) const { return of(&SumBlock::codes, r); }
  const std::byte* scales(size_t r) const { return of(&SumBlock::scales, r); }

 private:
  /// The last one again behind the end.
  const std::byte* of(const std::byte* const (SumBlock::*what)[kSumRows], size_t r) const {
    if (r < block.count || !next) return (block.*what)[std::min(r, block.count - 1)];
    return (next->*what)[std::min(r - block.count, next->count - 1)];
  }
};

/// Of rows [first, first + count) and N vectors of groups from group g on. load(r, i, at) gives the
/// scales of a row, or what lies `at` bytes behind them; minima are added to `shift`.
template <size_t N, bool kMinima, class Load>
HWY_INLINE void find_some(const SumBlock& block, size_t first, size_t count, const SumPlace& place,
                          size_t g, const Load& load, Coefficients& out, float* shift) {
  const DF d;
  const DI di;
  const size_t lanes = hn::Lanes(d);
  VF most[N], inverse[N], middles[N];
  VI sum[N];
#pragma GCC unroll 4
  for (size_t i = 0; i < N; ++i) {
    most[i] = hn::Zero(d);
    sum[i] = hn::Zero(di);
    if (kMinima) middles[i] = hn::Load(d, shift + g + i * lanes);
  }
  for (size_t r = first; r < first + count; ++r) {
#pragma GCC unroll 4
    for (size_t i = 0; i < N; ++i) {
      const VF scale = load(r, i, 0);
      most[i] = hn::Max(most[i], hn::Abs(scale));
      if (kMinima) {
        const VF middle = hn::MulAdd(hn::Set(d, 8.0f), scale, load(r, i, place.minimum_at));
        middles[i] = hn::MulAdd(hn::Set(d, block.factor[r]), middle, middles[i]);
      }
    }
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < N; ++i) {
    // Where all scales are zero the coefficients are, too.
    inverse[i] =
        hn::IfThenZeroElse(hn::Eq(most[i], hn::Zero(d)), hn::Div(hn::Set(d, 32767.0f), most[i]));
    if (kMinima) hn::Store(middles[i], d, shift + g + i * lanes);
  }
  const VF magic = hn::Set(d, kMagicFloat);
  for (size_t r = 0; r < count; r += 2) {
    const bool both = r + 1 < count;
    const VF first_share = hn::Set(d, block.share[first + r]),
             second_share = hn::Set(d, both ? block.share[first + r + 1] : 0.0f);
    const size_t other = first + (both ? r + 1 : r);
#pragma GCC unroll 4
    for (size_t i = 0; i < N; ++i) {
      const auto rounded = [&](size_t row, VF share) {
        return hn::BitCast(di, hn::MulAdd(hn::Mul(load(row, i, 0), inverse[i]), share, magic));
      };
      const VI one = rounded(first + r, first_share), two = rounded(other, second_share);
      sum[i] = hn::Add(sum[i], hn::Add(one, two));
      hn::Store(hn::Or(hn::And(one, hn::Set(di, 0xFFFF)), hn::ShiftLeft<16>(two)), di,
                out.pair[r / 2] + g + i * lanes);
    }
  }
  const auto magics =
      hn::Set(di, static_cast<int32_t>(kMagic * static_cast<uint32_t>((count + 1) / 2 * 2)));
#pragma GCC unroll 4
  for (size_t i = 0; i < N; ++i) {
    hn::Store(hn::Sub(sum[i], magics), di, out.sum + g + i * lanes);
    hn::Store(hn::Mul(most[i], hn::Set(d, block.most / 32767)), d, out.step + g + i * lanes);
  }
}

template <bool kMinima>
HWY_INLINE void find_coefficients(const Rows& rows, size_t first, size_t count,
                                  const SumPlace& place, size_t groups, Coefficients& out,
                                  float* shift) {
  const DF d;
  const hn::Rebind<hwy::float16_t, DF> d16;
  const size_t lanes = hn::Lanes(d);
  // What the next rows want all at once.
  for (size_t r = first + count; r < first + 2 * count; ++r) {
    const std::byte* at = rows.scales(r);
    for (size_t byte = 0; byte < 2 * groups + 63; byte += 64) {
      const size_t there = std::min(byte, 2 * groups - 1);
      __builtin_prefetch(at + there, 0, 2);
      if (kMinima) __builtin_prefetch(at + place.minimum_at + there, 0, 2);
    }
  }
  const SumBlock& block = rows.block;
  size_t g = 0;
  const auto there = [&](size_t r, size_t i, size_t at) {
    const std::byte* from = block.scales[r] + at + 2 * (g + i * lanes);
    return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
  };
  for (; g + 4 * lanes <= groups; g += 4 * lanes)
    find_some<4, kMinima>(block, first, count, place, g, there, out, shift);
  for (; g + lanes <= groups; g += lanes)
    find_some<1, kMinima>(block, first, count, place, g, there, out, shift);
  if (g == groups) return;
  // Nothing is read behind the last group.
  const auto copied = [&](size_t r, size_t, size_t at) {
    HWY_ALIGN hwy::float16_t part[hn::MaxLanes(DF())] = {};
    std::memcpy(part, block.scales[r] + at + 2 * g, 2 * (groups - g));
    return hn::PromoteTo(d, hn::Load(d16, part));
  };
  find_some<1, kMinima>(block, first, count, place, g, copied, out, shift);
}

/// Rows whose codes go by together, one chunk of each after the other, while their sums stay in
/// registers: an even number of them.
struct RowsTogether {
  size_t pairs;
  const std::byte* const* codes;
  const std::byte* const* ahead;  ///< the rows after them, asked for early
  bool start;                     ///< of a step: sums are zero
  bool finish;                    ///< of a step: sums become floats
};

constexpr size_t kAhead = 16;  // chunks

/// run(k, ahead, at) for whole chunks k, with what to ask for early.
template <class Run>
HWY_INLINE void each_chunk(const RowsTogether& rows, size_t chunks, const Run& run) {
  const size_t here = chunks - std::min(kAhead, chunks);
  for (size_t k = 0; k < here; ++k) run(k, rows.codes, (k + kAhead) * kChunkBytes);
  for (size_t k = here; k < chunks; ++k) run(k, rows.ahead, (k - here) * kChunkBytes);
}

/// Rows [first, first + count), in parts of at most 2 kPairs:
///   add(rows together, pair of the first, chunks, first chunk)
/// What is left behind the last whole chunk comes from a copy filled up with zeros.
template <size_t kPairs, class Add>
HWY_INLINE void add_step(const Rows& rows, size_t first, size_t count, size_t bytes,
                         const Add& add) {
  constexpr size_t kTogether = 2 * kPairs;
  const size_t whole = bytes / kChunkBytes, rest = bytes % kChunkBytes;
  for (size_t done = 0; done < count;) {
    size_t pairs = kPairs;
    while (pairs > 1 && done + 2 * pairs > count + 1) pairs /= 2;
    const std::byte *codes[kTogether], *ahead[kTogether];
    for (size_t r = 0; r < 2 * pairs; ++r) {
      // Beyond an odd number stands the last row again, with a coefficient of zero.
      codes[r] = rows.block.codes[std::min(first + done + r, first + count - 1)];
      ahead[r] = rows.codes(std::min(first + done + 2 * pairs, first + count) + r);
    }
    const bool finish = done + 2 * pairs >= count;
    add(RowsTogether{pairs, codes, ahead, done == 0, finish}, done / 2, whole, size_t{0});
    if (rest > 0) {
      HWY_ALIGN std::byte copies[kTogether][kChunkBytes] = {};
      for (size_t r = 0; r < 2 * pairs; ++r) {
        std::memcpy(copies[r], codes[r] + whole * kChunkBytes, rest);
        codes[r] = copies[r];
      }
      add(RowsTogether{pairs, codes, codes, done == 0, finish}, done / 2, size_t{1}, whole);
    }
    done += 2 * pairs;
  }
}

#endif  // vectors

}  // namespace
}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // guard
