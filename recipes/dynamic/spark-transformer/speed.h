// Bars 3 and 4 in the engine: the price of choosing, and a feed-forward layer at decode.
#pragma once
#include "recipes/recipe.h"

namespace sluice::recipes::spark_transformer {

struct SpeedSizes {
  int64_t width = 2048, neurons = 8192;
  double keep = 0.08;
};

/// selection_share of the arm spark-ffn: time of the statistical threshold and its list over that
/// of an exact one by std::nth_element, for neurons scores; selection_share_of_bisection: over that
/// of the engine's own exact top-k. ffn_speedup of the arm spark: time of a gated layer of as many
/// parameters over that of the Spark layer, one token, one thread, weights from memory.
void measure_spark_speed(RecipeRun& run, const SpeedSizes& sizes, uint64_t seed);

}  // namespace sluice::recipes::spark_transformer
