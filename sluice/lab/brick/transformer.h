// Transformers for text: the block, and the two roots. docs/architecture.md lists the paths.
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// What the brick of a slot makes of x; x itself where there is none.
at::Tensor through(const Slot& slot, const at::Tensor& x, Context& context);

/// The slot of a branch whose gate looks at the branch's input; nullptr: none.
const Slot* branch_gate(const Brick& body);

/// Norm before the branches: y = x + attn(attn_norm(x)), z = y + ffn(ffn_norm(y)); or after the
/// additions ("post"): y = attn_norm(x + attn(x)), z = ffn_norm(y + ffn(y)). Slots: attn_norm,
/// attn, ffn_norm, ffn; an empty branch adds nothing, an empty norm passes its input. A block may
/// also have slots attn_turn and ffn_turn (turn(); only with the norm before): a layer on the
/// stream beside the branch, y = attn_turn(x) + attn(attn_norm(x)), where surgery writes the
/// branches in different bases. And a slot token_gate (token_gate()): a gate of one unit that looks
/// at what attn reads of a token and says whether the token goes through the block
/// (Mixture-of-Depths: Raposo et al. 2024, arXiv 2404.02258, which counts tokens where this decides
/// for each); one that does not stays x, but is seen by the others' attention as a key and a value,
/// so that what a token gets does not depend on later ones. Where no gradient is wanted closed
/// tokens are not computed (forward_rows()); with one everything is, and weighed. A constant mask
/// keeps or leaves out the whole block. Not together with turns; attn is then an `attention`.
class TransformerBlock final : public Brick {
 public:
  explicit TransformerBlock(bool post_norm = false);
  std::string kind() const override { return "transformer_block"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  /// x [B, T, D] with the rows `rows` ([N], ascending indices into its B T rows) moved on by the
  /// block; the others stay as they are, but are seen as keys and values: state propagation of rows
  /// that left by an exit (Sun et al. 2024, arXiv 2401.09964), or did not go through the block's
  /// gate. Without turns and without a gate of its own, else Error{unsupported}.
  at::Tensor forward_rows(const at::Tensor& x, const at::Tensor& rows, Context& context) const;
  struct LoweredRows {
    bundle::Value all, kept;  ///< all rows; those that moved on
  };
  /// The same as nodes, for the rows that `keep` leaves; `positions` [T] of all rows.
  LoweredRows lower_rows(bundle::Builder& builder, const bundle::Value& x,
                         const bundle::Value& keep, const bundle::Value& positions,
                         const std::string& path) const;
  std::vector<NormReaders> norm_readers() const override;
  void check_slots() const override;
  void adopt(const std::string& name, BrickPtr child) override;
  bool post_norm() const { return post_norm_; }
  /// The slot `branch`_turn ("attn", "ffn"), added empty when there is none.
  Slot& turn(const std::string& branch);
  /// The slot "token_gate", added empty when there is none.
  Slot& token_gate();

 private:
  struct Branch {
    Slot *norm, *body;
    Slot* turn;       ///< nullptr: none
    const char* add;  ///< path of the addition
  };
  void require_rows() const;
  void require_no_gate() const;
  // `in`: what attn reads of x, where it is known already.
  at::Tensor forward_all(const at::Tensor& x, const at::Tensor& in, Context& context) const;
  at::Tensor forward_kept(const at::Tensor& x, const at::Tensor& in, const at::Tensor& rows,
                          Context& context) const;
  at::Tensor forward_gated(const at::Tensor& x, Context& context) const;
  bundle::Value lower_all(bundle::Builder& builder, const bundle::Value& x,
                          const std::string& path) const;
  LoweredRows lower_kept(bundle::Builder& builder, const bundle::Value& x, const bundle::Value& in,
                         const bundle::Value& keep, const bundle::Value& positions,
                         const std::string& path) const;
  double token_macs(const Shape& input) const;  ///< that all tokens save which stay outside
  bool gated() const { return token_gate_ != nullptr && !token_gate_->empty(); }
  bool post_norm_;
  Branch branches_[2];
  Slot* token_gate_ = nullptr;
};

/// Base of the roots: token ids [B, T], T <= context, to rows [B, T, D]. Slots: embed, positions
/// (empty, or a table of `context` rows that is added), embed_norm, blocks, norm (may be empty).
class TextRoot : public Brick {
 public:
  explicit TextRoot(int64_t context);
  int64_t vocabulary() const override;
  int64_t context_length() const { return context_; }
  /// What the last norm gives [B, T, D]. Throws Error{limit} for more than `context` tokens.
  at::Tensor rows(const at::Tensor& ids, Context& context) const;
  /// What goes into the first block [B, T, D]. Throws as rows().
  at::Tensor embedded(const at::Tensor& ids, Context& context) const;
  Shape embedded_shape(const Shape& input) const;
  Cost embedded_cost(const Shape& input) const;
  bundle::Value lower_embedded(bundle::Builder& builder, const bundle::Value& x,
                               const std::string& path) const;
  /// From what the last block gives [B, T, D] to the output: here the last norm alone.
  virtual at::Tensor finish(const at::Tensor& x, Context& context) const;
  virtual Shape finish_shape(const Shape& x) const;
  virtual Cost finish_cost(const Shape& x) const;
  virtual bundle::Value lower_finish(bundle::Builder& builder, const bundle::Value& x,
                                     const std::string& path) const;
  at::Tensor forward(const at::Tensor& ids, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void check_slots() const override;

 protected:
  Shape rows_shape(const Shape& input) const;
  Cost rows_cost(const Shape& input) const;

  Slot *embed_, *positions_, *embed_norm_, *blocks_, *norm_;

 private:
  int64_t context_;
};

/// Logits [B, T, V]: row t are those of token t + 1. One more slot, head; when it is empty the
/// table in embed is the head's matrix too: one parameter, wherever it is cloned, stored or
/// trained.
class Decoder : public TextRoot {
 public:
  explicit Decoder(int64_t context);
  std::string kind() const override { return "decoder"; }
  Json attributes() const override;
  /// Logits of rows() [.., D].
  at::Tensor logits(const at::Tensor& rows, Context& context) const;
  at::Tensor finish(const at::Tensor& x, Context& context) const override;
  Shape finish_shape(const Shape& x) const override;
  Cost finish_cost(const Shape& x) const override;
  bundle::Value lower_finish(bundle::Builder& builder, const bundle::Value& x,
                             const std::string& path) const override;
  std::vector<NormReaders> norm_readers() const override;
  bool tied() const { return head_->empty(); }

 protected:
  /// logits() as nodes.
  bundle::Value lower_logits(bundle::Builder& builder, const bundle::Value& rows,
                             const std::string& path) const;

 private:
  Slot* head_;
};

/// One vector per text [B, D]: `pooling` of its rows ("mean", "first", "last"), of length 1 with
/// `normalize`. context.lengths says where samples end.
class TextEncoder final : public TextRoot {
 public:
  TextEncoder(int64_t context, const std::string& pooling, bool normalize);
  std::string kind() const override { return "text_encoder"; }
  Json attributes() const override;
  at::Tensor finish(const at::Tensor& x, Context& context) const override;
  Shape finish_shape(const Shape& x) const override;
  bundle::Value lower_finish(bundle::Builder& builder, const bundle::Value& x,
                             const std::string& path) const override;

 private:
  std::string pooling_;
  bool normalize_;
};

}  // namespace sluice::lab
