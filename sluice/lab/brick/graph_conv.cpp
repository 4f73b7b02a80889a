#include <array>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/graph_network.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

constexpr char kKind[] = "graph_conv";
constexpr int64_t kMost = 4096;

void require_pair(const std::vector<int64_t>& pair, int64_t low, const char* key) {
  if (pair.size() != 2)
    fail(Code::config, "{} of {}: expected 2 numbers, found {}", key, kKind, pair.size());
  for (const int64_t value : pair) require_range(value, low, kMost, key, kKind);
}

}  // namespace

GraphConv::GraphConv(GraphConvOptions options) : options_(std::move(options)) {
  const auto& o = options_;
  require_range(o.inputs, 1, kMaxChannels, "inputs", kKind);
  require_range(o.outputs, 1, kMaxChannels, "outputs", kKind);
  require_range(o.groups, 1, o.inputs, "groups", kKind);
  require_pair(o.kernel, 1, "kernel");
  require_pair(o.stride, 1, "stride");
  require_pair(o.padding, 0, "padding");
  require_pair(o.dilation, 1, "dilation");
  if (o.inputs % o.groups != 0 || o.outputs % o.groups != 0) {
    fail(Code::config, "groups of {}: {} divides not both {} inputs and {} outputs", kKind,
         o.groups, o.inputs, o.outputs);
  }
  const int64_t per_group = o.inputs / o.groups;
  require_elements({o.outputs, per_group, o.kernel[0], o.kernel[1]}, "weight", kKind);
  const int64_t fan_in = per_group * o.kernel[0] * o.kernel[1];
  weight = register_parameter(
      "weight", initial_uniform({o.outputs, per_group, o.kernel[0], o.kernel[1]}, fan_in));
  if (o.bias) bias = register_parameter("bias", initial_uniform({o.outputs}, fan_in));
}

Json GraphConv::attributes() const {
  const auto& o = options_;
  return {{"inputs", o.inputs}, {"outputs", o.outputs}, {"kernel", o.kernel},
          {"stride", o.stride}, {"padding", o.padding}, {"dilation", o.dilation},
          {"groups", o.groups}, {"bias", o.bias}};
}

BrickPtr make_graph_conv(const Json& attributes) {
  const AttributeReader read(
      attributes, kKind,
      {"inputs", "outputs", "kernel", "stride", "padding", "dilation", "groups", "bias"});
  GraphConvOptions options;
  options.inputs = read.integer("inputs");
  options.outputs = read.integer("outputs");
  options.kernel = read.integers("kernel", 2);
  options.stride = read.integers("stride", 2);
  options.padding = read.integers("padding", 2);
  options.dilation = read.integers("dilation", 2);
  options.groups = read.integer("groups", 1);
  options.bias = read.boolean("bias", true);
  return std::make_shared<GraphConv>(std::move(options));
}

at::Tensor GraphConv::forward(const at::Tensor& x, Context& context) {
  at::Tensor y = at::conv2d(x, weight, bias, options_.stride, options_.padding, options_.dilation,
                            options_.groups);
  if (context.meter != nullptr) {
    context.meter->add(
        context.path(), y.numel() * (weight.numel() / options_.outputs),
        tensor_bytes(x) + tensor_bytes(y) + tensor_bytes(weight) + tensor_bytes(bias));
  }
  return y;
}

Shape conv_output_shape(const GraphConvOptions& o, const Shape& input, std::string_view kind) {
  if (input.size() != 3 || input[0] != o.inputs) {
    fail(Code::shape, "{}: expected [{}, height, width], found {}", kind, o.inputs,
         to_string(input));
  }
  Shape output{o.outputs, 0, 0};
  for (size_t d = 0; d < 2; ++d) {
    const int64_t room = input[d + 1] + 2 * o.padding[d] - o.dilation[d] * (o.kernel[d] - 1) - 1;
    if (input[d + 1] < 1 || room < 0) {
      fail(Code::shape, "{}: a kernel of {} with padding {} does not fit into {}", kind,
           o.kernel[d], o.padding[d], to_string(input));
    }
    output[d + 1] = room / o.stride[d] + 1;
  }
  return output;
}

Shape GraphConv::output_shape(const Shape& input) const {
  return conv_output_shape(options_, input, kKind);
}

Cost GraphConv::cost(const Shape& input) const {
  const Shape output = output_shape(input);
  const int64_t parameters = weight.numel() + (bias.defined() ? options_.outputs : 0);
  return {checked_mul(output[1] * output[2], weight.numel(), "MACs of graph_conv"), parameters,
          4 * parameters};
}

bundle::Value GraphConv::lower(bundle::Builder& builder, const bundle::Value& x,
                               const std::string& path) const {
  std::map<std::string, std::string> tensors{{"weight", join_path(path, "weight")}};
  add_tensor(builder, tensors["weight"], weight);
  if (bias.defined()) {
    tensors["bias"] = join_path(path, "bias");
    add_tensor(builder, tensors["bias"], bias);
  }
  const auto& o = options_;
  return builder.node("conv2d", node_path_of(path, *this), {x},
                      {{"stride", o.stride},
                       {"padding", o.padding},
                       {"dilation", o.dilation},
                       {"groups", o.groups}},
                      tensors);
}

}  // namespace sluice::lab
