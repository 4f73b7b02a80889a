// Row by row conversions around products of many rows. Any alignment.
#pragma once
#include <cstdint>

#include "sluice/bundle/packed.h"
#include "sluice/engine/kernel/packed_dot.h"

namespace sluice::engine {

/// bundle::quantize_activations, with vectors.
float quantize_row(const float* x, int64_t count, int8_t* codes);
/// max |x|, NaN where an element is not finite.
float largest_magnitude(const float* x, int64_t count);
/// codes[i] = x[i] * factor, rounded to the nearest, ties to even, at most 127 in size.
void quantize_by(const float* x, float factor, int64_t count, int8_t* codes);
void bf16_row(const float* x, int64_t count, uint16_t* out);
/// x as the products see it, as floats: bf16 values; for i8 the codes, whose scale is returned
/// (else 1).
float round_row(DotKind kind, const float* x, int64_t count, float* out);
/// In place, 32-bit sums to results: y[o] = float(sum) * scale * scales[o] + bias[o]; bias may be
/// null.
void scale_sums(float* y, float scale, const float* scales, const float* bias, int64_t count);
/// Values of rows first..first+count-1 of a packed matrix, as bundle::unpack, with vectors.
void unpack_rows(const bundle::PackedMatrix& matrix, int64_t first, int64_t count, float* out);

}  // namespace sluice::engine
