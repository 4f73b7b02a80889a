#include "sluice/lab/quant/quant_linear.h"

#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

at::Tensor rounded_to_i8(const at::Tensor& x) {
  const at::Tensor scale = x.abs().amax(-1, /*keepdim=*/true) / 127.0f;
  // A row of zeros has scale 0 and codes 0; NaN and infinity make their whole row NaN.
  const at::Tensor codes = (x / scale).round().clamp(-127.0f, 127.0f);
  const at::Tensor values = at::where(scale == 0, at::zeros_like(scale), codes * scale);
  return at::where(at::isfinite(scale), values, at::full_like(scale, NAN));
}

}  // namespace

ActivationFormat activation_format(const std::string& name, std::string_view kind) {
  for (const ActivationFormat each :
       {ActivationFormat::f32, ActivationFormat::bf16, ActivationFormat::i8}) {
    if (name == activation_format_name(each)) return each;
  }
  fail(Code::config, "activations of {}: expected f32, bf16 or i8, found '{}'", kind,
       name.substr(0, 60));
}

std::string_view activation_format_name(ActivationFormat format) {
  switch (format) {
    case ActivationFormat::f32:
      return "f32";
    case ActivationFormat::bf16:
      return "bf16";
    case ActivationFormat::i8:
      return "i8";
  }
  SLUICE_CHECK(!"every format is above");
  return "";
}

at::Tensor fake_quantized(const at::Tensor& x, ActivationFormat format) {
  if (format == ActivationFormat::f32) return x;
  const at::Tensor source = x.detach();
  const at::Tensor rounded = format == ActivationFormat::bf16
                                 ? source.to(at::kBFloat16).to(source.scalar_type())
                                 : rounded_to_i8(source);
  return x.requires_grad() ? rounded + (x - source) : rounded;  // adds exactly 0
}

QuantLinear::QuantLinear(bundle::Format format, int64_t inputs, int64_t outputs, bool with_bias,
                         ActivationFormat activations)
    : format_(format),
      inputs_(require_range(inputs, 1, kMaxElements, "inputs", "quant_linear")),
      outputs_(require_range(outputs, 1, kMaxElements, "outputs", "quant_linear")),
      activations_(activations) {
  require_elements({inputs, outputs}, "weight", "quant_linear");
  if (format == bundle::Format::f32) {
    fail(Code::config, "format of quant_linear: f32 is what an ordinary linear layer has");
  }
  const int64_t size = bundle::stored_bytes(format, {outputs, inputs});
  if (WithoutInit::active()) {
    weight = register_buffer("weight", at::empty({size}, at::kByte));
  } else {
    weight = register_buffer("weight", packed_bytes(at::zeros({outputs, inputs}), format));
  }
  if (with_bias) bias = register_parameter("bias", at::zeros({outputs}));
}

std::shared_ptr<QuantLinear> QuantLinear::pack(const Linear& layer, bundle::Format format,
                                               ActivationFormat activations,
                                               const bundle::PackOptions& options) {
  const WithoutInit without_init;
  auto result = std::make_shared<QuantLinear>(format, layer.inputs(), layer.outputs(),
                                              layer.bias.defined(), activations);
  result->weight.set_data(packed_bytes(layer.weight, format, options));
  if (layer.bias.defined()) {
    result->bias.set_data(layer.bias.detach().clone());
    result->bias.set_requires_grad(layer.bias.requires_grad());
  }
  result->train(layer.is_training());
  return result;
}

Json QuantLinear::attributes() const {
  return {{"inputs", inputs_},
          {"outputs", outputs_},
          {"bias", bias.defined()},
          {"format", std::string(bundle::format_name(format_))},
          {"activations", std::string(activation_format_name(activations_))}};
}

BrickPtr make_quant_linear(const Json& attributes) {
  const AttributeReader read(attributes, "quant_linear",
                             {"inputs", "outputs", "bias", "format", "activations"});
  return std::make_shared<QuantLinear>(
      weight_format(read.text("format"), "format of quant_linear"), read.integer("inputs"),
      read.integer("outputs"), read.boolean("bias", true),
      activation_format(read.text("activations", "f32"), "quant_linear"));
}

bundle::Format weight_format(const std::string& name, std::string_view what) {
  const std::optional<bundle::Format> format = bundle::format_from_name(name);
  if (format) return *format;
  std::vector<std::string> known;
  for (const bundle::Format each : bundle::all_formats()) {
    if (each != bundle::Format::f32) known.emplace_back(bundle::format_name(each));
  }
  const std::string near = nearest_name(name, known);
  fail(Code::config, "{}: unknown '{}'{}; known: {}", what, name.substr(0, 60),
       near.empty() ? "" : fmt::format(", did you mean '{}'?", near), fmt::join(known, ", "));
}

std::span<const std::byte> QuantLinear::bytes() const { return bytes_view(weight); }

void QuantLinear::check_bytes(const std::string& what) const {
  bundle::view_packed(format_, outputs_, inputs_, bytes(), what);
}

const at::Tensor& QuantLinear::values() const {
  return values_.of(weight, format_, outputs_, inputs_);
}

std::shared_ptr<Linear> QuantLinear::unpacked() const {
  const WithoutInit without_init;
  auto result = std::make_shared<Linear>(inputs_, outputs_, bias.defined());
  result->weight.set_data(values().clone());
  if (bias.defined()) {
    result->bias.set_data(bias.detach().clone());
    result->bias.set_requires_grad(bias.requires_grad());
  }
  result->train(is_training());
  return result;
}

at::Tensor QuantLinear::forward(const at::Tensor& x, Context& context) {
  at::Tensor y = at::linear(fake_quantized(x, activations_), values(), bias);
  if (context.meter != nullptr) {
    context.meter->add(
        context.path(), y.numel() * inputs_,
        tensor_bytes(x) + tensor_bytes(y) + tensor_bytes(weight) + tensor_bytes(bias));
  }
  return y;
}

Shape QuantLinear::output_shape(const Shape& input) const {
  if (input.empty() || input.back() != inputs_) {
    fail(Code::shape, "quant_linear: expected [.., {}], found {}", inputs_, to_string(input));
  }
  Shape output = input;
  output.back() = outputs_;
  return output;
}

Cost QuantLinear::cost(const Shape& input) const {
  const int64_t rows = numel(output_shape(input)) / outputs_;
  const int64_t weights = checked_mul(inputs_, outputs_, "MACs of quant_linear");
  const int64_t biases = bias.defined() ? outputs_ : 0;
  return {checked_mul(rows, weights, "MACs of quant_linear"), weights + biases,
          weight.numel() + 4 * biases};
}

bundle::Value QuantLinear::lower(bundle::Builder& builder, const bundle::Value& x,
                                 const std::string& path) const {
  std::map<std::string, std::string> tensors = {{"weight", join_path(path, "weight")}};
  const at::Tensor host = weight.cpu().contiguous();
  builder.tensor(
      tensors["weight"], format_, {outputs_, inputs_},
      {static_cast<const std::byte*>(host.data_ptr()), static_cast<size_t>(host.numel())});
  if (bias.defined()) {
    tensors["bias"] = join_path(path, "bias");
    add_tensor(builder, tensors["bias"], bias);
  }
  bundle::Attributes attributes;
  if (activations_ != ActivationFormat::f32) {
    attributes["activations"] = std::string(activation_format_name(activations_));
  }
  return builder.node("linear", path.empty() ? kind() : path, {x}, std::move(attributes),
                      std::move(tensors));
}

}  // namespace sluice::lab
