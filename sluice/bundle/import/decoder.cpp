// Llama and its relatives: RMSNorm before attention and before a gated feed-forward, rotary
// positions, key heads that several query heads share.
#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/bundle/import/family.h"
#include "sluice/bundle/import/rope_scaling.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::hf {
namespace {

/// Where the relatives differ in what config.json leaves unsaid.
struct Relative {
  const char* architecture;
  int64_t kv_heads;    ///< default; 0: as many as heads
  int64_t head_dim;    ///< default; 0: hidden_size / heads
  bool qkv_bias;       ///< always
  bool asks_bias;      ///< attention_bias and mlp_bias decide
  bool head_norm;      ///< RMSNorm of every query and key head
  bool window_on_all;  ///< sliding_window is for every layer
  double default_eps;
  bool experts = false;  ///< in the feed-forward
};
constexpr Relative kRelatives[] = {
    {"LlamaForCausalLM", 0, 0, false, true, false, false, 1e-6},
    {"MistralForCausalLM", 8, 0, false, false, false, true, 1e-6},
    {"Qwen2ForCausalLM", 32, 0, true, false, false, false, 1e-6},
    {"Qwen3ForCausalLM", 32, 128, false, true, true, false, 1e-6},
    {"MixtralForCausalLM", 8, 0, false, false, false, true, 1e-5, true},
    {"Qwen2MoeForCausalLM", 16, 0, true, false, false, false, 1e-6, true},
    {"Qwen3MoeForCausalLM", 4, 0, false, true, true, false, 1e-6, true},
};

const Relative& relative(const std::string& architecture) {
  for (const Relative& r : kRelatives)
    if (architecture == r.architecture) return r;
  fail(Code::internal, "no decoder '{}'", architecture);
}

/// The window of each layer; 0: none.
std::vector<int64_t> read_windows(const Config& config, const Relative& family, int64_t layers) {
  std::vector<int64_t> windows(static_cast<size_t>(layers), 0);
  const bool qwen = !family.window_on_all;
  const bool llama = family.asks_bias && !family.head_norm;
  if (llama || !config.has("sliding_window")) return windows;
  if (qwen && !config.flag_or("use_sliding_window", false)) return windows;
  const int64_t window = config.integer("sliding_window");
  const std::vector<std::string> types = config.texts("layer_types");
  if (!types.empty() && static_cast<int64_t>(types.size()) != layers)
    fail(Code::config, "{}: expected {} entries, one per layer, found {}",
         config.field("layer_types"), layers, types.size());
  const int64_t from = qwen ? config.integer_or("max_window_layers", 28, 0) : 0;
  for (size_t i = 0; i < windows.size(); ++i) {
    bool slides = static_cast<int64_t>(i) >= from;
    if (!types.empty()) {
      slides = types[i] == "sliding_attention";
      if (!slides && types[i] != "full_attention")
        fail(Code::unsupported,
             "{}: layer {}: expected full_attention or sliding_attention, found '{}'",
             config.field("layer_types"), i, printable(types[i], 60));
    }
    if (slides) windows[i] = window;
  }
  return windows;
}

class Decoder {
 public:
  Decoder(Model& model) : m_(model), family_(relative(model.architecture)) {}

  void build() {
    const Config& config = m_.config;
    read_sizes();
    const auto lengths = m_.lengths(rope_.positions);
    const std::vector<int64_t> windows = read_windows(config, family_, layers_);
    if (!m_.weights.has("model.embed_tokens.weight")) m_.weights.set_prefix("model.", "");
    if (!rope_.factors.empty()) m_.builder.tensor("rope.factors", {rope_.dims / 2}, rope_.factors);

    const std::string words =
        m_.weights.matrix(m_.builder, "model.embed_tokens.weight", {vocabulary_, hidden_});
    Value x =
        m_.builder.node("embedding", "model.embed_tokens",
                        {m_.builder.input("tokens", {lengths.block})}, {}, {{"weight", words}});
    for (int64_t i = 0; i < layers_; ++i) x = layer(i, x, lengths, windows[static_cast<size_t>(i)]);
    x = m_.norm("rms_norm", "model.norm", x, eps_);
    m_.ignorable.push_back("*.rotary_emb.inv_freq");
    if (m_.pooling) {
      m_.ignorable.push_back("lm_head.weight");
      return m_.finish_embedding(x);
    }
    m_.builder.output(head(x, words));
    m_.result.kind = "generate";
  }

 private:
  void read_sizes() {
    const Config& config = m_.config;
    hidden_ = config.integer("hidden_size");
    vocabulary_ = config.integer("vocab_size");
    inner_ = config.integer("intermediate_size");
    layers_ = config.integer("num_hidden_layers", 1, 65536);
    heads_ = config.integer("num_attention_heads", 1, 65536);
    kv_heads_ = config.integer_or("num_key_value_heads",
                                  family_.kv_heads > 0 ? family_.kv_heads : heads_, 1, 65536);
    if (heads_ % kv_heads_ != 0)
      fail(Code::config, "{}: expected a divisor of the {} heads, found {}",
           config.field("num_key_value_heads"), heads_, kv_heads_);
    int64_t width = family_.head_dim;
    if (width == 0) {
      width = hidden_ / heads_;
      if (!config.has("head_dim") && hidden_ % heads_ != 0)
        fail(Code::config, "{}: {} does not divide the hidden_size {}",
             config.field("num_attention_heads"), heads_, hidden_);
    }
    width_ = config.integer_or("head_dim", width, 2, 65536);
    eps_ = config.number_or("rms_norm_eps", family_.default_eps, {0, 1});
    attention_bias_ = family_.asks_bias && config.flag_or("attention_bias", false);
    mlp_bias_ = family_.asks_bias && config.flag_or("mlp_bias", false);
    rope_ = read_rope(config, width_);
    if (!m_.rope_factors.empty()) rope_.factors = m_.rope_factors;
    read_experts_of_layers();
    m_.result.layers = layers_;
    m_.result.width = hidden_;
    m_.result.vocabulary = vocabulary_;
  }

  /// Which layers have experts: all, or every decoder_sparse_step-th but those in mlp_only_layers.
  void read_experts_of_layers() {
    experts_.assign(static_cast<size_t>(layers_), family_.experts);
    if (!family_.experts) return;
    const Config& config = m_.config;
    mixture_ = read_experts(config, m_.architecture);
    const int64_t step = config.integer_or("decoder_sparse_step", 1);
    for (int64_t i = 0; i < layers_; ++i) experts_[static_cast<size_t>(i)] = (i + 1) % step == 0;
    for (const int64_t i : config.integers("mlp_only_layers"))
      if (i < layers_) experts_[static_cast<size_t>(i)] = false;
  }

  /// Queries or keys: projected, normed by head where the family does that, turned.
  Value turned(const std::string& path, const char* which, const Value& x, int64_t heads) {
    const std::string name = path + "." + which;
    Value y = m_.linear(name + "_proj", x, heads * width_, family_.qkv_bias || attention_bias_);
    if (family_.head_norm)
      y = m_.builder.node(
          "rms_norm", name + "_norm", {y}, {{"eps", eps_}, {"heads", heads}},
          {{"weight", m_.weights.vector(m_.builder, name + "_norm.weight", {width_})}});
    Attributes attrs{{"heads", heads}, {"base", rope_.base}};
    if (rope_.dims != width_) attrs["dims"] = rope_.dims;
    if (rope_.scale != 1) attrs["scale"] = rope_.scale;
    std::map<std::string, std::string> tensors;
    if (!rope_.factors.empty()) tensors["factors"] = "rope.factors";
    return m_.builder.node("rope", name + "_rope", {y}, attrs, tensors);
  }

  Value layer(int64_t index, const Value& x, const Model::Lengths& lengths, int64_t window) {
    const std::string path = fmt::format("model.layers.{}", index);
    const Value h = m_.norm("rms_norm", path + ".input_layernorm", x, eps_);
    const std::string attention = path + ".self_attn";
    const Value q = turned(attention, "q", h, heads_), k = turned(attention, "k", h, kv_heads_),
                v = m_.linear(attention + ".v_proj", h, kv_heads_ * width_,
                              family_.qkv_bias || attention_bias_);
    Attributes attrs{{"heads", heads_}, {"kv_heads", kv_heads_}};
    if (window > 0) attrs["window"] = window;
    if (rope_.attention != 1)
      attrs["scale"] = rope_.attention / std::sqrt(static_cast<double>(width_));
    if (!m_.pooling) {
      // What a window has passed is overwritten.
      const int64_t enough = window > 0 ? window + lengths.block - 1 : lengths.context;
      attrs["cache"] = std::min(lengths.context, enough);
      if (m_.options.cache_type != "f32") attrs["cache_type"] = m_.options.cache_type;
    }
    const Value mixed = m_.builder.node("attention", attention, {q, k, v}, attrs);
    const Value y = m_.add(path + ".add_attention", x,
                           m_.linear(attention + ".o_proj", mixed, hidden_, attention_bias_));
    const Value z = m_.norm("rms_norm", path + ".post_attention_layernorm", y, eps_);
    return m_.add(path + ".add_mlp", y, feed_forward(path, index, z));
  }

  Value feed_forward(const std::string& path, int64_t index, const Value& z) {
    if (experts_[static_cast<size_t>(index)]) return add_experts(m_, *mixture_, path, z);
    const std::string ffn = path + ".mlp";
    const Value gate = m_.activation(
        ffn + ".act", m_.linear(ffn + ".gate_proj", z, inner_, mlp_bias_), "hidden_act", "silu");
    const Value up = m_.linear(ffn + ".up_proj", z, inner_, mlp_bias_);
    const Value product = m_.builder.node("mul", ffn + ".mul", {gate, up});
    return m_.linear(ffn + ".down_proj", product, hidden_, mlp_bias_);
  }

  Value head(const Value& x, const std::string& words) {
    if (!m_.config.flag_or("tie_word_embeddings", false))
      return m_.linear("lm_head", x, vocabulary_, false);
    m_.ignorable.push_back("lm_head.weight");
    return m_.builder.node("linear", "lm_head", {x}, m_.rounding(words), {{"weight", words}});
  }

  Model& m_;
  const Relative& family_;
  int64_t hidden_ = 0, vocabulary_ = 0, inner_ = 0, layers_ = 0, heads_ = 0, kv_heads_ = 0,
          width_ = 0;
  double eps_ = 0;
  bool attention_bias_ = false, mlp_bias_ = false;
  RopeScaling rope_;
  std::optional<Experts> mixture_;
  std::vector<bool> experts_;  // by layer
};

}  // namespace

void build_decoder(Model& model) { Decoder(model).build(); }

}  // namespace sluice::bundle::hf
