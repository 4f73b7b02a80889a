// Which entries of a score vector are worth computing: exact top-k, threshold and statistical
// top-k, each as an ascending list of indices. Plain C++ on pointers, so that training code and the
// engine decide with the same instructions.
//
// A score is |x| or x itself (Rank), times `weight` where one is given (|x_i| * norm_i). NaN ranks
// below every number, so it is dropped first; infinities rank as numbers do. `index` needs room for
// n entries whatever is kept; n is at most 2^31 - 1. Nothing is allocated, no pointer needs to be
// aligned.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sluice/base/normal_quantile.h"

namespace sluice::engine {

enum class Rank : uint8_t { magnitude, value };

struct Scores {
  const float* x = nullptr;
  size_t n = 0;
  Rank rank = Rank::magnitude;
  const float* weight = nullptr;  ///< n factors >= 0, or null
};

/// The k best; of equal scores the lowest indices. k >= n keeps everything, NaN included. Returns
/// the number kept, min(k, n).
size_t select_top_k(const Scores& scores, size_t k, int32_t* index);

/// Scores above `threshold`. Returns their number.
size_t select_above(const Scores& scores, float threshold, int32_t* index);

/// The threshold above which a share `keep` of normally distributed scores lies: mean + deviation *
/// normal_quantile(1 - keep), the deviation with n - 1 in the denominator; mean and deviation over
/// the finite scores, summed in double. -inf for keep >= 1, +inf for keep <= 0.
float statistical_threshold(const Scores& scores, double keep);

/// Scores above the statistical threshold: about keep * n of them, in one pass over the scores
/// instead of a search.
size_t select_statistical(const Scores& scores, double keep, int32_t* index);

}  // namespace sluice::engine
