// Pooling of values in plain order, [samples][C][H][W], for which oneDNN has only its reference
// code. Each output row is the maximum or sum of its window's rows first, side by side, and then of
// their columns. What lies outside the picture takes no part: not in the maximum, and an average is
// over what is inside.
#pragma once
#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {

/// `shape` as for onednn::make_pool(), channels alike in and out, dilation 1. One input when bound.
Kernel make_plane_pool(const onednn::ConvShape& shape, bool maximum, int threads);

}  // namespace sluice::engine
