// Blocks through which only some rows go on, while all are seen: what exits of decoders need.
#include <algorithm>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/brick/transformer.h"

namespace sluice::lab {

// ---- Attention ----

void Attention::require_rows() const {
  if (!options_.causal || !head_gate_->empty()) {
    fail(Code::unsupported,
         "attention: queries of some rows need a causal mask and no head gate; freeze and slice "
         "the gate first");
  }
}

at::Tensor Attention::forward_rows(const at::Tensor& x, const at::Tensor& rows, Context& context) {
  require_rows();
  const int64_t batch = x.size(0), tokens = x.size(1), dim = options_.head_dim;
  at::Tensor q = q_->forward(x.flatten(0, 1).index_select(0, rows), context),
             k = k_->forward(x, context), v = v_->forward(x, context);
  if (!q_norm_->empty()) q = q_norm_->forward(q, context);
  if (!k_norm_->empty()) k = k_norm_->forward(k, context);
  const int64_t heads = q.size(-1) / dim, kv_heads = k.size(-1) / dim;
  const auto by_head = [&](const at::Tensor& y, int64_t count) {
    return y.reshape({batch, tokens, count, -1}).transpose(1, 2);
  };
  const auto shared = [&](const at::Tensor& y) {
    if (heads == kv_heads) return y;
    return y.unsqueeze(2)
        .expand({batch, kv_heads, heads / kv_heads, tokens, y.size(-1)})
        .reshape({batch, heads, tokens, y.size(-1)});
  };
  // The products run for all rows here; the engine's do not, and the meter counts as it does.
  const at::Tensor all_q =
      at::zeros({batch * tokens, q.size(-1)}, q.options()).index_copy(0, rows, q);
  k = turned(by_head(k, kv_heads));
  v = by_head(v, kv_heads);
  const int64_t value_dim = v.size(-1);
  const at::Tensor y = mix(turned(by_head(all_q, heads)), shared(k), shared(v), context)
                           .transpose(1, 2)
                           .flatten(2)
                           .flatten(0, 1)
                           .index_select(0, rows);
  if (context.meter != nullptr) {
    at::Tensor seen = at::remainder(rows, tokens) + 1;
    if (options_.window > 0) seen = seen.clamp_max(options_.window);
    context.meter->add(context.path(), seen.sum().item<int64_t>() * heads * (dim + value_dim),
                       tensor_bytes(q) + tensor_bytes(k) + tensor_bytes(v) + tensor_bytes(y));
  }
  return o_->forward(y, context);
}

bundle::Value Attention::lower_rows(bundle::Builder& builder, const bundle::Value& x,
                                    const bundle::Value& kept, const bundle::Value& keep,
                                    const bundle::Value& positions, const std::string& path) const {
  require_rows();
  const Sizes s = sizes(x.shape);
  bundle::Value q = q_->lower(builder, kept, path), k = k_->lower(builder, x, path);
  const bundle::Value v = v_->lower(builder, x, path);
  if (!q_norm_->empty()) q = q_norm_->lower(builder, q, path);
  if (!k_norm_->empty()) k = k_norm_->lower(builder, k, path);
  q = lower_turned(builder, q, path, "q_rope", s.heads, &positions);
  k = lower_turned(builder, k, path, "k_rope", s.kv_heads);
  const bundle::Value y =
      builder.node("attention", join_path(path, "attention"), {q, k, v, keep}, mix_attributes(s));
  return o_->lower(builder, y, path);
}

// ---- TransformerBlock ----

void TransformerBlock::require_rows() const {
  for (const Branch& branch : branches_) {
    if (post_norm_ || branch.turn != nullptr || branch.norm->empty() || branch.body->empty()) {
      fail(Code::unsupported,
           "transformer_block: rows go on one by one only where each branch is a norm and a layer "
           "beside a plain stream");
    }
  }
}

at::Tensor TransformerBlock::forward_rows(const at::Tensor& x, const at::Tensor& rows,
                                          Context& context) const {
  require_rows();
  const Branch &mixing = branches_[0], &ffn = branches_[1];
  const at::Tensor normed = mixing.norm->forward(x, context);
  at::Tensor h = x.flatten(0, 1).index_select(0, rows);
  {
    auto& attention = mixing.body->as<Attention>();
    const Context::Scope scope(context, mixing.body->name());
    h = h + attention.forward_rows(normed, rows, context);
  }
  h = h + ffn.body->forward(ffn.norm->forward(h, context), context);
  return x.flatten(0, 1).index_copy(0, rows, h).view(x.sizes());
}

TransformerBlock::LoweredRows TransformerBlock::lower_rows(bundle::Builder& builder,
                                                           const bundle::Value& x,
                                                           const bundle::Value& keep,
                                                           const bundle::Value& positions,
                                                           const std::string& path) const {
  require_rows();
  const Branch &mixing = branches_[0], &ffn = branches_[1];
  const auto kept = [&](const char* name, const bundle::Value& value) {
    return builder.node("compact_rows", join_path(path, name), {value, keep});
  };
  const bundle::Value normed = mixing.norm->lower(builder, x, path);
  const auto& attention = mixing.body->as<Attention>();
  // Only rotary positions are read; sizes may not leave out a compact_rows, so none is idle.
  const bundle::Value at =
      attention.options().rope.dims > 0 ? kept("kept_positions", positions) : positions;
  const bundle::Value mixed = attention.lower_rows(builder, normed, kept("kept_normed", normed),
                                                   keep, at, join_path(path, mixing.body->name()));
  bundle::Value h = builder.node("add", join_path(path, mixing.add), {kept("kept", x), mixed});
  const bundle::Value in = ffn.norm->lower(builder, h, path);
  h = builder.node("add", join_path(path, ffn.add), {h, ffn.body->lower(builder, in, path)});
  return {builder.node("scatter_rows", join_path(path, "rejoin"), {x, h, keep}), h};
}

}  // namespace sluice::lab
