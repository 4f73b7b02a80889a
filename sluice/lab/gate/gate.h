// A gate decides which units (channels, blocks, neurons, tokens, experts) run for each sample. It
// is three small parts, freely combined:
//   score      logits z [batch, units] from the input, a learned parameter, or weights
//   decision   hard g in {0, 1} from z: threshold, top-k, statistical top-k, sampling, softmax
//   (top-1) estimator  how gradients pass the decision: ste, ste_sigmoid, reste, gumbel_sigmoid,
//   sigmoid, none
// Each kind of part has a table of names (score_kinds(), ...), so that a gate is one small JSON
// object:
//   {"score": {"kind": "pooled_mlp", "inputs": 32, "units": 32}, "decision": {"kind": "threshold",
//   "at": 0.5},
//    "estimator": {"kind": "ste_sigmoid"}, "noise": 1.0}
#pragma once
#include "sluice/lab/brick/brick.h"
#include "sluice/lab/gate/selector.h"

namespace sluice::lab {

/// What is added to the logits at a size: -price * cost [units]; for minus infinity so much that
/// nothing but the costs decides.
at::Tensor price_offset(double price, const at::Tensor& cost);

/// Base of everything that sits in a gate slot: forward(x) returns g (float), [batch, units], or
/// [batch, rows, units] of a gate that decides for each row of x [batch, rows, inputs].
class GateBrick : public Brick {
 public:
  virtual int64_t units() const = 0;
  /// Decides for `x` (the input of the gated brick) and writes a GateRecord to context.gate_log,
  /// when there is one. `unit_macs` [units]: MACs per sample a closed unit saves; may be undefined
  /// where there is no log. With context.gates_forced_open a Gate answers ones and writes nothing;
  /// a ConstantMask is a fact and stays, unwritten.
  virtual at::Tensor decide(const at::Tensor& x, const at::Tensor& unit_macs, Context& context) = 0;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape&) const override { return {units()}; }
};

class Score : public torch::nn::Module {
 public:
  virtual std::string kind() const = 0;
  virtual Json attributes() const = 0;  ///< with "kind"
  virtual int64_t units() const = 0;
  /// [batch, units], as steer() made them for that size of the network; -1: the last.
  virtual at::Tensor logits(const at::Tensor& x, int64_t size = -1) = 0;
  /// As many sizes as offsets: at size s, offset s [units] is added to the logits. false where the
  /// score cannot (a learned constant).
  virtual bool steer(const std::vector<at::Tensor>& /*offsets*/) { return false; }
  virtual int64_t sizes() const { return 1; }
  virtual Cost cost(const Shape& input) const = 0;
  virtual bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                              const std::string& path) const = 0;
};
/// pooled_mlp {inputs, units, hidden = max(4, inputs/4), bias = 2}: global average pool, Linear,
/// ReLU, Linear, last bias at `bias` so that gates start open. learned {units, init = 2}: one free
/// logit per unit. linear {inputs, units}: no hidden layer, last dimension. pooled_linear {inputs,
/// units, grid = 1, softmax = true, detach = true, bias = 0}: [inputs, H, W] averaged over grid x
/// grid equal parts, softmax over all of these numbers, Linear; with `detach` no gradient enters
/// the input. mlp {inputs, units, hidden = [16, 16]}: linear layers over the last dimension with
/// gelu between them. Throws Error{config}.
std::shared_ptr<Score> make_score(const Json& attributes);

struct Decision {
  virtual ~Decision() = default;
  virtual Json attributes() const = 0;
  /// Hard 0/1 of z's shape; no gradient.
  virtual at::Tensor decide(const at::Tensor& logits, bool training, Context& context) const = 0;
  /// p of z's shape, as gate records carry it: sigmoid(z) except for softmax.
  virtual at::Tensor probability(const at::Tensor& logits) const;
  /// Throws Error{unsupported} when the engine has no node for it.
  virtual bundle::Value lower(bundle::Builder& builder, const bundle::Value& logits,
                              const std::string& path) const = 0;
  /// The same choice among `units` logits, for nodes that choose themselves (`sparse_ffn`). Throws
  /// Error{unsupported} naming `path` where the engine knows none.
  virtual Selector selector(int64_t units, const std::string& path) const = 0;
};
/// threshold {at = 0.5}: sigmoid(z) > at. top_k {k}: the k largest (ties: lowest index).
/// statistical_top_k {k}: z above mean + std * quantile(1 - k/units) of the row. sample {}:
/// Bernoulli(sigmoid(z)) while training, threshold 0.5 otherwise. softmax {}: one-hot of the
/// largest.
std::unique_ptr<Decision> make_decision(const Json& attributes);

struct Estimator {
  virtual ~Estimator() = default;
  virtual Json attributes() const = 0;
  /// Value of `hard`, gradient by the estimator's rule with respect to `logits`.
  virtual at::Tensor apply(const at::Tensor& hard, const at::Tensor& logits) const = 0;
};
/// ste {clip = 1}: dz = dg where |z| <= clip. ste_sigmoid {}: dz = dg * p(1-p), p = sigmoid(z).
/// reste {o = 1.5}: gradient of sign(z)|z|^(1/o), clipped. sigmoid {}: value is p itself (soft
/// gate). none {}: no gradient; what the gate should say comes from a label (gate/label.h).
/// gumbel_sigmoid {temperature = 1}: like ste_sigmoid with the slope of sigmoid(z /
/// temperature).
std::unique_ptr<Estimator> make_estimator(const Json& attributes);
std::vector<std::string> score_kinds();
std::vector<std::string> decision_kinds();
std::vector<std::string> estimator_kinds();

/// Per-sample gate, kind "gate". While training, logistic noise times `noise` is added to the
/// logits.
class Gate final : public GateBrick {
 public:
  explicit Gate(const Json& attributes);
  std::string kind() const override { return "gate"; }
  Json attributes() const override;
  int64_t units() const override;
  at::Tensor decide(const at::Tensor& x, const at::Tensor& unit_macs, Context& context) override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  /// As many sizes (Context::size) as prices: at a size, the logit of every unit is lower by its
  /// price; minus infinity opens all. false, and nothing changed, where the logits are a constant
  /// or the decision does not compare them with a number.
  bool steer(const std::vector<double>& prices);
  struct Lowered {
    bundle::Value logits;
    Selector selector;  ///< of the open ones, by value
  };
  /// For a node that reads the logits and chooses itself. Throws as lower().
  Lowered lower_logits(bundle::Builder& builder, const bundle::Value& x,
                       const std::string& path) const;
  /// The most units that are open at once, of any input.
  int64_t most_open() const;

 private:
  void require_hard(const std::string& path) const;
  std::shared_ptr<Score> score_;
  std::unique_ptr<Decision> decision_;
  std::unique_ptr<Estimator> estimator_;
  double noise_;
};

/// The same decision for every sample, kind "constant_mask": what a frozen gate or a channel mask
/// is until it is sliced away.
class ConstantMask final : public GateBrick {
 public:
  explicit ConstantMask(int64_t units);           ///< all open
  explicit ConstantMask(const at::Tensor& mask);  ///< [units] of 0 and 1
  std::string kind() const override { return "constant_mask"; }
  Json attributes() const override;
  int64_t units() const override;
  at::Tensor decide(const at::Tensor& x, const at::Tensor& unit_macs, Context& context) override;
  Cost cost(const Shape&) const override { return {}; }
  /// No node of its own: ResidualBlock lowers it as a `scale`. Throws Error{state}.
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;

  at::Tensor mask;  ///< buffer [units], float
};

/// A copy of `values` as f32; throws Error{shape} unless [n], n > 0, Error{numeric} unless all are
/// 0 or 1; `what` names it.
at::Tensor checked_mask(const at::Tensor& values, std::string_view what);

}  // namespace sluice::lab
