// Bar 1: on orthogonal columns no mask of K inputs loses less than that of the K largest scores.
#pragma once
#include "recipes/dynamic/wina/arms.h"

namespace sluice::recipes::wina {

/// Measures, for inputs of every k and gate of `turned` on the held-out windows and every sparsity:
/// best_share (of inputs for which an arm's mask loses no more than any random mask and that of
/// |x|) and formula_error (largest relative difference between sqrt(sum of x_j^2 c_j^2 over the
/// inputs left out) and the error measured), for the arms wina, teal, permuted-norms, inverse-score
/// and, on the columns of `folded` as they are, wina-unrotated.
void measure_theorem(RecipeRun& run, const Plan& plan, const Subject& subject,
                     const lab::Model& turned, const lab::Model& folded, uint64_t seed);

}  // namespace sluice::recipes::wina
