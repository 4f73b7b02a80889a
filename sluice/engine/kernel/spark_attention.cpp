#include "sluice/engine/kernel/spark_attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "sluice/base/error.h"
#include "sluice/base/normal_quantile.h"
#include "sluice/base/shape.h"
#include "sluice/engine/kernel/buffer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/spark_attention.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#include "sluice/engine/kernel/activation-inl.h"

#ifndef SLUICE_ENGINE_KERNEL_SPARK_ATTENTION_ONCE_
#define SLUICE_ENGINE_KERNEL_SPARK_ATTENTION_ONCE_
namespace sluice::engine {
namespace {

constexpr size_t kMostLanes = 64;  // of a vector of floats

/// One query of one head over its prefix.
struct SparkQuery {
  const float* q;  ///< [split + rest]
  /// Predictor columns: with `turned` [split][first_stride], a column of all keys in a row; else
  /// [key][first_stride].
  const float* first;
  size_t first_stride;
  bool turned;
  const float* rest;  ///< [key][rest_stride]
  size_t rest_stride;
  const float* values;  ///< [key][value_stride]
  size_t value_stride;
  size_t split, width, value_width, keys;  ///< width: of the rest
  bool whole;                              ///< all keys count
  double quantile;
  float* out;
  float *scores, *weights, *products;  ///< [keys + kMostLanes] each
  int32_t* index;                      ///< [keys]
};

}  // namespace
}  // namespace sluice::engine
#endif

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

float SparkDot(const float* a, const float* b, size_t count) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  V even = hn::Zero(d), odd = hn::Zero(d);
  size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    even = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), even);
    odd = hn::MulAdd(hn::LoadU(d, a + i + lanes), hn::LoadU(d, b + i + lanes), odd);
  }
  for (; i + lanes <= count; i += lanes)
    even = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), even);
  float rest = 0;
  for (; i < count; ++i) rest += a[i] * b[i];
  return rest + hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
}

/// Predictor scores of all keys.
void SparkScores(const SparkQuery& s) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.split));
  if (!s.turned) {
    for (size_t j = 0; j < s.keys; ++j)
      s.scores[j] = SparkDot(s.q, s.first + j * s.first_stride, s.split) * scale;
    return;
  }
  const D d;
  const size_t lanes = hn::Lanes(d);
  constexpr size_t kVectors = 4;
  size_t j = 0;
  for (; j + kVectors * lanes <= s.keys; j += kVectors * lanes) {
    V sums[kVectors] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
    for (size_t i = 0; i < s.split; ++i) {
      const V q = hn::Set(d, s.q[i]);
      const float* column = s.first + i * s.first_stride + j;
      for (size_t v = 0; v < kVectors; ++v)
        sums[v] = hn::MulAdd(q, hn::LoadU(d, column + v * lanes), sums[v]);
    }
    for (size_t v = 0; v < kVectors; ++v)
      hn::StoreU(hn::Mul(sums[v], hn::Set(d, scale)), d, s.scores + j + v * lanes);
  }
  for (; j + lanes <= s.keys; j += lanes) {
    V sum = hn::Zero(d);
    for (size_t i = 0; i < s.split; ++i)
      sum = hn::MulAdd(hn::Set(d, s.q[i]), hn::LoadU(d, s.first + i * s.first_stride + j), sum);
    hn::StoreU(hn::Mul(sum, hn::Set(d, scale)), d, s.scores + j);
  }
  for (; j < s.keys; ++j) {
    float sum = 0;
    for (size_t i = 0; i < s.split; ++i) sum += s.q[i] * s.first[i * s.first_stride + j];
    s.scores[j] = sum * scale;
  }
}

/// The statistical threshold of all scores.
float SparkBound(const SparkQuery& s) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const auto n = static_cast<float>(s.keys);
  V sums = hn::Zero(d);
  size_t j = 0;
  for (; j + lanes <= s.keys; j += lanes) sums = hn::Add(sums, hn::LoadU(d, s.scores + j));
  float mean = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; j < s.keys; ++j) mean += s.scores[j];
  mean /= n;
  const V middle = hn::Set(d, mean);
  V squares = hn::Zero(d);
  for (j = 0; j + lanes <= s.keys; j += lanes) {
    const V off = hn::Sub(hn::LoadU(d, s.scores + j), middle);
    squares = hn::MulAdd(off, off, squares);
  }
  float variance = hn::GetLane(hn::SumOfLanes(d, squares));
  for (; j < s.keys; ++j) variance += (s.scores[j] - mean) * (s.scores[j] - mean);
  variance = variance / std::max(1.0f, n - 1) + 1e-20f;
  return mean + std::sqrt(variance) * static_cast<float>(s.quantile);
}

/// The row of one head; how many keys were kept.
size_t SparkRow(const SparkQuery& s) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  SparkScores(s);
  float bound = -std::numeric_limits<float>::infinity();
  if (!s.whole) bound = SparkBound(s);
  size_t kept = 0;
  float top = -std::numeric_limits<float>::infinity();
  bool finite = s.whole || std::isfinite(bound);
  for (size_t j = 0; j < s.keys; ++j) {
    s.index[kept] = static_cast<int32_t>(j);
    const bool here = s.scores[j] >= bound;
    kept += here ? 1 : 0;
    top = here ? std::max(top, s.scores[j]) : top;
    finite = finite && std::isfinite(s.scores[j]);
  }
  if (!finite) {
    std::fill_n(s.out, s.value_width, std::numeric_limits<float>::quiet_NaN());
    return kept;
  }
  if (kept == 0) {
    std::fill_n(s.out, s.value_width, 0.0f);
    return 0;
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.width));
  constexpr size_t kAhead = 6;  // keys, until their lines have come
  for (size_t i = 0; i < kept; ++i) {
    if (i + kAhead < kept) {
      const auto later = static_cast<size_t>(s.index[i + kAhead]);
      __builtin_prefetch(s.rest + later * s.rest_stride);
      __builtin_prefetch(s.values + later * s.value_stride);
    }
    const auto j = static_cast<size_t>(s.index[i]);
    s.weights[i] = s.scores[j];
    s.products[i] = SparkDot(s.q + s.split, s.rest + j * s.rest_stride, s.width) * scale;
  }
  // Behind the kept ones: weights of 0.
  for (size_t i = kept; i < kept + lanes; ++i) {
    s.weights[i] = -std::numeric_limits<float>::infinity();
    s.products[i] = 0;
  }
  V sums = hn::Zero(d);
  const V largest = hn::Set(d, top), lowest = hn::Set(d, -88.0f);
  for (size_t i = 0; i < kept; i += lanes) {
    const V off = hn::Sub(hn::LoadU(d, s.weights + i), largest);
    const V e = hn::IfThenElse(hn::Lt(off, lowest), hn::Zero(d), hn::Exp(d, hn::Max(off, lowest)));
    sums = hn::Add(sums, e);
    // softplus(z) = max(z, 0) + log(1 + exp(-|z|))
    const V z = hn::LoadU(d, s.products + i);
    const V small = hn::Exp(d, hn::Max(hn::Neg(hn::Abs(z)), lowest));
    const V soft = hn::Add(hn::Max(z, hn::Zero(d)), hn::Log1p(d, small));
    // A product that is not a number has to stay one.
    hn::StoreU(hn::Mul(e, hn::IfThenElse(hn::Eq(z, z), soft, z)), d, s.weights + i);
  }
  const float inverse = 1.0f / hn::GetLane(hn::SumOfLanes(d, sums));
  size_t c = 0;
  constexpr size_t kVectors = 4;
  for (; c + kVectors * lanes <= s.value_width; c += kVectors * lanes) {
    V out[kVectors] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
    for (size_t i = 0; i < kept; ++i) {
      const float* value = s.values + static_cast<size_t>(s.index[i]) * s.value_stride + c;
      const V weight = hn::Set(d, s.weights[i]);
      for (size_t v = 0; v < kVectors; ++v)
        out[v] = hn::MulAdd(weight, hn::LoadU(d, value + v * lanes), out[v]);
    }
    for (size_t v = 0; v < kVectors; ++v)
      hn::StoreU(hn::Mul(out[v], hn::Set(d, inverse)), d, s.out + c + v * lanes);
  }
  for (; c + lanes <= s.value_width; c += lanes) {
    V out = hn::Zero(d);
    for (size_t i = 0; i < kept; ++i) {
      const float* value = s.values + static_cast<size_t>(s.index[i]) * s.value_stride + c;
      out = hn::MulAdd(hn::Set(d, s.weights[i]), hn::LoadU(d, value), out);
    }
    hn::StoreU(hn::Mul(out, hn::Set(d, inverse)), d, s.out + c);
  }
  for (; c < s.value_width; ++c) {
    float out = 0;
    for (size_t i = 0; i < kept; ++i)
      out += s.weights[i] * s.values[static_cast<size_t>(s.index[i]) * s.value_stride + c];
    s.out[c] = out * inverse;
  }
  return kept;
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(SparkRow);

namespace {

/// One head's part of a sample's cache.
struct SparkPlace {
  float *first, *rest, *values;
};

int64_t plane_bytes(int64_t positions, int64_t width) {
  return align_up(checked_mul(checked_mul(positions, width, "cache"),
                              static_cast<int64_t>(sizeof(float)), "cache"));
}

int64_t head_bytes(const SparkAttentionSpec& spec) {
  int64_t bytes = 0;
  for (const int64_t width : {spec.split, spec.rest, spec.value_width})
    bytes = checked_add(bytes, plane_bytes(spec.cache, width), "cache");
  return bytes;
}

SparkPlace place_of(const SparkAttentionSpec& spec, std::byte* cache, int64_t head) {
  std::byte* at = cache + head * head_bytes(spec);
  std::byte* rest = at + plane_bytes(spec.cache, spec.split);
  std::byte* values = rest + plane_bytes(spec.cache, spec.rest);
  return {reinterpret_cast<float*>(at), reinterpret_cast<float*>(rest),
          reinterpret_cast<float*>(values)};
}

void append(const SparkAttentionSpec& spec, const SparkAttentionRows& sample, int64_t head) {
  const SparkPlace place = place_of(spec, sample.cache, head);
  const int64_t width = spec.split + spec.rest;
  for (int64_t r = 0; r < sample.rows; ++r) {
    const float* key = sample.k + (r * spec.heads + head) * width;
    const int64_t at = sample.seen + r;
    for (int64_t i = 0; i < spec.split; ++i) place.first[i * spec.cache + at] = key[i];
    std::copy_n(key + spec.split, spec.rest, place.rest + at * spec.rest);
    std::copy_n(sample.v + (r * spec.heads + head) * spec.value_width, spec.value_width,
                place.values + at * spec.value_width);
  }
}

int64_t most_keys(const SparkAttentionSpec& spec, int64_t rows) {
  return (spec.cache > 0 ? spec.cache : rows) + static_cast<int64_t>(kMostLanes);
}

int64_t run_row(const SparkAttentionSpec& spec, const SparkAttentionRows& sample, int64_t row,
                int64_t head, float* scratch, int64_t room) {
  const int64_t width = spec.split + spec.rest;
  SparkQuery query{};
  query.q = sample.q + (row * spec.heads + head) * width;
  if (spec.cache > 0) {
    const SparkPlace place = place_of(spec, sample.cache, head);
    query.first = place.first;
    query.first_stride = static_cast<size_t>(spec.cache);
    query.turned = true;
    query.rest = place.rest;
    query.rest_stride = static_cast<size_t>(spec.rest);
    query.values = place.values;
    query.value_stride = static_cast<size_t>(spec.value_width);
  } else {
    query.first = sample.k + head * width;
    query.first_stride = query.rest_stride = static_cast<size_t>(spec.heads * width);
    query.rest = query.first + spec.split;
    query.values = sample.v + head * spec.value_width;
    query.value_stride = static_cast<size_t>(spec.heads * spec.value_width);
  }
  query.split = static_cast<size_t>(spec.split);
  query.width = static_cast<size_t>(spec.rest);
  query.value_width = static_cast<size_t>(spec.value_width);
  const int64_t keys = (spec.cache > 0 ? sample.seen : 0) + row + 1;
  query.keys = static_cast<size_t>(keys);
  query.whole = keys <= spec.tokens;
  if (!query.whole)
    query.quantile =
        normal_quantile(1 - static_cast<double>(spec.tokens) / static_cast<double>(keys));
  query.out = sample.out + (row * spec.heads + head) * spec.value_width;
  query.scores = scratch;
  query.weights = scratch + room;
  query.products = scratch + 2 * room;
  query.index = reinterpret_cast<int32_t*>(scratch + 3 * room);
  return static_cast<int64_t>(HWY_DYNAMIC_DISPATCH(SparkRow)(query));
}

}  // namespace

int64_t spark_cache_bytes(const SparkAttentionSpec& spec) {
  return checked_mul(head_bytes(spec), spec.heads, "cache");
}

int64_t spark_scratch_bytes(const SparkAttentionSpec& spec, int64_t rows, int threads) {
  const int64_t floats = checked_mul(most_keys(spec, rows), 4, "attention scratch");
  return checked_mul(align_up(checked_mul(floats, sizeof(float), "attention scratch")), threads,
                     "attention scratch");
}

void spark_append(const SparkAttentionSpec& spec, const SparkAttentionRows& sample) {
  for (int64_t head = 0; head < spec.heads; ++head) append(spec, sample, head);
}

Work spark_attention(const SparkAttentionSpec& spec, std::span<const SparkAttentionRows> samples,
                     int threads, std::byte* scratch) {
  int64_t items = 0, most = 0;
  for (const SparkAttentionRows& s : samples) {
    items += s.rows * spec.heads;
    most = std::max(most, s.rows);
  }
  Work work;
  if (items == 0) return work;
  const int64_t heads = static_cast<int64_t>(samples.size()) * spec.heads;
  const int64_t room = most_keys(spec, most), each = spark_scratch_bytes(spec, most, 1);
  int64_t kept = 0, seen = 0;
  // Counted here, so that sums do not depend on the threads.
  for (const SparkAttentionRows& s : samples) {
    const int64_t before = spec.cache > 0 ? s.seen : 0;
    seen += spec.heads * (s.rows * before + s.rows * (s.rows + 1) / 2);
  }
  const auto store = [&](int64_t index) {
    const SparkAttentionRows& s = samples[static_cast<size_t>(index / spec.heads)];
    append(spec, s, index % spec.heads);
  };
  const auto body = [&](int thread, int64_t index) -> int64_t {
    for (const SparkAttentionRows& s : samples) {
      const int64_t count = s.rows * spec.heads;
      if (index < count)
        // The last rows first: they take longest.
        return run_row(spec, s, s.rows - 1 - index / spec.heads, index % spec.heads,
                       reinterpret_cast<float*>(scratch + thread * each), room);
      index -= count;
    }
    return 0;
  };
  const int used = static_cast<int>(std::clamp<int64_t>(items, 1, threads));
  if (used == 1) {
    for (int64_t i = 0; spec.cache > 0 && i < heads; ++i) store(i);
    for (int64_t i = 0; i < items; ++i) kept += body(0, i);
  } else {
#pragma omp parallel num_threads(used) reduction(+ : kept)
    {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < (spec.cache > 0 ? heads : 0); ++i) store(i);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < items; ++i) kept += body(omp_get_thread_num(), i);
    }
  }
  work.macs = seen * spec.split + kept * (spec.rest + spec.value_width);
  work.bytes = 4 * (work.macs + items * (spec.split + spec.rest + spec.value_width));
  return work;
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
