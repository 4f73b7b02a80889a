// What skipped filters are worth in the engine.
#pragma once
#include "recipes/recipe.h"
#include "sluice/data/dataset.h"
#include "sluice/lab/model/model.h"

namespace sluice::recipes::fire_together {

/// Adds to the report what race_pictures() does (recipes/engine_race.h) of the dense network, of
/// `gated`, and of `open` (its gates never close); the MACs that the engine metered for `gated`
/// against the lab's for the same images; and the largest relative difference of outputs. A note in
/// builds without the engine.
void measure_engine(RecipeRun& run, const lab::Model& dense, const lab::Model& gated,
                    const lab::Model& open, const data::ImageSet& data);

}  // namespace sluice::recipes::fire_together
