#include "sluice/bundle/import/onnx/lowering.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "sluice/base/error.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::onnx {
namespace {

/// The tensor of a node: without leading dimensions of 1, and finite, as a bundle's must be.
/// Infinities (masks) become the largest numbers.
ConstantPtr storable(const ConstantPtr& constant, const std::string& what) {
  auto result = std::make_shared<Constant>();
  result->name = constant->name;
  result->shape = constant->shape;
  while (result->shape.size() > 1 && result->shape[0] == 1)
    result->shape.erase(result->shape.begin());
  if (result->shape.empty()) result->shape = {1};
  if (constant->integer) {
    result->reals.assign(constant->integers.begin(), constant->integers.end());
    return result;
  }
  result->reals = constant->reals;
  for (float& v : result->reals) {
    if (std::isnan(v)) fail(Code::numeric, "{}: a constant is not a number", what);
    v = std::clamp(v, -std::numeric_limits<float>::max(), std::numeric_limits<float>::max());
  }
  return result;
}

bool is_scalar(const Val& value) { return value.constant && value.constant->size() == 1; }

/// `x op c` that is x.
bool is_identity(Binary kind, double c, bool reversed) {
  switch (kind) {
    case Binary::add:
      return c == 0;
    case Binary::mul:
      return c == 1;
    case Binary::sub:
      return c == 0 && !reversed;
    case Binary::div:
    case Binary::pow:
      return c == 1 && !reversed;
    default:
      return false;
  }
}

}  // namespace

Shape Lowering::stripped(const Shape& shape) {
  if (shape.empty()) return {1};
  if (shape.size() > 1 && shape[0] == 1) return {shape.begin() + 1, shape.end()};
  return shape;
}

Val Lowering::known(ConstantPtr constant) const {
  Val value;
  value.shape = constant->shape;
  value.integer = constant->integer;
  value.constant = std::move(constant);
  return value;
}

Val Lowering::made(int node, Shape shape) const {
  Val value;
  value.shape = std::move(shape);
  value.node = node;
  SLUICE_CHECK(numel(value.shape) == numel(net_.at(node).shape));
  return value;
}

void Lowering::spend(const Shape& shape) {
  // A dimension of 0 hides the others from the number of elements, but not from who walks them.
  int64_t most = 1;
  for (const int64_t size : shape) most = checked_mul(most, std::max<int64_t>(1, size), "constant");
  left_ -= std::min(most, std::max<int64_t>(left_, 0) + 1);
  if (left_ < 0)
    fail(Code::limit, "{}: node '{}': too many numbers to compute while reading the graph",
         net_.what, printable(path_, 80));
}

int Lowering::add(const std::string& op, std::vector<int> inputs, Attributes attrs,
                  std::map<std::string, ConstantPtr> tensors) {
  for (auto& [role, constant] : tensors) {
    if (constant->integer || !std::all_of(constant->reals.begin(), constant->reals.end(),
                                          [](float v) { return std::isfinite(v); })) {
      Shape shape = constant->shape;
      auto finite = std::make_shared<Constant>(
          *storable(constant, net_.what + ": node '" + printable(path_, 80) + "'"));
      finite->shape = std::move(shape);
      constant = std::move(finite);
    }
  }
  return net_.add(op, path_, std::move(inputs), std::move(attrs), std::move(tensors));
}

int Lowering::as(const Val& value, const Shape& shape) {
  if (value.constant) {
    spend(value.shape);
    auto constant = std::make_shared<Constant>(
        *storable(value.constant, net_.what + ": node '" + printable(path_, 80) + "'"));
    constant->shape = shape;
    return add("constant", {0}, {}, {{"value", std::move(constant)}});
  }
  int node = value.node;
  if (net_.at(node).shape == shape) return node;
  if (net_.at(node).op == "reshape") node = net_.at(node).inputs[0];
  if (net_.at(node).shape == shape) return node;
  // One view per shape: patterns are found where their parts read the same node.
  const auto [view, fresh] = views_.try_emplace({node, shape}, -1);
  if (fresh) view->second = add("reshape", {node}, {{"shape", std::vector<int64_t>(shape)}});
  return view->second;
}

bool Lowering::can_strip(const std::vector<const Val*>& values,
                         const std::vector<size_t>& axes) const {
  for (const Val* value : values)
    if (value->shape.size() < 2 || value->shape[0] != 1) return false;
  return std::find(axes.begin(), axes.end(), 0u) == axes.end();
}

Val Lowering::reshape(const Val& x, Shape shape) {
  if (x.constant) {
    spend(shape);
    return known(fold_reshape(*x.constant, std::move(shape)));
  }
  Val result = x;
  result.shape = std::move(shape);
  return result;
}

Val Lowering::transpose(const Val& x, const std::vector<int64_t>& perm) {
  if (x.constant) {
    spend(x.shape);
    return known(fold_transpose(*x.constant, perm));
  }
  Shape shape;
  std::vector<int64_t> moved, still;  // of dimensions longer than 1
  for (const int64_t axis : perm) {
    shape.push_back(x.shape[static_cast<size_t>(axis)]);
    if (shape.back() > 1) moved.push_back(axis);
  }
  Val result = x;
  result.shape = shape;
  if (std::is_sorted(moved.begin(), moved.end())) return result;  // only dimensions of 1 move
  // In the graph without dimensions of 1.
  Shape full;
  std::vector<int64_t> number(x.shape.size(), 0);
  for (size_t i = 0; i < x.shape.size(); ++i) {
    if (x.shape[i] == 1) continue;
    number[i] = std::ssize(full);
    full.push_back(x.shape[i]);
  }
  for (int64_t& axis : moved) axis = number[static_cast<size_t>(axis)];
  result.node = add("transpose", {as(x, full)}, {{"perm", moved}});
  return result;
}

Val Lowering::concat(const std::vector<Val>& parts, size_t axis) {
  if (parts.size() == 1) return parts[0];
  Shape shape = parts[0].shape;
  shape[axis] = 0;
  bool constant = true;
  std::vector<const Val*> pointers;
  for (const Val& part : parts) {
    Shape rest = part.shape;
    if (rest.size() != shape.size())
      fail(Code::shape, "{}: node '{}': parts of {} and {} dimensions", net_.what,
           printable(path_, 80), shape.size(), rest.size());
    shape[axis] = checked_add(shape[axis], rest[axis], "concatenation");
    rest[axis] = shape[axis];
    if (rest != shape)
      fail(Code::shape, "{}: node '{}': parts {} and {} do not fit along dimension {}", net_.what,
           printable(path_, 80), to_string(parts[0].shape), to_string(part.shape), axis);
    constant = constant && part.constant;
    pointers.push_back(&part);
  }
  if (constant) {
    spend(shape);
    std::vector<ConstantPtr> constants;
    for (const Val& part : parts) constants.push_back(part.constant);
    return known(fold_concat(constants, axis));
  }
  std::vector<Val> some;
  for (const Val& part : parts)
    if (part.shape[axis] > 0) some.push_back(part);
  const bool strips = can_strip(pointers, {axis});
  // More parts than a node takes are joined in steps.
  std::vector<int> nodes;
  for (const Val& part : some)
    nodes.push_back(as(part, strips ? stripped(part.shape) : part.shape));
  const int64_t at = static_cast<int64_t>(axis) - (strips ? 1 : 0);
  while (nodes.size() > 1) {
    std::vector<int> joined;
    for (size_t i = 0; i < nodes.size(); i += GraphLimits::kNodeInputs) {
      const std::vector<int> group(
          nodes.begin() + static_cast<std::ptrdiff_t>(i),
          nodes.begin() +
              static_cast<std::ptrdiff_t>(std::min(nodes.size(), i + GraphLimits::kNodeInputs)));
      joined.push_back(group.size() == 1 ? group[0] : add("concat", group, {{"axis", at}}));
    }
    nodes = joined;
  }
  Val result = made(nodes[0], shape);
  result.integer = parts[0].integer;
  return result;
}

Val Lowering::gather(const Val& x, size_t axis, const std::vector<int64_t>& indices) {
  Shape shape = x.shape;
  shape[axis] = std::ssize(indices);
  for (const int64_t i : indices)
    if (i < 0 || i >= x.shape[axis])
      fail(Code::shape, "{}: node '{}': index {} of dimension {} of {}", net_.what,
           printable(path_, 80), i, axis, to_string(x.shape));
  if (x.constant) {
    spend(shape);
    return known(fold_gather(*x.constant, axis, indices));
  }
  bool consecutive = !indices.empty();
  for (size_t i = 1; i < indices.size(); ++i)
    consecutive = consecutive && indices[i] == indices[0] + static_cast<int64_t>(i);
  if (consecutive) return slice(x, axis, indices[0], std::ssize(indices));
  if (indices.empty() || indices.size() > GraphLimits::kAttributeItems)
    fail(Code::limit, "{}: node '{}': {} indices; expected 1 to {}", net_.what,
         printable(path_, 80), indices.size(), GraphLimits::kAttributeItems);
  const bool strips = can_strip({&x}, {axis});
  Val result = x;
  result.shape = shape;
  result.node =
      add("gather", {as(x, strips ? stripped(x.shape) : x.shape)},
          {{"axis", static_cast<int64_t>(axis) - (strips ? 1 : 0)}, {"indices", indices}});
  return result;
}

Val Lowering::slice(const Val& x, size_t axis, int64_t start, int64_t size) {
  Shape shape = x.shape;
  if (axis >= shape.size() || start < 0 || size < 0 || start > shape[axis] - size)
    fail(Code::shape, "{}: node '{}': {} from {} of dimension {} of {}", net_.what,
         printable(path_, 80), size, start, axis, to_string(x.shape));
  shape[axis] = size;
  if (x.constant) {
    spend(shape);
    std::vector<int64_t> indices(static_cast<size_t>(size));
    std::iota(indices.begin(), indices.end(), start);
    return known(fold_gather(*x.constant, axis, indices));
  }
  if (size < 1)
    fail(Code::shape, "{}: node '{}': nothing is left of dimension {} of {}", net_.what,
         printable(path_, 80), axis, to_string(x.shape));
  if (start == 0 && size == x.shape[axis]) return x;
  const bool strips = can_strip({&x}, {axis});
  Val result = x;
  result.shape = shape;
  result.node = add(
      "slice", {as(x, strips ? stripped(x.shape) : x.shape)},
      {{"axis", static_cast<int64_t>(axis) - (strips ? 1 : 0)}, {"start", start}, {"size", size}});
  return result;
}

Val Lowering::pad(const Val& x, const std::vector<int64_t>& before,
                  const std::vector<int64_t>& after, double value) {
  Shape shape = x.shape;
  std::vector<size_t> axes;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (before[i] || after[i]) axes.push_back(i);
    shape[i] = checked_add(shape[i], checked_add(before[i], after[i], "padding"), "padding");
  }
  if (axes.empty()) return x;
  if (x.constant) {
    spend(shape);
    return known(fold_pad(*x.constant, before, shape, value));
  }
  const bool strips = can_strip({&x}, axes);
  const auto cut = [&](const std::vector<int64_t>& list) {
    return strips ? std::vector<int64_t>(list.begin() + 1, list.end()) : list;
  };
  Val result = x;
  result.shape = shape;
  const double most = std::numeric_limits<float>::max();
  result.node = add(
      "pad", {as(x, strips ? stripped(x.shape) : x.shape)},
      {{"before", cut(before)}, {"after", cut(after)}, {"value", std::clamp(value, -most, most)}});
  return result;
}

Val Lowering::affine(Binary kind, const Val& x, double value, bool reversed) {
  double alpha = 1, beta = 0;
  switch (kind) {
    case Binary::add:
      beta = value;
      break;
    case Binary::sub:
      alpha = reversed ? -1 : 1;
      beta = reversed ? value : -value;
      break;
    case Binary::mul:
      alpha = value;
      break;
    default:
      alpha = 1 / value;
      break;
  }
  return unary(Unary::linear, x, alpha, beta);
}

std::optional<Val> Lowering::with_constant(Binary kind, const Val& x, const Val& constant,
                                           bool reversed) {
  const double c = constant.constant->at(0);
  const double most = std::numeric_limits<float>::max();
  if (!std::isfinite(c)) return std::nullopt;
  if (is_identity(kind, c, reversed)) return x;
  switch (kind) {
    case Binary::add:
    case Binary::sub:
    case Binary::mul:
      return affine(kind, x, c, reversed);
    case Binary::div:
      if (!reversed && c != 0 && !x.integer && std::isfinite(static_cast<float>(1 / c)))
        return affine(kind, x, c, false);
      if (reversed && c == 1 && !x.integer) return unary(Unary::reciprocal, x);
      return std::nullopt;
    case Binary::pow:
      if (reversed) return std::nullopt;
      if (c == 2) return unary(Unary::square, x);
      if (c == 0.5) return unary(Unary::sqrt, x);
      return std::nullopt;
    case Binary::min:
      return unary(Unary::clip, x, -most, c);
    case Binary::max:
      return unary(Unary::clip, x, c, most);
    default:
      return std::nullopt;
  }
}

Val Lowering::binary(Binary kind, const Val& a, const Val& b) {
  const Shape shape = broadcast_shapes(a.shape, b.shape);
  const bool integers = a.integer && b.integer;
  if (a.constant && b.constant) {
    spend(shape);
    return known(fold_binary(kind, *a.constant, *b.constant));
  }
  if (a.constant || b.constant) {
    const Val &x = a.constant ? b : a, &c = a.constant ? a : b;
    if (is_scalar(c) && numel(shape) == numel(x.shape)) {
      if (auto simple = with_constant(kind, x, c, a.constant != nullptr)) {
        simple->shape = shape;
        simple->integer = integers;
        return *simple;
      }
    }
  }
  Val result;
  if (a.constant || b.constant) {
    const Val &x = a.constant ? b : a, &c = a.constant ? a : b;
    Attributes attrs{{"kind", std::string(binary_name(kind))}};
    if (a.constant) attrs["reversed"] = true;
    result = made(add("binary", {plain(x)}, attrs,
                      {{"other", storable(c.constant, net_.what + ": node '" + path_ + "'")}}),
                  shape);
  } else {
    int x = plain(a), y = plain(b);
    const bool commutes = kind == Binary::mul || kind == Binary::add;
    if (commutes && numel(b.shape) > numel(a.shape)) std::swap(x, y);
    const Shape &large = net_.at(x).shape, &small = net_.at(y).shape;
    const Shape channels{large[0]};
    // [C,1,1] beside [C,H,W]
    const bool per_channel = small.size() == large.size() && small.size() > 1 &&
                             small[0] == large[0] && numel(small) == small[0];
    if (commutes && large == small) {
      result = made(add(std::string(binary_name(kind)), {x, y}), shape);
    } else if (kind == Binary::mul && per_channel) {
      Val gate = made(y, small);
      result = made(add("mul", {x, as(gate, channels)}), shape);
    } else {
      result = made(add("binary", {x, y}, {{"kind", std::string(binary_name(kind))}}), shape);
    }
  }
  result.integer = integers || is_question(kind);
  if (integers && kind == Binary::div) {
    result = unary(Unary::trunc, result);
    result.integer = true;
  }
  return result;
}

Val Lowering::unary(Unary kind, const Val& x, double alpha, double beta) {
  if (x.constant) {
    spend(x.shape);
    return known(fold_unary(kind, *x.constant, alpha, beta));
  }
  const double most = std::numeric_limits<float>::max();
  alpha = std::clamp(alpha, -most, most);
  beta = std::clamp(beta, -most, most);
  Attributes attrs{{"kind", std::string(unary_name(kind))}};
  if (alpha != 0) attrs["alpha"] = alpha;
  if (beta != 0) attrs["beta"] = beta;
  Val result = x;  // in whatever shape its node has
  result.node = add("unary", {x.node}, std::move(attrs));
  return result;
}

Val Lowering::activation(const std::string& kind, const Val& x) {
  // Constants that reach an activation are rare: they become a node.
  const int node = x.constant ? plain(x) : x.node;
  return made(add("activation", {node}, {{"kind", kind}}), x.shape);
}

Val Lowering::where(const Val& condition, const Val& a, const Val& b) {
  const Shape shape = broadcast_shapes(broadcast_shapes(condition.shape, a.shape), b.shape);
  if (condition.constant && a.constant && b.constant) {
    spend(shape);
    return known(fold_where(*condition.constant, *a.constant, *b.constant));
  }
  Val result = made(add("where", {plain(condition), plain(a), plain(b)}), shape);
  result.integer = a.integer && b.integer;
  return result;
}

Val Lowering::reduce(Reduce kind, const Val& x, const std::vector<int64_t>& axes, bool keep) {
  Shape kept = x.shape, shape;
  for (const int64_t axis : axes) kept[static_cast<size_t>(axis)] = 1;
  for (size_t i = 0; i < kept.size(); ++i)
    if (keep || std::find(axes.begin(), axes.end(), static_cast<int64_t>(i)) == axes.end())
      shape.push_back(kept[i]);
  const bool position = kind == Reduce::argmax || kind == Reduce::argmin;
  if (axes.empty()) return x;
  if (x.constant) {
    spend(x.shape);
    return reshape(known(fold_reduce(kind, *x.constant, axes)), shape);
  }
  std::vector<size_t> positions(axes.begin(), axes.end());
  const bool strips = can_strip({&x}, positions);
  std::vector<int64_t> moved = axes;
  for (int64_t& axis : moved) axis -= strips ? 1 : 0;
  Val result = made(add("reduce",
                        {as(x, strips            ? stripped(x.shape)
                               : x.shape.empty() ? Shape{1}
                                                 : x.shape)},
                        {{"kind", std::string(kind == Reduce::sum      ? "sum"
                                              : kind == Reduce::mean   ? "mean"
                                              : kind == Reduce::max    ? "max"
                                              : kind == Reduce::min    ? "min"
                                              : kind == Reduce::prod   ? "prod"
                                              : kind == Reduce::argmax ? "argmax"
                                                                       : "argmin")},
                         {"axes", moved}}),
                    shape);
  result.integer = x.integer || position;
  return result;
}

Val Lowering::linear(const Val& x, ConstantPtr weight, ConstantPtr bias) {
  Shape shape = x.shape;
  shape.back() = weight->shape[0];
  std::map<std::string, ConstantPtr> tensors{{"weight", std::move(weight)}};
  if (bias) tensors["bias"] = std::move(bias);
  // Rows may be in any number of dimensions; a single row is a vector.
  Shape rows{numel(x.shape) / x.shape.back(), x.shape.back()};
  if (rows[0] == 1) rows = {rows[1]};
  return made(add("linear", {as(x, rows)}, {}, std::move(tensors)), shape);
}

Val Lowering::matmul(const Val& a, const Val& b) {
  // Vectors are matrices of one row or column, which is taken out of the result.
  Val x = a, y = b;
  if (a.shape.empty() || b.shape.empty())
    fail(Code::shape, "{}: node '{}': a product of scalars", net_.what, printable(path_, 80));
  if (x.shape.size() == 1) x = reshape(x, {1, x.shape[0]});
  if (y.shape.size() == 1) y = reshape(y, {y.shape[0], 1});
  const int64_t rows = x.shape[x.shape.size() - 2], inner = x.shape.back(),
                columns = y.shape.back();
  if (y.shape[y.shape.size() - 2] != inner)
    fail(Code::shape, "{}: node '{}': {} times {}", net_.what, printable(path_, 80),
         to_string(a.shape), to_string(b.shape));
  const Shape outer =
      broadcast_shapes({x.shape.begin(), x.shape.end() - 2}, {y.shape.begin(), y.shape.end() - 2});
  Shape full = outer, shape = outer;
  full.push_back(rows);
  full.push_back(columns);
  if (a.shape.size() > 1) shape.push_back(rows);
  if (b.shape.size() > 1) shape.push_back(columns);
  if (x.constant && y.constant) {
    spend(full);
    spend({numel(full), inner});
    return reshape(known(fold_matmul(*x.constant, *y.constant, full)), shape);
  }
  if (y.constant && y.shape.size() == 2 && x.shape.size() >= 2) {
    Val turned = transpose(y, {1, 0});
    if (turned.constant->integer) turned = known(fold_cast(*turned.constant, false, false));
    auto weight = std::make_shared<Constant>(*turned.constant);
    weight->name = b.constant->name;
    return reshape(linear(x, std::move(weight), nullptr), shape);
  }
  const auto matrices = [](const Shape& s) {
    Shape result = s.size() > 2 ? stripped(s) : s;
    return result;
  };
  return made(add("matmul", {as(x, matrices(x.shape)), as(y, matrices(y.shape))}), shape);
}

Val Lowering::softmax(const Val& x, size_t axis) {
  std::vector<int64_t> perm(x.shape.size());
  std::iota(perm.begin(), perm.end(), 0);
  std::swap(perm[axis], perm.back());
  const Val turned = transpose(x, perm);
  const Val result = made(add("softmax", {plain(turned)}), turned.shape);
  return transpose(result, perm);
}

}  // namespace sluice::bundle::onnx
