// Decoders that get exits.
#pragma once
#include "sluice/lab/brick/exit_decoder.h"
#include "sluice/lab/model/model.h"

namespace sluice::lab {

/// The model of a Decoder with exits, everything copied: heads and controller are fresh, drawn from
/// `seed`. Throws Error{unsupported} for a root that is no decoder of plain blocks.
Model with_exits(const Model& decoder, const ExitDecoderOptions& options, uint64_t seed);

}  // namespace sluice::lab
