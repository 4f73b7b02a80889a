// What depth costs in the engine: the network as trained, folded, and a residual network.
#pragma once
#include "recipes/recipe.h"
#include "sluice/lab/model/model.h"

namespace sluice::recipes::vanillanet {

/// Adds to the report, for one thread and batches of 1 and 64: microseconds per image, interleaved
/// in one measurement, metered MACs, and folded over unfolded, folded over the residual network. A
/// note in builds without the engine.
void measure_latency(RecipeRun& run, const lab::Model& unfolded, const lab::Model& folded,
                     const lab::Model& resnet);

}  // namespace sluice::recipes::vanillanet
