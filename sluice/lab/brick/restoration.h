// Parts of networks that restore pictures: transposed attention and gated feed-forward of Restormer
// (Zamir et al. 2022), prompts and U-shape of PromptIR (Potlapalli et al. 2023). All on [C, H, W].
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// Layer norm over the channels of each pixel: y = (x - mean) / sqrt(var + eps) * weight + bias.
class ChannelNorm final : public Brick {
 public:
  explicit ChannelNorm(int64_t channels, double eps = 1e-5);
  std::string kind() const override { return "channel_norm"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;

  at::Tensor weight, bias;  ///< [channels]

 private:
  double eps_;
};

/// Attention between channels instead of places (MDTA): q, k and v [C, H W] come from slot qkv (1 x
/// 1, C to 3C) and slot depthwise (3 x 3 per channel); per head of C / heads channels, with the
/// rows of q and k of length 1: out = softmax(temperature q k^T) v, which slot out (1 x 1) mixes.
/// Its cost grows with H W, not with its square.
class ChannelAttention final : public Brick {
 public:
  /// Empty slots, filled by adopt(); use make_channel_attention for a fresh one.
  explicit ChannelAttention(int64_t heads);
  std::string kind() const override { return "channel_attention"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void check_slots() const override;

  at::Tensor temperature;  ///< [heads], 1 at first

 private:
  int64_t heads_;
  Slot *qkv_, *depthwise_, *out_;
};
BrickPtr make_channel_attention(int64_t channels, int64_t heads);

/// Gated feed-forward network with a view of the neighbours (GDFN): slot in (1 x 1, C to 2F), slot
/// depthwise (3 x 3 per channel), gelu(first half) * second half, slot out (1 x 1, F to C).
class GatedConvFfn final : public Brick {
 public:
  GatedConvFfn();
  std::string kind() const override { return "gated_conv_ffn"; }
  Json attributes() const override { return Json::object(); }
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void check_slots() const override;

 private:
  Slot *in_, *depthwise_, *out_;
};
/// F = floor(expansion * channels).
BrickPtr make_gated_conv_ffn(int64_t channels, double expansion);

/// "up" by 2: [4C, H, W] to [C, 2H, 2W]; "down": the reverse. Channel 4c + 2i + j is place (i, j)
/// of each 2 x 2 square of channel c (Shi et al. 2016).
class PixelShuffle final : public Brick {
 public:
  explicit PixelShuffle(const std::string& direction);
  std::string kind() const override { return "pixel_shuffle"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape&) const override { return {}; }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;

 private:
  bool up_;
};

/// A mixture of learned pictures that says what is wrong with this one (PromptGen): w = softmax of
/// slot choose (a linear layer, C to N) of the mean over H and W; sum w_i prompts_i [P, S, S],
/// resized to H x W (bilinear, corners not aligned), through slot conv (3 x 3). The gate log gets
/// w.
class PromptGenerator final : public Brick {
 public:
  /// Empty slots, filled by adopt(); use make_prompt_generator for a fresh one.
  PromptGenerator(int64_t prompts, int64_t width, int64_t side);
  std::string kind() const override { return "prompt_generator"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;  ///< [P, H, W]
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void check_slots() const override;

  at::Tensor prompts;  ///< [N, P, S, S], uniform in 0..1 at first

 private:
  int64_t resize_macs(int64_t height, int64_t width) const;
  Slot *choose_, *conv_;
};
BrickPtr make_prompt_generator(int64_t channels, int64_t prompts, int64_t width, int64_t side);

/// [to, from]: bilinear interpolation of `from` values at the middles of `to` equal parts, the ends
/// repeated, as a matrix.
at::Tensor bilinear_matrix(int64_t from, int64_t to);

/// Picture to picture, y = x + what the network finds. A U of `levels`: slots embed (3 x 3); for
/// each level l but the deepest encoder<l> and down<l> (half the places, twice the channels);
/// encoder of the deepest; then upwards prompt<l>, mix<l> (a block over features and prompt),
/// cut<l> (1 x 1, back to the features' width), up<l> (twice the places, half the channels),
/// merge<l> (1 x 1 after the concatenation with what encoder<l> gave; may be empty), decoder<l>;
/// then refine, out (3 x 3). Height and width have to be multiples of 2^(levels - 1).
class RestorationNet final : public Brick {
 public:
  /// Empty slots, filled by adopt(); use make_restoration_net for a fresh one.
  explicit RestorationNet(int64_t levels);
  std::string kind() const override { return "restoration_net"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void check_slots() const override;
  int64_t levels() const { return levels_; }

 private:
  struct Flow;
  /// Walks the U once; what a step does is the flow's.
  template <class Value, class Steps>
  Value walk_through(const Value& x, Steps&& steps) const;
  const Slot& at(const char* name, int64_t level) const;
  int64_t levels_;
};

struct RestorationLayers {
  int64_t channels = 3;                      ///< of the pictures
  int64_t width = 16;                        ///< of the first level, doubled from level to level
  std::vector<int64_t> blocks = {1, 2};      ///< of each level; the decoder's levels have as many
  std::vector<int64_t> heads = {1, 2};       ///< of each level
  int64_t refinement = 1;                    ///< blocks behind the last decoder
  double expansion = 2.66;                   ///< of the feed-forward networks
  int64_t prompts = 5;                       ///< pictures in each generator
  std::vector<int64_t> prompt_width = {32};  ///< for each level but the first, from the second on
  std::vector<int64_t> prompt_side = {8};
};
/// Convolutions without biases, first values from `seed` (uniform in +-1/sqrt(fan-in)). Throws
/// Error{config} naming the field.
BrickPtr make_restoration_net(const RestorationLayers& layers, uint64_t seed);

}  // namespace sluice::lab
