// Nested linear layers: each size of the layer is a leading part of its rows and columns.
//
//   y[r][o] = bias[o] + sum over i < columns of x[r][i] * weight[o][i]   for o < rows, else 0
//
// Which size is computed is read when the kernel runs; nothing is packed or copied for it. Weights
// that the size leaves out are not read, nor are the columns of x.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "sluice/bundle/ops_sparse.h"
#include "sluice/bundle/packed.h"
#include "sluice/engine/kernel/kernel.h"

namespace sluice::engine {

using bundle::PrefixSize;

/// At most `rows` of x; of those that are counted (Binding::rows) each has `each`. Input when
/// bound: x; Binding::size chooses, null or -1: the last. Metered.
Kernel make_prefix_linear(int64_t rows, int64_t in, int64_t out, std::span<const float> weight,
                          std::span<const float> bias, std::vector<PrefixSize> sizes, int threads,
                          int64_t each = 1);

/// The same with packed weights, which must outlive the kernel; columns as
/// bundle::prefix_columns_fit says. Eight rows of x at a time, in f32.
Kernel make_prefix_linear(int64_t rows, const bundle::PackedMatrix& weight,
                          std::span<const float> bias, std::vector<PrefixSize> sizes, int threads,
                          int64_t each = 1);

}  // namespace sluice::engine
