// Choosing the next token from logits.
//
// In this order, as Hugging Face's transformers does:
//   repetition penalty  Keskar et al. 2019 (CTRL): logits of tokens that were there are divided by
//                       it where positive, multiplied where negative
//   temperature         logits are divided by it; 0: the highest wins, what follows has no say
//   top-k               the k highest are kept (Fan et al. 2018)
//   top-p               the fewest of the highest whose probabilities reach p (Holtzman et al.
//   2020) min-p               those at least min_p times as probable as the best (Nguyen et al.
//   2024)
// Of equal logits the one with the lower id counts as higher. Draw i of a sampler depends on
// (seed, i) and the logits alone: not on the batch, threads or the machine's random numbers.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace sluice::engine {

struct Sampling {
  double temperature = 0;         ///< 0 to 1000
  int64_t top_k = 0;              ///< 0: all
  double top_p = 1;               ///< above 0, to 1
  double min_p = 0;               ///< 0 to 1
  double repetition_penalty = 1;  ///< 0.01 to 100; 1: none
  uint64_t seed = 0;
};

/// Throws Error{usage} naming the number that makes no sense.
void check_sampling(const Sampling& sampling);

class Sampler {
 public:
  /// Throws as check_sampling.
  explicit Sampler(const Sampling& sampling);
  /// `seen`: the tokens so far, for the repetition penalty; ids outside the logits do not count. A
  /// logit of -infinity is never chosen. Throws Error{numeric} naming the token when a logit is NaN
  /// or +infinity, or none is left to choose from.
  int32_t next(std::span<const float> logits, std::span<const int32_t> seen = {});

  /// What next() draws from: a probability for each logit, 0 where the sampling leaves it out. The
  /// same errors.
  void distribution(std::span<const float> logits, std::span<const int32_t> seen,
                    std::vector<double>& probabilities);
  /// The next random number, 0 <= u < 1.
  double uniform();

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };
  void penalize(std::span<const int32_t> seen);
  /// Checks, penalizes, and fills logits_ where anything is drawn; the highest of `now`.
  float prepare(std::span<const float> logits, std::span<const int32_t> seen,
                std::span<const float>& now);
  /// Fills candidates_ and weights_ with what can be drawn, first comes first; the sum.
  double weigh(float highest);
  int32_t draw(float highest);
  size_t kept(double total) const;

  Sampling sampling_;
  uint64_t draws_ = 0;
  std::vector<float> logits_;
  std::vector<Candidate> candidates_;
  std::vector<double> weights_;  ///< probabilities times a constant, as candidates_
};

}  // namespace sluice::engine
