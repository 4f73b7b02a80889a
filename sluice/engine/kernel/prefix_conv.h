// Nested convolutions: each size of the layer is a leading part of its output and input channels.
//
//   y[o] = act(scale[o] * (sum over c < columns of x[c] * weight[o][c]) + bias[o] + other[o])   for
//   o < rows, else act(other[o])
//
// with a scale and a bias of each size (its folded batch norm). Memory is channels last. Weights
// lie in panels of 32 outputs and in blocks of as many inputs as divide the columns of all sizes,
// so that every size is a leading part of each panel: choosing a size copies and packs nothing, and
// what it leaves out is not read.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "sluice/bundle/ops_sparse.h"
#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {

using bundle::PrefixSize;

/// `weight` [O,C,kh,kw]; `scale` and `bias` [sizes][O] or empty. Groups must be 1. Inputs when
/// bound: x [samples][H][W][C], and the other addend, as the output, if tail.add is not none.
/// Binding::size chooses, null or -1: the last. Metered. Throws Error{limit} naming `what` for a
/// padded picture above 2^32 bytes.
Kernel make_prefix_conv(const onednn::ConvShape& shape, const onednn::Tail& tail,
                        std::span<const float> weight, std::span<const float> scale,
                        std::span<const float> bias, std::vector<PrefixSize> sizes, int threads,
                        const std::string& what);

}  // namespace sluice::engine
