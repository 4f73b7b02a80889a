#include "sluice/bundle/ops.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

constexpr int64_t kMaxWindow =
    1 << 20;  // kernel, stride, padding, dilation: far above use, far below overflow
constexpr std::array<std::string_view, 6> kActivations = {"relu",    "gelu", "silu",
                                                          "sigmoid", "tanh", "hard_swish"};

const Shape& input(const OpInput& in, size_t index) { return in.inputs[index]; }

const TensorSpec* find_tensor(const OpInput& in, const char* role) {
  const auto it = in.tensors.find(role);
  return it == in.tensors.end() ? nullptr : &it->second;
}

void require_tensor(const OpInput& in, const char* role, const Shape& expected) {
  const TensorSpec* spec = find_tensor(in, role);
  if (spec && spec->shape != expected)
    fail(Code::shape, "{} '{}': expected {}, found {}", role, printable(spec->name),
         to_string(expected), to_string(spec->shape));
}

void require_rank(const OpInput& in, size_t rank, const char* layout) {
  if (input(in, 0).size() != rank)
    fail(Code::shape, "input: expected {}, found {}", layout, to_string(input(in, 0)));
}

std::vector<int64_t> window(const OpInput& in, const char* name, int64_t fallback, int64_t least) {
  const auto values = attr_ints(in.node.attrs, name, 2, fallback);
  for (int64_t v : values)
    if (v < least || v > kMaxWindow)
      fail(Code::shape, "attribute '{}': expected {} to {}, found {}", name, least, kMaxWindow, v);
  return values;
}

int64_t slide(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = checked_add(size, 2 * padding, "input size") - dilation * (kernel - 1) - 1;
  if (room < 0)
    fail(Code::shape, "input of size {} with padding {} is smaller than the window of {}", size,
         padding, dilation * (kernel - 1) + 1);
  return room / stride + 1;
}

Shape same_shape(const OpInput& in) { return input(in, 0); }
int64_t no_macs(const OpInput&, const Shape&) { return 0; }

Shape conv2d_shape(const OpInput& in) {
  require_rank(in, 3, "[C,H,W]");
  const Shape& x = input(in, 0);
  const Shape& weight = in.tensors.at("weight").shape;
  const std::string& name = in.tensors.at("weight").name;
  if (weight.size() != 4 || *std::min_element(weight.begin(), weight.end()) < 1)
    fail(Code::shape, "weight '{}': expected [O,C/groups,kh,kw] with sizes >= 1, found {}",
         printable(name), to_string(weight));
  const auto stride = window(in, "stride", 1, 1), padding = window(in, "padding", 0, 0),
             dilation = window(in, "dilation", 1, 1);
  const int64_t groups = attr_int(in.node.attrs, "groups", 1);
  if (groups < 1 || x[0] % groups != 0 || weight[0] % groups != 0)
    fail(Code::shape, "attribute 'groups': {} must divide {} input and {} output channels", groups,
         x[0], weight[0]);
  if (weight[1] != x[0] / groups)
    fail(Code::shape,
         "weight '{}': expected {} input channels per group ({} / {} groups), found {}",
         printable(name), x[0] / groups, x[0], groups, weight[1]);
  if (std::max(weight[2], weight[3]) > kMaxWindow)
    fail(Code::shape, "weight '{}': kernel {} x {} is larger than {}", printable(name), weight[2],
         weight[3], kMaxWindow);
  require_tensor(in, "bias", {weight[0]});
  return {weight[0], slide(x[1], weight[2], stride[0], padding[0], dilation[0]),
          slide(x[2], weight[3], stride[1], padding[1], dilation[1])};
}

int64_t conv2d_macs(const OpInput& in, const Shape& output) {
  const Shape& weight = in.tensors.at("weight").shape;
  return checked_mul(numel(weight, "weight"), checked_mul(output[1], output[2], "MACs"), "MACs");
}

Shape linear_shape(const OpInput& in) {
  const TensorSpec& weight = in.tensors.at("weight");
  Shape shape = input(in, 0);
  if (weight.shape.size() != 2 || weight.shape[0] < 1 || weight.shape[1] != shape.back())
    fail(Code::shape, "weight '{}': expected [O,{}], found {}", printable(weight.name),
         shape.back(), to_string(weight.shape));
  require_tensor(in, "bias", {weight.shape[0]});
  shape.back() = weight.shape[0];
  return shape;
}

int64_t linear_macs(const OpInput& in, const Shape& output) {
  return checked_mul(numel(output, "output"), in.tensors.at("weight").shape[1], "MACs");
}

void require_eps(const OpInput& in) {
  const double eps = attr_double(in.node.attrs, "eps", 1e-5);
  if (!(eps >= 0 && eps <= 1)) fail(Code::shape, "attribute 'eps': expected 0 to 1, found {}", eps);
}

Shape batch_norm_shape(const OpInput& in) {
  require_eps(in);
  for (const char* role : {"weight", "bias", "running_mean", "running_var"})
    require_tensor(in, role, {input(in, 0)[0]});
  return input(in, 0);
}

Shape layer_norm_shape(const OpInput& in) {
  require_eps(in);
  for (const char* role : {"weight", "bias"}) require_tensor(in, role, {input(in, 0).back()});
  return input(in, 0);
}

Shape activation_shape(const OpInput& in) {
  const std::string kind = attr_string(in.node.attrs, "kind", "");
  if (std::find(kActivations.begin(), kActivations.end(), kind) == kActivations.end())
    fail(Code::unsupported,
         "attribute 'kind': expected relu, gelu, silu, sigmoid, tanh or hard_swish, found '{}'",
         printable(kind, 40));
  return input(in, 0);
}

Shape add_shape(const OpInput& in) {
  if (input(in, 0) != input(in, 1))
    fail(Code::shape, "inputs must have the same shape, found {} and {}", to_string(input(in, 0)),
         to_string(input(in, 1)));
  return input(in, 0);
}

Shape mul_shape(const OpInput& in) {
  const Shape &a = input(in, 0), &b = input(in, 1);
  if (b != a && b != Shape{1} && b != Shape{a[0]})
    fail(Code::shape, "second input: expected {}, {} or 1, found {}", to_string(a), a[0],
         to_string(b));
  return a;
}

Shape scale_shape(const OpInput& in) {
  const Shape& scale = in.tensors.at("scale").shape;
  const int64_t channels = input(in, 0)[0];
  if (scale != Shape{1} && scale != Shape{channels})
    fail(Code::shape, "scale '{}': expected {} or 1, found {}",
         printable(in.tensors.at("scale").name), channels, to_string(scale));
  return input(in, 0);
}

Shape pool_shape(const OpInput& in) {
  require_rank(in, 3, "[C,H,W]");
  const Shape& x = input(in, 0);
  const auto kernel = window(in, "kernel", 0, 1);
  const auto stride = in.node.attrs.count("stride") ? window(in, "stride", 1, 1) : kernel;
  const auto padding = window(in, "padding", 0, 0);
  for (size_t i = 0; i < 2; ++i)
    if (padding[i] > kernel[i] / 2)
      fail(Code::shape, "attribute 'padding': {} is more than half of kernel {}", padding[i],
           kernel[i]);
  return {x[0], slide(x[1], kernel[0], stride[0], padding[0], 1),
          slide(x[2], kernel[1], stride[1], padding[1], 1)};
}

Shape global_avg_pool_shape(const OpInput& in) {
  require_rank(in, 3, "[C,H,W]");
  return {input(in, 0)[0]};
}

Shape flatten_shape(const OpInput& in) { return {numel(input(in, 0), "input")}; }

Shape threshold_shape(const OpInput& in) {
  const double value = attr_double(in.node.attrs, "value", 0);
  if (!std::isfinite(value))
    fail(Code::numeric, "attribute 'value': expected a finite number, found {}", value);
  return input(in, 0);
}

const std::vector<Operator>& table() {
  static const std::vector<Operator> operators = {
      {"conv2d",
       1,
       1,
       {"weight"},
       {"bias"},
       {"stride", "padding", "dilation", "groups"},
       conv2d_shape,
       conv2d_macs},
      {"linear", 1, 1, {"weight"}, {"bias"}, {}, linear_shape, linear_macs},
      {"batch_norm",
       1,
       1,
       {"running_mean", "running_var"},
       {"weight", "bias"},
       {"eps"},
       batch_norm_shape,
       no_macs},
      {"layer_norm", 1, 1, {}, {"weight", "bias"}, {"eps"}, layer_norm_shape, no_macs},
      {"activation", 1, 1, {}, {}, {"kind"}, activation_shape, no_macs},
      {"add", 2, 2, {}, {}, {}, add_shape, no_macs},
      {"mul", 2, 2, {}, {}, {}, mul_shape, no_macs},
      {"scale", 1, 1, {"scale"}, {}, {}, scale_shape, no_macs},
      {"max_pool2d", 1, 1, {}, {}, {"kernel", "stride", "padding"}, pool_shape, no_macs},
      {"avg_pool2d", 1, 1, {}, {}, {"kernel", "stride", "padding"}, pool_shape, no_macs},
      {"global_avg_pool", 1, 1, {}, {}, {}, global_avg_pool_shape, no_macs},
      {"flatten", 1, 1, {}, {}, {}, flatten_shape, no_macs},
      {"softmax", 1, 1, {}, {}, {}, same_shape, no_macs},
      {"threshold", 1, 1, {}, {}, {"value"}, threshold_shape, no_macs},
  };
  return operators;
}

}  // namespace

const Operator* find_operator(std::string_view name) {
  for (const Operator& op : table())
    if (op.name == name) return &op;
  return nullptr;
}

std::span<const Operator> all_operators() { return table(); }

}  // namespace sluice::bundle
