#include "sluice/engine/kernel/select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/select.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#ifndef SLUICE_ENGINE_KERNEL_SELECT_ONCE_
#define SLUICE_ENGINE_KERNEL_SELECT_ONCE_
namespace sluice::engine {
struct Moments {
  double sum = 0, squares = 0, count = 0;
};
}  // namespace sluice::engine
#endif

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<D>;
using V = hn::Vec<D>;
using VI = hn::Vec<DI>;

/// Up to a vector of entries from p, `left` at most; lanes past them are zero.
template <class D2>
HWY_INLINE hn::Vec<D2> load_some(D2 d, const float* p, size_t left) {
  if (left >= hn::Lanes(d)) return hn::LoadU(d, p);
  HWY_ALIGN float part[hn::MaxLanes(d)] = {};
  std::memcpy(part, p, left * sizeof(float));
  return hn::Load(d, part);
}

/// Scores i, i + 1, ..; lanes past n are zero.
template <class D2>
HWY_INLINE hn::Vec<D2> score_at(D2 d, const Scores& s, size_t i) {
  const size_t left = s.n - i;
  auto x = load_some(d, s.x + i, left);
  if (s.rank == Rank::magnitude) x = hn::Abs(x);
  return s.weight ? hn::Mul(x, load_some(d, s.weight + i, left)) : x;
}

/// Integers in the order of the scores: NaN lowest, -0 as +0.
HWY_INLINE VI key_of(V score) {
  const DI di;
  const V x = hn::Add(score, hn::Zero(D()));
  const VI bits = hn::BitCast(di, x);
  // Negative numbers run backwards: flip what is below the sign.
  const VI flip =
      hn::And(hn::BroadcastSignBit(bits), hn::Set(di, std::numeric_limits<int32_t>::max()));
  return hn::IfThenElse(hn::RebindMask(di, hn::IsNaN(x)),
                        hn::Set(di, std::numeric_limits<int32_t>::min()), hn::Xor(bits, flip));
}

/// Appends first + lane of the masked lanes. Writes a whole vector: the places up to the reading
/// position are free.
HWY_INLINE size_t append(hn::Mask<DI> keep, size_t first, int32_t* index, size_t count) {
  const DI di;
  // Compressing in a register: the compressing store is microcode on some processors.
  const VI lanes = hn::Iota(di, static_cast<int32_t>(first));
  hn::StoreU(hn::Compress(lanes, keep), di, index + count);
  return count + hn::CountTrue(di, keep);
}

size_t append_some(hn::Mask<DI> keep, size_t first, size_t lanes, int32_t* index, size_t count) {
  const DI di;
  HWY_ALIGN int32_t flags[hn::MaxLanes(di)];
  hn::Store(hn::VecFromMask(di, keep), di, flags);
  for (size_t j = 0; j < lanes; ++j) {
    if (flags[j]) index[count++] = static_cast<int32_t>(first + j);
  }
  return count;
}

size_t count_above(const int32_t* key, size_t n, int32_t bound) {
  const DI di;
  const size_t lanes = hn::Lanes(di);
  const VI least = hn::Set(di, bound);
  VI a = hn::Zero(di), b = a, c = a, e = a;
  size_t i = 0;
  const auto one = [&](VI sum, const int32_t* p) HWY_ATTR {
    return hn::Sub(sum, hn::VecFromMask(di, hn::Gt(hn::LoadU(di, p), least)));
  };
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    a = one(a, key + i);
    b = one(b, key + i + lanes);
    c = one(c, key + i + 2 * lanes);
    e = one(e, key + i + 3 * lanes);
  }
  for (; i + lanes <= n; i += lanes) a = one(a, key + i);
  size_t count =
      static_cast<size_t>(hn::GetLane(hn::SumOfLanes(di, hn::Add(hn::Add(a, b), hn::Add(c, e)))));
  for (; i < n; ++i) count += key[i] > bound;
  return count;
}

size_t TopK(const Scores& s, size_t k, int32_t* index) {
  const DI di;
  const size_t lanes = hn::Lanes(di), n = s.n;
  // The list's memory holds the keys until the list itself, which never overtakes the reading
  // position, replaces them.
  int32_t lowest = std::numeric_limits<int32_t>::max(), highest = -lowest - 1;
  VI low = hn::Set(di, lowest), high = hn::Set(di, highest);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const VI key = key_of(score_at(D(), s, i));
    low = hn::Min(low, key);
    high = hn::Max(high, key);
    hn::StoreU(key, di, index + i);
  }
  if (i < n) {
    HWY_ALIGN int32_t part[hn::MaxLanes(di)];
    hn::Store(key_of(score_at(D(), s, i)), di, part);
    for (size_t j = 0; i + j < n; ++j) {
      index[i + j] = part[j];
      lowest = std::min(lowest, part[j]);
      highest = std::max(highest, part[j]);
    }
  }
  lowest = std::min(lowest, hn::GetLane(hn::MinOfLanes(di, low)));
  highest = std::max(highest, hn::GetLane(hn::MaxOfLanes(di, high)));
  // Bisection for the largest bound with at least k keys from it on; every probe is a pass over
  // data in the first-level cache.
  // k or more keys are >= from, fewer are >= to.
  int64_t from = lowest, to = int64_t{highest} + 1;
  size_t at_from = n;
  while (at_from != k && to - from > 1) {
    const int64_t middle = from + (to - from) / 2;
    const size_t count = count_above(index, n, static_cast<int32_t>(middle - 1));
    if (count >= k) {
      from = middle;
      at_from = count;
    } else {
      to = middle;
    }
  }
  const int32_t bound = static_cast<int32_t>(from);
  // Of the keys equal to the bound only the first `ties` are kept.
  size_t ties = n;
  if (at_from != k) ties = k - count_above(index, n, bound);
  const VI least = hn::Set(di, bound);
  size_t count = 0;
  i = 0;
  for (; i + lanes <= n && count < k; i += lanes) {
    const VI key = hn::LoadU(di, index + i);
    auto keep = hn::Gt(key, least);
    const auto equal = hn::Eq(key, least);
    const size_t equals = hn::CountTrue(di, equal);
    if (equals <= ties) {
      keep = hn::Or(keep, equal);
      ties -= equals;
    } else if (ties > 0) {
      HWY_ALIGN int32_t flags[hn::MaxLanes(di)];
      hn::Store(hn::VecFromMask(di, equal), di, flags);
      for (size_t j = 0; j < lanes; ++j) {
        if (flags[j] == 0) continue;
        if (ties == 0) flags[j] = 0;
        ties -= ties > 0;
      }
      keep = hn::Or(keep, hn::MaskFromVec(hn::Load(di, flags)));
    }
    count = append(keep, i, index, count);
  }
  for (; i < n && count < k; ++i) {
    const int32_t key = index[i];
    if (key < bound || (key == bound && ties == 0)) continue;
    if (key == bound) --ties;
    index[count++] = static_cast<int32_t>(i);
  }
  return count;
}

size_t Above(const Scores& s, float threshold, int32_t* index) {
  const D d;
  const DI di;
  const size_t lanes = hn::Lanes(d);
  const V bound = hn::Set(d, threshold);
  size_t count = 0, i = 0;
  for (; i + lanes <= s.n; i += lanes)
    count = append(hn::RebindMask(di, hn::Gt(score_at(D(), s, i), bound)), i, index, count);
  if (i < s.n)
    count = append_some(hn::RebindMask(di, hn::Gt(score_at(D(), s, i), bound)), i, s.n - i, index,
                        count);
  return count;
}

Moments Sums(const Scores& s) {
  const hn::ScalableTag<double> dd;
  const hn::Rebind<float, decltype(dd)> d;
  const size_t lanes = hn::Lanes(d);
  auto sum = hn::Zero(dd), squares = hn::Zero(dd);
  size_t count = 0;
  for (size_t i = 0; i < s.n; i += lanes) {
    const auto score = score_at(d, s, i);
    const auto use = hn::IsFinite(score);
    count += hn::CountTrue(d, use);
    if (s.n - i < lanes) count -= lanes - (s.n - i);  // past the end are zeros, which are finite
    const auto x = hn::PromoteTo(dd, hn::IfThenElseZero(use, score));
    sum = hn::Add(sum, x);
    squares = hn::MulAdd(x, x, squares);
  }
  return {hn::GetLane(hn::SumOfLanes(dd, sum)), hn::GetLane(hn::SumOfLanes(dd, squares)),
          static_cast<double>(count)};
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(TopK);
HWY_EXPORT(Above);
HWY_EXPORT(Sums);

size_t select_top_k(const Scores& scores, size_t k, int32_t* index) {
  if (k == 0 || scores.n == 0) return 0;
  if (k >= scores.n) {
    for (size_t i = 0; i < scores.n; ++i) index[i] = static_cast<int32_t>(i);
    return scores.n;
  }
  return HWY_DYNAMIC_DISPATCH(TopK)(scores, k, index);
}

size_t select_above(const Scores& scores, float threshold, int32_t* index) {
  return HWY_DYNAMIC_DISPATCH(Above)(scores, threshold, index);
}

float statistical_threshold(const Scores& scores, double keep) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  if (!(keep < 1)) return -kInfinity;
  if (!(keep > 0)) return kInfinity;
  const Moments m = HWY_DYNAMIC_DISPATCH(Sums)(scores);
  if (m.count == 0) return kInfinity;
  const double mean = m.sum / m.count;
  const double variance = m.count < 2 ? 0 : (m.squares - m.sum * mean) / (m.count - 1);
  return static_cast<float>(mean + std::sqrt(std::max(variance, 0.0)) * normal_quantile(1 - keep));
}

size_t select_statistical(const Scores& scores, double keep, int32_t* index) {
  return select_above(scores, statistical_threshold(scores, keep), index);
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
