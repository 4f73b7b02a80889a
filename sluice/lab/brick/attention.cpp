#include "sluice/lab/brick/attention.h"

#include <torch/version.h>

#include <cmath>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/norms.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {
namespace {

constexpr int64_t kMaxPositions = int64_t{1} << 24, kMaxHeadDim = 65536;

double positive(double value, std::string_view key) {
  return require_range(value, 1e-30, 1e30, key, "attention");
}

void check_rope(const RopeOptions& rope, int64_t head_dim) {
  if (rope.dims == 0) return;
  require_range(rope.dims, 2, head_dim, "rope.dims", "attention");
  if (rope.dims % 2 != 0) {
    fail(Code::config, "rope.dims of attention: expected an even number, found {}", rope.dims);
  }
  positive(rope.base, "rope.base");
  positive(rope.scale, "rope.scale");
  const auto pairs = static_cast<size_t>(rope.dims / 2);
  if (!rope.factors.empty() && rope.factors.size() != pairs) {
    fail(Code::config, "rope.factors of attention: expected {} numbers, found {}", pairs,
         rope.factors.size());
  }
  for (const double factor : rope.factors) positive(factor, "rope.factors");
}

Json rope_json(const RopeOptions& rope) {
  Json json = {{"dims", rope.dims}, {"base", rope.base}};
  if (rope.scale != 1) json["scale"] = rope.scale;
  if (rope.interleaved) json["layout"] = "interleaved";
  if (!rope.factors.empty()) json["factors"] = rope.factors;
  return json;
}

RopeOptions read_rope(const Json& json) {
  const AttributeReader read(json, "attention: rope",
                             {"dims", "base", "scale", "layout", "factors"});
  RopeOptions rope;
  rope.dims = read.integer("dims");
  rope.base = read.number("base", rope.base);
  rope.scale = read.number("scale", rope.scale);
  const std::string layout = read.text("layout", "half");
  if (layout != "half" && layout != "interleaved") {
    fail(Code::config, "layout of attention: rope: expected half or interleaved, found '{}'",
         layout.substr(0, 60));
  }
  rope.interleaved = layout == "interleaved";
  if (const auto factors = json.find("factors"); factors != json.end()) {
    if (!factors->is_array()) fail(Code::config, "factors of attention: rope: expected a list");
    for (const Json& factor : *factors) {
      if (!factor.is_number()) fail(Code::config, "factors of attention: rope: expected numbers");
      rope.factors.push_back(factor.get<double>());
    }
  }
  return rope;
}

}  // namespace

Attention::Attention(const AttentionOptions& options) : options_(options) {
  require_range(options.head_dim, 1, kMaxHeadDim, "head_dim", "attention");
  require_range(options.window, 0, kMaxPositions, "window", "attention");
  require_range(options.cache, 0, kMaxPositions, "cache", "attention");
  require_range(options.scale, 0.0, 1e30, "scale", "attention");
  check_rope(options.rope, options.head_dim);
  if (!options.causal && (options.window > 0 || options.cache > 0)) {
    fail(Code::config, "window and cache of attention: both need causal: a full mask has no past");
  }
  if (options.cache_type != "f32" && options.cache_type != "bf16" && options.cache_type != "f16") {
    fail(Code::config, "cache_type of attention: expected f32, bf16 or f16, found '{}'",
         options.cache_type.substr(0, 60));
  }
  q_ = &add_slot("q", nullptr);
  k_ = &add_slot("k", nullptr);
  v_ = &add_slot("v", nullptr);
  o_ = &add_slot("o", nullptr);
  q_norm_ = &add_slot("q_norm", nullptr);
  k_norm_ = &add_slot("k_norm", nullptr);
  head_gate_ = &add_slot("head_gate", nullptr);
}

Json Attention::attributes() const {
  Json json = {{"head_dim", options_.head_dim}, {"causal", options_.causal}};
  if (options_.window > 0) json["window"] = options_.window;
  if (options_.scale > 0) json["scale"] = options_.scale;
  if (options_.rope.dims > 0) json["rope"] = rope_json(options_.rope);
  if (options_.cache > 0) json["cache"] = options_.cache;
  if (options_.cache_type != "f32") json["cache_type"] = options_.cache_type;
  return json;
}

BrickPtr make_attention(const Json& attributes) {
  const AttributeReader read(
      attributes, "attention",
      {"head_dim", "causal", "window", "scale", "rope", "cache", "cache_type"});
  AttentionOptions options;
  options.head_dim = read.integer("head_dim");
  options.causal = read.boolean("causal", true);
  options.window = read.integer("window", 0);
  options.scale = read.number("scale", 0);
  if (attributes.contains("rope")) options.rope = read_rope(read.object("rope"));
  options.cache = read.integer("cache", 0);
  options.cache_type = read.text("cache_type", "f32");
  return std::make_shared<Attention>(options);
}

BrickPtr make_attention(const AttentionOptions& options, const AttentionLayers& layers) {
  const auto projection = [](int64_t inputs, int64_t outputs, bool bias) {
    return std::make_shared<Linear>(inputs, outputs, bias);
  };
  require_range(layers.heads, 1, 65536, "heads", "attention");
  require_range(layers.kv_heads, 1, layers.heads, "kv_heads", "attention");
  auto result = std::make_shared<Attention>(options);
  const int64_t keys = layers.kv_heads * options.head_dim;
  const int64_t queries = layers.heads * options.head_dim;
  result->slot("q").exchange(projection(layers.width, queries, layers.bias));
  result->slot("k").exchange(projection(layers.width, keys, layers.bias));
  result->slot("v").exchange(projection(layers.width, keys, layers.bias));
  result->slot("o").exchange(projection(queries, layers.width, layers.out_bias));
  if (layers.head_norm) {
    result->slot("q_norm").exchange(std::make_shared<RmsNorm>(options.head_dim, layers.norm_eps));
    result->slot("k_norm").exchange(std::make_shared<RmsNorm>(options.head_dim, layers.norm_eps));
  }
  result->output_shape({1, layers.width});
  return result;
}

void Attention::check_slots() const {
  for (const Slot* slot : {q_, k_, v_, o_}) {
    if (slot->empty()) fail(Code::config, "{}: must be filled", slot->name());
  }
  if (!head_gate_->empty()) head_gate_->as<GateBrick>();
}

double Attention::scale() const {
  return options_.scale > 0 ? options_.scale
                            : 1 / std::sqrt(static_cast<double>(options_.head_dim));
}

Attention::Sizes Attention::sizes(const Shape& input) const {
  if (input.size() != 2) {
    fail(Code::shape, "attention: expected [T, width], found {}", to_string(input));
  }
  const int64_t q = q_->output_shape(input).back(), k = k_->output_shape(input).back(),
                v = v_->output_shape(input).back();
  const int64_t dim = options_.head_dim;
  if (q % dim != 0 || k % dim != 0) {
    fail(Code::shape, "attention: {} query and {} key columns are no heads of {}", q, k, dim);
  }
  const Sizes sizes{q / dim, k / dim, v / (k / dim), input[0]};
  if (sizes.heads % sizes.kv_heads != 0 || v % sizes.kv_heads != 0) {
    fail(Code::shape, "attention: {} key heads do not divide {} query heads and {} value columns",
         sizes.kv_heads, sizes.heads, v);
  }
  for (const Slot* norm : {q_norm_, k_norm_}) {
    if (!norm->empty()) norm->output_shape({input[0], dim});
  }
  if (!head_gate_->empty() && head_gate_->as<GateBrick>().units() != sizes.kv_heads) {
    fail(Code::shape, "attention: head_gate has {} units for {} key heads",
         head_gate_->as<GateBrick>().units(), sizes.kv_heads);
  }
  return sizes;
}

Shape Attention::output_shape(const Shape& input) const {
  const Sizes s = sizes(input);
  return o_->output_shape({input[0], s.heads * s.value_dim});
}

int64_t Attention::products(const Sizes& s) const {
  int64_t pairs = checked_mul(s.tokens, s.tokens, "MACs of attention");
  if (options_.causal) {
    const int64_t seen = options_.window > 0 ? std::min(options_.window, s.tokens) : s.tokens;
    pairs = seen * (s.tokens - seen) + seen * (seen + 1) / 2;
  }
  return checked_mul(pairs, s.heads * (options_.head_dim + s.value_dim), "MACs of attention");
}

Cost Attention::cost(const Shape& input) const {
  const Sizes s = sizes(input);
  Cost total = q_->cost(input) + k_->cost(input) + v_->cost(input) +
               o_->cost({input[0], s.heads * s.value_dim});
  total.macs += products(s);
  if (!q_norm_->empty()) total += q_norm_->cost({input[0], s.heads * options_.head_dim});
  if (!k_norm_->empty()) total += k_norm_->cost({input[0], s.kv_heads * options_.head_dim});
  if (!head_gate_->empty()) total += head_gate_->cost(input);
  return total;
}

at::Tensor Attention::turned(const at::Tensor& x) const {
  const RopeOptions& rope = options_.rope;
  if (rope.dims == 0) return x;
  const int64_t tokens = x.size(2);
  if (!cos_.defined() || cos_.size(0) < tokens || cos_.device() != x.device() ||
      cos_.scalar_type() != x.scalar_type()) {
    const at::NoGradGuard no_grad;
    const auto wide = at::TensorOptions().dtype(at::kDouble);
    at::Tensor rates = at::pow(at::full({}, rope.base, wide),
                               at::arange(0, rope.dims, 2, wide) / -double(rope.dims));
    rates = rates / rope.scale;
    if (!rope.factors.empty()) {
      rates = rates / at::tensor(at::ArrayRef<double>(rope.factors), wide);
    }
    const at::Tensor angles = at::outer(at::arange(tokens, wide), rates);
    cos_ = at::cos(angles).to(x.options());
    sin_ = at::sin(angles).to(x.options());
  }
  const at::Tensor cos = cos_.narrow(0, 0, tokens), sin = sin_.narrow(0, 0, tokens);
  const at::Tensor part = x.narrow(-1, 0, rope.dims);
  const int64_t half = rope.dims / 2;
  const at::Tensor a =
      rope.interleaved ? part.slice(-1, 0, rope.dims, 2) : part.narrow(-1, 0, half);
  const at::Tensor b =
      rope.interleaved ? part.slice(-1, 1, rope.dims, 2) : part.narrow(-1, half, half);
  const at::Tensor left = a * cos - b * sin, right = b * cos + a * sin;
  const at::Tensor y =
      rope.interleaved ? at::stack({left, right}, -1).flatten(-2) : at::cat({left, right}, -1);
  if (rope.dims == x.size(-1)) return y;
  return at::cat({y, x.narrow(-1, rope.dims, x.size(-1) - rope.dims)}, -1);
}

// q [B, H, T, W], k and v [B, H, T, ..].
at::Tensor Attention::mix(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const Context& context) const {
  const int64_t tokens = q.size(2);
  at::Tensor seen;  // [T, T] or [B, 1, 1, T] or [B, 1, T, T], true where a row may look
  const at::Tensor rows = at::arange(tokens, q.options().dtype(at::kLong));
#if TORCH_VERSION_MAJOR >= 2
  // The plain causal mask has a faster way of its own.
  const bool plain = options_.causal && options_.window == 0 && !context.lengths.defined();
  const bool draws_mask = !plain && (options_.causal || context.lengths.defined());
#else
  const bool draws_mask = options_.causal || context.lengths.defined();
#endif
  if (draws_mask) {
    if (options_.causal) {
      const at::Tensor behind = rows.unsqueeze(1) - rows.unsqueeze(0);
      seen = behind >= 0;
      if (options_.window > 0) seen = seen.logical_and(behind < options_.window);
    }
    if (context.lengths.defined()) {
      const at::Tensor inside = (rows.unsqueeze(0) < context.lengths.to(rows.device()).unsqueeze(1))
                                    .view({-1, 1, 1, tokens});
      seen = seen.defined() ? seen.logical_and(inside) : inside;
    }
  }
#if TORCH_VERSION_MAJOR >= 2
  if (seen.defined()) {
    // As below: with a mask of booleans, a row that sees nothing is NaN before LibTorch 2.5.
    const at::Tensor mask =
        at::zeros(seen.sizes(), q.options()).masked_fill(seen.logical_not(), -1e30);
    return at::scaled_dot_product_attention(q, k, v, mask, 0.0, false, scale());
  }
  return at::scaled_dot_product_attention(q, k, v, {}, 0.0, plain, scale());
#else
  at::Tensor scores = at::matmul(q * scale(), k.transpose(-2, -1));
  // Not infinity: a row that sees nothing (a window that a sample's end leaves empty) stays finite.
  if (seen.defined()) scores = scores.masked_fill(seen.logical_not(), -1e30);
  return at::matmul(at::softmax(scores, -1), v);
#endif
}

at::Tensor Attention::forward(const at::Tensor& x, Context& context) {
  const int64_t batch = x.size(0), tokens = x.size(1), dim = options_.head_dim;
  const bool skips = decides_by_input(*head_gate_);
  at::Tensor q, decision;
  {
    const Unmetered unmetered(context, skips);
    q = q_->forward(x, context);
  }
  at::Tensor k = k_->forward(x, context), v = v_->forward(x, context);
  if (!q_norm_->empty()) q = q_norm_->forward(q, context);
  if (!k_norm_->empty()) k = k_norm_->forward(k, context);
  const int64_t heads = q.size(-1) / dim, kv_heads = k.size(-1) / dim;
  const auto by_head = [&](const at::Tensor& y, int64_t count) {
    return y.reshape({batch, tokens, count, -1}).transpose(1, 2);
  };
  const auto shared =
      [&](const at::Tensor& y) {  // key head j serves query heads j G .. j G + G - 1
        if (heads == kv_heads) return y;
        return y.unsqueeze(2)
            .expand({batch, kv_heads, heads / kv_heads, tokens, y.size(-1)})
            .reshape({batch, heads, tokens, y.size(-1)});
      };
  q = turned(by_head(q, heads));
  k = turned(by_head(k, kv_heads));
  v = by_head(v, kv_heads);
  const int64_t value_dim = v.size(-1);
  at::Tensor y = mix(q, shared(k), shared(v), context).transpose(1, 2).flatten(2);
  const int64_t macs = products({heads, kv_heads, value_dim, tokens});
  if (context.meter != nullptr && !skips) {
    context.meter->add(context.path(), batch * macs,
                       tensor_bytes(q) + tensor_bytes(k) + tensor_bytes(v) + tensor_bytes(y));
  }
  if (!head_gate_->empty()) {
    decision = decide_heads(x, context);
    y = times_units(y, decision);
  }
  if (!skips) return o_->forward(y, context);
  meter_heads(x, decision, y, context);
  const Unmetered unmetered(context, true);
  return o_->forward(y, context);
}

at::Tensor Attention::decide_heads(const at::Tensor& x, Context& context) const {
  double per_unit = 0;
  if (context.gate_log != nullptr) {
    const Shape shape = {x.size(1), x.size(2)};
    const Sizes s = sizes(shape);
    const int64_t macs = q_->cost(shape).macs + o_->cost({s.tokens, s.heads * s.value_dim}).macs;
    per_unit = static_cast<double>(macs + products(s)) / static_cast<double>(s.kv_heads);
  }
  return unit_decision(*head_gate_, x, per_unit, context);
}

// What closed heads leave of queries, products and o, as the engine counts it.
void Attention::meter_heads(const at::Tensor& x, const at::Tensor& decision,
                            const at::Tensor& mixed, Context& context) const {
  if (context.meter == nullptr) return;
  const int64_t tokens = x.size(1), width = x.size(2);
  const Sizes s = sizes({tokens, width});
  const int64_t query = q_->cost({1, width}).macs / s.kv_heads,
                each = static_cast<int64_t>(x.element_size());
  meter_units(x, decision, query, query * each, context);
  at::Tensor seen = at::full({tokens}, tokens, decision.options().dtype(at::kLong));
  if (options_.causal) {
    seen = at::arange(1, tokens + 1, seen.options());
    if (options_.window > 0) seen = seen.clamp_max(options_.window);
  }
  const at::Tensor open = (decision.detach() != 0).expand({x.size(0), tokens, s.kv_heads});
  const int64_t pairs = (open * seen.view({1, tokens, 1})).sum().item<int64_t>();
  const int64_t head = options_.head_dim + s.value_dim;
  // Columns of o whose input is exactly 0 are not read.
  const at::Tensor used = mixed.detach() != 0;
  const int64_t outputs = o_->output_shape({1, mixed.size(-1)}).back(),
                read = used.flatten(0, -2).any(0).sum().item<int64_t>();
  context.meter->add(context.path(),
                     pairs * s.heads / s.kv_heads * head + used.sum().item<int64_t>() * outputs,
                     3 * tensor_bytes(mixed) + read * outputs * each);
}

const Linear& Attention::gated_layer(const Slot& slot, const std::string& path) const {
  if (const auto* layer = dynamic_cast<const Linear*>(slot.get().get())) return *layer;
  fail(Code::unsupported,
       "{}: a {} of which a gate closes heads token by token has no node in the engine; it has "
       "those of ordinary linear layers (dequantize first)",
       join_path(path, slot.name()), (*slot).kind());
}

bundle::Value Attention::lower_queries(bundle::Builder& builder, const bundle::Value& x,
                                       const bundle::Value& open, const std::string& path) const {
  const Linear& layer = gated_layer(*q_, path);
  const std::string at = join_path(path, q_->name());
  std::map<std::string, std::string> tensors = {{"weight", join_path(at, "weight")}};
  add_tensor(builder, tensors["weight"], layer.weight);
  if (layer.bias.defined()) {
    tensors["bias"] = join_path(at, "bias");
    add_tensor(builder, tensors["bias"], layer.bias);
  }
  return builder.node("gathered_linear", at, {x, open}, {}, std::move(tensors));
}

// What closed heads give is exactly 0: columns of o that meet it are left out.
bundle::Value Attention::lower_output(bundle::Builder& builder, const bundle::Value& mixed,
                                      const std::string& path) const {
  const Linear& layer = gated_layer(*o_, path);
  const std::string at = join_path(path, o_->name());
  std::map<std::string, std::string> tensors = {
      {"weight", stored_by_input(join_path(at, "weight"))}};
  add_tensor(builder, tensors["weight"], layer.weight.detach().t());
  if (layer.bias.defined()) {
    tensors["bias"] = join_path(at, "bias");
    add_tensor(builder, tensors["bias"], layer.bias);
  }
  return builder.node("sparse_input_linear", at, {mixed},
                      {{"select", std::string("threshold")}, {"threshold", 0.0}},
                      std::move(tensors));
}

bundle::Value Attention::lower_turned(bundle::Builder& builder, const bundle::Value& x,
                                      const std::string& path, const char* which, int64_t heads,
                                      const bundle::Value* positions) const {
  const RopeOptions& rope = options_.rope;
  if (rope.dims == 0) return x;
  bundle::Attributes attributes = {{"heads", heads}, {"base", rope.base}};
  if (rope.dims != options_.head_dim) attributes["dims"] = rope.dims;
  if (rope.scale != 1) attributes["scale"] = rope.scale;
  if (rope.interleaved) attributes["layout"] = std::string("interleaved");
  std::map<std::string, std::string> tensors;
  if (!rope.factors.empty()) {
    tensors["factors"] = join_path(path, "rope_factors");
    const std::vector<float> factors(rope.factors.begin(), rope.factors.end());
    builder.tensor(tensors["factors"], {rope.dims / 2}, factors);
  }
  std::vector<bundle::Value> inputs = {x};
  if (positions != nullptr) inputs.push_back(*positions);
  return builder.node("rope", join_path(path, which), inputs, std::move(attributes),
                      std::move(tensors));
}

bundle::Attributes Attention::mix_attributes(const Sizes& s) const {
  bundle::Attributes attributes = {{"heads", s.heads}, {"kv_heads", s.kv_heads}};
  if (!options_.causal) attributes["mask"] = std::string("full");
  if (options_.window > 0) attributes["window"] = options_.window;
  if (options_.scale > 0) attributes["scale"] = options_.scale;
  if (options_.cache > 0) attributes["cache"] = options_.cache;
  if (options_.cache > 0 && options_.cache_type != "f32") {
    attributes["cache_type"] = options_.cache_type;
  }
  return attributes;
}

bundle::Value Attention::lower(bundle::Builder& builder, const bundle::Value& x,
                               const std::string& path) const {
  const Sizes s = sizes(x.shape);
  const bool skips = decides_by_input(*head_gate_);
  bundle::Value open;  // [T, kv_heads]
  if (skips) open = head_gate_->lower(builder, x, path);
  bundle::Value q = skips ? lower_queries(builder, x, open, path) : q_->lower(builder, x, path),
                k = k_->lower(builder, x, path);
  const bundle::Value v = v_->lower(builder, x, path);
  if (!q_norm_->empty()) q = q_norm_->lower(builder, q, path);
  if (!k_norm_->empty()) k = k_norm_->lower(builder, k, path);
  q = lower_turned(builder, q, path, "q_rope", s.heads);
  k = lower_turned(builder, k, path, "k_rope", s.kv_heads);
  bundle::Attributes attributes = mix_attributes(s);
  std::vector<bundle::Value> inputs = {q, k, v};
  if (skips) {
    attributes["gated"] = true;
    inputs.push_back(open);
  }
  const bundle::Value y =
      builder.node("attention", join_path(path, "attention"), inputs, std::move(attributes));
  if (skips) return lower_output(builder, y, path);
  return lower_masked(*o_, *head_gate_, builder, y, path);
}

std::vector<ChannelGroup> Attention::channel_groups() const {
  const auto* q = dynamic_cast<const Linear*>(q_->get().get());
  const auto* k = dynamic_cast<const Linear*>(k_->get().get());
  const auto* v = dynamic_cast<const Linear*>(v_->get().get());
  const auto* o = dynamic_cast<const Linear*>(o_->get().get());
  if (q == nullptr || k == nullptr || v == nullptr || o == nullptr) return {};
  ChannelGroup group;
  group.name = "heads";
  group.unit = "head";
  group.channels = k->outputs() / options_.head_dim;
  group.producers = {"q", "k", "v"};
  group.producer_columns = {q->outputs() / group.channels, options_.head_dim,
                            v->outputs() / group.channels};
  group.consumers = {"o"};
  group.consumer_columns = {o->inputs() / group.channels};
  group.gate = "head_gate";
  return {group};
}

}  // namespace sluice::lab
