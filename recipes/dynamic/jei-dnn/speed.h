// The chain of exits in the engine: outputs, metered cost, time.
#pragma once
#include "recipes/dynamic/jei-dnn/study.h"
#include "recipes/recipe.h"

namespace sluice::recipes::jei_dnn {

/// One chain to measure, and the mean cost that validation data promised.
struct Deployed {
  std::string arm, role;
  lab::Model model;
  double expected_cost = 0;
};

/// Adds metered_cost (shares of the backbone's MACs over test images), cost_error (relative to the
/// promise) and, with the engine, what race_pictures() adds (recipes/engine_race.h).
void measure(RecipeRun& run, const lab::Model& backbone, const std::vector<Deployed>& deployed,
             const data::ImageSet& data);

}  // namespace sluice::recipes::jei_dnn
