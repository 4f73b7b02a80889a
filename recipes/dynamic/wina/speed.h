// What the engine makes of it: bar 4, tokens per second, and whether the meter tells the truth.
#pragma once
#include "recipes/dynamic/wina/plan.h"
#include "recipes/recipe.h"

namespace sluice::recipes::wina {

/// gemv_speedup of the arm wina: the time of the engine's dense product of plan.gemv squared over
/// that of sparse_input_linear at sparsity 0.65, one thread, choosing included (exact top-k by
/// |x| norm; gemv_speedup_threshold with a threshold). Weights rotate through copies that no cache
/// holds.
void measure_gemv(RecipeRun& run, const Plan& plan, uint64_t seed);

/// What race_decoding() adds (recipes/engine_race.h) of `dense`, and with "_at_P" of `sparse` by
/// sparsity; and meter_difference: the largest difference between MACs that the lab's meter counted
/// in the sparse layers and those that the engine executed, a token at a time.
void measure_decoding(RecipeRun& run, const Plan& plan, const lab::Model& dense,
                      const std::vector<lab::Model>& sparse, const at::Tensor& windows);

}  // namespace sluice::recipes::wina
