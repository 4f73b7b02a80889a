// Speculative decoding: a small network proposes tokens one by one, the large one checks them all
// in a single run. What comes out is distributed as if the large one had chosen every token alone
// (Leviathan et al. 2023, arXiv 2211.17192, theorem 1; Chen et al. 2023, arXiv 2302.01318); greedy
// choices are the same ones.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "sluice/engine/graph/network.h"
#include "sluice/engine/text/sampler.h"

namespace sluice::engine {

/// The index at which the running sum of `weights` (at least one above 0) passes u * their sum, for
/// 0 <= u < 1.
int32_t draw_index(std::span<const double> weights, double u);

struct Verdict {
  bool accepted;
  int32_t token;  ///< the proposed one, or what takes its place
};
/// A token that was drawn from `draft` becomes one that is distributed as `target`: it stays with
/// probability min(1, target / draft), else one is drawn from max(0, target - draft), which
/// `residual` is memory for. `sampler` gives the random numbers, two at most.
Verdict verify(int32_t proposed, std::span<const double> draft, std::span<const double> target,
               Sampler& sampler, std::vector<double>& residual);

/// What one sequence was proposed.
struct Proposal {
  std::vector<int32_t> tokens;
  std::vector<std::vector<double>> distributions;  ///< that each was drawn from
};

/// The proposing network, with a sequence for each of `batch` places.
class Drafter {
 public:
  struct Options {
    int64_t batch = 1;
    int threads = 0;
    int64_t size = -1;  ///< of a nested network, see RunOptions::size; -1: the last
  };
  /// Throws Error{unsupported} when its sequences cannot go back.
  Drafter(const Network& network, const Options& options);

  struct Wish {
    std::span<const int32_t> tokens;  ///< so far
    int64_t count = 0;                ///< to propose; 0: none
    Sampler* sampler = nullptr;
  };
  /// One wish a place; places with no wish keep still.
  void propose(std::span<const Wish> wishes, std::span<Proposal> proposals);
  /// The place's sequence is another from `length` tokens on (0: from the start).
  void keep(int64_t place, int64_t length);

  int64_t capacity() const { return session_.capacity(); }
  int64_t vocabulary() const { return width_; }
  const Meter& meter() const { return meter_; }
  void reset_meter() { meter_.reset(); }

 private:
  Session session_;
  int64_t block_, width_, size_;
  std::vector<float> input_, logits_;
  std::vector<int64_t> rows_, wanted_;
  Meter meter_;
};

}  // namespace sluice::engine
