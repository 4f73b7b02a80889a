// A convolution whose weights are stored in int8 with a scale per output channel. What the engine
// computes from the same bytes; its own weights stay as they were packed.
#pragma once
#include <span>

#include "sluice/lab/brick/graph_network.h"
#include "sluice/lab/quant/quant_linear.h"

namespace sluice::lab {

class QuantConv final : public Brick, public PackedBrick {
 public:
  /// `square`: stands for a Conv2d, else for a GraphConv. Activations f32 or i8, otherwise
  /// Error{config}.
  QuantConv(GraphConvOptions options, bool square, ActivationFormat activations);
  /// Packs a layer's weights. Throws as bundle::pack.
  static std::shared_ptr<QuantConv> pack(const Conv2d& layer, ActivationFormat activations);
  static std::shared_ptr<QuantConv> pack(const GraphConv& layer, ActivationFormat activations);

  std::string kind() const override { return "quant_conv"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;

  /// The values that the weights stand for [outputs, inputs / groups, kh, kw].
  at::Tensor values() const;
  /// An ordinary layer of these values, a Conv2d or a GraphConv: the same function where
  /// activations are f32.
  BrickPtr unpacked() const;
  void check_bytes(const std::string& what) const override;
  std::span<const std::byte> bytes() const;  ///< of weights on the CPU

  bundle::Format format() const override { return bundle::Format::i8; }
  ActivationFormat activations() const { return activations_; }
  const GraphConvOptions& options() const { return options_; }

  at::Tensor weight;  ///< buffer: uint8, the stored bytes
  at::Tensor bias;    ///< undefined when absent

 private:
  int64_t columns() const;

  GraphConvOptions options_;
  bool square_;
  ActivationFormat activations_;
  mutable UnpackedValues values_;
};

/// Each sample of a batch as bundle::quantize_sample rounds it; the gradient passes straight
/// through.
at::Tensor fake_quantized_samples(const at::Tensor& x);

BrickPtr make_quant_conv(const Json& attributes);

}  // namespace sluice::lab
