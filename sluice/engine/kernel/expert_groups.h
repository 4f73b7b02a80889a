// Which tokens go to which expert, and which thread computes them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace sluice::engine {

/// The choices of all tokens, sorted by expert: place p of [rows * top_k] is one token with one of
/// its experts. Arrays lie in the scratch that is given.
struct ExpertGroups {
  size_t rows, experts, top_k;
  int32_t* start;   ///< [experts + 1] first place of each expert
  int32_t* token;   ///< [rows * top_k] of each place, ascending within an expert
  float* weight;    ///< [rows * top_k] of each place, of the routing
  int32_t* places;  ///< [rows][top_k] where each token's are, ascending

  /// Throws Error{limit} on overflow.
  static int64_t scratch_bytes(int64_t rows, int64_t experts, int64_t top_k);
  ExpertGroups(std::byte* scratch, size_t rows, size_t experts, size_t top_k);
  /// logits [rows][experts]. Of equal ones the lower expert is chosen, NaN ranks lowest. Weights
  /// are the softmax over all logits, or over the chosen ones.
  void route(const float* logits, bool softmax_over_all);

 private:
  int32_t *choice_, *ranked_;
  float *choice_weight_, *probability_;
};

/// Tokens of one expert, [first, last) of the places.
struct ExpertJob {
  static constexpr int32_t kAll = -1;
  int32_t expert = 0, first = 0, last = 0;
  int32_t owner = kAll;  ///< the thread that computes it, or all of them together
  int32_t tokens() const { return last - first; }
};

/// Gives each job to the thread with the least so far, the largest jobs first; what would give a
/// thread more than its part of the whole remains for all together. `order` and `loads` are scratch
/// of jobs.size() and `threads`.
void share_jobs(std::span<ExpertJob> jobs, int threads, int32_t* order, int64_t* loads);

}  // namespace sluice::engine
