// Operators on arrays of any rank: what networks from other formats are made of between their
// layers. Few and general, with broadcasting; whatever is fast has an operator of its own.
#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/bundle/ops_array.h"
#include "sluice/bundle/ops_check.h"
#include "sluice/bundle/ops_families.h"
#include "sluice/bundle/scalar_ops.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

std::string listed(std::span<const std::string_view> names) {
  std::string text;
  for (const std::string_view name : names) text.append(text.empty() ? "" : ", ").append(name);
  return text;
}

int64_t require_axis(const OpInput& in, size_t rank) {
  return require_int(in, "axis", static_cast<int64_t>(rank) - 1, 0, static_cast<int64_t>(rank) - 1);
}

std::vector<int64_t> int_list(const OpInput& in, const char* name) {
  const auto found = in.node.attrs.find(name);
  if (found == in.node.attrs.end()) return {};
  if (const auto* list = std::get_if<std::vector<int64_t>>(&found->second)) return *list;
  if (const auto* one = std::get_if<int64_t>(&found->second)) return {*one};
  fail(Code::shape, "attribute '{}': expected a list of integers", name);
}

Shape reshape_shape(const OpInput& in) {
  const Shape shape = int_list(in, "shape");
  if (shape.empty() || *std::min_element(shape.begin(), shape.end()) < 1)
    fail(Code::shape, "attribute 'shape': expected sizes of at least 1, found {}",
         to_string(shape));
  if (numel(shape, "shape") != numel(input(in, 0), "input"))
    fail(Code::shape, "attribute 'shape': {} has another number of elements than {}",
         to_string(shape), to_string(input(in, 0)));
  return shape;
}

Shape transpose_shape(const OpInput& in) {
  const Shape& x = input(in, 0);
  const std::vector<int64_t> perm = int_list(in, "perm");
  std::vector<bool> seen(x.size(), false);
  Shape shape;
  for (const int64_t axis : perm) {
    if (axis < 0 || axis >= static_cast<int64_t>(x.size()) || seen[static_cast<size_t>(axis)])
      break;
    seen[static_cast<size_t>(axis)] = true;
    shape.push_back(x[static_cast<size_t>(axis)]);
  }
  if (shape.size() != x.size() || perm.size() != x.size())
    fail(Code::shape, "attribute 'perm': expected an order of the {} dimensions, found {}",
         x.size(), to_string(perm));
  return shape;
}

Shape concat_shape(const OpInput& in) {
  Shape shape = input(in, 0);
  const size_t axis = static_cast<size_t>(require_axis(in, shape.size()));
  for (size_t i = 1; i < in.inputs.size(); ++i) {
    Shape other = input(in, i);
    if (other.size() != shape.size())
      fail(Code::shape, "inputs must have the same rank, found {} and {}", to_string(input(in, 0)),
           to_string(other));
    shape[axis] = checked_add(shape[axis], other[axis], "concatenation");
    other[axis] = shape[axis];
    if (other != shape)
      fail(Code::shape, "inputs must agree but for dimension {}, found {} and {}", axis,
           to_string(input(in, 0)), to_string(input(in, i)));
  }
  return shape;
}

Shape gather_shape(const OpInput& in) {
  Shape shape = input(in, 0);
  const size_t axis = static_cast<size_t>(require_axis(in, shape.size()));
  const std::vector<int64_t> indices = int_list(in, "indices");
  if (indices.empty()) fail(Code::shape, "attribute 'indices': expected at least one");
  for (const int64_t i : indices)
    if (i < 0 || i >= shape[axis])
      fail(Code::shape, "attribute 'indices': expected 0 to {}, found {}", shape[axis] - 1, i);
  shape[axis] = std::ssize(indices);
  return shape;
}

Shape pad_shape(const OpInput& in) {
  Shape shape = input(in, 0);
  const auto before = int_list(in, "before"), after = int_list(in, "after");
  if (before.size() != shape.size() || after.size() != shape.size())
    fail(Code::shape, "attributes 'before', 'after': expected {} numbers each, found {} and {}",
         shape.size(), before.size(), after.size());
  for (size_t i = 0; i < shape.size(); ++i) {
    if (std::min(before[i], after[i]) < 0 || std::max(before[i], after[i]) > kMaxWindow)
      fail(Code::shape, "attributes 'before', 'after': expected 0 to {}, found {} and {}",
           kMaxWindow, before[i], after[i]);
    shape[i] = checked_add(shape[i], before[i] + after[i], "padded size");
  }
  const double value = attr_double(in.node.attrs, "value", 0);
  if (!std::isfinite(value))
    fail(Code::numeric, "attribute 'value': expected a finite number, found {}", value);
  return shape;
}

Shape constant_shape(const OpInput& in) { return in.tensors.at("value").shape; }

Shape matmul_shape(const OpInput& in) {
  Shape a = input(in, 0), b = input(in, 1);
  if (a.size() < 2 || b.size() < 2)
    fail(Code::shape, "inputs: expected matrices [..,M,K] and [..,K,N], found {} and {}",
         to_string(a), to_string(b));
  const bool turned = attr_bool(in.node.attrs, "transpose_b", false);
  if (turned) std::swap(b[b.size() - 1], b[b.size() - 2]);
  if (a.back() != b[b.size() - 2])
    fail(Code::shape, "inputs: {} columns against {} rows, of {} and {}{}", a.back(),
         b[b.size() - 2], to_string(input(in, 0)), to_string(input(in, 1)),
         turned ? " transposed" : "");
  const double scale = attr_double(in.node.attrs, "scale", 1);
  if (!std::isfinite(scale))
    fail(Code::numeric, "attribute 'scale': expected a finite number, found {}", scale);
  const int64_t rows = a[a.size() - 2], columns = b.back();
  a.resize(a.size() - 2);
  b.resize(b.size() - 2);
  Shape shape = broadcast_shapes(a, b);
  shape.push_back(rows);
  shape.push_back(columns);
  return shape;
}

int64_t matmul_macs(const OpInput& in, const Shape& output) {
  return checked_mul(numel(output, "output"), input(in, 0).back(), "MACs");
}

Shape binary_shape(const OpInput& in) {
  const std::string kind = attr_string(in.node.attrs, "kind", "");
  if (!binary_from_name(kind))
    fail(Code::unsupported, "attribute 'kind': expected {}, found '{}'", listed(binary_names()),
         printable(kind, 40));
  attr_bool(in.node.attrs, "reversed", false);
  const TensorSpec* other = find_tensor(in, "other");
  if ((in.inputs.size() == 2) == (other != nullptr))
    fail(Code::shape, "expected two inputs, or one and the tensor 'other'");
  return broadcast_shapes(input(in, 0), other ? other->shape : input(in, 1));
}

Shape unary_shape(const OpInput& in) {
  const std::string kind = attr_string(in.node.attrs, "kind", "");
  if (!unary_from_name(kind))
    fail(Code::unsupported, "attribute 'kind': expected {}, found '{}'", listed(unary_names()),
         printable(kind, 40));
  for (const char* name : {"alpha", "beta"}) {
    const double value = attr_double(in.node.attrs, name, 0);
    if (!std::isfinite(value))
      fail(Code::numeric, "attribute '{}': expected a finite number, found {}", name, value);
  }
  return input(in, 0);
}

Shape where_shape(const OpInput& in) {
  return broadcast_shapes(broadcast_shapes(input(in, 0), input(in, 1)), input(in, 2));
}

Shape reduce_shape(const OpInput& in) {
  Shape shape = input(in, 0);
  const std::string kind = attr_string(in.node.attrs, "kind", "");
  if (!reduce_from_name(kind))
    fail(Code::unsupported,
         "attribute 'kind': expected sum, mean, max, min, prod, argmax or argmin, found '{}'",
         printable(kind, 40));
  const auto axes = int_list(in, "axes");
  int64_t last = -1;
  for (const int64_t axis : axes) {
    if (axis <= last || axis >= static_cast<int64_t>(shape.size()))
      fail(Code::shape, "attribute 'axes': expected ascending dimensions below {}, found {}",
           shape.size(), to_string(axes));
    shape[static_cast<size_t>(axis)] = 1;
    last = axis;
  }
  if (axes.empty()) fail(Code::shape, "attribute 'axes': expected at least one");
  if (kind.starts_with("arg") && axes.size() != 1)
    fail(Code::shape, "attribute 'axes': {} is along one dimension, found {}", kind, axes.size());
  return shape;
}

/// Along later dimensions each row by itself.
Rows reduce_rows(const OpInput& in) {
  return input(in, 0).size() > 1 && int_list(in, "axes").front() > 0 ? Rows::apart : Rows::mixed;
}

Shape conv_transpose2d_shape(const OpInput& in) {
  require_rank(in, 3, "[C,H,W]");
  const Shape& x = input(in, 0);
  const TensorSpec& spec = in.tensors.at("weight");
  const Shape& weight = spec.shape;
  if (weight.size() != 4 || *std::min_element(weight.begin(), weight.end()) < 1 ||
      weight[0] != x[0] || std::max(weight[2], weight[3]) > kMaxWindow)
    fail(Code::shape, "weight '{}': expected [{},O/groups,kh,kw], found {}", printable(spec.name),
         x[0], to_string(weight));
  const int64_t groups = require_int(in, "groups", 1, 1, x[0]);
  if (x[0] % groups != 0)
    fail(Code::shape, "attribute 'groups': {} does not divide {} channels", groups, x[0]);
  const int64_t out = checked_mul(weight[1], groups, "output channels");
  require_tensor(in, "bias", {out});
  const auto stride = window(in, "stride", 1, 1), padding = window(in, "padding", 0, 0),
             dilation = window(in, "dilation", 1, 1), extra = window(in, "output_padding", 0, 0);
  Shape shape{out, 0, 0};
  for (size_t i = 0; i < 2; ++i) {
    const int64_t size = checked_add(
        checked_mul(x[i + 1] - 1, stride[i], "output size"),
        checked_mul(dilation[i], weight[i + 2] - 1, "output size") + 1 + extra[i], "output size");
    shape[i + 1] = size - 2 * padding[i];
    if (shape[i + 1] < 1)
      fail(Code::shape, "attribute 'padding': {} leaves nothing of {} positions", padding[i], size);
  }
  return shape;
}

int64_t conv_transpose2d_macs(const OpInput& in, const Shape&) {
  const Shape& x = input(in, 0);
  return checked_mul(numel(in.tensors.at("weight").shape, "weight"),
                     checked_mul(x[1], x[2], "MACs"), "MACs");
}

Rows whole_rows(const OpInput&) { return Rows::mixed; }

}  // namespace

Shape broadcast_shapes(const Shape& a, const Shape& b) {
  Shape shape(std::max(a.size(), b.size()), 1);
  for (size_t i = 0; i < shape.size(); ++i) {
    const int64_t x = i < a.size() ? a[a.size() - 1 - i] : 1,
                  y = i < b.size() ? b[b.size() - 1 - i] : 1;
    if (x != y && x != 1 && y != 1)
      fail(Code::shape, "inputs: {} and {} do not broadcast", to_string(a), to_string(b));
    shape[shape.size() - 1 - i] = x == 1 ? y : x;
  }
  return shape;
}

std::optional<Reduce> reduce_from_name(std::string_view name) {
  constexpr std::string_view names[] = {"sum", "mean", "max", "min", "prod", "argmax", "argmin"};
  for (size_t i = 0; i < std::size(names); ++i)
    if (names[i] == name) return static_cast<Reduce>(i);
  return std::nullopt;
}

std::vector<Operator> array_operators() {
  return {
      {"reshape", 1, 1, {}, {}, {"shape"}, reshape_shape, no_macs},
      {"transpose", 1, 1, {}, {}, {"perm"}, transpose_shape, no_macs},
      {"concat", 2, GraphLimits::kNodeInputs, {}, {}, {"axis"}, concat_shape, no_macs},
      {"gather", 1, 1, {}, {}, {"axis", "indices"}, gather_shape, no_macs},
      {"pad", 1, 1, {}, {}, {"before", "after", "value"}, pad_shape, no_macs},
      {"constant", 1, 1, {"value"}, {}, {}, constant_shape, no_macs, whole_rows},
      {"matmul", 2, 2, {}, {}, {"transpose_b", "scale"}, matmul_shape, matmul_macs},
      {"binary", 1, 2, {}, {"other"}, {"kind", "reversed"}, binary_shape, no_macs},
      {"unary", 1, 1, {}, {}, {"kind", "alpha", "beta"}, unary_shape, no_macs, elementwise_rows},
      {"where", 3, 3, {}, {}, {}, where_shape, no_macs},
      {"reduce", 1, 1, {}, {}, {"kind", "axes"}, reduce_shape, no_macs, reduce_rows},
      {"conv_transpose2d",
       1,
       1,
       {"weight"},
       {"bias"},
       {"stride", "padding", "output_padding", "dilation", "groups"},
       conv_transpose2d_shape,
       conv_transpose2d_macs},
  };
}

}  // namespace sluice::bundle
