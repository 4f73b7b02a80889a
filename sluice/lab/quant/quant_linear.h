// A linear layer whose weights are stored in few bits (bundle/packed.h). What the engine computes
// from the same bytes, and what training code may put gradients through on the way to other layers;
// its own weights stay as they were packed.
#pragma once
#include <span>

#include "sluice/bundle/packed.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/quant/packed_weight.h"

namespace sluice::lab {

/// Format by name. Throws Error{config} starting with `what` and naming the nearest.
bundle::Format weight_format(const std::string& name, std::string_view what);

/// What a linear layer's input is rounded to, a row (token) at a time.
enum class ActivationFormat : uint8_t {
  f32,   ///< not at all
  bf16,  ///< each number to the nearest, ties to even
  i8     ///< bundle::quantize_activations: scale max |x| / 127
};
/// "f32", "bf16", "i8". Throws Error{config} naming the known ones.
ActivationFormat activation_format(const std::string& name, std::string_view kind);
std::string_view activation_format_name(ActivationFormat format);
/// The values that the codes of `x` stand for, row by row over the last dimension; the gradient
/// passes straight through.
at::Tensor fake_quantized(const at::Tensor& x, ActivationFormat format);

/// y = unpack(W) x + b over the last dimension.
class QuantLinear final : public Brick, public PackedBrick {
 public:
  QuantLinear(bundle::Format format, int64_t inputs, int64_t outputs, bool bias,
              ActivationFormat activations);
  /// Packs a layer's weights. Throws as bundle::pack, and Error{config} for Format::f32.
  static std::shared_ptr<QuantLinear> pack(const Linear& layer, bundle::Format format,
                                           ActivationFormat activations,
                                           const bundle::PackOptions& options = {});

  std::string kind() const override { return "quant_linear"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;

  /// The values that the weights stand for [outputs, inputs], on the device of the weights. Kept
  /// until the weights change.
  const at::Tensor& values() const;
  /// An ordinary layer of these values: the same function where activations are f32.
  std::shared_ptr<Linear> unpacked() const;
  /// Throws Error{shape|format|numeric} naming `what` when the bytes are no such matrix.
  void check_bytes(const std::string& what) const override;
  std::span<const std::byte> bytes() const;  ///< of weights on the CPU

  bundle::Format format() const override { return format_; }
  ActivationFormat activations() const { return activations_; }
  int64_t inputs() const { return inputs_; }
  int64_t outputs() const { return outputs_; }

  at::Tensor weight;  ///< buffer: uint8, the stored bytes
  at::Tensor bias;    ///< undefined when absent

 private:
  bundle::Format format_;
  int64_t inputs_, outputs_;
  ActivationFormat activations_;
  mutable UnpackedValues values_;
};

}  // namespace sluice::lab
