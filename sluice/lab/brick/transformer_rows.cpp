// Blocks through which only some rows go on, while all are seen: what exits of decoders and gates
// of tokens need.
#include <algorithm>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {

// ---- Attention ----

void Attention::require_rows() const {
  if (!head_gate_->empty()) {
    fail(Code::unsupported,
         "attention: queries of some rows need a layer without a head gate; freeze and slice the "
         "gate first");
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
    at::Tensor seen =
        options_.causal ? at::remainder(rows, tokens) + 1 : at::full_like(rows, tokens);
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
    if (branch.turn != nullptr || branch.body->empty()) {
      fail(Code::unsupported,
           "transformer_block: rows go on one by one only where each branch is a layer beside a "
           "plain stream; {} is {}",
           branch.body->name(), branch.body->empty() ? "empty" : "beside a layer that turns it");
    }
  }
  branches_[0].body->as<Attention>().require_rows();
}

void TransformerBlock::require_no_gate() const {
  if (!gated()) return;
  fail(Code::unsupported,
       "transformer_block: rows that left by an exit meet a token_gate; freeze-gates and "
       "slice-channels first");
}

at::Tensor TransformerBlock::forward_rows(const at::Tensor& x, const at::Tensor& rows,
                                          Context& context) const {
  require_no_gate();
  require_rows();
  return forward_kept(x, post_norm_ ? x : through(*branches_[0].norm, x, context), rows, context);
}

TransformerBlock::LoweredRows TransformerBlock::lower_rows(bundle::Builder& builder,
                                                           const bundle::Value& x,
                                                           const bundle::Value& keep,
                                                           const bundle::Value& positions,
                                                           const std::string& path) const {
  require_no_gate();
  require_rows();
  const Slot& norm = *branches_[0].norm;
  const bundle::Value in = post_norm_ || norm.empty() ? x : norm.lower(builder, x, path);
  return lower_kept(builder, x, in, keep, positions, path);
}

at::Tensor TransformerBlock::forward_kept(const at::Tensor& x, const at::Tensor& in,
                                          const at::Tensor& rows, Context& context) const {
  require_rows();
  const Branch &mixing = branches_[0], &ffn = branches_[1];
  at::Tensor h = x.flatten(0, 1).index_select(0, rows);
  {
    auto& attention = mixing.body->as<Attention>();
    const Context::Scope scope(context, mixing.body->name());
    h = h + attention.forward_rows(in, rows, context);
  }
  if (post_norm_) h = through(*mixing.norm, h, context);
  h = h + ffn.body->forward(post_norm_ ? h : through(*ffn.norm, h, context), context);
  if (post_norm_) h = through(*ffn.norm, h, context);
  return x.flatten(0, 1).index_copy(0, rows, h).view(x.sizes());
}

TransformerBlock::LoweredRows TransformerBlock::lower_kept(
    bundle::Builder& builder, const bundle::Value& x, const bundle::Value& in,
    const bundle::Value& keep, const bundle::Value& positions, const std::string& path) const {
  require_rows();
  const Branch &mixing = branches_[0], &ffn = branches_[1];
  const auto kept = [&](const char* name, const bundle::Value& value) {
    return builder.node("compact_rows", join_path(path, name), {value, keep});
  };
  const auto normed = [&](const Branch& branch, const bundle::Value& value) {
    return branch.norm->empty() ? value : branch.norm->lower(builder, value, path);
  };
  const auto& attention = mixing.body->as<Attention>();
  // Only rotary positions are read; sizes may not leave out a compact_rows, so none is idle.
  const bundle::Value at =
      attention.options().rope.dims > 0 ? kept("kept_positions", positions) : positions;
  bundle::Value h = kept("kept", x);
  const bundle::Value queries = in.name == x.name ? h : kept("kept_normed", in);
  const bundle::Value mixed =
      attention.lower_rows(builder, in, queries, keep, at, join_path(path, mixing.body->name()));
  h = builder.node("add", join_path(path, mixing.add), {h, mixed});
  if (post_norm_) h = normed(mixing, h);
  const bundle::Value out = ffn.body->lower(builder, post_norm_ ? h : normed(ffn, h), path);
  h = builder.node("add", join_path(path, ffn.add), {h, out});
  if (post_norm_) h = normed(ffn, h);
  return {builder.node("scatter_rows", join_path(path, "rejoin"), {x, h, keep}), h};
}

double TransformerBlock::token_macs(const Shape& input) const {
  double macs = 0;
  for (const Branch& branch : branches_) {
    if (!branch.body->empty()) macs += double(branch.body->cost(input).macs);
  }
  if (branches_[0].body->empty()) return macs;
  // Others look at a token that stayed outside: its key and value are computed.
  for (const char* name : {"k", "v"})
    macs -= double((*branches_[0].body)->slot(name).cost(input).macs);
  return macs;
}

at::Tensor TransformerBlock::forward_gated(const at::Tensor& x, Context& context) const {
  const Shape shape(x.sizes().begin() + 1, x.sizes().end());
  const double macs = context.gate_log != nullptr ? token_macs(shape) : 0;
  const bool reads = decides_by_input(*token_gate_) && !post_norm_;
  const at::Tensor in = reads ? through(*branches_[0].norm, x, context) : x;
  const at::Tensor decision = unit_decision(*token_gate_, in, macs, context);  // [B, T or 1, 1]
  const at::Tensor open = decision.detach() != 0;
  if (decides_by_input(*token_gate_)) {
    const bool soft = (open != (decision.detach() == 1)).any().item<bool>();
    if (decision.requires_grad() || soft) {
      return forward_all(x, in, context) * decision + x * (1 - decision);
    }
  }
  if (open.all().item<bool>()) return forward_all(x, reads ? in : at::Tensor(), context);
  if (!decides_by_input(*token_gate_)) return x;
  const at::Tensor rows = open.expand({x.size(0), x.size(1), 1}).flatten().nonzero().flatten();
  return forward_kept(x, in, rows, context);
}

}  // namespace sluice::lab
