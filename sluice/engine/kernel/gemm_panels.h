// Products of many rows of x with f32 or bf16 weights, float activations: blocks of weights become
// panels (panel.h) that stay in the second-level cache while all rows of x pass. A row's result
// depends neither on the other rows nor on the number of threads.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sluice/bundle/packed.h"
#include "sluice/engine/kernel/packed_dot.h"

namespace sluice::engine {

/// f32 or bf16 weights, activations not of int8.
bool panels_apply(const bundle::PackedMatrix& weight, DotKind kind);
/// Throws Error{limit} on overflow.
int64_t panels_scratch_bytes(const bundle::PackedMatrix& weight, int64_t rows, int threads);
/// y [rows][weight.rows] = x W^T, x [rows][weight.columns] rounded as `kind` says.
void multiply_panels(const bundle::PackedMatrix& weight, DotKind kind, const float* x, int64_t rows,
                     float* y, std::byte* scratch, int threads);

}  // namespace sluice::engine
