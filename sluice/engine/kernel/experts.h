// Mixture-of-experts feed-forward layers: every token goes through the top_k experts that its
// router logits name, and the results are added with the routing weights. Tokens are sorted by
// expert, so that each expert that is wanted at all reads its weights once, for exactly the tokens
// it has: no capacity, nobody is dropped. Experts that nobody wants are never touched.
#pragma once
#include <vector>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/kernel.h"
#include "sluice/engine/kernel/packed_dot.h"

namespace sluice::engine {

struct Experts {
  std::vector<bundle::PackedMatrix> up, gate, down;  ///< [hidden][in], [hidden][in], [hidden][out]
  Activation activation = Activation::silu;
  size_t top_k = 1;
  /// Routing weights: softmax over all logits, then the chosen ones as they are; otherwise softmax
  /// over the chosen ones.
  bool softmax_first = false;
  DotKind kind = DotKind::f32;
  /// Copies for groups of many tokens, by make_expert_panels; empty: groups take the kernels of few
  /// tokens.
  std::vector<Buffer> up_panels, gate_panels, down_panels;

  bool gated() const { return !gate.empty(); }
  size_t count() const { return up.size(); }
};

/// f32 weights and activations only (others stay as they are): copies the weights into the order of
/// panel.h.
void make_expert_panels(Experts& experts);
/// From that many tokens per expert on, the copies are worth making.
bool expert_panels_pay(const Experts& experts, int64_t rows);

/// Throws Error{limit} on overflow.
int64_t experts_scratch(const Experts& experts, int64_t rows, int threads);
/// x [rows][in], logits [rows][experts], y [rows][out]. Of equal logits the lower expert is chosen,
/// NaN ranks lowest and makes the token's result NaN.
void run_experts(const Experts& experts, const float* x, const float* logits, float* y, size_t rows,
                 std::byte* scratch, int threads, Work* work);

}  // namespace sluice::engine
