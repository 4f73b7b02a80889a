// Linear layers that read only the columns of W whose inputs matter: y = W x + b over the inputs
// that a selector keeps. The weights are stored by input (W^T, [in][out]), so that a skipped input
// is a skipped run of bytes.
#pragma once
#include "sluice/engine/kernel/active_rows.h"
#include "sluice/engine/kernel/selector.h"

namespace sluice::engine {

struct SparseInput {
  bundle::PackedMatrix weight;         ///< [in][out]
  const float* bias = nullptr;         ///< [out] or null
  const float* column_norm = nullptr;  ///< [in] or null: an input's score is |x_i| * norm_i
  Selector select;
};

int64_t sparse_input_scratch(const SparseInput& layer, int threads);
/// x [rows][in], y [rows][out]. Any alignment. Scores that are NaN are skipped (unless top-k has to
/// keep everything); infinities are kept and make the outputs infinite or NaN. `dense` [rows] or
/// null: rows with 1 keep all inputs, whatever the selector says.
void run_sparse_input(const SparseInput& layer, const float* x, float* y, size_t rows,
                      std::byte* scratch, int threads, Work* work, const uint8_t* dense = nullptr);

}  // namespace sluice::engine
