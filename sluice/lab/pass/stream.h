// Internal: surgery on the residual stream of transformers.
#pragma once
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {

/// Scale and shift of every norm that only linear layers read (Brick::norm_readers) into these;
/// what is left normalises without parameters. Returns the paths of the norms.
Json fold_norm_readers(Model& model);

}  // namespace sluice::lab
