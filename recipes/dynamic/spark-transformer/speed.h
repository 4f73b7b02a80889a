// Bars 3 and 4 in the engine: the price of choosing, and a feed-forward layer at decode.
#pragma once
#include <ATen/core/Tensor.h>

#include "recipes/recipe.h"
#include "sluice/lab/model/model.h"

namespace sluice::recipes::spark_transformer {

struct SpeedSizes {
  int64_t width = 2048, neurons = 8192;
  double keep = 0.08;
  // Of the attention: heads of `head_dim` columns over `positions` that are cached.
  int64_t heads = 16, head_dim = 128, positions = 4096, attended = 256;
};

/// selection_share of the arm spark-ffn: time of the statistical threshold and its list over that
/// of an exact one by std::nth_element, for neurons scores; selection_share_of_bisection: over that
/// of the engine's own exact top-k. ffn_speedup of the arm spark: time of a gated layer of as many
/// parameters over that of the Spark layer, one token, one thread, weights from memory.
/// attention_speedup: the same of softmax attention over spark attention, without projections, one
/// token behind `positions` others; attention_share: their multiply-accumulates, metered.
void measure_spark_speed(RecipeRun& run, const SpeedSizes& sizes, uint64_t seed);

/// The trained model in the engine, token by token: engine_error, how far its logits are from the
/// lab's, relative; engine_macs, what it metered over what the lab did.
void compare_with_engine(RecipeRun& run, const lab::Model& model, const at::Tensor& ids);

/// The trained networks decode what `ids` holds: what race_decoding() adds (recipes/engine_race.h).
void race_decoders(RecipeRun& run, const lab::Model& dense, const lab::Model& spark,
                   const at::Tensor& ids);

}  // namespace sluice::recipes::spark_transformer
