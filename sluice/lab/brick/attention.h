// Softmax attention over the rows of a sequence.
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

class Linear;

/// Rotary positions (Su et al. 2021): pairs of the first `dims` columns of every head are turned by
/// position / scale * base^(-2i/dims) / factors[i].
struct RopeOptions {
  int64_t dims = 0;  ///< 0: no rotary positions
  double base = 10000, scale = 1;
  bool interleaved = false;          ///< pairs (2i, 2i+1) instead of (i, i + dims/2)
  std::vector<double> factors = {};  ///< dims / 2 numbers above 0; empty: all 1
};

struct AttentionOptions {
  int64_t head_dim = 64;  ///< columns of a query and of a key head
  bool causal = true;     ///< row t sees rows j <= t; else all
  int64_t window = 0;     ///< above 0: of these only j > t - window
  double scale = 0;       ///< of the products; 0: 1 / sqrt(head_dim)
  RopeOptions rope;
  int64_t cache = 0;               ///< positions that the engine keeps; 0: no cache
  std::string cache_type = "f32";  ///< of its keys and values: f32, bf16, f16
};

/// y = o(softmax(q(x) k(x)^T * scale) v(x)) per head (Vaswani et al. 2017); several query heads may
/// share a key head (Ainslie et al. 2023). Slots: q, k, v, o: linear layers; q_norm, k_norm (empty:
/// none): a norm of every head; head_gate (empty: all open): one unit per key head with the query
/// heads that use it, multiplied in before o. Where that gate looks at its input, it decides token
/// by token: a closed head's query, products and columns of o are counted as not computed, and in
/// the engine are neither computed nor read (`gathered_linear`, `attention`, `sparse_input_linear`;
/// linear layers in q and o only); its keys and values are there for other tokens. x [B, T, D];
/// context.lengths hides the keys behind a sample's end. How many heads there are follows from the
/// layers in q and k.
class Attention final : public Brick {
 public:
  /// Empty slots, filled by adopt(); use make_attention for a fresh one.
  explicit Attention(const AttentionOptions& options);
  std::string kind() const override { return "attention"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  /// The output of some rows, [N, D]: `rows` [N] are ascending indices into the B T rows of x [B,
  /// T, D], of which all give keys and values (rows that left a network by an exit are still seen).
  /// Throws Error{unsupported} with a head gate.
  at::Tensor forward_rows(const at::Tensor& x, const at::Tensor& rows, Context& context);
  /// The same as nodes: `kept` are the rows of x that `keep` leaves, `positions` theirs.
  bundle::Value lower_rows(bundle::Builder& builder, const bundle::Value& x,
                           const bundle::Value& kept, const bundle::Value& keep,
                           const bundle::Value& positions, const std::string& path) const;
  /// One group "heads", of key heads with their query heads.
  std::vector<ChannelGroup> channel_groups() const override;
  void check_slots() const override;
  void require_rows() const;  ///< throws as forward_rows()
  const AttentionOptions& options() const { return options_; }
  /// What other versions of single rows would get: versions [N, B, T, D] -> [N, B, T, D'], where
  /// version n of row t sees, of the rows x [B, T, D], those before t, and itself in the place of
  /// row t. Causal attention without a head gate only, else Error{unsupported}.
  at::Tensor beside(const at::Tensor& x, const at::Tensor& versions, Context& context) const;

 private:
  struct Sizes {
    int64_t heads, kv_heads, value_dim, tokens;
  };
  Sizes sizes(const Shape& input) const;
  int64_t products(const Sizes& sizes) const;  ///< MACs of scores and mixing
  double scale() const;
  at::Tensor turned(const at::Tensor& x) const;
  at::Tensor mix(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const Context& context) const;
  /// `positions`: of the rows of x; null: all rows are there.
  bundle::Value lower_turned(bundle::Builder& builder, const bundle::Value& x,
                             const std::string& path, const char* which, int64_t heads,
                             const bundle::Value* positions = nullptr) const;
  bundle::Attributes mix_attributes(const Sizes& sizes) const;
  at::Tensor decide_heads(const at::Tensor& x, Context& context) const;
  void meter_heads(const at::Tensor& x, const at::Tensor& decision, const at::Tensor& mixed,
                   Context& context) const;
  const Linear& gated_layer(const Slot& slot, const std::string& path) const;
  bundle::Value lower_queries(bundle::Builder& builder, const bundle::Value& x,
                              const bundle::Value& open, const std::string& path) const;
  bundle::Value lower_output(bundle::Builder& builder, const bundle::Value& mixed,
                             const std::string& path) const;

  AttentionOptions options_;
  Slot *q_, *k_, *v_, *o_, *q_norm_, *k_norm_, *head_gate_;
  mutable at::Tensor cos_, sin_;  ///< [rows, dims / 2], made when first needed
};

struct AttentionLayers {
  int64_t width = 0;  ///< of x and y
  int64_t heads = 0, kv_heads = 0;
  bool bias = false;       ///< of q, k and v
  bool out_bias = false;   ///< of o
  bool head_norm = false;  ///< RMS norms of query and key heads
  double norm_eps = 1e-5;
};
BrickPtr make_attention(const AttentionOptions& options, const AttentionLayers& layers);

}  // namespace sluice::lab
