// Layers without weights, the first values of those with, and masks of channels.
#include <algorithm>
#include <array>

#include "sluice/base/path_pattern.h"

#include <fmt/ranges.h>  // fmt::join, from fmt 11 on
#include "sluice/base/random.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/embedding.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/brick/vision_transformer.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {
namespace {

thread_local int without_init_depth = 0;

}  // namespace

// ---- Activation ----

const std::vector<std::string>& activation_names() {
  static const std::vector<std::string> names = {"relu", "gelu",       "silu",     "sigmoid",
                                                 "tanh", "hard_swish", "gelu_tanh"};
  return names;
}

at::Tensor activate(const std::string& function, const at::Tensor& x) {
  if (function == "relu") return at::relu(x);
  if (function == "gelu") return at::gelu(x);
  if (function == "gelu_tanh") return at::gelu(x, "tanh");
  if (function == "silu") return at::silu(x);
  if (function == "sigmoid") return at::sigmoid(x);
  if (function == "tanh") return at::tanh(x);
  if (function == "hard_swish") return at::hardswish(x);
  fail(Code::config, "activation '{}': known: {}", function.substr(0, 60),
       fmt::join(activation_names(), ", "));
}

Activation::Activation(const std::string& function) : function_(function) {
  const auto& names = activation_names();
  if (std::find(names.begin(), names.end(), function) == names.end()) {
    fail(Code::config, "function of activation: '{}' is unknown; known: {}", function.substr(0, 60),
         fmt::join(names, ", "));
  }
}

Json Activation::attributes() const { return {{"function", function_}}; }

BrickPtr make_activation(const Json& attributes) {
  const AttributeReader read(attributes, "activation", {"function"});
  return std::make_shared<Activation>(read.text("function"));
}

at::Tensor Activation::forward(const at::Tensor& x, Context&) { return activate(function_, x); }

bundle::Value Activation::lower(bundle::Builder& builder, const bundle::Value& x,
                                const std::string& path) const {
  return builder.node("activation", node_path_of(path, *this), {x}, {{"kind", function_}});
}

// ---- Pool2d ----

Pool2d::Pool2d(const std::string& mode, int64_t kernel, int64_t stride, int64_t padding)
    : mode_(mode), kernel_(kernel), stride_(stride), padding_(padding) {
  if (mode != "max" && mode != "avg" && mode != "global_avg") {
    fail(Code::config, "mode of pool2d: '{}' is unknown; known: max, avg, global_avg",
         mode.substr(0, 60));
  }
  require_range(kernel, 1, 1024, "kernel", "pool2d");
  require_range(stride, 1, 1024, "stride", "pool2d");
  require_range(padding, 0, kernel / 2, "padding", "pool2d");
}

Json Pool2d::attributes() const {
  if (mode_ == "global_avg") return {{"mode", mode_}};
  return {{"mode", mode_}, {"kernel", kernel_}, {"stride", stride_}, {"padding", padding_}};
}

BrickPtr make_pool2d(const Json& attributes) {
  const AttributeReader read(attributes, "pool2d", {"mode", "kernel", "stride", "padding"});
  const int64_t kernel = read.integer("kernel", 2);
  return std::make_shared<Pool2d>(read.text("mode"), kernel, read.integer("stride", kernel),
                                  read.integer("padding", 0));
}

at::Tensor Pool2d::forward(const at::Tensor& x, Context&) {
  if (mode_ == "global_avg") return x.mean({2, 3});
  const std::array<int64_t, 2> kernel = {kernel_, kernel_}, stride = {stride_, stride_},
                               padding = {padding_, padding_};
  if (mode_ == "max") return at::max_pool2d(x, kernel, stride, padding);
  return at::avg_pool2d(x, kernel, stride, padding, /*ceil_mode=*/false,
                        /*count_include_pad=*/false);
}

Shape Pool2d::output_shape(const Shape& input) const {
  if (input.size() != 3) {
    fail(Code::shape, "pool2d: expected [channels, height, width], found {}", to_string(input));
  }
  if (mode_ == "global_avg") return {input[0]};
  Shape output = {input[0], 0, 0};
  for (size_t d = 1; d < 3; ++d) {
    const int64_t room = input[d] + 2 * padding_ - kernel_;
    if (input[d] < 1 || room < 0) {
      fail(Code::shape, "pool2d: a window of {} with padding {} does not fit into {}", kernel_,
           padding_, to_string(input));
    }
    output[d] = room / stride_ + 1;
  }
  return output;
}

bundle::Value Pool2d::lower(bundle::Builder& builder, const bundle::Value& x,
                            const std::string& path) const {
  if (mode_ == "global_avg") return builder.node("global_avg_pool", node_path_of(path, *this), {x});
  const std::vector<int64_t> kernel(2, kernel_), stride(2, stride_), padding(2, padding_);
  return builder.node(mode_ + "_pool2d", node_path_of(path, *this), {x},
                      {{"kernel", kernel}, {"stride", stride}, {"padding", padding}});
}

// ---- Flatten, Identity ----

Json Flatten::attributes() const { return Json::object(); }

BrickPtr make_flatten(const Json& attributes) {
  const AttributeReader read(attributes, "flatten", {});
  return std::make_shared<Flatten>();
}

at::Tensor Flatten::forward(const at::Tensor& x, Context&) { return x.flatten(1); }

Shape Flatten::output_shape(const Shape& input) const { return {numel(input, "flatten")}; }

bundle::Value Flatten::lower(bundle::Builder& builder, const bundle::Value& x,
                             const std::string& path) const {
  return builder.node("flatten", node_path_of(path, *this), {x});
}

Json Identity::attributes() const { return Json::object(); }

BrickPtr make_identity(const Json& attributes) {
  const AttributeReader read(attributes, "identity", {});
  return std::make_shared<Identity>();
}

// ---- ChannelMask ----

ChannelMask::ChannelMask(int64_t channels)
    : ChannelMask(
          at::ones({require_range(channels, 1, kMaxChannels, "channels", "channel_mask")})) {}

ChannelMask::ChannelMask(const at::Tensor& values)
    : mask(register_buffer("mask", checked_mask(values, "channel_mask"))) {}

Json ChannelMask::attributes() const { return {{"channels", mask.numel()}}; }

BrickPtr make_channel_mask(const Json& attributes) {
  const AttributeReader read(attributes, "channel_mask", {"channels"});
  return std::make_shared<ChannelMask>(read.integer("channels"));
}

at::Tensor ChannelMask::forward(const at::Tensor& x, Context&) {
  std::vector<int64_t> shape(static_cast<size_t>(x.dim()), 1);
  shape[1] = mask.numel();
  return x * mask.to(x.scalar_type()).view(shape);
}

Shape ChannelMask::output_shape(const Shape& input) const {
  if (input.empty() || input[0] != mask.numel()) {
    fail(Code::shape, "channel_mask: expected [{}, ..], found {}", mask.numel(), to_string(input));
  }
  return input;
}

bundle::Value ChannelMask::lower(bundle::Builder& builder, const bundle::Value& x,
                                 const std::string& path) const {
  const std::string name = join_path(path, "mask");
  add_tensor(builder, name, mask);
  return builder.node("scale", node_path_of(path, *this), {x}, {}, {{"scale", name}});
}

// ---- first values ----

WithoutInit::WithoutInit() { ++without_init_depth; }
WithoutInit::~WithoutInit() { --without_init_depth; }
bool WithoutInit::active() { return without_init_depth > 0; }

at::Tensor initial_uniform(at::IntArrayRef sizes, int64_t fan_in) {
  at::Tensor values = at::empty(sizes);
  if (!WithoutInit::active()) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(fan_in));
    values.uniform_(-bound, bound);
  }
  return values;
}

void fill_normal(at::Tensor& tensor, double std, uint64_t seed) {
  const at::NoGradGuard no_grad;
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  tensor.copy_(at::empty(tensor.sizes()).normal_(0.0, std, generator));
}

void fill_uniform(at::Tensor& tensor, double bound, uint64_t seed) {
  const at::NoGradGuard no_grad;
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  tensor.copy_(at::empty(tensor.sizes()).uniform_(-bound, bound, generator));
}

namespace {

constexpr double kEmbeddingStd = 0.02;

void initialize_layer(Brick& brick, const std::string& path, const std::string& scheme,
                      uint64_t seed) {
  at::Tensor weight, bias;
  double fan_in = 0, fan_out = 0;
  bool convolution = false;
  if (auto* linear = dynamic_cast<Linear*>(&brick)) {
    weight = linear->weight, bias = linear->bias;
    fan_in = static_cast<double>(weight.size(1)), fan_out = static_cast<double>(weight.size(0));
  } else if (auto* conv = dynamic_cast<Conv2d*>(&brick)) {
    weight = conv->weight, bias = conv->bias, convolution = true;
    const auto area = static_cast<double>(weight.size(2) * weight.size(3));
    fan_in = area * static_cast<double>(weight.size(1));
    fan_out = area * static_cast<double>(weight.size(0) / conv->options().groups);
  } else if (auto* table = dynamic_cast<Embedding*>(&brick)) {
    fill_normal(table->weight, kEmbeddingStd, derive_seed(seed, join_path(path, "weight")));
    return;
  } else if (auto* rows = dynamic_cast<LearnedRows*>(&brick)) {
    fill_normal(rows->weight, kEmbeddingStd, derive_seed(seed, join_path(path, "weight")));
    return;
  } else {
    return;
  }
  const uint64_t weight_seed = derive_seed(seed, join_path(path, "weight"));
  if (scheme == "uniform") {
    fill_uniform(weight, 1.0 / std::sqrt(fan_in), weight_seed);
    if (bias.defined()) {
      fill_uniform(bias, 1.0 / std::sqrt(fan_in), derive_seed(seed, join_path(path, "bias")));
    }
    return;
  }
  const double std = scheme == "kaiming_normal" ? std::sqrt(2.0 / (convolution ? fan_out : fan_in))
                                                : std::sqrt(2.0 / (fan_in + fan_out));
  fill_normal(weight, std, weight_seed);
  if (bias.defined()) {
    const at::NoGradGuard no_grad;
    bias.zero_();
  }
}

}  // namespace

void initialize(Brick& root, const std::string& scheme, uint64_t seed) {
  if (scheme != "kaiming_normal" && scheme != "glorot_normal" && scheme != "uniform") {
    fail(Code::config, "init '{}': known: kaiming_normal, glorot_normal, uniform",
         scheme.substr(0, 60));
  }
  initialize_layer(root, "", scheme, seed);
  for (const SlotRef& ref : walk(root)) {
    if (!ref.slot->empty()) initialize_layer(**ref.slot, ref.path, scheme, seed);
  }
}

}  // namespace sluice::lab
