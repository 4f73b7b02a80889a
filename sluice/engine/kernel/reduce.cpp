#include "sluice/engine/kernel/reduce.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/reduce.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#include "sluice/engine/kernel/activation-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

float Sum(const float* in, size_t count) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  V sums[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    for (size_t k = 0; k < 4; ++k) sums[k] = hn::Add(sums[k], hn::LoadU(d, in + i + k * lanes));
  }
  for (; i + lanes <= count; i += lanes) sums[0] = hn::Add(sums[0], hn::LoadU(d, in + i));
  float rest = 0;
  for (; i < count; ++i) rest += in[i];
  return rest + hn::GetLane(hn::SumOfLanes(
                    d, hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]))));
}

void AveragePlain(const float* in, float* out, size_t samples, size_t channels, size_t pixels) {
  const float inverse = 1.0f / static_cast<float>(pixels);
  for (size_t i = 0; i < samples * channels; ++i) out[i] = Sum(in + i * pixels, pixels) * inverse;
}

void AverageChannelsLast(const float* in, float* out, size_t samples, size_t channels,
                         size_t pixels) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const float inverse = 1.0f / static_cast<float>(pixels);
  for (size_t s = 0; s < samples; ++s, in += channels * pixels, out += channels) {
    size_t c = 0;
    for (; c + lanes <= channels; c += lanes) {
      V even = hn::Zero(d), odd = hn::Zero(d);
      size_t p = 0;
      for (; p + 2 <= pixels; p += 2) {
        even = hn::Add(even, hn::LoadU(d, in + p * channels + c));
        odd = hn::Add(odd, hn::LoadU(d, in + (p + 1) * channels + c));
      }
      if (p < pixels) even = hn::Add(even, hn::LoadU(d, in + p * channels + c));
      hn::StoreU(hn::Mul(hn::Add(even, odd), hn::Set(d, inverse)), d, out + c);
    }
    for (; c < channels; ++c) {
      float sum = 0;
      for (size_t p = 0; p < pixels; ++p) sum += in[p * channels + c];
      out[c] = sum * inverse;
    }
  }
}

void Softmax(const float* in, float* out, size_t rows, size_t width) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  for (size_t r = 0; r < rows; ++r, in += width, out += width) {
    float top = -std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < width; ++i) top = std::max(top, in[i]);
    const V largest = hn::Set(d, top), lowest = hn::Set(d, -88.0f);
    size_t i = 0;
    for (; i + lanes <= width; i += lanes) {
      const V x = hn::Max(hn::Sub(hn::LoadU(d, in + i), largest), lowest);
      hn::StoreU(hn::Exp(d, x), d, out + i);
    }
    for (; i < width; ++i) out[i] = std::exp(in[i] - top);
    const float inverse = 1.0f / Sum(out, width);
    for (i = 0; i + lanes <= width; i += lanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, out + i), hn::Set(d, inverse)), d, out + i);
    }
    for (; i < width; ++i) out[i] *= inverse;
  }
}

// One pass for the two largest, one for the sums: no probabilities are stored.
void PredictionScore(const float* in, Sureness kind, float* out, size_t rows, size_t width) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  constexpr float kLowest = -88.0f;
  for (size_t r = 0; r < rows; ++r, in += width) {
    float top = -std::numeric_limits<float>::infinity(), second = top;
    bool whole = true;  // NaN: a maximum would drop it
    for (size_t i = 0; i < width; ++i) {
      whole = whole && in[i] == in[i];
      second = std::max(second, std::min(top, in[i]));
      top = std::max(top, in[i]);
    }
    if (!whole || !std::isfinite(top)) {
      out[r] = std::numeric_limits<float>::quiet_NaN();
      continue;
    }
    const V largest = hn::Set(d, top), lowest = hn::Set(d, kLowest);
    V total = hn::Zero(d), weighted = hn::Zero(d);
    size_t i = 0;
    for (; i + lanes <= width; i += lanes) {
      const V x = hn::Max(hn::Sub(hn::LoadU(d, in + i), largest), lowest);
      const V e = hn::Exp(d, x);
      total = hn::Add(total, e);
      weighted = hn::MulAdd(e, x, weighted);
    }
    float sum = hn::GetLane(hn::SumOfLanes(d, total)),
          entropy = hn::GetLane(hn::SumOfLanes(d, weighted));
    for (; i < width; ++i) {
      const float x = std::max(in[i] - top, kLowest), e = std::exp(x);
      sum += e;
      entropy += e * x;
    }
    out[r] = kind == Sureness::confidence ? 1.0f / sum
             : kind == Sureness::entropy  ? entropy / sum - std::log(sum)
                                          : (1.0f - std::exp(second - top)) / sum;
  }
}

void LayerNorm(const float* in, const float* weight, const float* bias, float eps, float* out,
               size_t rows, size_t width) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  for (size_t r = 0; r < rows; ++r, in += width, out += width) {
    const float mean = Sum(in, width) / static_cast<float>(width);
    V squares = hn::Zero(d);
    const V center = hn::Set(d, mean);
    size_t i = 0;
    for (; i + lanes <= width; i += lanes) {
      const V x = hn::Sub(hn::LoadU(d, in + i), center);
      squares = hn::MulAdd(x, x, squares);
    }
    float variance = hn::GetLane(hn::SumOfLanes(d, squares));
    for (; i < width; ++i) variance += (in[i] - mean) * (in[i] - mean);
    const float factor = 1.0f / std::sqrt(variance / static_cast<float>(width) + eps);
    const V scale = hn::Set(d, factor);
    for (i = 0; i + lanes <= width; i += lanes) {
      V x = hn::Mul(hn::Sub(hn::LoadU(d, in + i), center), scale);
      if (weight) x = hn::Mul(x, hn::LoadU(d, weight + i));
      if (bias) x = hn::Add(x, hn::LoadU(d, bias + i));
      hn::StoreU(x, d, out + i);
    }
    for (; i < width; ++i) {
      const float x = (in[i] - mean) * factor * (weight ? weight[i] : 1.0f);
      out[i] = x + (bias ? bias[i] : 0.0f);
    }
  }
}

// 4 x 4 blocks in registers; 128 bits are enough, as the stores are the limit.
void Transpose(const float* in, float* out, size_t rows, size_t columns, size_t in_stride,
               size_t out_stride) {
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d;
  const hn::Repartition<double, decltype(d)> dd;
#endif
  constexpr size_t kTile = 16;  // one cache line of each side
  for (size_t r0 = 0; r0 < rows; r0 += kTile) {
    const size_t r1 = std::min(rows, r0 + kTile);
    for (size_t c0 = 0; c0 < columns; c0 += kTile) {
      const size_t c1 = std::min(columns, c0 + kTile);
      size_t c = c0;
      for (; c + 4 <= c1; c += 4) {
        size_t r = r0;
#if HWY_TARGET != HWY_SCALAR
        for (; r + 4 <= r1; r += 4) {
          const float* from = in + r * in_stride + c;
          float* to = out + c * out_stride + r;
          const auto a = hn::LoadU(d, from), b = hn::LoadU(d, from + in_stride),
                     e = hn::LoadU(d, from + 2 * in_stride), f = hn::LoadU(d, from + 3 * in_stride);
          const auto ab = hn::BitCast(dd, hn::InterleaveLower(d, a, b)),
                     ef = hn::BitCast(dd, hn::InterleaveLower(d, e, f));
          const auto hi_ab = hn::BitCast(dd, hn::InterleaveUpper(d, a, b)),
                     hi_ef = hn::BitCast(dd, hn::InterleaveUpper(d, e, f));
          hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, ab, ef)), d, to);
          hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, ab, ef)), d, to + out_stride);
          hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, hi_ab, hi_ef)), d, to + 2 * out_stride);
          hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, hi_ab, hi_ef)), d, to + 3 * out_stride);
        }
#endif
        for (; r < r1; ++r) {
          for (size_t k = 0; k < 4; ++k) out[(c + k) * out_stride + r] = in[r * in_stride + c + k];
        }
      }
      for (; c < c1; ++c) {
        for (size_t r = r0; r < r1; ++r) out[c * out_stride + r] = in[r * in_stride + c];
      }
    }
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(AveragePlain);
HWY_EXPORT(AverageChannelsLast);
HWY_EXPORT(Softmax);
HWY_EXPORT(PredictionScore);
HWY_EXPORT(LayerNorm);
HWY_EXPORT(Transpose);

void average_plain(const float* in, float* out, size_t samples, size_t channels, size_t pixels) {
  HWY_DYNAMIC_DISPATCH(AveragePlain)(in, out, samples, channels, pixels);
}
void average_channels_last(const float* in, float* out, size_t samples, size_t channels,
                           size_t pixels) {
  HWY_DYNAMIC_DISPATCH(AverageChannelsLast)(in, out, samples, channels, pixels);
}
void softmax(const float* in, float* out, size_t rows, size_t width) {
  HWY_DYNAMIC_DISPATCH(Softmax)(in, out, rows, width);
}
void prediction_score(const float* in, Sureness kind, float* out, size_t rows, size_t width) {
  HWY_DYNAMIC_DISPATCH(PredictionScore)(in, kind, out, rows, width);
}
void layer_norm(const float* in, const float* weight, const float* bias, float eps, float* out,
                size_t rows, size_t width) {
  HWY_DYNAMIC_DISPATCH(LayerNorm)(in, weight, bias, eps, out, rows, width);
}

void transpose_strided(const float* in, float* out, size_t rows, size_t columns, size_t in_stride,
                       size_t out_stride) {
  HWY_DYNAMIC_DISPATCH(Transpose)(in, out, rows, columns, in_stride, out_stride);
}

void transpose(const float* in, float* out, size_t samples, size_t rows, size_t columns) {
  for (size_t s = 0; s < samples; ++s, in += rows * columns, out += rows * columns) {
    transpose_strided(in, out, rows, columns, columns, rows);
  }
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
