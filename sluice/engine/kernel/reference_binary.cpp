#include <cmath>

#include "sluice/bundle/packed.h"
#include "sluice/engine/kernel/reference_call.h"

namespace sluice::engine {
namespace {

using Vec = std::vector<double>;
using Call = ReferenceCall;

/// The values of a packed or f32 matrix.
std::vector<float> matrix(const Call& c, const std::string& role) {
  const std::string& name = c.node.tensors.at(role);
  const bundle::TensorSpec& spec = c.bundle.graph().tensors.at(name);
  std::vector<float> values(static_cast<size_t>(numel(spec.shape)));
  bundle::unpack(bundle::view_packed(*bundle::format_from_name(spec.format), spec.shape[0],
                                     spec.shape[1], c.bundle.tensor(name).bytes, name),
                 values);
  return values;
}

double sign(double x) { return x >= 0 ? 1 : -1; }

double scale_of(const Call& c, const double* x, size_t count) {
  const double factor = static_cast<float>(bundle::attr_double(c.node.attrs, "scale", 1));
  if (bundle::attr_string(c.node.attrs, "input_scale", "one") == "one") return factor;
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += std::abs(x[i]);
  return factor * sum / static_cast<double>(count);
}

double bias_of(const Call& c, size_t o) { return c.has("bias") ? c.tensor("bias")[o] : 0.0; }

Vec binary_linear(const Call& c) {
  const auto weight = matrix(c, "weight");
  const size_t in = static_cast<size_t>(c.shape().back()), out = weight.size() / in;
  Vec y;
  for (size_t first = 0; first < c.x().size(); first += in) {
    const double scale = scale_of(c, c.x().data() + first, in);
    for (size_t o = 0; o < out; ++o) {
      double sum = 0;
      for (size_t i = 0; i < in; ++i)
        sum += static_cast<double>(weight[o * in + i]) * sign(c.x()[first + i]);
      y.push_back(sum * scale + bias_of(c, o));
    }
  }
  return y;
}

Vec binary_conv2d(const Call& c) {
  const auto weight = matrix(c, "weight");
  const Shape &in = c.shape(), &out = c.out_shape();
  const auto kernel = c.pair("kernel", 1), stride = c.pair("stride", 1),
             padding = c.pair("padding", 0), dilation = c.pair("dilation", 1);
  const double scale = scale_of(c, c.x().data(), c.x().size());
  Vec y;
  for (int64_t o = 0; o < out[0]; ++o) {
    for (int64_t i = 0; i < out[1]; ++i) {
      for (int64_t j = 0; j < out[2]; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < in[0]; ++k) {
          for (int64_t u = 0; u < kernel[0]; ++u) {
            for (int64_t v = 0; v < kernel[1]; ++v) {
              const int64_t row = i * stride[0] + u * dilation[0] - padding[0];
              const int64_t column = j * stride[1] + v * dilation[1] - padding[1];
              if (row < 0 || row >= in[1] || column < 0 || column >= in[2]) continue;
              sum += static_cast<double>(weight[static_cast<size_t>(
                         ((o * in[0] + k) * kernel[0] + u) * kernel[1] + v)]) *
                     sign(c.x()[static_cast<size_t>((k * in[1] + row) * in[2] + column)]);
            }
          }
        }
        y.push_back(sum * scale + bias_of(c, static_cast<size_t>(o)));
      }
    }
  }
  return y;
}

}  // namespace

std::vector<ReferenceEntry> binary_references() {
  return {{"binary_linear", binary_linear}, {"binary_conv2d", binary_conv2d}};
}

}  // namespace sluice::engine
