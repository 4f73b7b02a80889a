#include "sluice/lab/quant/quant_conv.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

constexpr char kQuantConv[] = "quant_conv";

/// Sizes are checked by the layer that it stands for.
GraphConvOptions checked(GraphConvOptions options) {
  const WithoutInit without_init;
  return GraphConv(std::move(options)).options();
}

GraphConvOptions options_of(const Conv2d& layer) {
  const Conv2dOptions& o = layer.options();
  GraphConvOptions options;
  options.inputs = o.inputs;
  options.outputs = o.outputs;
  options.groups = o.groups;
  options.kernel = {o.kernel, o.kernel};
  options.stride = {o.stride, o.stride};
  options.padding = {o.padding, o.padding};
  options.bias = o.bias;
  return options;
}

template <class Layer>
void copy_bias(const at::Tensor& from, Layer& to) {
  if (!from.defined()) return;
  to.bias.set_data(from.detach().clone());
  to.bias.set_requires_grad(from.requires_grad());
}

template <class Layer>
std::shared_ptr<QuantConv> packed_layer(const Layer& layer, GraphConvOptions options, bool square,
                                        ActivationFormat activations) {
  const WithoutInit without_init;
  auto result = std::make_shared<QuantConv>(std::move(options), square, activations);
  result->weight.set_data(packed_bytes(layer.weight.flatten(1), bundle::Format::i8));
  copy_bias(layer.bias, *result);
  result->train(layer.is_training());
  return result;
}

}  // namespace

at::Tensor fake_quantized_samples(const at::Tensor& x) {
  const at::Tensor source = x.detach();
  const at::Tensor scale = source.abs().amax({1, 2, 3}, /*keepdim=*/true) / 127.0f;
  const at::Tensor factor = scale.reciprocal();
  const at::Tensor values = (source * factor).round().clamp(-127.0f, 127.0f) * scale;
  // A sample of zeros, or all but zeros, has scale 0; NaN and infinity make all of it NaN.
  at::Tensor rounded = at::where(at::isinf(factor), at::zeros_like(scale), values);
  rounded = at::where(at::isfinite(scale), rounded, at::full_like(scale, NAN));
  return x.requires_grad() ? rounded + (x - source) : rounded;  // adds exactly 0
}

QuantConv::QuantConv(GraphConvOptions options, bool square, ActivationFormat activations)
    : options_(checked(std::move(options))), square_(square), activations_(activations) {
  const auto& o = options_;
  if (activations == ActivationFormat::bf16)
    fail(Code::config, "activations of {}: expected f32 or i8, found 'bf16'", kQuantConv);
  if (square && (o.kernel[0] != o.kernel[1] || o.stride[0] != o.stride[1] ||
                 o.padding[0] != o.padding[1] || o.dilation[0] != 1 || o.dilation[1] != 1)) {
    fail(Code::config,
         "square of {}: sizes in two directions that differ, or a dilation, are no conv2d's",
         kQuantConv);
  }
  if (WithoutInit::active()) {
    weight = register_buffer(
        "weight", at::empty({bundle::stored_bytes(format(), {o.outputs, columns()})}, at::kByte));
  } else {
    weight = register_buffer("weight", packed_bytes(at::zeros({o.outputs, columns()}), format()));
  }
  if (o.bias) bias = register_parameter("bias", at::zeros({o.outputs}));
}

int64_t QuantConv::columns() const {
  return options_.inputs / options_.groups * options_.kernel[0] * options_.kernel[1];
}

std::shared_ptr<QuantConv> QuantConv::pack(const Conv2d& layer, ActivationFormat activations) {
  return packed_layer(layer, options_of(layer), /*square=*/true, activations);
}

std::shared_ptr<QuantConv> QuantConv::pack(const GraphConv& layer, ActivationFormat activations) {
  return packed_layer(layer, layer.options(), /*square=*/false, activations);
}

Json QuantConv::attributes() const {
  const auto& o = options_;
  return {
      {"inputs", o.inputs},   {"outputs", o.outputs},
      {"kernel", o.kernel},   {"stride", o.stride},
      {"padding", o.padding}, {"dilation", o.dilation},
      {"groups", o.groups},   {"bias", o.bias},
      {"square", square_},    {"activations", std::string(activation_format_name(activations_))}};
}

BrickPtr make_quant_conv(const Json& attributes) {
  const AttributeReader read(attributes, kQuantConv,
                             {"inputs", "outputs", "kernel", "stride", "padding", "dilation",
                              "groups", "bias", "square", "activations"});
  GraphConvOptions options;
  options.inputs = read.integer("inputs");
  options.outputs = read.integer("outputs");
  options.kernel = read.integers("kernel", 2);
  options.stride = read.integers("stride", 2);
  options.padding = read.integers("padding", 2);
  options.dilation = read.integers("dilation", 2);
  options.groups = read.integer("groups", 1);
  options.bias = read.boolean("bias", true);
  return std::make_shared<QuantConv>(
      std::move(options), read.boolean("square", false),
      activation_format(read.text("activations", "f32"), kQuantConv));
}

std::span<const std::byte> QuantConv::bytes() const { return bytes_view(weight); }

void QuantConv::check_bytes(const std::string& what) const {
  bundle::view_packed(format(), options_.outputs, columns(), bytes(), what);
}

at::Tensor QuantConv::values() const {
  const auto& o = options_;
  return values_.of(weight, format(), o.outputs, columns())
      .view({o.outputs, o.inputs / o.groups, o.kernel[0], o.kernel[1]});
}

BrickPtr QuantConv::unpacked() const {
  const WithoutInit without_init;
  const auto& o = options_;
  const auto filled = [&](auto layer) -> BrickPtr {
    layer->weight.set_data(values().clone());
    copy_bias(bias, *layer);
    layer->train(is_training());
    return layer;
  };
  if (!square_) return filled(std::make_shared<GraphConv>(o));
  return filled(std::make_shared<Conv2d>(Conv2dOptions{.inputs = o.inputs,
                                                       .outputs = o.outputs,
                                                       .kernel = o.kernel[0],
                                                       .stride = o.stride[0],
                                                       .padding = o.padding[0],
                                                       .groups = o.groups,
                                                       .bias = o.bias}));
}

at::Tensor QuantConv::forward(const at::Tensor& x, Context& context) {
  const at::Tensor input = activations_ == ActivationFormat::i8 ? fake_quantized_samples(x) : x;
  const auto& o = options_;
  at::Tensor y = at::conv2d(input, values(), bias, o.stride, o.padding, o.dilation, o.groups);
  if (context.meter != nullptr) {
    context.meter->add(
        context.path(), y.numel() * columns(),
        tensor_bytes(x) + tensor_bytes(y) + tensor_bytes(weight) + tensor_bytes(bias));
  }
  return y;
}

Shape QuantConv::output_shape(const Shape& input) const {
  return conv_output_shape(options_, input, kQuantConv);
}

Cost QuantConv::cost(const Shape& input) const {
  const Shape output = output_shape(input);
  const int64_t weights = options_.outputs * columns();
  const int64_t biases = bias.defined() ? options_.outputs : 0;
  return {checked_mul(output[1] * output[2], weights, "MACs of quant_conv"), weights + biases,
          weight.numel() + 4 * biases};
}

bundle::Value QuantConv::lower(bundle::Builder& builder, const bundle::Value& x,
                               const std::string& path) const {
  std::map<std::string, std::string> tensors{{"weight", join_path(path, "weight")}};
  const at::Tensor host = weight.cpu().contiguous();
  const auto& o = options_;
  builder.tensor(tensors["weight"], format(), {o.outputs, columns()}, bytes_view(host));
  if (bias.defined()) {
    tensors["bias"] = join_path(path, "bias");
    add_tensor(builder, tensors["bias"], bias);
  }
  bundle::Attributes attributes{{"kernel", o.kernel},
                                {"stride", o.stride},
                                {"padding", o.padding},
                                {"dilation", o.dilation},
                                {"groups", o.groups}};
  if (activations_ != ActivationFormat::f32)
    attributes["activations"] = std::string(activation_format_name(activations_));
  return builder.node("conv2d", node_path_of(path, *this), {x}, std::move(attributes),
                      std::move(tensors));
}

}  // namespace sluice::lab
