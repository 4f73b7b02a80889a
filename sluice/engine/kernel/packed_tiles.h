// Packed weights times many rows of int8 activations with AMX tiles:
//   y[r][o] = sum over c of x[r][c] W[o][c],  x as DotKind::i8 rounds it
//
// Codes of all formats become int8 in strips that stay in the cache: 16 outputs beside each other,
// four columns a lane, as TDPBSSD wants its second operand. Formats with one scale a row add up
// integers over all columns: the same bits as packed_dot. Formats with groups leave the tiles after
// every group, are scaled and added in f32.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sluice/bundle/packed.h"

namespace sluice::engine {

/// The CPU has AMX int8, the system lets this process use it, and the chosen vector target is
/// AVX-512.
bool tiles_usable();
/// Everything but f32 and bf16; and not so many columns that 32-bit sums could overflow.
bool tiles_apply(const bundle::PackedMatrix& weights);
/// Throws Error{limit} on overflow.
int64_t tiles_scratch_bytes(const bundle::PackedMatrix& weights, int64_t rows, int threads);
/// x [rows][columns], y [rows][weights.rows]. The result does not depend on the number of threads.
/// `scratch` is aligned to 64 bytes. Only where tiles_usable() and tiles_apply().
void multiply_tiles(const bundle::PackedMatrix& weights, const float* x, int64_t rows, float* y,
                    std::byte* scratch, int threads);

}  // namespace sluice::engine
