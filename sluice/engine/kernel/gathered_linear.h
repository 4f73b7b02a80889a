// Linear layers of which each row computes some outputs only: y = W x + b where the row's mask is
// above 0, else 0. The mask has one number per unit of consecutive outputs (a head's query, say),
// so that a closed unit is a run of rows of W that nobody reads.
#pragma once
#include "sluice/engine/kernel/active_rows.h"

namespace sluice::engine {

struct GatheredLinear {
  bundle::PackedMatrix weight;  ///< [out][in]
  const float* bias = nullptr;  ///< [out] or null
  int64_t units = 1;            ///< of out / units outputs each
  DotKind kind = DotKind::f32;
};

int64_t gathered_linear_scratch(const GatheredLinear& layer);
/// x [rows][in], mask [rows][units], y [rows][out], not x. Any alignment. A mask that is NaN is
/// closed. Up to eight rows share what they read (active_rows.h); what one asked for is computed
/// for all of them where they ask for much the same, and counted, but closed outputs are 0.
void run_gathered_linear(const GatheredLinear& layer, const float* x, const float* mask, float* y,
                         size_t rows, std::byte* scratch, int threads, Work* work);

}  // namespace sluice::engine
