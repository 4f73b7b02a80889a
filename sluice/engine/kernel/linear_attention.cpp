#include "sluice/engine/kernel/linear_attention.h"

#include <algorithm>
#include <cstring>

#include "sluice/base/shape.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/linear_attention.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#ifndef SLUICE_ENGINE_KERNEL_LINEAR_ATTENTION_ONCE_
#define SLUICE_ENGINE_KERNEL_LINEAR_ATTENTION_ONCE_
namespace sluice::engine {
inline constexpr size_t kTokens = 4;  // that pass over the state together

inline size_t padded(int64_t width) { return (static_cast<size_t>(width) + 15) / 16 * 16; }

/// One head of one sample.
struct LinearHead {
  const float *q, *k, *v, *decay;
  float* out;
  size_t key_stride, value_stride, decay_stride;  // from token to token
  size_t decay_step;                              // from channel to channel: 0 or 1
  size_t key_width, value_width, rows;
  float scale;
  float* state;    // [key_width][padded(value_width)]
  float* scratch;  // 2 * kTokens rows of padded(value_width)
};
}  // namespace sluice::engine
#endif

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

/// `kCount` tokens over kVectors vectors of the state's columns from `column` on.
template <size_t kCount, size_t kVectors, bool kDecay>
HWY_INLINE void Pass(const LinearHead& h, size_t first, size_t column, size_t stride,
                     const float* values, float* out) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  V sums[kCount][kVectors], v[kCount][kVectors];
  for (size_t t = 0; t < kCount; ++t) {
    for (size_t c = 0; c < kVectors; ++c) {
      sums[t][c] = hn::Zero(d);
      v[t][c] = hn::LoadU(d, values + t * stride + column + c * lanes);
    }
  }
  const float* q = h.q + first * h.key_stride;
  const float* k = h.k + first * h.key_stride;
  const float* decay = kDecay ? h.decay + first * h.decay_stride : nullptr;
  for (size_t i = 0; i < h.key_width; ++i) {
    float* row = h.state + i * stride + column;
    V s[kVectors];
    for (size_t c = 0; c < kVectors; ++c) s[c] = hn::LoadU(d, row + c * lanes);
    for (size_t t = 0; t < kCount; ++t) {
      const V key = hn::Set(d, k[t * h.key_stride + i]),
              query = hn::Set(d, q[t * h.key_stride + i]);
      for (size_t c = 0; c < kVectors; ++c) {
        if constexpr (kDecay) {
          const V factor = hn::Set(d, decay[t * h.decay_stride + i * h.decay_step]);
          s[c] = hn::MulAdd(factor, s[c], hn::Mul(key, v[t][c]));
        } else {
          s[c] = hn::MulAdd(key, v[t][c], s[c]);
        }
        sums[t][c] = hn::MulAdd(query, s[c], sums[t][c]);
      }
    }
    for (size_t c = 0; c < kVectors; ++c) hn::StoreU(s[c], d, row + c * lanes);
  }
  for (size_t t = 0; t < kCount; ++t)
    for (size_t c = 0; c < kVectors; ++c)
      hn::StoreU(sums[t][c], d, out + t * stride + column + c * lanes);
}

template <size_t kCount, bool kDecay>
void Tokens(const LinearHead& h, size_t first) {
  const D d;
  const size_t lanes = hn::Lanes(d), stride = padded(static_cast<int64_t>(h.value_width));
  float* values = h.scratch;
  float* out = h.scratch + kTokens * stride;
  for (size_t t = 0; t < kCount; ++t) {
    std::memcpy(values + t * stride, h.v + (first + t) * h.value_stride,
                h.value_width * sizeof(float));
    std::fill(values + t * stride + h.value_width, values + (t + 1) * stride, 0.0f);
  }
  size_t column = 0;
  for (; column + 2 * lanes <= stride; column += 2 * lanes)
    Pass<kCount, 2, kDecay>(h, first, column, stride, values, out);
  for (; column < stride; column += lanes)
    Pass<kCount, 1, kDecay>(h, first, column, stride, values, out);
  for (size_t t = 0; t < kCount; ++t) {
    float* to = h.out + (first + t) * h.value_stride;
    for (size_t i = 0; i < h.value_width; ++i) to[i] = out[t * stride + i] * h.scale;
  }
}

template <bool kDecay>
void Head(const LinearHead& h) {
  size_t t = 0;
  for (; t + kTokens <= h.rows; t += kTokens) Tokens<kTokens, kDecay>(h, t);
  for (; t < h.rows; ++t) Tokens<1, kDecay>(h, t);
}

void HeadWithDecay(const LinearHead& h) { Head<true>(h); }
void HeadWithoutDecay(const LinearHead& h) { Head<false>(h); }

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(HeadWithDecay);
HWY_EXPORT(HeadWithoutDecay);

int64_t linear_attention_state_bytes(const LinearAttentionSpec& spec) {
  const int64_t head =
      checked_mul(spec.key_width, static_cast<int64_t>(padded(spec.value_width)), "state");
  return checked_mul(checked_mul(head, spec.heads, "state"), sizeof(float), "state");
}

int64_t linear_attention_scratch_bytes(const LinearAttentionSpec& spec, int threads) {
  const int64_t rows = static_cast<int64_t>(padded(spec.value_width) * 2 * kTokens);
  return checked_mul(checked_mul(rows, sizeof(float), "scratch"), threads, "scratch");
}

Work linear_attention(const LinearAttentionSpec& spec, std::span<const LinearAttentionRows> samples,
                      int threads, std::byte* scratch) {
  const int64_t heads = static_cast<int64_t>(samples.size()) * spec.heads;
  const int64_t bytes = linear_attention_scratch_bytes(spec, 1);
  const auto body = [&](int64_t index, int thread) {
    const LinearAttentionRows& s = samples[static_cast<size_t>(index / spec.heads)];
    const int64_t head = index % spec.heads;
    if (s.rows == 0) return;
    LinearHead h{};
    h.key_width = static_cast<size_t>(spec.key_width);
    h.value_width = static_cast<size_t>(spec.value_width);
    h.rows = static_cast<size_t>(s.rows);
    h.key_stride = static_cast<size_t>(spec.heads * spec.key_width);
    h.value_stride = static_cast<size_t>(spec.heads * spec.value_width);
    h.q = s.q + head * spec.key_width;
    h.k = s.k + head * spec.key_width;
    h.v = s.v + head * spec.value_width;
    h.out = s.out + head * spec.value_width;
    h.scale = spec.scale;
    const size_t size = h.key_width * padded(spec.value_width);
    h.state = s.state + static_cast<size_t>(head) * size;
    h.scratch = reinterpret_cast<float*>(scratch + thread * bytes);
    if (s.fresh) std::fill(h.state, h.state + size, 0.0f);
    if (spec.decay == Decay::none) return HWY_DYNAMIC_DISPATCH(HeadWithoutDecay)(h);
    const bool channel = spec.decay == Decay::channel;
    h.decay = s.decay + head * (channel ? spec.key_width : 1);
    h.decay_stride = channel ? h.key_stride : static_cast<size_t>(spec.heads);
    h.decay_step = channel ? 1 : 0;
    HWY_DYNAMIC_DISPATCH(HeadWithDecay)(h);
  };
  Work work;
  for (const LinearAttentionRows& s : samples) {
    work.macs += 2 * s.rows * spec.heads * spec.key_width * spec.value_width;
    if (s.rows > 0) work.bytes += 2 * linear_attention_state_bytes(spec);
    work.bytes += s.rows * spec.heads * (3 * spec.key_width + 2 * spec.value_width) * 4;
  }
  const int used = static_cast<int>(std::clamp<int64_t>(heads, 1, threads));
  if (used == 1) {
    for (int64_t i = 0; i < heads; ++i) body(i, 0);
    return work;
  }
#pragma omp parallel for num_threads(used) schedule(dynamic, 1)
  for (int64_t i = 0; i < heads; ++i) body(i, omp_get_thread_num());
  return work;
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
