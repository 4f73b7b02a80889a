// GPT-2: learned positions, layer norm before attention and feed-forward, weights stored as
// [in, out] with query, key and value side by side.
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/bundle/import/family.h"

namespace sluice::bundle::hf {
namespace {

class Gpt2 {
 public:
  explicit Gpt2(Model& model) : m_(model) {}

  void build() {
    const Config& config = m_.config;
    width_ = config.integer("n_embd");
    const int64_t vocabulary = config.integer("vocab_size"),
                  positions = config.integer("n_positions"),
                  layers = config.integer("n_layer", 1, 65536);
    heads_ = config.integer("n_head", 1, 65536);
    inner_ = config.integer_or("n_inner", 4 * width_, 1, 4 * kMaxSize);
    eps_ = config.number_or("layer_norm_epsilon", 1e-5, {0, 1});
    if (width_ % heads_ != 0)
      fail(Code::config, "{}: {} does not divide n_embd {}", config.field("n_head"), heads_,
           width_);
    scaled_ = config.flag_or("scale_attn_weights", true);
    by_layer_ = config.flag_or("scale_attn_by_inverse_layer_idx", false);
    if (config.flag_or("add_cross_attention", false))
      fail(Code::unsupported, "{}: a decoder that looks at an encoder cannot be imported",
           config.field("add_cross_attention"));
    m_.result.layers = layers;
    m_.result.width = width_;
    m_.result.vocabulary = vocabulary;
    const auto lengths = m_.lengths(positions);
    cache_ = m_.pooling ? 0 : lengths.context;
    if (m_.weights.has("transformer.wte.weight")) m_.weights.set_prefix("", "transformer.");

    Builder& b = m_.builder;
    const Value tokens = b.input("tokens", {lengths.block});
    const std::string words = m_.weights.matrix(b, "wte.weight", {vocabulary, width_});
    const Value at = b.node("positions", "positions", {tokens});
    Value x = m_.add("add_positions", b.node("embedding", "wte", {tokens}, {}, {{"weight", words}}),
                     b.node("embedding", "wpe", {at}, {},
                            {{"weight", m_.weights.matrix(b, "wpe.weight", {positions, width_})}}));
    for (int64_t i = 0; i < layers; ++i) x = layer(fmt::format("h.{}", i), x, i);
    x = m_.norm("layer_norm", "ln_f", x, eps_);
    m_.ignorable = {"*.attn.bias", "*.attn.masked_bias"};  // the causal mask as a tensor
    if (m_.pooling) {
      m_.ignorable.push_back("lm_head.weight");
      return m_.finish_embedding(x);
    }
    if (config.flag_or("tie_word_embeddings", true)) {
      m_.ignorable.push_back("lm_head.weight");
      b.output(b.node("linear", "lm_head", {x}, m_.rounding(words), {{"weight", words}}));
    } else {
      m_.weights.set_prefix("", "");
      b.output(m_.linear("lm_head", x, vocabulary, false));
    }
    m_.result.kind = "generate";
  }

 private:
  /// Columns first .. first + out of stored.weight [in, all], as the layer `path`.
  Value linear(const std::string& path, const std::string& stored, const Value& x, int64_t all,
               int64_t first, int64_t out) {
    Builder& b = m_.builder;
    const std::string weight = m_.weights.transposed(b, stored + ".weight", {x.shape.back(), all},
                                                     first, out, path + ".weight");
    const std::vector<float> bias = m_.weights.values(stored + ".bias", {all});
    b.tensor(path + ".bias", {out},
             std::span(bias).subspan(static_cast<size_t>(first), static_cast<size_t>(out)));
    return b.node("linear", path, {x}, m_.rounding(weight),
                  {{"weight", weight}, {"bias", path + ".bias"}});
  }

  Value layer(const std::string& path, const Value& x, int64_t index) {
    const Value h = m_.norm("layer_norm", path + ".ln_1", x, eps_);
    const std::string attention = path + ".attn", fused = attention + ".c_attn";
    const auto part = [&](const char* name, int64_t which) {
      return linear(attention + name, fused, h, 3 * width_, which * width_, width_);
    };
    double scale = scaled_ ? 1 / std::sqrt(static_cast<double>(width_ / heads_)) : 1;
    if (by_layer_) scale /= static_cast<double>(index + 1);
    Attributes attrs{{"heads", heads_}, {"scale", scale}};
    if (cache_ > 0) {
      attrs["cache"] = cache_;
      if (m_.options.cache_type != "f32") attrs["cache_type"] = m_.options.cache_type;
    }
    const Value mixed = m_.builder.node("attention", attention,
                                        {part(".q", 0), part(".k", 1), part(".v", 2)}, attrs);
    const std::string out = attention + ".c_proj", up = path + ".mlp.c_fc",
                      down = path + ".mlp.c_proj";
    const Value y = m_.add(path + ".add_attention", x, linear(out, out, mixed, width_, 0, width_));
    const Value z = m_.norm("layer_norm", path + ".ln_2", y, eps_);
    const Value inner = m_.activation(path + ".mlp.act", linear(up, up, z, inner_, 0, inner_),
                                      "activation_function", "gelu_new");
    return m_.add(path + ".add_mlp", y, linear(down, down, inner, width_, 0, width_));
  }

  Model& m_;
  int64_t width_ = 0, heads_ = 0, inner_ = 0, cache_ = 0;
  double eps_ = 0;
  bool scaled_ = true, by_layer_ = false;
};

}  // namespace

void build_gpt2(Model& model) { Gpt2(model).build(); }

}  // namespace sluice::bundle::hf
