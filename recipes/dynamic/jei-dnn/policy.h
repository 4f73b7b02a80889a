// Who leaves where, on answers that were computed once for all exits.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace sluice::recipes::jei_dnn {

/// What every exit says about every image; the last exit is the whole network.
struct Answers {
  at::Tensor logits;         ///< [N, L, classes]
  at::Tensor labels;         ///< [N]
  std::vector<double> cost;  ///< [L] of leaving there, in shares of the whole network's MACs
  int64_t exits() const { return static_cast<int64_t>(cost.size()); }
};

/// Cross-entropy of every exit, [N, L].
at::Tensor exit_losses(const Answers& answers);
/// [N]: argmin over exits of loss + lambda * cost.
at::Tensor cheapest_exit(const at::Tensor& losses, const std::vector<double>& cost, double lambda);

/// How a choice of exits [N] does.
struct Outcome {
  double accuracy = 0;                   ///< percent
  double cost = 0;                       ///< mean
  double early_ece = 0;                  ///< of the answers given before the last exit
  double brier = 0;                      ///< of all answers
  std::vector<double> shares;            ///< of the images, by exit
  at::Tensor confidence, right, chosen;  ///< [N]
};
Outcome outcome(const Answers& answers, const at::Tensor& chosen);

enum class Score : uint8_t { max_probability, entropy };
/// [N, L - 1]: higher leaves earlier.
at::Tensor scores_of(const Answers& answers, Score score);
/// [N]: the first exit whose score is at least its threshold.
at::Tensor by_threshold(const at::Tensor& scores, const std::vector<double>& thresholds);

/// Thresholds that cost `target` on the mean: one for all exits, or one each such that exit k takes
/// a share proportional to q^k (MSDNet, Huang et al. 2018); whichever is the more accurate on these
/// answers, which are validation data.
std::vector<double> fit_thresholds(const Answers& validation, Score score, double target);

/// [N]: leaves at every exit with the same probability, so that the mean cost is `target`.
at::Tensor random_exits(int64_t count, const std::vector<double>& cost, double target,
                        uint64_t seed);

}  // namespace sluice::recipes::jei_dnn
