// Reference transformers for text.
#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include <algorithm>
#include <cmath>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/embedding.h"
#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/norms.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/model/model.h"

namespace sluice::lab {
namespace {

/// Options of one model, read with their ranges.
class Reader {
 public:
  Reader(const Json& options, std::string model) : options_(options), model_(std::move(model)) {}
  int64_t integer(const char* key, int64_t fallback, int64_t low, int64_t high) const {
    return require_range(json_get_or<int64_t>(options_, key, fallback, model_), low, high, key,
                         model_);
  }
  double number(const char* key, double fallback, double low, double high) const {
    return require_range(json_get_or<double>(options_, key, fallback, model_), low, high, key,
                         model_);
  }
  bool flag(const char* key, bool fallback) const {
    return json_get_or<bool>(options_, key, fallback, model_);
  }
  std::string choice(const char* key, const char* fallback,
                     std::initializer_list<std::string_view> known) const {
    auto value = json_get_or<std::string>(options_, key, fallback, model_);
    if (std::find(known.begin(), known.end(), value) == known.end()) {
      fail(Code::config, "{} of {}: expected one of {}, found '{}'", key, model_,
           fmt::join(known, ", "), value.substr(0, 60));
    }
    return value;
  }
  std::string text(const char* key, const char* fallback) const {
    return json_get_or<std::string>(options_, key, fallback, model_);
  }
  const std::string& model() const { return model_; }

 private:
  const Json& options_;
  std::string model_;
};

struct Plan {
  int64_t vocabulary, layers, width, context, block, neurons;
  AttentionOptions attention;
  AttentionLayers projections;
  std::string activation, positions, pooling;
  bool encoder, gated, rms, post, tied, bias, normalize;
  double eps, init_std;
};

constexpr int64_t kMostSize = 1 << 24;

Plan read_plan(const Json& options, bool encoder) {
  const Reader read(options, encoder ? "encoder" : "decoder");
  Plan p{};
  p.encoder = encoder;
  if (!options.contains("vocab")) {
    fail(Code::config, "vocab of {}: missing; give the number of tokens", read.model());
  }
  p.vocabulary = read.integer("vocab", 0, 1, kMostSize);
  p.layers = read.integer("layers", 4, 1, 1000);
  p.width = read.integer("width", 128, 1, kMaxChannels);
  p.context = read.integer("context", 256, 1, kMostSize);
  p.block =
      read.integer("block", encoder ? p.context : std::min<int64_t>(128, p.context), 1, p.context);
  AttentionLayers& layers = p.projections;
  layers.width = p.width;
  layers.heads = read.integer("heads", 4, 1, 65536);
  layers.kv_heads = read.integer("kv_heads", layers.heads, 1, layers.heads);
  if (!options.contains("head_dim") && p.width % layers.heads != 0) {
    fail(Code::config, "heads of {}: {} do not divide the width {}; say head_dim", read.model(),
         layers.heads, p.width);
  }
  p.attention.head_dim = read.integer("head_dim", p.width / layers.heads, 1, 65536);
  p.gated = read.flag("gated", !encoder);
  const int64_t usual = p.gated ? (8 * p.width / 3 + 31) / 32 * 32 : 4 * p.width;
  p.neurons = read.integer("ffn", usual, 1, kMaxChannels);
  p.activation = read.text("activation", encoder ? "gelu" : "silu");
  p.rms = read.choice("norm", encoder ? "layer" : "rms", {"rms", "layer"}) == "rms";
  p.eps = read.number("norm_eps", 1e-5, 0, 1);
  p.post = read.choice("order", encoder ? "post" : "pre", {"pre", "post"}) == "post";
  p.positions = read.choice("positions", encoder ? "learned" : "rope", {"rope", "learned", "none"});
  if (p.positions == "rope") {
    p.attention.rope.dims = p.attention.head_dim;
    p.attention.rope.base = read.number("rope_base", 10000, 1e-30, 1e30);
  }
  p.bias = read.flag("bias", encoder);
  layers.bias = layers.out_bias = p.bias;
  layers.head_norm = read.flag("qk_norm", false);
  layers.norm_eps = p.eps;
  p.init_std = read.number("init_std", 0.02, 0, 100);
  p.attention.causal = !encoder;
  if (encoder) {
    p.pooling = read.choice("pooling", "mean", {"mean", "first", "last"});
    p.normalize = read.flag("normalize", true);
  } else {
    p.tied = read.flag("tied", true);
    p.attention.window = read.integer("window", 0, 0, kMostSize);
    p.attention.cache_type = read.choice("cache_type", "f32", {"f32", "bf16", "f16"});
    // What a window has passed is overwritten.
    p.attention.cache =
        p.attention.window > 0 ? std::min(p.context, p.attention.window + p.block - 1) : p.context;
  }
  return p;
}

BrickPtr make_norm(const Plan& p) {
  if (p.rms) return std::make_shared<RmsNorm>(p.width, p.eps);
  return std::make_shared<LayerNorm>(p.width, p.eps);
}

BrickPtr make_root(const Plan& p) {
  BrickPtr root;
  if (p.encoder) {
    root = std::make_shared<TextEncoder>(p.context, p.pooling, p.normalize);
  } else {
    root = std::make_shared<Decoder>(p.context);
  }
  root->slot("embed").exchange(std::make_shared<Embedding>(p.vocabulary, p.width));
  if (p.positions == "learned") {
    root->slot("positions").exchange(std::make_shared<Embedding>(p.context, p.width));
  }
  auto blocks = std::make_shared<Sequential>();
  for (int64_t i = 0; i < p.layers; ++i) {
    auto block = std::make_shared<TransformerBlock>(p.post);
    block->slot("attn_norm").exchange(make_norm(p));
    block->slot("attn").exchange(make_attention(p.attention, p.projections));
    block->slot("ffn_norm").exchange(make_norm(p));
    block->slot("ffn").exchange(make_ffn(p.width, p.neurons, p.activation, p.gated, p.bias));
    blocks->append(fmt::format("{}", i), std::move(block));
  }
  root->slot("blocks").exchange(std::move(blocks));
  // With norms behind the branches the stream is normed once before them instead of at the end.
  root->slot(p.post ? "embed_norm" : "norm").exchange(make_norm(p));
  if (!p.encoder && !p.tied) {
    root->slot("head").exchange(std::make_shared<Linear>(p.width, p.vocabulary, /*bias=*/false));
  }
  root->check_slots();
  return root;
}

void draw(Brick& root, const Plan& p, uint64_t seed) {
  const at::NoGradGuard no_grad;
  const double into_stream = p.init_std / std::sqrt(2.0 * static_cast<double>(p.layers));
  for (const SlotRef& ref : walk(root)) {
    const uint64_t own = derive_seed(seed, join_path(ref.path, "weight"));
    if (auto* linear = dynamic_cast<Linear*>(ref.slot->get().get())) {
      const bool adds = ref.slot->name() == "o" || ref.slot->name() == "down";
      fill_normal(linear->weight, adds ? into_stream : p.init_std, own);
      if (linear->bias.defined()) linear->bias.zero_();
    } else if (auto* table = dynamic_cast<Embedding*>(ref.slot->get().get())) {
      fill_normal(table->weight, p.init_std, own);
    }
  }
}

}  // namespace

Model make_model(const std::string& name, const Json& options, uint64_t seed) {
  const std::vector<std::string> names = {"decoder", "encoder"};
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    const std::string near = nearest_name(name, names);
    fail(Code::config, "unknown text model '{}'{}; known: {}", name.substr(0, 60),
         near.empty() ? "" : fmt::format(", did you mean '{}'?", near), fmt::join(names, ", "));
  }
  const bool encoder = name == "encoder";
  const Json chosen = options.is_null() ? Json::object() : options;
  if (encoder) {
    json_require_known_keys(
        chosen,
        {"vocab",     "layers",    "width",   "heads",      "kv_heads", "head_dim", "ffn",
         "context",   "block",     "gated",   "activation", "norm",     "norm_eps", "order",
         "positions", "rope_base", "qk_norm", "bias",       "init_std", "pooling",  "normalize"},
        name);
  } else {
    json_require_known_keys(
        chosen, {"vocab",    "layers",  "width",     "heads",     "kv_heads",   "head_dim",
                 "ffn",      "context", "block",     "gated",     "activation", "norm",
                 "norm_eps", "order",   "positions", "rope_base", "qk_norm",    "bias",
                 "init_std", "tied",    "window",    "cache_type"},
        name);
  }
  const Plan plan = read_plan(chosen, encoder);
  Model model;
  {
    const WithoutInit without_init;  // draw() fills every weight, from `seed` alone
    model.root = make_root(plan);
  }
  draw(*model.root, plan, seed);
  model.input_shape = {plan.block};
  model.root->output_shape(model.input_shape);
  model.task.kind = encoder ? "embed" : "generate";
  model.add_step({{"step", "make"}, {"model", name}, {"options", chosen}, {"seed", seed}});
  return model;
}

}  // namespace sluice::lab
