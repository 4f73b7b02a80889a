// Convolution of the channels that each sample asks for: output channels whose mask is above 0 are
// computed, the others are 0; input channels whose mask is not above 0 are not read. (NaN is not
// above 0.) Memory is channels last. Per sample the kept input channels are gathered into a padded
// picture, and the kept weights block by block into panels that stay in the first-level cache for a
// dense product with it; so the time goes with kept inputs x kept outputs.
#pragma once
#include <span>

#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {

/// `weight` [O,C,kh,kw], `bias` [O] or empty (added to kept outputs). Groups must be 1. Inputs when
/// bound: x [samples][H][W][C], output masks [samples][O], and, if `input_mask`, input masks
/// [samples][C]. Metered. Throws Error{limit} naming `what` for a padded picture above 2^32 bytes.
Kernel make_gathered_conv(const onednn::ConvShape& shape, std::span<const float> weight,
                          std::span<const float> bias, bool input_mask, int threads,
                          const std::string& what);

}  // namespace sluice::engine
