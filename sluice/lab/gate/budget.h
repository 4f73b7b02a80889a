// A budget for what a network's gates open: the loss that training adds so that they spend a share
// of the multiply-accumulates they can skip, and the number itself.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

struct GateBudgetOptions {
  double open = 0.5;   ///< wanted share of the gated parts' MACs, above 0 and up to 1
  double weight = 10;  ///< of the squared difference, above 0; the multiplier learns at a tenth
  double rate = 3e-3;  ///< of the gates' AdamW, above 0: they have further to go than weights
  double ramp = 0.4;   ///< share of the steps over which the budget falls from 1 to `open`
};

/// What gates opened, and what they would have opened at most: MACs, summed over batches.
struct OpenedMacs {
  double opened = 0, all = 0;
  double share() const { return all > 0 ? opened / all : 1; }
  void add(const OpenedMacs& other) { opened += other.opened, all += other.all; }
};

/// The gates of a network that can learn how much they open: those that compare each logit with a
/// number (threshold, sample) and ordinal ones. Constant masks, top-k gates, which always open as
/// many, gates without gradient and routers are not among them. A gate inside what another one
/// skips counts as if it ran.
class GateBudget {
 public:
  /// Throws Error{usage} when there is no such gate, or none has a parameter that learns;
  /// Error{config} for options out of range.
  GateBudget(Brick& root, GateBudgetOptions options);

  /// sum of c_j g_j / sum of c_j over the gates' MACs c and what they will say in use, g: 0 or 1,
  /// without training noise, which budget_loss() of regularizer.h takes probabilities for. [] with
  /// the gradient of the probabilities (straight-through), whatever the estimator.
  /// `lengths` as Context::lengths: rows behind them do not count. Throws Error{state} for a log
  /// of another network.
  at::Tensor open_share(const GateLog& log, const at::Tensor& lengths) const;
  OpenedMacs opened(const GateLog& log, const at::Tensor& lengths) const;

  /// The budget at `step` of `steps`.
  double target(int64_t step, int64_t steps) const;
  /// weight * d^2 + multiplier * d for d = share - target, of an open_share(). The square alone
  /// would end where quality pulls as hard as it: above the budget. The multiplier takes over that
  /// pull (augmented Lagrangian; for pruning Xia et al. 2022, arXiv 2204.00408).
  at::Tensor loss(const at::Tensor& share, int64_t step, int64_t steps) const;
  /// After a step with this share: behind the ramp, the multiplier rises by weight / 10 * d.
  void learn(double share, int64_t step, int64_t steps);
  double multiplier() const { return multiplier_; }

  const GateBudgetOptions& options() const { return options_; }
  int64_t gates() const { return static_cast<int64_t>(gates_.size()); }
  /// The parameter with this dotted name is one of the gates'.
  bool owns(const std::string& parameter) const;

 private:
  struct Member {
    bool ordinal;  ///< chooses one of several costs for each row
    double at;     ///< probability above which a unit is open
  };
  struct Sums {
    at::Tensor opened;
    double all = 0;
  };
  Sums sums(const GateLog& log, const at::Tensor& lengths) const;

  GateBudgetOptions options_;
  double multiplier_ = 0;
  std::map<std::string, Member> gates_;  ///< by path
};

}  // namespace sluice::lab
