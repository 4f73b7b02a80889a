// Convolutions of codes: int8 weights with a scale per output channel, inputs rounded to int8 with
// one scale per sample (bundle::quantize_sample) when they are used.
#pragma once
#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include "sluice/engine/kernel/kernel.h"
#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {

struct PackedConv {
  onednn::ConvShape shape;
  const std::byte* codes = nullptr;  ///< int8 [O][C/groups][kh][kw], none of -128
  std::span<const float> scales;     ///< [O]
  std::span<const float> bias;       ///< [O] or empty
  onednn::Tail tail;                 ///< adds nothing or an operand
  int threads = 1;
};

/// Channels last. Inputs when bound: x, and the other addend if tail.add is operand. Sums of codes
/// are exact integers. Nothing where this processor or oneDNN has no fast code for that:
/// make_rounded() of an ordinary convolution is the same then but for the sums' rounding.
std::optional<Kernel> make_packed_conv(const PackedConv& conv, onednn::PackCache& cache,
                                       const std::string& key);

/// `conv` on an input of `samples` x `each` that is rounded in the same way first, to values.
Kernel make_rounded(Kernel conv, int64_t samples, int64_t each, int threads);

}  // namespace sluice::engine
