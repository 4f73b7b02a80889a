// Transformers for pictures (Dosovitskiy et al. 2021): patches are the rows of a sequence.
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// Rows that do not depend on the input: a class token, learned positions. Any x [B, ..] to
/// weight [rows, width], once per sample.
class LearnedRows final : public Brick {
 public:
  LearnedRows(int64_t rows, int64_t width);
  std::string kind() const override { return "learned_rows"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  int64_t rows() const { return weight.size(0); }
  int64_t width() const { return weight.size(1); }

  at::Tensor weight;  ///< [rows, width]; first values normal with deviation 0.02
};

/// Picture [C, H, W] to logits [classes]. Slots: patches (a convolution whose stride is its kernel:
/// every place of its output [D, H', W'] is a row of D columns, in reading order), class_token
/// (learned_rows, put before them; empty with pooling "mean"), positions (learned_rows, added to
/// all rows; may be empty), blocks (rows to rows), norm (may be empty), head. `pooling`: what the
/// head reads: the "first" row, normed, or the "mean" of all normed rows. `part`: "" all of it, or
/// in a chain of its pieces (exits) only "embed", what comes before the blocks, or "classify", what
/// comes behind them; slots of the rest are empty then.
class VisionTransformer final : public Brick {
 public:
  /// Empty slots, filled by adopt(); use make_vision_transformer for a fresh one.
  explicit VisionTransformer(const std::string& pooling, const std::string& part = "");
  std::string kind() const override { return "vision_transformer"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& pixels, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  std::vector<NormReaders> norm_readers() const override;
  void check_slots() const override;
  const std::string& pooling() const { return pooling_; }
  const std::string& part() const { return part_; }

  // The three parts, for what runs only some of them: exits, stitches. `path` is that of this
  // brick.

  /// [B, C, H, W] to the rows that the first block reads [B, T, D].
  at::Tensor embed(const at::Tensor& pixels, Context& context) const;
  /// What the last block gives [B, T, D] to logits [B, classes].
  at::Tensor classify(const at::Tensor& rows, Context& context) const;
  Shape embed_shape(const Shape& input) const;
  Shape classify_shape(const Shape& rows) const;
  Cost embed_cost(const Shape& input) const;
  Cost classify_cost(const Shape& rows) const;
  bundle::Value lower_embed(bundle::Builder& builder, const bundle::Value& pixels,
                            const std::string& path) const;
  bundle::Value lower_classify(bundle::Builder& builder, const bundle::Value& rows,
                               const std::string& path) const;

 private:
  std::string pooling_, part_;
  Slot *patches_, *class_token_, *positions_, *blocks_, *norm_, *head_;
};

struct VisionTransformerLayers {
  int64_t patch = 7;  ///< side of a patch in pixels; divides height and width
  int64_t width = 64, layers = 6, heads = 4;
  int64_t neurons = 0;  ///< of a feed-forward network; 0: 4 width
  std::string activation = "gelu", pooling = "first";
  double norm_eps = 1e-6;
};
/// Blocks of pre-norm attention over all rows and feed-forward network, every layer with a bias.
/// Throws Error{config} when `patch` does not divide the picture [C, H, W] or heads the width.
BrickPtr make_vision_transformer(const VisionTransformerLayers& layers, const Shape& picture,
                                 int64_t classes);

}  // namespace sluice::lab
