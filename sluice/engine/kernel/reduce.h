// Kernels that reduce over a dimension, and the copies between memory orders. Highway with run-time
// dispatch; sums over long rows are kept in several partial sums, so their error grows with the
// logarithm of the length.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sluice::engine {

/// in [samples][channels][pixels] -> out [samples][channels]
void average_plain(const float* in, float* out, size_t samples, size_t channels, size_t pixels);
/// in [samples][pixels][channels] -> out [samples][channels]
void average_channels_last(const float* in, float* out, size_t samples, size_t channels,
                           size_t pixels);
/// Over rows of `width`; out may be in.
void softmax(const float* in, float* out, size_t rows, size_t width);
/// How sure a row of logits is, more is surer; p is its softmax. confidence: max p; entropy: sum of
/// p ln p (minus the entropy in nats); margin: max p minus the largest of the others.
enum class Sureness : uint8_t { confidence, entropy, margin };
/// Of each row of `width` >= 2 logits; NaN where one of them is NaN or infinity.
void prediction_score(const float* in, Sureness kind, float* out, size_t rows, size_t width);
/// (x - mean) / sqrt(variance + eps) * weight + bias over rows; weight, bias may be null; out may
/// be in.
void layer_norm(const float* in, const float* weight, const float* bias, float eps, float* out,
                size_t rows, size_t width);
/// Per sample: in [rows][columns] -> out [columns][rows]. [C][HW] -> [HW][C] is (C, HW).
void transpose(const float* in, float* out, size_t samples, size_t rows, size_t columns);
/// in[r * in_stride + c] -> out[c * out_stride + r]
void transpose_strided(const float* in, float* out, size_t rows, size_t columns, size_t in_stride,
                       size_t out_stride);

}  // namespace sluice::engine
