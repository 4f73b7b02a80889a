// A feed-forward network of which every row uses as much as it needs (Adaptive Computation Modules,
// Wojcik et al. 2023).
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

class ChoiceGate;

/// N learners, learner n a small network of `width` neurons with a bias in its hidden part only:
/// o_n(x) = act(x U_n + b_n) V_n; h_k = o_1 + ... + o_k, h_0 = 0; y = sum_k g_k h_k(x), g the
/// gate's choice for the row. Slots: up (linear [inputs, N width]) and down (linear without bias),
/// learner after learner; gate (a ChoiceGate of N + 1 choices; empty: all learners always). In a
/// bundle learner n runs on the rows with a choice of n or more: compact_rows, linear,
/// scatter_rows. The lab computes all learners and meters those that were chosen.
class PrefixMlp final : public Brick {
 public:
  /// `activation`: as of Activation, or "identity". Empty slots, filled by adopt();
  /// make_prefix_mlp(sizes) makes a fresh one.
  PrefixMlp(int64_t learners, const std::string& activation);
  std::string kind() const override { return "prefix_mlp"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void check_slots() const override;

  int64_t learners() const { return learners_; }
  int64_t width() const;            ///< neurons of a learner
  int64_t macs_of_learner() const;  ///< per row
  ChoiceGate* gate() const;         ///< nullptr: none
  /// h_0 ... h_N of the rows of x [.., inputs]: [N + 1, rows, outputs].
  at::Tensor prefixes(const at::Tensor& x) const;

 private:
  at::Tensor activated(const at::Tensor& x) const;
  bundle::Value lower_learner(bundle::Builder& builder, const bundle::Value& x, int64_t first,
                              int64_t count, const std::string& path) const;
  int64_t learners_;
  std::string activation_;
  Slot *up_, *down_, *gate_;
};

struct PrefixMlpSizes {
  int64_t inputs = 1, outputs = 1, learners = 4, width = 1;
  std::string activation = "gelu";
};
std::shared_ptr<PrefixMlp> make_prefix_mlp(const PrefixMlpSizes& sizes);

/// Mean over k = 0..N of the mean squared error of h_k(x) to y: every prefix is drawn to the whole
/// output, so that early learners take the coarse part.
at::Tensor prefix_loss(const PrefixMlp& mlp, const at::Tensor& x, const at::Tensor& y);
/// By row of x: the smallest k whose error |h_k - y| is less than `gain` times that of k + 1 (one
/// learner more helps by less), else N. [rows] int64.
at::Tensor choice_label(const PrefixMlp& mlp, const at::Tensor& x, const at::Tensor& y,
                        double gain = 1.2);
/// Cross-entropy of the gate's logits to choice_label; learners get no gradient. Throws
/// Error{usage} without an OrdinalGate.
at::Tensor choice_loss(const PrefixMlp& mlp, const at::Tensor& x, const at::Tensor& y,
                       double gain = 1.2);

}  // namespace sluice::lab
