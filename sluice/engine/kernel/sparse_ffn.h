// Feed-forward layers that compute only the neurons a token needs:
//
//   plain  y = down^T act(up x + b_up) + b_down
//   gated  y = down^T (act(gate x + b_gate) * (up x + b_up)) + b_down
//
// up, gate and down are all stored by neuron, [neurons][in] and [neurons][out], so that a neuron
// that sleeps is three runs of bytes that nobody reads. Who is awake is decided by scores from
// outside, by a low-rank predictor, or by the layer's first product itself (gate, or up where there
// is no gate), which is then computed for all neurons, and only the rest is skipped.
#pragma once
#include "sluice/engine/kernel/active_rows.h"
#include "sluice/engine/kernel/selector.h"

namespace sluice::engine {

struct SparseFfn {
  enum class Source : uint8_t {
    none,       ///< all neurons: the dense layer
    input,      ///< scores [neurons] beside x
    predictor,  ///< predictor_b (predictor_a x)
    first,      ///< the first product, before the activation
    activated   ///< the first product, after the activation
  };
  bundle::PackedMatrix up, gate, down;            ///< gate.rows is 0 for the plain layer
  bundle::PackedMatrix predictor_a, predictor_b;  ///< [rank][in], [neurons][rank]
  const float *up_bias = nullptr, *gate_bias = nullptr, *down_bias = nullptr;  ///< each may be null
  Activation activation = Activation::relu;
  Source source = Source::none;
  Selector select;
  /// The selector's threshold is subtracted from the first product before the activation (source
  /// `first`).
  bool soft = false;
  /// Above 0: the gate reads the first `split` inputs, up the others (Spark FFN: You et al. 2025,
  /// arXiv 2506.06644); gate.columns + up.columns inputs in all.
  int64_t split = 0;
  DotKind kind = DotKind::f32;

  bool gated() const { return gate.rows > 0; }
  int64_t inputs() const { return split + up.columns; }
};

int64_t sparse_ffn_scratch(const SparseFfn& layer, int threads);
/// x [rows][in], scores [rows][neurons] for Source::input, y [rows][out]. Any alignment.
void run_sparse_ffn(const SparseFfn& layer, const float* x, const float* scores, float* y,
                    size_t rows, std::byte* scratch, int threads, Work* work);

}  // namespace sluice::engine
