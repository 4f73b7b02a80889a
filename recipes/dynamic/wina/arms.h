// The rivals: how inputs are scored, and models that leave out those of least score.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "recipes/dynamic/wina/plan.h"
#include "sluice/lab/pass/sparsify.h"

namespace sluice::recipes::wina {

enum class Score : uint8_t {
  wina,            ///< |x_j| c_j, every projection with its own column norms
  magnitude,       ///< |x_j|: TEAL
  keys_and_gates,  ///< c_j for k and gate, 1 for the others: what the reference code does
  shared,    ///< norms over q, k and v together, and over gate and up: one mask for each group
  permuted,  ///< control: the norms of other columns
  inverse    ///< control: |x_j| / c_j
};

/// Factors of input scores in `model`, whose projections they are about. The model has to outlive
/// what is returned.
lab::InputFactors factors_of(Score score, const lab::Model& model, uint64_t seed);

/// Top-k with the recipe's calibration, unless `exact` is false.
lab::ActivationSparsifier make_sparsifier(const Subject& subject, const lab::Model& model,
                                          const Plan& plan, Score score, uint64_t seed,
                                          bool exact = true);

/// Control: the levels exchanged at random among projections of one size, so that their mean stays.
std::vector<double> shuffled_levels(std::span<const double> levels, std::span<const double> sizes,
                                    uint64_t seed);

/// A clone in which each projection reads as many inputs as in `levels`, a new random choice for
/// each token.
lab::Model randomly_masked(const lab::Model& model, const std::vector<std::string>& paths,
                           std::span<const double> levels, uint64_t seed);

/// 0 .. n-1 in an order that `seed` alone gives.
std::vector<int64_t> random_order(int64_t n, uint64_t seed);

}  // namespace sluice::recipes::wina
