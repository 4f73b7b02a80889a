// Speculative decoding: a small network proposes tokens one by one, the large one checks them all
// in a single run. What comes out is distributed as if the large one had chosen every token alone
// (Leviathan et al. 2023, arXiv 2211.17192, theorem 1; Chen et al. 2023, arXiv 2302.01318); greedy
// choices are the same ones.
#pragma once
#include <cstdint>
#include <optional>
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
  std::vector<std::vector<double>> distributions;  ///< that each was drawn from; greedy ones: none
};

/// The proposing network, with a sequence for each of `batch` places.
class Drafter {
 public:
  struct Options {
    int64_t batch = 1;
    int threads = 0;
    int64_t size = -1;  ///< of a nested network, see RunOptions::size; -1: the last
    /// The session of the network that checks, when that is this network at a smaller size: its
    /// caches are used, so that neither a prompt nor an accepted token is computed again to propose
    /// from, and there is no second cache. What proposed tokens leave there is taken back before
    /// propose() returns. Null: a session of its own.
    Session* shared = nullptr;
  };
  /// Throws Error{unsupported} when its sequences cannot go back.
  Drafter(const Network& network, const Options& options);
  Drafter(const Drafter&) = delete;
  Drafter& operator=(const Drafter&) = delete;

  struct Wish {
    std::span<const int32_t> tokens;  ///< so far
    int64_t count = 0;                ///< to propose; 0: none
    Sampler* sampler = nullptr;
    bool greedy = false;  ///< the sampler takes the highest: no distributions are kept
  };
  /// One wish a place; places with no wish keep still. With a shared session the last of the tokens
  /// must be the one that it has not computed yet.
  void propose(std::span<const Wish> wishes, std::span<Proposal> proposals);
  /// The place's sequence is another from `length` tokens on (0: from the start). Nothing to do
  /// with a shared session, which goes back itself.
  void keep(int64_t place, int64_t length);

  int64_t capacity() const { return session_->capacity(); }
  int64_t vocabulary() const { return width_; }
  const Meter& meter() const { return meter_; }
  void reset_meter() { meter_.reset(); }

 private:
  std::optional<Session> own_;
  Session* session_;
  int64_t block_, width_, size_;
  std::vector<float> input_, logits_;
  std::vector<int64_t> rows_, wanted_;
  std::vector<int32_t> seen_;
  Meter meter_;
};

/// How many tokens to propose at a time, from how many of the last ones were taken: the number at
/// which a token costs least when each stands with the same probability a, independently (the
/// expected gain is (1 - a^(n+1)) / (1 - a): Leviathan et al. 2023). Depends on acceptance alone,
/// never on time, so that the same seed gives the same text.
class DraftLength {
 public:
  /// `most` proposed at a time; a proposal costs `cost` runs of the checking network, and a row
  /// more in a run of that `row` of one with one row.
  DraftLength(int64_t most, double cost, double row = kRow);
  /// 0 where a plain run is cheapest; one is tried now and then all the same.
  int64_t next();
  void learn(int64_t proposed, int64_t accepted);
  double acceptance() const { return accepted_ / tried_; }

  static constexpr double kRow = 0.1;

 private:
  int64_t most_, idle_ = 0, patience_;
  double cost_, row_;
  double accepted_, tried_;  ///< fading counts, with the first guess in them
};

}  // namespace sluice::engine
