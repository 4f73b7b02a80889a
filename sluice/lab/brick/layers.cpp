// Layers with weights: Linear, Conv2d, BatchNorm. The ones without are in simple_layers.cpp.
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/steps.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/conv_shape.h"
#include "sluice/lab/brick/init.h"

namespace sluice::lab {
namespace {

constexpr int64_t kMaxKernel = 1024;

// Weights and activations touched by one call.
void meter_call(Context& context, const Brick& brick, int64_t macs, const at::Tensor& x,
                const at::Tensor& y) {
  int64_t bytes = tensor_bytes(x) + tensor_bytes(y);
  for (const at::Tensor& parameter : brick.parameters(/*recurse=*/false)) {
    bytes += tensor_bytes(parameter);
  }
  context.meter->add(context.path(), macs, bytes);
}

Cost stored_cost(int64_t macs, int64_t params) { return {macs, params, 4 * params}; }

at::Tensor sliced(const at::Tensor& tensor, int64_t dim, const at::Tensor& keep) {
  return tensor.detach().index_select(dim, keep.to(tensor.device())).clone();
}

// Copies values, device and dtype; keeps whether it is trained.
void put(at::Tensor& target, const at::Tensor& from, const at::Tensor& value) {
  SLUICE_CHECK(target.sizes() == value.sizes());
  target.set_data(value.detach());
  target.set_requires_grad(from.requires_grad());
}

at::Tensor row_norms(const at::Tensor& weight, double norm) {
  return at::norm(weight.detach().reshape({weight.size(0), -1}), norm, 1);
}

std::map<std::string, std::string> weight_and_bias(bundle::Builder& builder,
                                                   const std::string& path,
                                                   const at::Tensor& weight,
                                                   const at::Tensor& bias) {
  std::map<std::string, std::string> tensors = {{"weight", join_path(path, "weight")}};
  add_tensor(builder, tensors["weight"], weight);
  if (bias.defined()) {
    tensors["bias"] = join_path(path, "bias");
    add_tensor(builder, tensors["bias"], bias);
  }
  return tensors;
}

}  // namespace

// ---- Linear ----

Linear::Linear(int64_t inputs, int64_t outputs, bool with_bias)
    : inputs_(require_range(inputs, 1, kMaxElements, "inputs", "linear")),
      outputs_(require_range(outputs, 1, kMaxElements, "outputs", "linear")) {
  require_elements({inputs, outputs}, "weight", "linear");
  weight = register_parameter("weight", initial_uniform({outputs, inputs}, inputs));
  if (with_bias) bias = register_parameter("bias", initial_uniform({outputs}, inputs));
}

Json Linear::attributes() const {
  return {{"inputs", inputs_}, {"outputs", outputs_}, {"bias", bias.defined()}};
}

BrickPtr make_linear(const Json& attributes) {
  const AttributeReader read(attributes, "linear", {"inputs", "outputs", "bias"});
  return std::make_shared<Linear>(read.integer("inputs"), read.integer("outputs"),
                                  read.boolean("bias", true));
}

at::Tensor Linear::forward(const at::Tensor& x, Context& context) {
  at::Tensor y = at::linear(x, weight, bias);
  if (context.meter != nullptr) meter_call(context, *this, y.numel() * inputs_, x, y);
  return y;
}

Shape Linear::output_shape(const Shape& input) const {
  if (input.empty() || input.back() != inputs_) {
    fail(Code::shape, "linear: expected [.., {}], found {}", inputs_, to_string(input));
  }
  Shape output = input;
  output.back() = outputs_;
  return output;
}

Cost Linear::cost(const Shape& input) const {
  const int64_t rows = numel(output_shape(input)) / outputs_;
  return stored_cost(
      checked_mul(rows, checked_mul(inputs_, outputs_, "MACs of linear"), "MACs of linear"),
      weight.numel() + (bias.defined() ? outputs_ : 0));
}

bundle::Value Linear::lower(bundle::Builder& builder, const bundle::Value& x,
                            const std::string& path) const {
  return builder.node("linear", node_path_of(path, *this), {x}, {},
                      weight_and_bias(builder, path, weight, bias));
}

BrickPtr Linear::slice_outputs(const at::Tensor& keep) const {
  const WithoutInit without_init;
  auto result = std::make_shared<Linear>(inputs_, keep.numel(), bias.defined());
  put(result->weight, weight, sliced(weight, 0, keep));
  if (bias.defined()) put(result->bias, bias, sliced(bias, 0, keep));
  result->train(is_training());
  return result;
}

BrickPtr Linear::slice_inputs(const at::Tensor& keep) const {
  const WithoutInit without_init;
  auto result = std::make_shared<Linear>(keep.numel(), outputs_, bias.defined());
  put(result->weight, weight, sliced(weight, 1, keep));
  if (bias.defined()) put(result->bias, bias, bias.detach().clone());
  result->train(is_training());
  return result;
}

at::Tensor Linear::output_norms(double norm) const { return row_norms(weight, norm); }

// ---- Conv2d ----

Conv2d::Conv2d(const Conv2dOptions& options) : options_(options) {
  const auto& o = options_;
  require_range(o.inputs, 1, kMaxChannels, "inputs", "conv2d");
  require_range(o.outputs, 1, kMaxChannels, "outputs", "conv2d");
  require_range(o.kernel, 1, kMaxKernel, "kernel", "conv2d");
  require_range(o.stride, 1, kMaxKernel, "stride", "conv2d");
  require_range(o.padding, 0, kMaxKernel, "padding", "conv2d");
  require_range(o.groups, 1, o.inputs, "groups", "conv2d");
  if (o.inputs % o.groups != 0 || o.outputs % o.groups != 0) {
    fail(Code::config, "groups of conv2d: {} divides not both {} inputs and {} outputs", o.groups,
         o.inputs, o.outputs);
  }
  const int64_t per_group = o.inputs / o.groups;
  require_elements({o.outputs, per_group, o.kernel, o.kernel}, "weight", "conv2d");
  const int64_t fan_in = per_group * o.kernel * o.kernel;
  weight = register_parameter("weight",
                              initial_uniform({o.outputs, per_group, o.kernel, o.kernel}, fan_in));
  if (o.bias) bias = register_parameter("bias", initial_uniform({o.outputs}, fan_in));
}

Json Conv2d::attributes() const {
  return {{"inputs", options_.inputs}, {"outputs", options_.outputs}, {"kernel", options_.kernel},
          {"stride", options_.stride}, {"padding", options_.padding}, {"groups", options_.groups},
          {"bias", options_.bias}};
}

BrickPtr make_conv2d(const Json& attributes) {
  const AttributeReader read(
      attributes, "conv2d", {"inputs", "outputs", "kernel", "stride", "padding", "groups", "bias"});
  Conv2dOptions options;
  options.inputs = read.integer("inputs");
  options.outputs = read.integer("outputs");
  options.kernel = read.integer("kernel", options.kernel);
  options.stride = read.integer("stride", options.stride);
  options.padding = read.integer("padding", options.padding);
  options.groups = read.integer("groups", options.groups);
  options.bias = read.boolean("bias", options.bias);
  return std::make_shared<Conv2d>(options);
}

at::Tensor Conv2d::forward(const at::Tensor& x, Context& context) {
  at::Tensor y = at::conv2d(x, weight, bias, {options_.stride, options_.stride},
                            {options_.padding, options_.padding}, {1, 1}, options_.groups);
  if (context.meter != nullptr) {
    meter_call(context, *this, y.numel() * (weight.numel() / options_.outputs), x, y);
  }
  return y;
}

Shape conv2d_output_shape(const Conv2dOptions& options, const Shape& input, std::string_view kind) {
  if (input.size() != 3 || input[0] != options.inputs) {
    fail(Code::shape, "{}: expected [{}, height, width], found {}", kind, options.inputs,
         to_string(input));
  }
  Shape output = {options.outputs, 0, 0};
  for (size_t d = 1; d < 3; ++d) {
    const int64_t room = input[d] + 2 * options.padding - options.kernel;
    if (input[d] < 1 || room < 0) {
      fail(Code::shape, "{}: a kernel of {} with padding {} does not fit into {}", kind,
           options.kernel, options.padding, to_string(input));
    }
    output[d] = room / options.stride + 1;
  }
  return output;
}

Shape Conv2d::output_shape(const Shape& input) const {
  return conv2d_output_shape(options_, input, "conv2d");
}

Cost Conv2d::cost(const Shape& input) const {
  const Shape output = output_shape(input);
  return stored_cost(
      checked_mul(numel(std::span(output).subspan(1)), weight.numel(), "MACs of conv2d"),
      weight.numel() + (bias.defined() ? options_.outputs : 0));
}

bundle::Value Conv2d::lower(bundle::Builder& builder, const bundle::Value& x,
                            const std::string& path) const {
  const std::vector<int64_t> stride(2, options_.stride), padding(2, options_.padding);
  return builder.node("conv2d", node_path_of(path, *this), {x},
                      {{"stride", stride}, {"padding", padding}, {"groups", options_.groups}},
                      weight_and_bias(builder, path, weight, bias));
}

BrickPtr Conv2d::slice_outputs(const at::Tensor& keep) const {
  if (options_.groups != 1) {
    fail(Code::unsupported, "conv2d: slicing a convolution with {} groups", options_.groups);
  }
  const WithoutInit without_init;
  Conv2dOptions options = options_;
  options.outputs = keep.numel();
  auto result = std::make_shared<Conv2d>(options);
  put(result->weight, weight, sliced(weight, 0, keep));
  if (bias.defined()) put(result->bias, bias, sliced(bias, 0, keep));
  result->train(is_training());
  return result;
}

BrickPtr Conv2d::slice_inputs(const at::Tensor& keep) const {
  if (options_.groups != 1) {
    fail(Code::unsupported, "conv2d: slicing a convolution with {} groups", options_.groups);
  }
  const WithoutInit without_init;
  Conv2dOptions options = options_;
  options.inputs = keep.numel();
  auto result = std::make_shared<Conv2d>(options);
  put(result->weight, weight, sliced(weight, 1, keep));
  if (bias.defined()) put(result->bias, bias, bias.detach().clone());
  result->train(is_training());
  return result;
}

at::Tensor Conv2d::output_norms(double norm) const { return row_norms(weight, norm); }

// ---- BatchNorm ----

BatchNorm::BatchNorm(int64_t channels, double eps, double momentum)
    : channels_(require_range(channels, 1, kMaxChannels, "channels", "batch_norm")),
      eps_(require_range(eps, 1e-12, 1.0, "eps", "batch_norm")),
      momentum_(require_range(momentum, 0.0, 1.0, "momentum", "batch_norm")) {
  weight = register_parameter("weight", at::ones({channels}));
  bias = register_parameter("bias", at::zeros({channels}));
  running_mean = register_buffer("running_mean", at::zeros({channels}));
  running_var = register_buffer("running_var", at::ones({channels}));
}

Json BatchNorm::attributes() const {
  return {{"channels", channels_}, {"eps", eps_}, {"momentum", momentum_}};
}

BrickPtr make_batch_norm(const Json& attributes) {
  const AttributeReader read(attributes, "batch_norm", {"channels", "eps", "momentum"});
  return std::make_shared<BatchNorm>(read.integer("channels"), read.number("eps", 1e-5),
                                     read.number("momentum", 0.1));
}

at::Tensor BatchNorm::forward(const at::Tensor& x, Context&) {
  double momentum = momentum_;
  if (is_training() && estimated_ >= 0) momentum = 1.0 / static_cast<double>(++estimated_);
  return at::batch_norm(x, weight, bias, running_mean, running_var, is_training(), momentum, eps_,
                        /*cudnn_enabled=*/true);
}

Shape BatchNorm::output_shape(const Shape& input) const {
  if (input.empty() || input[0] != channels_) {
    fail(Code::shape, "batch_norm: expected [{}, ..], found {}", channels_, to_string(input));
  }
  return input;
}

Cost BatchNorm::cost(const Shape& input) const {
  output_shape(input);
  return {0, 2 * channels_, 4 * 4 * channels_};  // the running statistics are stored, not learned
}

bundle::Value BatchNorm::lower(bundle::Builder& builder, const bundle::Value& x,
                               const std::string& path) const {
  std::map<std::string, std::string> tensors = weight_and_bias(builder, path, weight, bias);
  tensors["running_mean"] = join_path(path, "running_mean");
  tensors["running_var"] = join_path(path, "running_var");
  add_tensor(builder, tensors["running_mean"], running_mean);
  add_tensor(builder, tensors["running_var"], running_var);
  return builder.node("batch_norm", node_path_of(path, *this), {x}, {{"eps", eps_}},
                      std::move(tensors));
}

BrickPtr BatchNorm::slice_channels(const at::Tensor& keep) const {
  auto result = std::make_shared<BatchNorm>(keep.numel(), eps_, momentum_);
  put(result->weight, weight, sliced(weight, 0, keep));
  put(result->bias, bias, sliced(bias, 0, keep));
  put(result->running_mean, running_mean, sliced(running_mean, 0, keep));
  put(result->running_var, running_var, sliced(running_var, 0, keep));
  result->train(is_training());
  return result;
}

void BatchNorm::begin_estimate() { estimated_ = 0; }
void BatchNorm::end_estimate() { estimated_ = -1; }

}  // namespace sluice::lab
