// What a ticket costs in the engine: dense kernels against compressed rows.
#pragma once
#include "recipes/recipe.h"
#include "sluice/lab/model/model.h"

namespace sluice::recipes::lottery_ticket {

/// Adds to the report, for one thread and batches of 1 and 64: microseconds per image of the dense
/// network, of the ticket run with dense kernels, and of the ticket run as the engine chooses,
/// interleaved in one measurement; MACs as metered; bytes of non-zero weights. `level` names the
/// ticket's density. Does nothing in a build without the engine.
void measure_latency(RecipeRun& run, const lab::Model& dense, const lab::Model& ticket,
                     const std::string& level);

}  // namespace sluice::recipes::lottery_ticket
