
#include <algorithm>
#include <cmath>
#include <limits>

#include "sluice/bundle/conv2d.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/bundle/packed.h"
#include "sluice/engine/kernel/reference_call.h"

namespace sluice::engine {
namespace {

using Vec = std::vector<double>;
using Call = ReferenceCall;

std::vector<float> conv_weight(const Call& c, const bundle::TensorSpec& spec) {
  if (spec.format != "f32") return c.weights("weight");
  const auto values = c.tensor("weight");
  return {values.begin(), values.end()};
}

/// The input of a conv2d as its attribute 'activations' rounds it, with one scale.
Vec rounded_sample(const Call& c) {
  if (bundle::attr_string(c.node.attrs, "activations", "f32") == "f32") return c.x();
  const std::vector<float> x(c.x().begin(), c.x().end());
  std::vector<int8_t> codes(x.size());
  const double scale = bundle::quantize_sample(x, codes.data());
  Vec result;
  for (const int8_t code : codes) result.push_back(scale * code);
  return result;
}

Vec conv2d(const Call& c) {
  const Shape& out = c.out_shape();
  const bundle::TensorSpec& spec = c.bundle.graph().tensors.at(c.node.tensors.at("weight"));
  const Shape shape = bundle::conv2d_weight_shape(c.node, spec);
  const std::vector<float> weight = conv_weight(c, spec);
  const Vec x = rounded_sample(c);
  const ReferenceWindow window(c, x, weight, shape);
  const int64_t groups = bundle::attr_int(c.node.attrs, "groups", 1);
  const int64_t out_each = out[0] / groups, in_each = shape[1];
  Vec y(c.out_count());
  for (int64_t o = 0; o < out[0]; ++o) {
    for (int64_t i = 0; i < out[1]; ++i) {
      for (int64_t j = 0; j < out[2]; ++j) {
        double sum = c.has("bias") ? c.tensor("bias")[static_cast<size_t>(o)] : 0.0;
        for (int64_t k = 0; k < in_each; ++k) {
          const int64_t channel = o / out_each * in_each + k;
          sum += window.sum(o * in_each + k, channel, i, j);
        }
        y[static_cast<size_t>((o * out[1] + i) * out[2] + j)] = sum;
      }
    }
  }
  return y;
}

Vec linear(const Call& c) {
  const auto weight = c.weights("weight");
  const size_t out = static_cast<size_t>(c.tensor_shape("weight")[0]),
               in = static_cast<size_t>(c.shape().back());
  Vec y;
  for (size_t row = 0; row * in < c.x().size(); ++row) {
    const Vec x = c.rounded(std::span(c.x()).subspan(row * in, in));
    for (size_t o = 0; o < out; ++o) {
      double sum = c.has("bias") ? c.tensor("bias")[o] : 0.0;
      for (size_t i = 0; i < in; ++i) sum += static_cast<double>(weight[o * in + i]) * x[i];
      y.push_back(sum);
    }
  }
  return y;
}

/// f(value, channel) over [C, ..].
template <class F>
Vec by_channel(const Call& c, F f) {
  Vec y = c.x();
  const size_t inner = static_cast<size_t>(numel(c.shape()) / c.shape()[0]);
  for (size_t i = 0; i < y.size(); ++i) y[i] = f(y[i], i / inner);
  return y;
}

Vec batch_norm(const Call& c) {
  const double eps = bundle::attr_double(c.node.attrs, "eps", 1e-5);
  return by_channel(c, [&](double x, size_t k) {
    const double y =
        (x - c.tensor("running_mean")[k]) / std::sqrt(c.tensor("running_var")[k] + eps);
    return y * (c.has("weight") ? c.tensor("weight")[k] : 1.0) +
           (c.has("bias") ? c.tensor("bias")[k] : 0.0);
  });
}

Vec layer_norm(const Call& c) {
  const double eps = bundle::attr_double(c.node.attrs, "eps", 1e-5);
  const size_t width = static_cast<size_t>(c.shape().back());
  Vec y = c.x();
  for (size_t first = 0; first < y.size(); first += width) {
    double mean = 0, variance = 0;
    for (size_t i = 0; i < width; ++i) mean += y[first + i] / static_cast<double>(width);
    for (size_t i = 0; i < width; ++i)
      variance += std::pow(y[first + i] - mean, 2) / static_cast<double>(width);
    for (size_t i = 0; i < width; ++i) {
      const double z = (y[first + i] - mean) / std::sqrt(variance + eps);
      y[first + i] = z * (c.has("weight") ? c.tensor("weight")[i] : 1.0) +
                     (c.has("bias") ? c.tensor("bias")[i] : 0.0);
    }
  }
  return y;
}

Vec activation(const Call& c) {
  const Activation kind = activation_from_name(bundle::attr_string(c.node.attrs, "kind", "relu"));
  Vec y = c.x();
  for (double& v : y) v = activate_one(kind, v);
  return y;
}

Vec add_nodes(const Call& c) {
  Vec y = c.x();
  for (size_t i = 0; i < y.size(); ++i) y[i] += (*c.inputs[1])[i];
  return y;
}

Vec mul(const Call& c) {
  const Vec& b = *c.inputs[1];
  if (c.shape(1) == c.shape(0) || b.size() == c.x().size()) {
    Vec y = c.x();
    for (size_t i = 0; i < y.size(); ++i) y[i] *= b[i];
    return y;
  }
  return by_channel(c, [&](double x, size_t k) { return x * (b.size() == 1 ? b[0] : b[k]); });
}

Vec scale(const Call& c) {
  const auto factor = c.tensor("scale");
  return by_channel(
      c, [&](double x, size_t k) { return x * (factor.size() == 1 ? factor[0] : factor[k]); });
}

Vec pool(const Call& c, bool maximum) {
  const Shape& in = c.shape();
  const Shape& out = c.out_shape();
  const auto kernel = c.pair("kernel", 1), padding = c.pair("padding", 0);
  const auto stride = c.node.attrs.count("stride") ? c.pair("stride", 1) : kernel;
  Vec y;
  for (int64_t k = 0; k < out[0]; ++k) {
    for (int64_t i = 0; i < out[1]; ++i) {
      for (int64_t j = 0; j < out[2]; ++j) {
        double sum = 0, top = -std::numeric_limits<double>::infinity(), count = 0;
        for (int64_t u = 0; u < kernel[0]; ++u) {
          for (int64_t v = 0; v < kernel[1]; ++v) {
            const int64_t row = i * stride[0] + u - padding[0],
                          column = j * stride[1] + v - padding[1];
            if (row < 0 || row >= in[1] || column < 0 || column >= in[2]) continue;
            const double x = c.x()[static_cast<size_t>((k * in[1] + row) * in[2] + column)];
            sum += x;
            top = std::max(top, x);
            ++count;
          }
        }
        y.push_back(maximum ? top : sum / count);
      }
    }
  }
  return y;
}

Vec global_avg_pool(const Call& c) {
  const size_t channels = static_cast<size_t>(c.shape()[0]), pixels = c.x().size() / channels;
  Vec y(channels);
  for (size_t i = 0; i < c.x().size(); ++i) y[i / pixels] += c.x()[i] / static_cast<double>(pixels);
  return y;
}

Vec softmax_rows(const Call& c) {
  const size_t width = static_cast<size_t>(c.shape().back());
  Vec y = c.x();
  for (size_t first = 0; first < y.size(); first += width) {
    const double top = *std::max_element(y.begin() + static_cast<std::ptrdiff_t>(first),
                                         y.begin() + static_cast<std::ptrdiff_t>(first + width));
    double sum = 0;
    for (size_t i = 0; i < width; ++i) sum += y[first + i] = std::exp(y[first + i] - top);
    for (size_t i = 0; i < width; ++i) y[first + i] /= sum;
  }
  return y;
}

Vec prediction_score(const Call& c) {
  const Vec p = softmax_rows(c);
  const size_t width = static_cast<size_t>(c.shape().back());
  const std::string statistic = bundle::attr_string(c.node.attrs, "statistic", "confidence");
  Vec y;
  for (auto row = p.begin(); row != p.end(); row += static_cast<std::ptrdiff_t>(width)) {
    Vec sorted(row, row + static_cast<std::ptrdiff_t>(width));
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    double entropy = 0;
    for (const double each : sorted) entropy += each > 0 ? each * std::log(each) : 0;
    y.push_back(statistic == "confidence" ? sorted[0]
                : statistic == "entropy"  ? entropy
                                          : sorted[0] - sorted[1]);
  }
  return y;
}

Vec threshold_values(const Call& c) {
  const double value = static_cast<float>(bundle::threshold_values(c.node.attrs).back());
  Vec y = c.x();
  for (double& v : y) v = v > value ? 1 : 0;
  return y;
}

Vec max_pool(const Call& c) { return pool(c, true); }
Vec avg_pool(const Call& c) { return pool(c, false); }
Vec flatten(const Call& c) { return c.x(); }

}  // namespace

std::vector<float> ReferenceCall::weights(const std::string& role) const {
  const std::string& name = node.tensors.at(role);
  const bundle::TensorSpec& spec = bundle.graph().tensors.at(name);
  std::vector<float> values(static_cast<size_t>(numel(spec.shape)));
  bundle::unpack(bundle::view_packed(*bundle::format_from_name(spec.format), spec.shape[0],
                                     spec.shape[1], bundle.tensor(name).bytes, name),
                 values);
  return values;
}

std::vector<double> ReferenceCall::rounded(std::span<const double> row) const {
  std::vector<double> result(row.begin(), row.end());
  const std::string kind = bundle::attr_string(node.attrs, "activations", "f32");
  if (kind == "bf16") {
    for (double& v : result) v = bundle::bf16_to_f32(bundle::f32_to_bf16(static_cast<float>(v)));
  } else if (kind == "i8") {
    const std::vector<float> x(row.begin(), row.end());
    std::vector<int8_t> codes(x.size());
    const double scale = bundle::quantize_activations(x, codes.data());
    for (size_t i = 0; i < x.size(); ++i) result[i] = scale * codes[i];
  }
  return result;
}

std::vector<ReferenceEntry> dense_references() {
  return {{"conv2d", conv2d},
          {"linear", linear},
          {"batch_norm", batch_norm},
          {"layer_norm", layer_norm},
          {"activation", activation},
          {"add", add_nodes},
          {"mul", mul},
          {"scale", scale},
          {"max_pool2d", max_pool},
          {"avg_pool2d", avg_pool},
          {"global_avg_pool", global_avg_pool},
          {"flatten", flatten},
          {"softmax", softmax_rows},
          {"prediction_score", prediction_score},
          {"threshold", threshold_values}};
}

}  // namespace sluice::engine
