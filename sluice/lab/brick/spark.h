// Feed-forward networks and attention that are sparse by construction (Spark Transformer: You et
// al. 2025, arXiv 2506.06644): the first dimensions of the input say which neurons, or which
// earlier tokens, are computed at all; a statistical threshold is subtracted from their scores, so
// that what is left out is exactly zero and gradients see no jump.
#pragma once
#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

struct SparkFfnOptions {
  int64_t width = 1;    ///< of x and y
  int64_t split = 1;    ///< the first inputs, which the gate reads; 1 .. width - 1
  int64_t neurons = 2;  ///< 2 and more
  double keep = 0.08;   ///< share of the neurons that survive, about; between 0 and 1
  std::string activation = "gelu";
};

/// y = down^T (act(max(g - theta, 0)) * (up x2)), g = gate x1, x = [x1 (split), x2], theta the
/// statistical threshold of the token's own g. All three matrices are stored by neuron, as the
/// engine reads them. The activation has to be 0 at 0, or sleeping neurons would not sleep.
class SparkFfn : public Brick {
 public:
  explicit SparkFfn(const SparkFfnOptions& options);
  std::string kind() const override { return "spark_ffn"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  /// With every neuron awake.
  Cost cost(const Shape& input) const override;
  /// As `sparse_ffn` with split and soft.
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  const SparkFfnOptions& options() const { return options_; }

  at::Tensor gate;  ///< [neurons, split]
  at::Tensor up;    ///< [neurons, width - split]
  at::Tensor down;  ///< [neurons, width]

 protected:
  /// The scores of a token's neurons [.., neurons] -> what the activation sees: above 0 where they
  /// are awake, else 0. Controls of recipes replace it.
  virtual at::Tensor awake(const at::Tensor& scores, Context& context) const;

 private:
  SparkFfnOptions options_;
};

struct SparkAttentionOptions {
  int64_t head_dim = 64;  ///< of queries and keys
  int64_t split = 32;     ///< columns that choose; 1 .. head_dim - 1
  int64_t tokens = 256;  ///< how many earlier ones a row looks at, about; prefixes up to this whole
  double rope_base = 10000;  ///< of the rotary positions of both parts; each part is even
  int64_t cache = 0;         ///< positions that the engine keeps; 0: no cache
};

/// Causal attention, per head: a = q1 k1^T / sqrt(split) over the prefix, theta its statistical
/// threshold there, weights = softmax(a - theta where a >= theta, else nothing) * softplus(q2 k2^T
/// / sqrt(head_dim - split)), y = o(weights v). Slots: q, k, v, o: linear layers. x [B, T, D];
/// context.lengths is not looked at: rows behind a sample's end are seen by none before it.
class SparkAttention final : public Brick {
 public:
  /// Empty slots, filled by adopt(); use make_spark_attention for a fresh one.
  explicit SparkAttention(const SparkAttentionOptions& options);
  std::string kind() const override { return "spark_attention"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  /// As `spark_attention`, behind two `rope` nodes for each of queries and keys.
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void check_slots() const override;
  const SparkAttentionOptions& options() const { return options_; }

 private:
  int64_t heads(const Shape& input) const;
  SparkAttentionOptions options_;
  Slot *q_, *k_, *v_, *o_;
};

BrickPtr make_spark_attention(const SparkAttentionOptions& options, int64_t width, int64_t heads);

}  // namespace sluice::lab
