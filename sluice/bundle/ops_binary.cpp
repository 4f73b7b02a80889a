// Layers of +-1 weights and +-1 activations.
#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/bundle/ops_check.h"
#include "sluice/bundle/ops_families.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

void require_binary(const OpInput& in, const Shape& expected) {
  const TensorSpec& weight = in.tensors.at("weight");
  if (weight.shape.size() != 2 || weight.shape[0] < 1 || weight.shape[1] != expected[1])
    fail(Code::shape, "weight '{}': expected [O,{}], found {}", printable(weight.name), expected[1],
         to_string(weight.shape));
  if (weight.format != "binary" && weight.format != "f32")
    fail(Code::unsupported,
         "weight '{}': expected format binary, or f32 with one magnitude per row, found {}",
         printable(weight.name), printable(weight.format, 40));
  require_tensor(in, "bias", {weight.shape[0]});
  const double scale = attr_double(in.node.attrs, "scale", 1);
  if (!std::isfinite(static_cast<float>(scale)))
    fail(Code::numeric, "attribute 'scale': expected a finite number, found {}", scale);
  const std::string kind = attr_string(in.node.attrs, "input_scale", "one");
  if (kind != "one" && kind != "mean")
    fail(Code::unsupported, "attribute 'input_scale': expected one or mean, found '{}'",
         printable(kind, 40));
}

Shape binary_linear_shape(const OpInput& in) {
  Shape shape = input(in, 0);
  require_binary(in, {0, shape.back()});
  shape.back() = in.tensors.at("weight").shape[0];
  return shape;
}

int64_t binary_linear_macs(const OpInput& in, const Shape& output) {
  return checked_mul(numel(output, "output"), in.tensors.at("weight").shape[1], "MACs");
}

Shape binary_conv2d_shape(const OpInput& in) {
  require_rank(in, 3, "[C,H,W]");
  const Shape& x = input(in, 0);
  const auto kernel = window(in, "kernel", 0, 1), stride = window(in, "stride", 1, 1),
             padding = window(in, "padding", 0, 0), dilation = window(in, "dilation", 1, 1);
  require_binary(in, {0, checked_mul(x[0], checked_mul(kernel[0], kernel[1], "window"), "window")});
  return {in.tensors.at("weight").shape[0],
          slide(x[1], kernel[0], stride[0], padding[0], dilation[0]),
          slide(x[2], kernel[1], stride[1], padding[1], dilation[1])};
}

int64_t binary_conv2d_macs(const OpInput& in, const Shape& output) {
  return checked_mul(numel(in.tensors.at("weight").shape, "weight"),
                     checked_mul(output[1], output[2], "MACs"), "MACs");
}

}  // namespace

std::vector<Operator> binary_operators() {
  return {
      {"binary_linear",
       1,
       1,
       {"weight"},
       {"bias"},
       {"input_scale", "scale"},
       binary_linear_shape,
       binary_linear_macs,
       matrix_rows,
       {"weight"}},
      {"binary_conv2d",
       1,
       1,
       {"weight"},
       {"bias"},
       {"kernel", "stride", "padding", "dilation", "input_scale", "scale"},
       binary_conv2d_shape,
       binary_conv2d_macs,
       nullptr,
       {"weight"}},
  };
}

}  // namespace sluice::bundle
