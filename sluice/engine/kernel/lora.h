// Low-rank adapters beside a layer: y += s_a B_a (A_a x) with an adapter a per row of x, several at
// once. Rows are sorted by adapter, so that each adapter's small matrices are read once per eight
// rows; rows without one cost nothing.
#pragma once
#include <vector>

#include "sluice/engine/kernel/kernel.h"
#include "sluice/engine/kernel/packed_dot.h"

namespace sluice::engine {

struct Lora {
  std::vector<bundle::PackedMatrix> a, b;  ///< per adapter: [rank][in], [rank][out]
  std::vector<float> scale;                ///< per adapter, or empty: 1
  DotKind kind = DotKind::f32;
};

int64_t lora_scratch(const Lora& lora, int64_t rows, int threads);
/// y [rows][out] += .., x [rows][in], adapter [rows]: whole numbers below the number of adapters;
/// a negative one: none. Throws Error{shape} for other numbers, before y is changed.
void run_lora(const Lora& lora, const float* x, const float* adapter, float* y, size_t rows,
              std::byte* scratch, int threads, Work* work);

}  // namespace sluice::engine
