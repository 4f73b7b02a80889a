#include <algorithm>
#include <cmath>

#include "sluice/bundle/ops_array.h"
#include "sluice/bundle/scalar_ops.h"
#include "sluice/engine/kernel/reference_call.h"

namespace sluice::engine {
namespace {

using Call = ReferenceCall;
using Vec = std::vector<double>;
using Index = std::vector<int64_t>;

Index int_list(const Call& c, const std::string& name) {
  const bundle::Attribute& value = c.node.attrs.at(name);
  if (const auto* one = std::get_if<int64_t>(&value)) return {*one};
  return std::get<Index>(value);
}

size_t axis_of(const Call& c) {
  return static_cast<size_t>(bundle::attr_int(c.node.attrs, "axis", std::ssize(c.out_shape()) - 1));
}

/// Calls each(index of the element, its number) for all elements of the shape.
template <class F>
void for_all(const Shape& shape, F each) {
  Index index(shape.size(), 0);
  const size_t count = static_cast<size_t>(numel(shape));
  for (size_t n = 0; n < count; ++n) {
    each(index, n);
    for (size_t i = shape.size(); i-- > 0;) {
      if (++index[i] < shape[i]) break;
      index[i] = 0;
    }
  }
}

/// The element of an array at an index of a shape that it is repeated to.
size_t at(const Shape& shape, const Index& index) {
  size_t n = 0;
  for (size_t i = 0; i < shape.size(); ++i) {
    const int64_t position = index[index.size() - shape.size() + i];
    n = n * static_cast<size_t>(shape[i]) + static_cast<size_t>(shape[i] == 1 ? 0 : position);
  }
  return n;
}

template <class F>
Vec build(const Call& c, F value) {
  Vec y(c.out_count());
  for_all(c.out_shape(), [&](const Index& index, size_t n) { y[n] = value(index); });
  return y;
}

Vec reshape(const Call& c) { return c.x(); }

Vec transpose(const Call& c) {
  const Index perm = int_list(c, "perm");
  return build(c, [&](const Index& index) {
    Index from(index.size());
    for (size_t i = 0; i < perm.size(); ++i) from[static_cast<size_t>(perm[i])] = index[i];
    return c.x()[at(c.shape(), from)];
  });
}

Vec concat(const Call& c) {
  const size_t axis = axis_of(c);
  return build(c, [&](Index index) {
    size_t input = 0;
    while (index[axis] >= c.shape(input)[axis]) index[axis] -= c.shape(input++)[axis];
    return (*c.inputs[input])[at(c.shape(input), index)];
  });
}

Vec gather(const Call& c) {
  const size_t axis = axis_of(c);
  const Index indices = int_list(c, "indices");
  return build(c, [&](Index index) {
    index[axis] = indices[static_cast<size_t>(index[axis])];
    return c.x()[at(c.shape(), index)];
  });
}

Vec pad(const Call& c) {
  const Index before = int_list(c, "before");
  const double value = bundle::attr_double(c.node.attrs, "value", 0);
  return build(c, [&](Index index) {
    for (size_t i = 0; i < index.size(); ++i) {
      index[i] -= before[i];
      if (index[i] < 0 || index[i] >= c.shape()[i]) return value;
    }
    return c.x()[at(c.shape(), index)];
  });
}

Vec constant(const Call& c) {
  const auto values = c.tensor("value");
  return {values.begin(), values.end()};
}

Vec matmul(const Call& c) {
  const bool turned = bundle::attr_bool(c.node.attrs, "transpose_b", false);
  const double scale = bundle::attr_double(c.node.attrs, "scale", 1);
  return build(c, [&](const Index& index) {
    Index a = index, b = index;
    const size_t last = index.size() - 1;
    double sum = 0;
    for (int64_t k = 0; k < c.shape(0).back(); ++k) {
      a[last] = k;
      b[last - 1] = turned ? index[last] : k;
      b[last] = turned ? k : index[last];
      sum += (*c.inputs[0])[at(c.shape(0), a)] * (*c.inputs[1])[at(c.shape(1), b)];
    }
    return scale * sum;
  });
}

Vec binary(const Call& c) {
  const auto kind = *bundle::binary_from_name(bundle::attr_string(c.node.attrs, "kind", ""));
  const bool reversed = bundle::attr_bool(c.node.attrs, "reversed", false);
  return build(c, [&](const Index& index) {
    const double a = c.x()[at(c.shape(), index)];
    const double b = c.has("other") ? c.tensor("other")[at(c.tensor_shape("other"), index)]
                                    : (*c.inputs[1])[at(c.shape(1), index)];
    return reversed ? bundle::binary_value(kind, b, a) : bundle::binary_value(kind, a, b);
  });
}

Vec unary(const Call& c) {
  const auto kind = *bundle::unary_from_name(bundle::attr_string(c.node.attrs, "kind", ""));
  Vec y = c.x();
  for (double& v : y)
    v = bundle::unary_value(kind, v, bundle::attr_double(c.node.attrs, "alpha", 0),
                            bundle::attr_double(c.node.attrs, "beta", 0));
  return y;
}

Vec where(const Call& c) {
  return build(c, [&](const Index& index) {
    const size_t side = c.x()[at(c.shape(), index)] != 0 ? 1 : 2;
    return (*c.inputs[side])[at(c.shape(side), index)];
  });
}

Vec reduce(const Call& c) {
  const auto kind = *bundle::reduce_from_name(bundle::attr_string(c.node.attrs, "kind", ""));
  const Index axes = int_list(c, "axes");
  std::vector<Vec> lists(c.out_count());
  for_all(c.shape(), [&](const Index& index, size_t n) {
    lists[at(c.out_shape(), index)].push_back(c.x()[n]);
  });
  Vec y;
  for (const Vec& list : lists) {
    using bundle::Reduce;
    double sum = 0, product = 1;
    for (const double v : list) {
      sum += v;
      product *= v;
    }
    const auto largest = std::max_element(list.begin(), list.end()),
               smallest = std::min_element(list.begin(), list.end());
    y.push_back(kind == Reduce::sum      ? sum
                : kind == Reduce::mean   ? sum / static_cast<double>(list.size())
                : kind == Reduce::prod   ? product
                : kind == Reduce::max    ? *largest
                : kind == Reduce::min    ? *smallest
                : kind == Reduce::argmax ? static_cast<double>(largest - list.begin())
                                         : static_cast<double>(smallest - list.begin()));
  }
  return y;
}

Vec conv_transpose2d(const Call& c) {
  const auto stride = c.pair("stride", 1), padding = c.pair("padding", 0),
             dilation = c.pair("dilation", 1);
  const int64_t groups = bundle::attr_int(c.node.attrs, "groups", 1);
  const Shape &in = c.shape(), &out = c.out_shape(), &weight = c.tensor_shape("weight");
  const int64_t channels = in[0] / groups, outputs = weight[1];
  Vec y(c.out_count());
  for_all(out, [&](const Index& index, size_t n) {
    y[n] = c.has("bias") ? c.tensor("bias")[static_cast<size_t>(index[0])] : 0.0;
  });
  for_all(in, [&](const Index& index, size_t n) {
    const int64_t group = index[0] / channels;
    for_all({outputs, weight[2], weight[3]}, [&](const Index& tap, size_t) {
      const int64_t to_y = index[1] * stride[0] - padding[0] + tap[1] * dilation[0],
                    to_x = index[2] * stride[1] - padding[1] + tap[2] * dilation[1];
      if (to_y < 0 || to_x < 0 || to_y >= out[1] || to_x >= out[2]) return;
      y[at(out, {group * outputs + tap[0], to_y, to_x})] +=
          c.x()[n] * c.tensor("weight")[at(weight, {index[0], tap[0], tap[1], tap[2]})];
    });
  });
  return y;
}

}  // namespace

std::vector<ReferenceEntry> array_references() {
  return {{"reshape", reshape}, {"transpose", transpose},
          {"concat", concat},   {"gather", gather},
          {"pad", pad},         {"constant", constant},
          {"matmul", matmul},   {"binary", binary},
          {"unary", unary},     {"where", where},
          {"reduce", reduce},   {"conv_transpose2d", conv_transpose2d}};
}

}  // namespace sluice::engine
