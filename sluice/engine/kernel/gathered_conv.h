// Convolution of the channels that each sample asks for: output channels whose mask is above 0 are
// computed, the others are 0; input channels whose mask is not above 0 are not read. (NaN is not
// above 0.) Memory is in plain order, pixels are in the lanes of vectors. Each kept input channel
// is copied into a plane with a zero border, in which every tap of the window is one shift; weights
// are read one by one where they lie. So no weight is gathered, and lanes are lost to borders only,
// not to numbers of channels that do not fill vectors: the time goes with kept inputs x kept
// outputs. docs/decisions/conv-layout.md has the numbers.
#pragma once
#include <span>

#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {

/// `weight` [O,C,kh,kw], `bias` [O] or empty (added to kept outputs). Groups must be 1. Inputs when
/// bound: x [samples][C][H][W], output masks [samples][O], and, if `input_mask`, input masks
/// [samples][C]. `activation` follows, of the channels that are 0, too. Metered; of fewer samples
/// where Binding::rows says so. Results do not depend on `threads`. Throws Error{limit} naming
/// `what` for planes above 2^32 bytes.
Kernel make_gathered_conv(const onednn::ConvShape& shape, Activation activation,
                          std::span<const float> weight, std::span<const float> bias,
                          bool input_mask, int threads, const std::string& what);

}  // namespace sluice::engine
