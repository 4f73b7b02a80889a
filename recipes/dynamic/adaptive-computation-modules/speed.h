// What rows that leave are worth in the engine.
#pragma once
#include "recipes/dynamic/adaptive-computation-modules/study.h"
#include "recipes/recipe.h"

namespace sluice::recipes::acm {

/// Adds to the report: seconds of all feed-forward layers alone on what test images bring to them,
/// 64 at a time, one thread, dense and as modules, interleaved, and their ratio; the MACs that the
/// engine metered for the modules against the lab's, and the largest relative difference of
/// outputs; of whole networks what race_pictures() adds (recipes/engine_race.h). A note in builds
/// without the engine.
void measure_engine(RecipeRun& run, const lab::Model& dense, const lab::Model& modules,
                    const data::ImageSet& data);

}  // namespace sluice::recipes::acm
