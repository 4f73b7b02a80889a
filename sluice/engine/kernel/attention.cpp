#include "sluice/engine/kernel/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/reduce.h"
#include "sluice/engine/kernel/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/attention.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#include "sluice/engine/kernel/activation-inl.h"

#ifndef SLUICE_ENGINE_KERNEL_ATTENTION_ONCE_
#define SLUICE_ENGINE_KERNEL_ATTENTION_ONCE_
namespace sluice::engine {
inline constexpr size_t kKeyBlock = 64;  // keys and values of a block stay in the first-level cache
inline constexpr size_t kTileRows = 64;  // query rows (times heads of a group) that share a block
inline constexpr size_t kScoreRow = 80;  // a block's scores and one vector behind them
inline constexpr size_t kDotRows = 8;    // fewer query rows: dot products, no transposed keys
inline constexpr float kLowest = -std::numeric_limits<float>::max();

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

/// Floats of each part of one thread's scratch.
struct AttentionScratch {
  size_t rows, value_stride;  // value_stride: whole vectors
  float *q, *keys, *columns, *values, *scores, *out, *top, *sum;

  AttentionScratch(const AttentionSpec& spec, float* memory) {
    const auto whole = [](size_t n) { return (n + 15) / 16 * 16; };
    rows = std::max(kTileRows, static_cast<size_t>(spec.heads / spec.kv_heads));
    value_stride = whole(static_cast<size_t>(spec.value_width));
    const size_t width = whole(static_cast<size_t>(spec.key_width));
    size_t used = 0;
    const auto take = [&](size_t count) {
      float* part = memory ? memory + used : nullptr;
      used += whole(count);
      return part;
    };
    q = take(rows * width);
    keys = take(kKeyBlock * width);
    columns = take(kKeyBlock * width);
    values = take(kKeyBlock * value_stride);
    scores = take(rows * kScoreRow);
    out = take(rows * value_stride);
    top = take(rows);
    sum = take(rows);
    floats = used;
  }
  size_t floats = 0;
};

/// Query rows first .. first + count - 1 of one sample, the heads that share one key head.
struct AttentionTile {
  const AttentionSpec* spec;
  const float* q;    // of the sample and the group's first head
  float* out;        // likewise
  const void* keys;  // of the key head, float or the cache's type
  const void* values;
  size_t key_stride, value_stride;
  int64_t ring;   // slots; key j is in slot j % ring
  int64_t total;  // keys there are
  int64_t seen;   // key index of the call's first key
  int64_t first, count;
  const int64_t* at;  // of the sample: AttentionRows::at
  const float* open;  // of the sample and the key head, or null
  int64_t open_stride;
  float* scratch;
};
}  // namespace sluice::engine
#endif

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

HWY_INLINE V LoadWide(D d, const float* from) { return hn::LoadU(d, from); }
HWY_INLINE V LoadWide(D d, const Bf16* from) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}
HWY_INLINE V LoadWide(D d, const F16* from) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
}

HWY_INLINE void StoreNarrow(D d, V x, float* to) { hn::StoreU(x, d, to); }
// To the nearest, ties to even; NaN keeps its high bits, with one set that makes it no infinity.
HWY_INLINE void StoreNarrow(D d, V x, Bf16* to) {
  const hn::RebindToUnsigned<D> d32;
  const hn::Rebind<uint16_t, D> d16;
  const auto bits = hn::BitCast(d32, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7FFFu)));
  const auto nan = hn::Or(bits, hn::Set(d32, 0x400000u));
  const auto chosen =
      hn::BitCast(d32, hn::IfThenElse(hn::IsNaN(x), hn::BitCast(d, nan), hn::BitCast(d, rounded)));
  const hn::RebindToSigned<D> di;
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, hn::ShiftRight<16>(chosen))), d16,
             reinterpret_cast<uint16_t*>(to));
}
HWY_INLINE void StoreNarrow(D d, V x, F16* to) {
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, x), d16, reinterpret_cast<hwy::float16_t*>(to));
}

/// Rows of `width` to rows of `to_stride`, the rest of the last vector zero.
template <class T>
void Widen(const T* from, size_t stride, size_t rows, size_t width, float* to, size_t to_stride) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  for (size_t r = 0; r < rows; ++r, from += stride, to += to_stride) {
    size_t i = 0;
    for (; i + lanes <= width; i += lanes) hn::StoreU(LoadWide(d, from + i), d, to + i);
    if (i == width) continue;
    T rest[hn::MaxLanes(d)] = {};
    std::memcpy(rest, from + i, (width - i) * sizeof(T));
    hn::StoreU(LoadWide(d, rest), d, to + i);
  }
}

template <class T>
void NarrowRow(const float* from, size_t width, T* to) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= width; i += lanes) StoreNarrow(d, hn::LoadU(d, from + i), to + i);
  if (i == width) return;
  float rest[hn::MaxLanes(d)] = {};
  T narrow[hn::MaxLanes(d)];
  std::memcpy(rest, from + i, (width - i) * sizeof(float));
  StoreNarrow(d, hn::LoadU(d, rest), narrow);
  std::memcpy(to + i, narrow, (width - i) * sizeof(T));
}

/// c[r][0..n) (+)= sum over k in [k0, k1) of a[r][k] b[k][0..n), n whole vectors.
template <size_t kRows, bool kAdd>
HWY_INLINE void Product(const float* a, size_t a_stride, size_t k0, size_t k1, const float* b,
                        size_t b_stride, size_t n, float* c, size_t c_stride) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  constexpr size_t kVectors = hn::MaxLanes(D()) >= 16 ? 4 : 2;
  size_t i = 0;
  for (; i + kVectors * lanes <= n; i += kVectors * lanes) {
    V sums[kRows][kVectors];
    for (size_t r = 0; r < kRows; ++r)
      for (size_t v = 0; v < kVectors; ++v)
        sums[r][v] = kAdd ? hn::LoadU(d, c + r * c_stride + i + v * lanes) : hn::Zero(d);
    for (size_t k = k0; k < k1; ++k) {
      V rows[kVectors];
      for (size_t v = 0; v < kVectors; ++v)
        rows[v] = hn::LoadU(d, b + k * b_stride + i + v * lanes);
      for (size_t r = 0; r < kRows; ++r) {
        const V factor = hn::Set(d, a[r * a_stride + k]);
        for (size_t v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(factor, rows[v], sums[r][v]);
      }
    }
    for (size_t r = 0; r < kRows; ++r)
      for (size_t v = 0; v < kVectors; ++v)
        hn::StoreU(sums[r][v], d, c + r * c_stride + i + v * lanes);
  }
  for (; i < n; i += lanes) {
    V sums[kRows];
    for (size_t r = 0; r < kRows; ++r)
      sums[r] = kAdd ? hn::LoadU(d, c + r * c_stride + i) : hn::Zero(d);
    for (size_t k = k0; k < k1; ++k) {
      const V row = hn::LoadU(d, b + k * b_stride + i);
      for (size_t r = 0; r < kRows; ++r)
        sums[r] = hn::MulAdd(hn::Set(d, a[r * a_stride + k]), row, sums[r]);
    }
    for (size_t r = 0; r < kRows; ++r) hn::StoreU(sums[r], d, c + r * c_stride + i);
  }
}

/// Scores of one query row with `count` keys, four at a time.
template <class T>
void Dots(const float* q, const T* keys, size_t stride, size_t count, size_t width, float* scores) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const auto tail = [&](const T* key, size_t from) HWY_ATTR {
    T rest[hn::MaxLanes(d)] = {};
    float other[hn::MaxLanes(d)] = {};
    std::memcpy(rest, key + from, (width - from) * sizeof(T));
    std::memcpy(other, q + from, (width - from) * sizeof(float));
    return hn::Mul(LoadWide(d, rest), hn::LoadU(d, other));
  };
  size_t j = 0;
  for (; j + 4 <= count; j += 4, keys += 4 * stride) {
    V sums[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
    size_t i = 0;
    for (; i + lanes <= width; i += lanes) {
      const V x = hn::LoadU(d, q + i);
      for (size_t u = 0; u < 4; ++u)
        sums[u] = hn::MulAdd(x, LoadWide(d, keys + u * stride + i), sums[u]);
    }
    for (size_t u = 0; u < 4; ++u) {
      if (i < width) sums[u] = hn::Add(sums[u], tail(keys + u * stride, i));
      scores[j + u] = hn::GetLane(hn::SumOfLanes(d, sums[u]));
    }
  }
  for (; j < count; ++j, keys += stride) {
    V sum = hn::Zero(d);
    size_t i = 0;
    for (; i + lanes <= width; i += lanes)
      sum = hn::MulAdd(hn::LoadU(d, q + i), LoadWide(d, keys + i), sum);
    if (i < width) sum = hn::Add(sum, tail(keys, i));
    scores[j] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

/// Scores [begin, end) become weights relative to the new maximum; returns by how much earlier
/// results shrink. What lies behind `end` up to one vector is overwritten.
HWY_INLINE float Weigh(float* scores, size_t begin, size_t end, float* top, float* sum) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  hn::StoreU(hn::Set(d, -std::numeric_limits<float>::infinity()), d, scores + end);
  V most = hn::Set(d, *top);
  for (size_t j = begin; j < end; j += lanes) most = hn::Max(hn::LoadU(d, scores + j), most);
  const float before = *top, now = hn::GetLane(hn::MaxOfLanes(d, most));
  const V offset = hn::Set(d, now);
  V total = hn::Zero(d);
  for (size_t j = begin; j < end; j += lanes) {
    const V x = hn::Sub(hn::LoadU(d, scores + j), offset);
    // Exp takes NaN for very small.
    const V weight = hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
    hn::StoreU(weight, d, scores + j);
    total = hn::Add(total, weight);
  }
  const float shrink = before == now ? 1.0f : std::exp(before - now);
  *top = now;
  *sum = *sum * shrink + hn::GetLane(hn::SumOfLanes(d, total));
  return shrink;
}

template <class T>
void Tile(const AttentionTile& t) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const AttentionSpec& spec = *t.spec;
  const AttentionScratch scratch(spec, t.scratch);
  const size_t group = static_cast<size_t>(spec.heads / spec.kv_heads),
               width = static_cast<size_t>(spec.key_width),
               value_width = static_cast<size_t>(spec.value_width), stride = scratch.value_stride;
  const size_t q_stride = static_cast<size_t>(spec.heads) * width,
               out_stride = static_cast<size_t>(spec.heads) * value_width;
  // The rows that look at anything.
  int64_t row_of[kTileRows];
  size_t looking = 0;
  for (int64_t row = t.first; row < t.first + t.count; ++row) {
    if (t.open == nullptr || t.open[row * t.open_stride] > 0) {
      row_of[looking++] = row;
    } else {
      std::fill_n(t.out + static_cast<size_t>(row) * out_stride, group * value_width, 0.0f);
    }
  }
  if (looking == 0) return;
  const size_t rows = looking * group;
  const T* keys = static_cast<const T*>(t.keys);
  const T* values = static_cast<const T*>(t.values);
  // Rows of one query lie side by side: they see the same keys.
  for (size_t r = 0; r < rows; ++r) {
    const float* from = t.q + static_cast<size_t>(row_of[r / group]) * q_stride + r % group * width;
    for (size_t i = 0; i < width; ++i) scratch.q[r * width + i] = from[i] * spec.scale;
    scratch.top[r] = kLowest;
    scratch.sum[r] = 0;
  }
  std::fill(scratch.out, scratch.out + rows * stride, 0.0f);
  const auto end_of = [&](size_t r) {
    if (!spec.causal) return t.total;
    const int64_t row = row_of[r / group];
    return t.seen + (t.at ? t.at[row] : row) + 1;
  };
  const auto begin_of = [&](size_t r) {
    return spec.window > 0 ? std::max<int64_t>(0, end_of(r) - spec.window) : 0;
  };
  const bool columns = rows >= kDotRows;
  const bool direct = std::is_same_v<T, float> && value_width % lanes == 0;
  const int64_t last = end_of(rows - 1);
  for (int64_t start = begin_of(0), stop; start < last; start = stop) {
    const int64_t slot = start % t.ring;
    stop = std::min({start + static_cast<int64_t>(kKeyBlock), last, start + t.ring - slot});
    const size_t count = static_cast<size_t>(stop - start);
    const T* block = keys + static_cast<size_t>(slot) * t.key_stride;
    const T* value_block = values + static_cast<size_t>(slot) * t.value_stride;
    if (columns) {
      const float* plain = scratch.keys;
      size_t plain_stride = width;
      if constexpr (std::is_same_v<T, float>) {
        plain = block;
        plain_stride = t.key_stride;
      } else {
        for (size_t j = 0; j < count; ++j) {
          // Row by row: the vector behind a row is the next row's, or spare.
          Widen(block + j * t.key_stride, 0, 1, width, scratch.keys + j * width, 0);
        }
      }
      transpose_strided(plain, scratch.columns, count, width, plain_stride, kKeyBlock);
    }
    const float* wide = scratch.values;
    size_t wide_stride = stride;
    if constexpr (std::is_same_v<T, float>) {
      if (direct) {
        wide = value_block;
        wide_stride = t.value_stride;
      }
    }
    if (!direct) Widen(value_block, t.value_stride, count, value_width, scratch.values, stride);
    for (size_t r = 0; r < rows;) {
      const size_t many = rows - r >= 4 ? 4 : 1;
      float* scores = scratch.scores + r * kScoreRow;
      // The keys of the block that each row sees, and those that all see.
      size_t begins[4], ends[4], all_begin = 0, all_end = count;
      bool any = false;
      for (size_t u = 0; u < many; ++u) {
        begins[u] = static_cast<size_t>(std::max<int64_t>(begin_of(r + u) - start, 0));
        ends[u] = static_cast<size_t>(
            std::clamp<int64_t>(end_of(r + u) - start, 0, static_cast<int64_t>(count)));
        begins[u] = std::min(begins[u], ends[u]);
        any |= begins[u] < ends[u];
        all_begin = std::max(all_begin, begins[u]);
        all_end = std::min(all_end, ends[u]);
      }
      if (!any) {
        r += many;
        continue;
      }
      const float* q = scratch.q + r * width;
      if (columns) {
        const size_t whole = (count + lanes - 1) / lanes * lanes;
        if (many == 4) {
          Product<4, false>(q, width, 0, width, scratch.columns, kKeyBlock, whole, scores,
                            kScoreRow);
        } else {
          Product<1, false>(q, width, 0, width, scratch.columns, kKeyBlock, whole, scores,
                            kScoreRow);
        }
      } else {
        for (size_t u = 0; u < many; ++u) {
          Dots(q + u * width, block + begins[u] * t.key_stride, t.key_stride, ends[u] - begins[u],
               width, scores + u * kScoreRow + begins[u]);
        }
      }
      float* out = scratch.out + r * stride;
      for (size_t u = 0; u < many; ++u) {
        if (begins[u] == ends[u]) continue;
        const float shrink = Weigh(scores + u * kScoreRow, begins[u], ends[u], &scratch.top[r + u],
                                   &scratch.sum[r + u]);
        if (shrink == 1.0f) continue;
        const V factor = hn::Set(d, shrink);
        float* row = out + u * stride;
        for (size_t i = 0; i < value_width; i += lanes)
          hn::StoreU(hn::Mul(hn::LoadU(d, row + i), factor), d, row + i);
      }
      const size_t whole = (value_width + lanes - 1) / lanes * lanes;
      if (many == 4 && all_begin < all_end) {
        Product<4, true>(scores, kScoreRow, all_begin, all_end, wide, wide_stride, whole, out,
                         stride);
      } else {
        all_begin = all_end = 0;
      }
      for (size_t u = 0; u < many; ++u) {
        const float* weights = scores + u * kScoreRow;
        const auto add = [&](size_t k0, size_t k1) HWY_ATTR {
          if (k0 < k1)
            Product<1, true>(weights, 0, k0, k1, wide, wide_stride, whole, out + u * stride, 0);
        };
        if (all_begin == all_end) {
          add(begins[u], ends[u]);
        } else {
          add(begins[u], all_begin);
          add(all_end, ends[u]);
        }
      }
      r += many;
    }
  }
  for (size_t r = 0; r < rows; ++r) {
    const float factor = 1.0f / scratch.sum[r];
    const float* from = scratch.out + r * stride;
    float* to =
        t.out + static_cast<size_t>(row_of[r / group]) * out_stride + r % group * value_width;
    for (size_t i = 0; i < value_width; ++i) to[i] = from[i] * factor;
  }
}

void TileF32(const AttentionTile& t) { Tile<float>(t); }
void TileBf16(const AttentionTile& t) { Tile<Bf16>(t); }
void TileF16(const AttentionTile& t) { Tile<F16>(t); }

/// One key head's new rows into its slots.
template <class T>
void AppendRows(const float* from, size_t from_stride, size_t width, int64_t rows, int64_t seen,
                int64_t ring, T* to) {
  for (int64_t r = 0; r < rows; ++r, from += from_stride)
    NarrowRow(from, width, to + static_cast<size_t>((seen + r) % ring) * width);
}

void Append(CacheType type, const float* from, size_t from_stride, size_t width, int64_t rows,
            int64_t seen, int64_t ring, std::byte* to) {
  switch (type) {
    case CacheType::f32:
      return AppendRows(from, from_stride, width, rows, seen, ring, reinterpret_cast<float*>(to));
    case CacheType::bf16:
      return AppendRows(from, from_stride, width, rows, seen, ring, reinterpret_cast<Bf16*>(to));
    case CacheType::f16:
      return AppendRows(from, from_stride, width, rows, seen, ring, reinterpret_cast<F16*>(to));
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(TileF32);
HWY_EXPORT(TileBf16);
HWY_EXPORT(TileF16);
HWY_EXPORT(Append);

namespace {

/// Keys of one sample and key head: a slice of the inputs or of the cache.
struct HeadPlace {
  std::byte* keys;
  std::byte* values;
};

HeadPlace cache_place(const AttentionSpec& spec, std::byte* cache, int64_t head) {
  const int64_t each = cache_type_bytes(spec.cache_type);
  const int64_t keys = align_up(spec.cache * spec.key_width * each),
                values = align_up(spec.cache * spec.value_width * each);
  std::byte* at = cache + head * (keys + values);
  return {at, at + keys};
}

int64_t tile_rows(const AttentionSpec& spec) {
  return std::max<int64_t>(1, static_cast<int64_t>(kTileRows) / (spec.heads / spec.kv_heads));
}

int64_t tiles_of(const AttentionSpec& spec, const AttentionRows& sample) {
  return (sample.rows + tile_rows(spec) - 1) / tile_rows(spec) * spec.kv_heads;
}

void run_tile(const AttentionSpec& spec, const AttentionRows& sample, int64_t index,
              float* scratch) {
  // Neighbouring items share the rows, not the head; the last rows of a causal mask first, as they
  // take longest.
  const int64_t head = index % spec.kv_heads, group = spec.heads / spec.kv_heads;
  const int64_t tiles = (sample.rows + tile_rows(spec) - 1) / tile_rows(spec);
  AttentionTile t{};
  t.spec = &spec;
  t.first = (tiles - 1 - index / spec.kv_heads) * tile_rows(spec);
  t.count = std::min(tile_rows(spec), sample.rows - t.first);
  t.q = sample.q + head * group * spec.key_width;
  t.out = sample.out + head * group * spec.value_width;
  t.scratch = scratch;
  t.at = sample.at;
  t.open = sample.open ? sample.open + head : nullptr;
  t.open_stride = spec.kv_heads;
  if (spec.cache == 0) {
    t.keys = sample.k + head * spec.key_width;
    t.values = sample.v + head * spec.value_width;
    t.key_stride = static_cast<size_t>(spec.kv_heads * spec.key_width);
    t.value_stride = static_cast<size_t>(spec.kv_heads * spec.value_width);
    t.ring = t.total = sample.keys;
    return HWY_DYNAMIC_DISPATCH(TileF32)(t);
  }
  const HeadPlace place = cache_place(spec, sample.cache, head);
  t.keys = place.keys;
  t.values = place.values;
  t.key_stride = static_cast<size_t>(spec.key_width);
  t.value_stride = static_cast<size_t>(spec.value_width);
  t.ring = spec.cache;
  t.seen = sample.seen;
  t.total = sample.seen + sample.keys;
  switch (spec.cache_type) {
    case CacheType::f32:
      return HWY_DYNAMIC_DISPATCH(TileF32)(t);
    case CacheType::bf16:
      return HWY_DYNAMIC_DISPATCH(TileBf16)(t);
    case CacheType::f16:
      return HWY_DYNAMIC_DISPATCH(TileF16)(t);
  }
}

void append(const AttentionSpec& spec, const AttentionRows& sample, int64_t head) {
  const HeadPlace place = cache_place(spec, sample.cache, head);
  HWY_DYNAMIC_DISPATCH(Append)
  (spec.cache_type, sample.k + head * spec.key_width,
   static_cast<size_t>(spec.kv_heads * spec.key_width), static_cast<size_t>(spec.key_width),
   sample.keys, sample.seen, spec.cache, place.keys);
  HWY_DYNAMIC_DISPATCH(Append)
  (spec.cache_type, sample.v + head * spec.value_width,
   static_cast<size_t>(spec.kv_heads * spec.value_width), static_cast<size_t>(spec.value_width),
   sample.keys, sample.seen, spec.cache, place.values);
}

/// Keys that row r sees.
int64_t keys_of(const AttentionSpec& spec, const AttentionRows& s, int64_t r) {
  if (!spec.causal) return s.keys;
  const int64_t sees = (spec.cache > 0 ? s.seen : 0) + (s.at ? s.at[r] : r) + 1;
  return spec.window > 0 ? std::min(sees, spec.window) : sees;
}

/// Query-key pairs and what is read, of rows that do not all look at every key head.
Work gated_work(const AttentionSpec& spec, const AttentionRows& s, int64_t key_bytes) {
  const int64_t group = spec.heads / spec.kv_heads, width = spec.key_width + spec.value_width;
  Work work;
  for (int64_t h = 0; h < spec.kv_heads; ++h) {
    int64_t first = 0, last = 0;  // keys that any row looks at
    bool any = false;
    for (int64_t r = 0; r < s.rows; ++r) {
      if (!(s.open[r * spec.kv_heads + h] > 0)) continue;
      const int64_t keys = keys_of(spec, s, r),
                    end = spec.causal ? (spec.cache > 0 ? s.seen : 0) + (s.at ? s.at[r] : r) + 1
                                      : s.keys;
      work.macs += keys * group * width;
      work.bytes += group * width * 4;
      if (!any) first = end - keys;
      any = true;
      last = end;
    }
    work.bytes += (last - first) * width * key_bytes;
  }
  return work;
}

/// Query-key pairs of one head.
int64_t pairs_of(const AttentionSpec& spec, const AttentionRows& s) {
  if (!spec.causal) return s.rows * s.keys;
  const int64_t seen = spec.cache > 0 ? s.seen : 0;
  if (s.at) {
    int64_t pairs = 0;
    for (int64_t r = 0; r < s.rows; ++r) pairs += keys_of(spec, s, r);
    return pairs;
  }
  // Row r sees seen + r + 1 keys, or the window.
  int64_t growing = s.rows;
  if (spec.window > 0) growing = std::clamp<int64_t>(spec.window - seen, 0, s.rows);
  return growing * seen + growing * (growing + 1) / 2 + (s.rows - growing) * spec.window;
}

}  // namespace

int64_t attention_cache_bytes(const AttentionSpec& spec) {
  const int64_t each = cache_type_bytes(spec.cache_type);
  int64_t bytes = 0;
  for (const int64_t width : {spec.key_width, spec.value_width}) {
    const int64_t plane = checked_mul(checked_mul(spec.cache, width, "cache"), each, "cache");
    bytes = checked_add(bytes, align_up(plane), "cache");
  }
  return checked_mul(bytes, spec.kv_heads, "cache");
}

int64_t attention_scratch_bytes(const AttentionSpec& spec, int threads) {
  const AttentionScratch one(spec, nullptr);
  return checked_mul(align_up(static_cast<int64_t>(one.floats * sizeof(float))), threads,
                     "attention scratch");
}

Work attention(const AttentionSpec& spec, std::span<const AttentionRows> samples, int threads,
               std::byte* scratch) {
  Work work;
  int64_t items = 0;
  const int64_t each = spec.cache > 0 ? cache_type_bytes(spec.cache_type) : 4;
  for (const AttentionRows& s : samples) {
    if (s.rows == 0) continue;
    items += tiles_of(spec, s);
    if (s.open) {
      const Work done = gated_work(spec, s, each);
      work.macs += done.macs;
      work.bytes += done.bytes;
      continue;
    }
    work.macs += pairs_of(spec, s) * spec.heads * (spec.key_width + spec.value_width);
    int64_t keys = spec.cache > 0 ? s.seen + s.keys : s.keys;
    if (spec.window > 0) keys = std::min(keys, spec.window + s.keys - 1);
    work.bytes += keys * spec.kv_heads * (spec.key_width + spec.value_width) * each +
                  s.rows * spec.heads * (spec.key_width + spec.value_width) * 4;
  }
  const int64_t bytes = attention_scratch_bytes(spec, 1);
  const int64_t heads = static_cast<int64_t>(samples.size()) * spec.kv_heads;
  const int used = static_cast<int>(std::clamp<int64_t>(items, 1, threads));
  const auto body = [&](int thread, int64_t index) {
    for (const AttentionRows& s : samples) {
      if (s.rows == 0) continue;
      const int64_t count = tiles_of(spec, s);
      if (index < count)
        return run_tile(spec, s, index, reinterpret_cast<float*>(scratch + thread * bytes));
      index -= count;
    }
  };
  const auto store = [&](int64_t index) {
    const AttentionRows& s = samples[static_cast<size_t>(index / spec.kv_heads)];
    if (s.keys > 0) append(spec, s, index % spec.kv_heads);
  };
  if (used == 1) {
    for (int64_t i = 0; spec.cache > 0 && i < heads; ++i) store(i);
    for (int64_t i = 0; i < items; ++i) body(0, i);
    return work;
  }
#pragma omp parallel num_threads(used)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (spec.cache > 0 ? heads : 0); ++i) store(i);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < items; ++i) body(omp_get_thread_num(), i);
  }
  return work;
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
