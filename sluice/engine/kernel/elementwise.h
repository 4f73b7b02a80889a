// Element-wise kernels, Highway with run-time dispatch. Any alignment, any length; `out` may be
// `in` (or `a`). A channel kernel sees memory as outer x channels x inner: plain [C,H,W] is
// (samples, C, H*W), channels last is (samples*H*W, C, 1).
#pragma once
#include <cstddef>

#include "sluice/engine/kernel/kernel.h"

namespace sluice::engine {

void activate(Activation kind, const float* in, float* out, size_t count);
/// out = activation(a + b)
void add(const float* a, const float* b, Activation kind, float* out, size_t count);
/// out = a * b
void multiply(const float* a, const float* b, float* out, size_t count);
/// out = in > value ? 1 : 0 (NaN gives 0)
void threshold(const float* in, float value, float* out, size_t count);
/// out = in * scale[c] + shift[c]; `shift` may be null.
void scale_channels(const float* in, const float* scale, const float* shift, float* out,
                    size_t outer, size_t channels, size_t inner);
/// out = out + factor * in; `out` is not `in`.
void add_scaled(const float* in, float factor, float* out, size_t count);
/// out = in * factor
void scale_all(const float* in, float factor, float* out, size_t count);

}  // namespace sluice::engine
