// Attention of rows that might have been: what enumerations of choices need.
#include "sluice/lab/brick/attention.h"

namespace sluice::lab {

at::Tensor Attention::beside(const at::Tensor& x, const at::Tensor& versions,
                             Context& context) const {
  if (!options_.causal || !head_gate_->empty()) {
    fail(Code::unsupported,
         "{}: versions of a row are compared in causal attention without a head gate",
         context.path());
  }
  if (versions.dim() != 4 || x.sizes() != versions.sizes().slice(1)) {
    fail(Code::shape, "attention: versions {} of rows {}; expected [N, B, T, D] of [B, T, D]",
         to_string(versions.sizes()), to_string(x.sizes()));
  }
  const int64_t count = versions.size(0), batch = x.size(0), tokens = x.size(1);
  const at::Tensor flat = versions.flatten(0, 1);
  const auto project = [&](const Slot& slot, const Slot* norm, const at::Tensor& rows) {
    const at::Tensor y = slot.forward(rows, context);
    return norm == nullptr || norm->empty() ? y : norm->forward(y, context);
  };
  const at::Tensor q_rows = project(*q_, q_norm_, flat);
  const at::Tensor k_rows = project(*k_, k_norm_, flat), k_past = project(*k_, k_norm_, x);
  const int64_t dim = options_.head_dim;
  const int64_t heads = q_rows.size(-1) / dim, kv_heads = k_rows.size(-1) / dim;
  const auto by_head = [&](const at::Tensor& y, int64_t n) {  // [.., T, n * W] -> [.., n, T, W]
    return y.reshape({y.size(0), tokens, n, -1}).transpose(1, 2);
  };
  const auto shared = [&](const at::Tensor& y) {
    return heads == kv_heads ? y : y.repeat_interleave(heads / kv_heads, 1);
  };
  const auto own = [&](const at::Tensor& y) {  // [N B, H, T, W] -> [N, B, H, T, W]
    return y.reshape({count, batch, heads, tokens, -1});
  };
  const at::Tensor q = own(turned(by_head(q_rows, heads)) * scale());
  const at::Tensor k = own(shared(turned(by_head(k_rows, kv_heads))));
  const at::Tensor v = own(shared(by_head(v_->forward(flat, context), kv_heads)));
  const at::Tensor past_k = shared(turned(by_head(k_past, kv_heads)));
  const at::Tensor past_v = shared(by_head(v_->forward(x, context), kv_heads));
  const at::Tensor place = at::arange(tokens, x.options().dtype(at::kLong));
  const at::Tensor behind = place.unsqueeze(1) - place.unsqueeze(0);
  at::Tensor seen = behind > 0;
  if (options_.window > 0) seen = seen.logical_and(behind < options_.window);
  const at::Tensor before =
      at::matmul(q, past_k.transpose(-2, -1)).masked_fill(seen.logical_not(), -1e30);
  const at::Tensor itself = (q * k).sum(-1, /*keepdim=*/true);
  const at::Tensor weights = at::softmax(at::cat({before, itself}, -1), -1);
  const at::Tensor y =
      at::matmul(weights.narrow(-1, 0, tokens), past_v) + weights.narrow(-1, tokens, 1) * v;
  const at::Tensor rows = y.flatten(0, 1).transpose(1, 2).flatten(2);
  return o_->forward(rows, context).reshape({count, batch, tokens, -1});
}

}  // namespace sluice::lab
