// Gates that choose how much runs: for each row (token) a number from 0 to N, of learners that are
// summed (lab/brick/prefix_mlp.h; Adaptive Computation Modules, Wojcik et al. 2023). Their records
// in the gate log have p and g of [batch, rows, N + 1], g one-hot, and unit_macs [N + 1]: MACs per
// row of each choice, the gate's own included.
#pragma once
#include "sluice/lab/brick/brick.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {

class ChoiceGate : public Brick {
 public:
  virtual int64_t choices() const = 0;  ///< N + 1
  /// One-hot [.., choices] for x [.., inputs]. `choice_macs` [choices]: MACs per row of what each
  /// choice runs; may be undefined where there is no log.
  virtual at::Tensor choose(const at::Tensor& x, const at::Tensor& choice_macs,
                            Context& context) = 0;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
};

/// The choice of largest logit, kind "ordinal_gate": {score, temperature = 0.8, noise = 1, least =
/// 0}. While training, `noise` times Gumbel noise is added and the gradient is that of softmax(z /
/// temperature) (straight-through Gumbel-softmax, Jang et al. 2017). Choices below `least` are
/// never taken. Lowers to the number chosen, [.., 1].
class OrdinalGate final : public ChoiceGate {
 public:
  explicit OrdinalGate(const Json& attributes);
  std::string kind() const override { return "ordinal_gate"; }
  Json attributes() const override;
  int64_t choices() const override { return score_->units(); }
  at::Tensor choose(const at::Tensor& x, const at::Tensor& choice_macs, Context& context) override;
  /// [.., choices], those below `least` at -infinity; `size` as Score::logits().
  at::Tensor logits(const at::Tensor& x, int64_t size = -1);
  /// As many sizes (Context::size) as prices: at a size, the logit of choice n of N is lower by
  /// price * n / N; minus infinity takes choice N always. false where the logits are a constant.
  bool steer(const std::vector<double>& prices);
  Cost cost(const Shape& input) const override { return score_->cost(input); }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  int64_t least() const { return least_; }
  double noise() const { return noise_; }
  /// 0: the choice that is taken in training is that of evaluation.
  void set_noise(double noise);

 private:
  std::shared_ptr<Score> score_;
  double temperature_, noise_;
  int64_t least_;
};

/// The same choice for every row, kind "constant_choice": {choices, choice}.
class ConstantChoice final : public ChoiceGate {
 public:
  ConstantChoice(int64_t choices, int64_t choice);
  std::string kind() const override { return "constant_choice"; }
  Json attributes() const override { return {{"choices", choices_}, {"choice", choice_}}; }
  int64_t choices() const override { return choices_; }
  int64_t choice() const { return choice_; }
  at::Tensor choose(const at::Tensor& x, const at::Tensor& choice_macs, Context& context) override;
  Cost cost(const Shape&) const override { return {}; }
  /// No node of its own: the brick that holds it runs what it says. Throws Error{state}.
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;

 private:
  int64_t choices_, choice_;
};

/// One-hot of int64 numbers [..], as `like`'s type.
at::Tensor one_hot(const at::Tensor& choice, int64_t choices, const at::Tensor& like);

// ---- losses over the log's ordinal records; 0 for none ----

/// |sum_l E[cost_l] / sum_l (dearest - cheapest choice of l) - budget|, E over samples and rows of
/// the choices that this forward took.
at::Tensor ordinal_budget_loss(const GateLog& log, double budget);
/// -H(choices averaged over a sample's rows) / log(N + 1), mean over samples and gates: keeps a
/// gate from always taking one choice, without making single choices soft.
at::Tensor ordinal_entropy_loss(const GateLog& log);
/// -mean |u_a - u_b| over pairs of samples, u the sample's share of all learners: samples are to
/// differ in what they cost.
at::Tensor ordinal_diversity_loss(const GateLog& log);

}  // namespace sluice::lab
