#include <cmath>

#include "sluice/base/normal_quantile.h"
#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/spark.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

/// Rotary positions of all columns of x [B, H, T, W]: pairs (i, i + W/2) by t * base^(-2i/W).
at::Tensor turned(const at::Tensor& x, double base) {
  const int64_t tokens = x.size(2), half = x.size(3) / 2;
  const auto wide = at::TensorOptions().dtype(at::kDouble);
  const at::Tensor rates =
      at::pow(at::full({}, base, wide), at::arange(0, half, wide) / -static_cast<double>(half));
  const at::Tensor angles = at::outer(at::arange(tokens, wide), rates);
  const at::Tensor cos = at::cos(angles).to(x.options()), sin = at::sin(angles).to(x.options());
  const at::Tensor a = x.narrow(-1, 0, half), b = x.narrow(-1, half, half);
  return at::cat({a * cos - b * sin, b * cos + a * sin}, -1);
}

/// normal_quantile(1 - k / n) for prefixes of n = 1 .. tokens rows, 0 where n <= k: [tokens, 1].
at::Tensor prefix_quantiles(int64_t tokens, int64_t k, const at::Tensor& like) {
  std::vector<float> values(static_cast<size_t>(tokens), 0.0f);
  for (int64_t n = k + 1; n <= tokens; ++n) {
    values[static_cast<size_t>(n - 1)] =
        static_cast<float>(normal_quantile(1 - static_cast<double>(k) / static_cast<double>(n)));
  }
  return at::tensor(at::ArrayRef<float>(values)).to(like.options()).unsqueeze(1);
}

}  // namespace

SparkAttention::SparkAttention(const SparkAttentionOptions& options) : options_(options) {
  require_range(options.head_dim, 4, 65536, "head_dim", "spark_attention");
  require_range(options.split, 2, options.head_dim - 2, "split", "spark_attention");
  require_range(options.tokens, 1, int64_t{1} << 24, "tokens", "spark_attention");
  require_range(options.rope_base, 1e-30, 1e30, "rope_base", "spark_attention");
  require_range(options.cache, 0, int64_t{1} << 24, "cache", "spark_attention");
  if (options.split % 2 != 0 || options.head_dim % 2 != 0) {
    fail(Code::config, "split of spark_attention: expected two even parts, found {} of {}",
         options.split, options.head_dim);
  }
  q_ = &add_slot("q", nullptr);
  k_ = &add_slot("k", nullptr);
  v_ = &add_slot("v", nullptr);
  o_ = &add_slot("o", nullptr);
}

Json SparkAttention::attributes() const {
  Json json = {{"head_dim", options_.head_dim},
               {"split", options_.split},
               {"tokens", options_.tokens},
               {"rope_base", options_.rope_base}};
  if (options_.cache > 0) json["cache"] = options_.cache;
  return json;
}

BrickPtr make_spark_attention(const Json& attributes) {
  const AttributeReader read(attributes, "spark_attention",
                             {"head_dim", "split", "tokens", "rope_base", "cache"});
  SparkAttentionOptions options;
  options.head_dim = read.integer("head_dim");
  options.split = read.integer("split");
  options.tokens = read.integer("tokens");
  options.rope_base = read.number("rope_base", options.rope_base);
  options.cache = read.integer("cache", 0);
  return std::make_shared<SparkAttention>(options);
}

BrickPtr make_spark_attention(const SparkAttentionOptions& options, int64_t width, int64_t heads) {
  auto result = std::make_shared<SparkAttention>(options);
  const int64_t all = require_range(heads, 1, 65536, "heads", "spark_attention") * options.head_dim;
  for (const char* name : {"q", "k", "v"}) {
    result->slot(name).exchange(std::make_shared<Linear>(width, all, false));
  }
  result->slot("o").exchange(std::make_shared<Linear>(all, width, false));
  return result;
}

void SparkAttention::check_slots() const {
  for (const Slot* slot : {q_, k_, v_, o_}) {
    if (slot->empty()) fail(Code::config, "{}: must be filled", slot->name());
  }
}

int64_t SparkAttention::heads(const Shape& input) const {
  if (input.size() != 2) {
    fail(Code::shape, "spark_attention: expected [T, width], found {}", to_string(input));
  }
  const int64_t q = q_->output_shape(input).back(), k = k_->output_shape(input).back(),
                v = v_->output_shape(input).back();
  if (q % options_.head_dim != 0 || k != q || v % (q / options_.head_dim) != 0) {
    fail(Code::shape, "spark_attention: {} query, {} key and {} value columns are no heads of {}",
         q, k, v, options_.head_dim);
  }
  return q / options_.head_dim;
}

Shape SparkAttention::output_shape(const Shape& input) const {
  heads(input);
  return o_->output_shape({input[0], v_->output_shape(input).back()});
}

Cost SparkAttention::cost(const Shape& input) const {
  const int64_t count = heads(input), tokens = input[0];
  const int64_t values = v_->output_shape(input).back();
  Cost total = q_->cost(input) + k_->cost(input) + v_->cost(input) + o_->cost({tokens, values});
  const int64_t pairs = checked_mul(tokens, tokens + 1, "MACs of spark_attention") / 2;
  total.macs += checked_mul(pairs, count * options_.head_dim + values, "MACs of spark_attention");
  return total;
}

at::Tensor SparkAttention::forward(const at::Tensor& x, Context& context) {
  const int64_t batch = x.size(0), tokens = x.size(1), split = options_.split;
  const int64_t rest = options_.head_dim - split;
  const at::Tensor q = q_->forward(x, context), k = k_->forward(x, context);
  const at::Tensor v = v_->forward(x, context);
  const int64_t count = q.size(-1) / options_.head_dim;
  const auto by_head = [&](const at::Tensor& y) {
    return y.reshape({batch, tokens, count, -1}).transpose(1, 2);
  };
  const at::Tensor queries = by_head(q), keys = by_head(k), values = by_head(v);
  const auto product = [&](int64_t first, int64_t width) {
    const at::Tensor a = turned(queries.narrow(-1, first, width), options_.rope_base);
    const at::Tensor b = turned(keys.narrow(-1, first, width), options_.rope_base);
    return at::matmul(a / std::sqrt(static_cast<double>(width)), b.transpose(-2, -1));
  };
  const at::Tensor rows = at::arange(tokens, x.options().dtype(at::kLong));
  const at::Tensor seen = rows.unsqueeze(1) >= rows.unsqueeze(0);  // [T, T]
  const at::Tensor scores = product(0, split);
  // Mean and deviation of the visible prefix alone: what lies ahead must not be known.
  const at::Tensor inside = seen.to(scores.scalar_type());
  const at::Tensor n = inside.sum(-1, /*keepdim=*/true);
  const at::Tensor mean = (scores * inside).sum(-1, true) / n;
  const at::Tensor off = (scores - mean) * inside;
  const at::Tensor deviation = (off.square().sum(-1, true) / (n - 1).clamp_min(1) + 1e-20).sqrt();
  const at::Tensor bound = mean + deviation * prefix_quantiles(tokens, options_.tokens, scores);
  const at::Tensor whole = n <= static_cast<double>(options_.tokens);
  const at::Tensor kept =
      at::logical_and(seen, at::logical_or(whole, (scores < bound).logical_not()));
  // Where the prefix is short all of it counts, and subtracting a number changes no softmax.
  const at::Tensor shifted = (scores - bound).masked_fill(kept.logical_not(), -1e30);
  const at::Tensor weights = at::softmax(shifted, -1) * at::softplus(product(split, rest));
  const at::Tensor y =
      at::matmul(weights.masked_fill(kept.logical_not(), 0), values).transpose(1, 2).flatten(2);
  if (context.meter != nullptr) {
    const int64_t pairs = kept.sum().item<int64_t>();
    const int64_t visible = batch * count * (tokens * (tokens + 1) / 2);
    context.meter->add(context.path(), visible * split + pairs * (rest + values.size(-1)),
                       tensor_bytes(q) + tensor_bytes(k) + tensor_bytes(v) + tensor_bytes(y));
  }
  return o_->forward(y, context);
}

bundle::Value SparkAttention::lower(bundle::Builder& builder, const bundle::Value& x,
                                    const std::string& path) const {
  const int64_t count = heads(x.shape), split = options_.split, rest = options_.head_dim - split;
  const auto turned = [&](const Slot& slot) {
    bundle::Value y = slot.lower(builder, x, path);
    for (const auto& [start, dims] : {std::pair(int64_t{0}, split), {split, rest}}) {
      y = builder.node(
          "rope", join_path(path, fmt::format("{}_rope{}", slot.name(), start > 0 ? 2 : 1)), {y},
          {{"heads", count}, {"start", start}, {"dims", dims}, {"base", options_.rope_base}});
    }
    return y;
  };
  bundle::Attributes attributes = {{"heads", count}, {"split", split}, {"tokens", options_.tokens}};
  if (options_.cache > 0) attributes["cache"] = options_.cache;
  const bundle::Value q = turned(*q_), k = turned(*k_), v = v_->lower(builder, x, path);
  return o_->lower(
      builder, builder.node("spark_attention", join_path(path, "attention"), {q, k, v}, attributes),
      path);
}

}  // namespace sluice::lab
