#include "sluice/bundle/ops_sparse.h"
#include "sluice/bundle/packed.h"
#include "sluice/engine/kernel/reference_call.h"

namespace sluice::engine {
namespace {

using Vec = std::vector<double>;
using Call = ReferenceCall;

double bias_of(const Call& c, int64_t o) {
  return c.has("bias") ? c.tensor("bias")[static_cast<size_t>(o)] : 0.0;
}

Vec gathered_conv2d(const Call& c) {
  const Shape &in = c.shape(), &out = c.out_shape();
  const ReferenceWindow window(c);
  const Vec& out_mask = *c.inputs[1];
  Vec y(c.out_count());
  for (int64_t o = 0; o < out[0]; ++o) {
    if (!(out_mask[static_cast<size_t>(o)] > 0)) continue;
    for (int64_t i = 0; i < out[1]; ++i) {
      for (int64_t j = 0; j < out[2]; ++j) {
        double sum = bias_of(c, o);
        for (int64_t k = 0; k < in[0]; ++k) {
          if (c.inputs.size() > 2 && !((*c.inputs[2])[static_cast<size_t>(k)] > 0)) continue;
          sum += window.sum(o * in[0] + k, k, i, j);
        }
        y[static_cast<size_t>((o * out[1] + i) * out[2] + j)] = sum;
      }
    }
  }
  return y;
}

/// The last size, which is what a session computes when it is not told another one.
Vec prefix_linear(const Call& c) {
  const std::string& name = c.node.tensors.at("weight");
  const bundle::TensorSpec& spec = c.bundle.graph().tensors.at(name);
  const int64_t out = spec.shape[0], in = spec.shape[1];
  std::vector<float> weight(static_cast<size_t>(out * in));
  bundle::unpack(bundle::view_packed(*bundle::format_from_name(spec.format), out, in,
                                     c.bundle.tensor(name).bytes, name),
                 weight);
  const bundle::PrefixSize size = bundle::prefix_sizes(c.node.attrs, out, in).back();
  Vec y;
  for (size_t first = 0; first < c.x().size(); first += static_cast<size_t>(in)) {
    for (int64_t o = 0; o < out; ++o) {
      double sum = o < size.rows ? bias_of(c, o) : 0;
      for (int64_t i = 0; i < size.columns && o < size.rows; ++i)
        sum += static_cast<double>(weight[static_cast<size_t>(o * in + i)]) *
               c.x()[first + static_cast<size_t>(i)];
      y.push_back(sum);
    }
  }
  return y;
}

/// Likewise.
Vec prefix_conv2d(const Call& c) {
  const Shape &in = c.shape(), &out = c.out_shape();
  const ReferenceWindow window(c);
  const auto sizes = bundle::prefix_sizes(c.node.attrs, out[0], in[0]);
  const int64_t table = (std::ssize(sizes) - 1) * out[0];
  Vec y(c.out_count());
  for (int64_t o = 0; o < sizes.back().rows; ++o) {
    const double scale = c.has("scale") ? c.tensor("scale")[static_cast<size_t>(table + o)] : 1.0;
    for (int64_t i = 0; i < out[1]; ++i) {
      for (int64_t j = 0; j < out[2]; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < sizes.back().columns; ++k) {
          sum += window.sum(o * in[0] + k, k, i, j);
        }
        y[static_cast<size_t>((o * out[1] + i) * out[2] + j)] = sum * scale + bias_of(c, table + o);
      }
    }
  }
  return y;
}

Vec size_switch(const Call& c) {
  const auto count = static_cast<int64_t>(c.inputs.size());
  return *c.inputs[static_cast<size_t>(bundle::switch_choices(c.node.attrs, count).back())];
}

}  // namespace

std::vector<ReferenceEntry> sparse_references() {
  return {{"gathered_conv2d", gathered_conv2d},
          {"prefix_linear", prefix_linear},
          {"prefix_conv2d", prefix_conv2d},
          {"size_switch", size_switch}};
}

}  // namespace sluice::engine
