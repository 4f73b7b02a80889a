// Exits: heads at depths of a network, through which an input leaves when it is easy enough
// (BranchyNet, Teerapittayanon et al. 2016, arXiv 1709.01686; JEI-DNN, Regol et al. 2024, arXiv
// 2310.09163). Rows that have left are gone: later bricks neither see nor compute them, in the lab
// and in the engine alike (compact_rows and scatter_rows, docs/formats.md).
#pragma once
#include "sluice/lab/brick/brick.h"
#include "sluice/lab/brick/exit_network.h"

namespace sluice::lab {

/// What a prediction says about itself: [.., 4] of logits [.., C], C >= 2, p their softmax: max p;
/// the entropy of p in nats; the margin, max p minus the largest of the others; the entropy of
/// p^2 / sum p^2. No gradient flows back: heads must not learn to please a gate.
at::Tensor prediction_statistics(const at::Tensor& logits);

/// How sure logits [.., C] are, [.., 1], more is surer: "confidence" max p, "entropy" minus the
/// entropy in nats, "margin" max p minus the largest of the others; NaN for logits that are not
/// numbers. As the node of that name computes it. No gradient flows back.
at::Tensor prediction_score(const at::Tensor& logits, const std::string& statistic);

/// Probability of leaving at each of L exits, [.., L], of g [.., L - 1] in (0, 1) of the gates
/// before the last: P_l = max(0, min(g_l, 1 - sum of g_j before l)), the last takes what is left.
at::Tensor exit_mass(const at::Tensor& g);

/// [N] int64, from 0: the first exit l whose conditional probability P_l / prod of (1 - c_j) is at
/// least 0.5, of g [N, L - 1]; L - 1 where none is. In terms of g: 2 g_l >= 1 - sum of g_j before
/// l.
at::Tensor chosen_exit(const at::Tensor& g);

/// The logit of leaving, [B, 1] of a head's logits [B, C]. With a statistic (of
/// prediction_score()) it is that number and nothing is learned: thresholds of the network say when
/// it is enough. Without one: weight [1, 4] times
/// prediction_statistics, plus bias [1]. Weight (1, 0, 0, 0) and bias -t is "max p >= t", weight
/// (0, -1, 0, 0) and bias t "entropy <= t".
class ExitGate final : public Brick {
 public:
  explicit ExitGate(const std::string& statistic = "");
  std::string kind() const override { return "exit_gate"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;

  const std::string& statistic() const { return statistic_; }

  at::Tensor weight, bias;  ///< undefined with a statistic

 private:
  std::string statistic_;
};

/// Children one after another. Behind a child there may be an exit: a head that makes logits of
/// what the child gave, and a gate that looks at these logits and decides who leaves. The last
/// child is the last head; all heads give the same shape. Rule "mass": leave by chosen_exit() of
/// g = sigmoid of the gates; "threshold": leave where the gate's logit is at least 0. A decision
/// that is not a number leaves. With Context::gates_forced_open nobody leaves early and the heads
/// do not run. Gradients flow through the logits, not through decisions.
///
/// With exit_sizes() a row leaves where its score is at least the size's threshold: the gate's
/// logit, by mass 2 g_l - (1 - sum of g_j before l). Thresholds of 0 are the rules above.
class ExitChain final : public Brick, public ExitNetwork {
 public:
  /// `sizes` are checked with the slots, by check_slots().
  explicit ExitChain(const std::string& rule = "mass", std::vector<ExitThresholds> sizes = {});
  ExitChain& append(const std::string& name, BrickPtr child);
  /// An exit behind the child that was appended last: slots "<child>_exit" and "<child>_gate".
  ExitChain& append_exit(BrickPtr head, BrickPtr gate);
  std::string kind() const override { return "exit_chain"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  /// Of an input that takes the last exit.
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void adopt(const std::string& name, BrickPtr child) override;
  void check_slots() const override;
  /// MACs of an input that leaves at each exit: children, heads and gates so far. The last entry is
  /// that of the last child.
  std::vector<int64_t> exit_macs(const Shape& input) const;
  const std::string& rule() const { return rule_; }
  int64_t exit_count() const override;
  std::string exit_name(int64_t index) const override;
  DepthTable exit_table(const at::Tensor& x, Context& context) const override;
  std::vector<double> exit_costs(const Shape& input, const std::vector<bool>& open) const override;
  bool closes_single_exits() const override { return rule_ != "mass"; }

 private:
  struct Stage {
    const Slot *child, *head, *gate;  ///< head and gate: null where there is no exit
  };
  std::vector<Stage> stages() const;
  std::string rule_;
};

}  // namespace sluice::lab
