// Operators that every network has: convolution, linear, norms, activations, pools.
#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/bundle/conv2d.h"
#include "sluice/bundle/ops_check.h"
#include "sluice/bundle/ops_families.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

/// [O,C/groups,kh,kw] of a packed weight, and checks of what packed ones alone have.
Shape packed_conv2d_weight(const OpInput& in) {
  const TensorSpec& weight = in.tensors.at("weight");
  if (weight.format != "i8")
    fail(Code::unsupported,
         "weight '{}' has format '{}'; a convolution's is f32, or i8 as [O,C/groups kh kw]",
         printable(weight.name), printable(weight.format, 40));
  const auto kernel = window(in, "kernel", 0, 1);
  const int64_t taps = checked_mul(kernel[0], kernel[1], "kernel");
  if (weight.shape.size() != 2 || weight.shape[0] < 1 || weight.shape[1] < 1 ||
      weight.shape[1] % taps != 0)
    fail(Code::shape, "weight '{}': expected [O,C/groups {} {}] with sizes >= 1, found {}",
         printable(weight.name), kernel[0], kernel[1], to_string(weight.shape));
  return conv2d_weight_shape(in.node, weight);
}

Shape conv2d_shape(const OpInput& in) {
  require_rank(in, 3, "[C,H,W]");
  const Shape& x = input(in, 0);
  const std::string& name = in.tensors.at("weight").name;
  const std::string activations = attr_string(in.node.attrs, "activations", "f32");
  const bool packed = in.tensors.at("weight").format != "f32";
  if (!packed && in.node.attrs.count("kernel"))
    fail(
        Code::shape,
        "attribute 'kernel': weight '{}' is f32 and has it in its shape; it belongs to packed ones",
        printable(name));
  if (activations != "f32" && (activations != "i8" || !packed))
    fail(Code::unsupported,
         "attribute 'activations': expected f32, or i8 beside a weight in i8; found '{}'",
         printable(activations, 40));
  const Shape weight = packed ? packed_conv2d_weight(in) : in.tensors.at("weight").shape;
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

Shape dense_shape(const OpInput& in) {
  const TensorSpec& weight = in.tensors.at("weight");
  Shape shape = input(in, 0);
  if (weight.shape.size() != 2 || weight.shape[0] < 1 || weight.shape[1] != shape.back())
    fail(Code::shape, "weight '{}': expected [O,{}], found {}", printable(weight.name),
         shape.back(), to_string(weight.shape));
  require_tensor(in, "bias", {weight.shape[0]});
  require_activations(in);
  shape.back() = weight.shape[0];
  return shape;
}

int64_t dense_macs(const OpInput& in, const Shape& output) {
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
  require_activation(in, "kind", "");
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
  if (b != a && b != Shape{1} && b != Shape{a[0]} && b != Shape{a[0], 1})
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
  threshold_values(in.node.attrs);
  return input(in, 0);
}

Shape prediction_score_shape(const OpInput& in) {
  const std::string statistic = attr_string(in.node.attrs, "statistic", "confidence");
  if (statistic != "confidence" && statistic != "entropy" && statistic != "margin")
    fail(Code::shape, "attribute 'statistic': expected confidence, entropy or margin, found '{}'",
         printable(statistic, 40));
  Shape shape = input(in, 0);
  if (shape.empty() || shape.back() < 2)
    fail(Code::shape, "x: expected logits of at least 2 classes, found {}", to_string(shape));
  shape.back() = 1;
  return shape;
}

// b [C] or [C,1] has one number per row, which goes with its row; b [1] is one per sample.
Rows mul_rows(const OpInput& in) {
  return input(in, 0)[0] == input(in, 1)[0] ? Rows::apart : Rows::mixed;
}

Rows scale_rows(const OpInput& in) {
  return in.tensors.at("scale").shape == Shape{1} ? Rows::apart : Rows::mixed;
}

}  // namespace

Shape conv2d_weight_shape(const Node& node, const TensorSpec& weight) {
  if (weight.format == "f32") return weight.shape;
  const auto kernel = attr_ints(node.attrs, "kernel", 2, 1);
  return {weight.shape[0], weight.shape[1] / (kernel[0] * kernel[1]), kernel[0], kernel[1]};
}

bool rounding_pays(const Shape& weight, int64_t groups) {
  const int64_t outputs = weight[0] / groups;
  return outputs >= 16 && outputs * weight[1] * weight[2] * weight[3] > 4096;
}

float quantize_sample(std::span<const float> x, int8_t* codes) {
  float top = 0;
  bool finite = true;
  for (float v : x) {
    finite &= std::isfinite(v);
    top = std::max(top, std::fabs(v));
  }
  const float scale = finite ? top / 127.0f : std::nanf(""), factor = 1.0f / scale;
  if (!(scale > 0) || std::isinf(factor)) {
    std::fill(codes, codes + x.size(), int8_t{0});
    return std::isnan(scale) ? scale : 0;
  }
  for (size_t i = 0; i < x.size(); ++i)
    codes[i] = static_cast<int8_t>(std::clamp(std::nearbyint(x[i] * factor), -127.0f, 127.0f));
  return scale;
}

std::vector<Operator> dense_operators() {
  return {
      {"conv2d",
       1,
       1,
       {"weight"},
       {"bias"},
       {"stride", "padding", "dilation", "groups", "kernel", "activations"},
       conv2d_shape,
       conv2d_macs,
       nullptr,
       {"weight"}},
      {"linear",
       1,
       1,
       {"weight"},
       {"bias"},
       {"activations"},
       dense_shape,
       dense_macs,
       matrix_rows,
       {"weight"}},
      {"batch_norm",
       1,
       1,
       {"running_mean", "running_var"},
       {"weight", "bias"},
       {"eps"},
       batch_norm_shape,
       no_macs},
      {"layer_norm", 1, 1, {}, {"weight", "bias"}, {"eps"}, layer_norm_shape, no_macs, matrix_rows},
      {"activation", 1, 1, {}, {}, {"kind"}, activation_shape, no_macs, elementwise_rows},
      {"add", 2, 2, {}, {}, {}, add_shape, no_macs, elementwise_rows},
      {"mul", 2, 2, {}, {}, {}, mul_shape, no_macs, mul_rows},
      {"scale", 1, 1, {"scale"}, {}, {}, scale_shape, no_macs, scale_rows},
      {"max_pool2d", 1, 1, {}, {}, {"kernel", "stride", "padding"}, pool_shape, no_macs},
      {"avg_pool2d", 1, 1, {}, {}, {"kernel", "stride", "padding"}, pool_shape, no_macs},
      {"global_avg_pool", 1, 1, {}, {}, {}, global_avg_pool_shape, no_macs},
      {"flatten", 1, 1, {}, {}, {}, flatten_shape, no_macs},
      {"softmax", 1, 1, {}, {}, {}, same_shape, no_macs, matrix_rows},
      {"prediction_score",
       1,
       1,
       {},
       {},
       {"statistic"},
       prediction_score_shape,
       no_macs,
       matrix_rows},
      {"threshold", 1, 1, {}, {}, {"value"}, threshold_shape, no_macs, elementwise_rows},
  };
}

}  // namespace sluice::bundle
