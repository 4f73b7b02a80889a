// Whether probabilities mean what they say: of answers given with confidence 0.8, four in five
// should be right (Guo et al. 2017, arXiv 1706.04599).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace sluice::lab {

/// Answers of neighbouring confidence.
struct ReliabilityBin {
  double confidence = 0, accuracy = 0;  ///< means
  int64_t count = 0;
};

/// The answers sorted by confidence and cut into `bins` parts of equal size (to one answer; fewer
/// parts where there are fewer answers), least confident first. `confidence` [N] in [0, 1],
/// `correct` [N] of 0 and 1 (any type). Throws Error{shape} for other shapes, Error{numeric} for
/// confidences outside, Error{config} for bins < 1. Empty for N = 0.
std::vector<ReliabilityBin> reliability(const at::Tensor& confidence, const at::Tensor& correct,
                                        int64_t bins = 15);

/// Expected calibration error over these bins: mean of |accuracy - confidence|, weighted by count;
/// 0 without answers.
double calibration_error(const at::Tensor& confidence, const at::Tensor& correct,
                         int64_t bins = 15);

/// Mean over answers of sum_c (p_c - [c = label])^2, of probabilities [N, C] and labels [N]
/// (Brier 1950): 0 is perfect, 2 the worst. Throws Error{shape}.
double brier_score(const at::Tensor& probabilities, const at::Tensor& labels);

}  // namespace sluice::lab
