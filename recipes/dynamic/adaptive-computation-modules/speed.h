// What rows that leave are worth in the engine.
#pragma once
#include "recipes/dynamic/adaptive-computation-modules/study.h"
#include "recipes/recipe.h"

namespace sluice::recipes::acm {

/// Adds to the report, one thread: seconds of all feed-forward layers alone on what test images
/// bring to them, 64 at a time, dense and as modules, interleaved; their ratio; the same of the
/// whole network; the MACs that the engine metered for the modules against the lab's, and the
/// largest relative difference of outputs. A note in builds without the engine.
void measure_engine(RecipeRun& run, const lab::Model& dense, const lab::Model& modules,
                    const lab::Feed& test);

}  // namespace sluice::recipes::acm
