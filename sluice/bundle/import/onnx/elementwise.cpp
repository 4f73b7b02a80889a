// ONNX operators on each element by itself, and reductions.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "sluice/base/error.h"
#include "sluice/bundle/import/onnx/lowering.h"

namespace sluice::bundle::onnx {
namespace {

using Vals = std::vector<Val>;

template <Unary kind>
Vals simple(const Call& c) {
  return {c.to.unary(kind, c.in(0))};
}

Val activated(const Call& c, const char* kind, const Val& x) {
  if (!x.constant) return c.to.activation(kind, x);
  // Of constants, with the functions that fold.
  const Val one = c.to.number(1);
  if (std::string(kind) == "sigmoid") {
    const Val e = c.to.unary(Unary::exp, c.to.unary(Unary::neg, x));
    return c.to.unary(Unary::reciprocal, c.to.binary(Binary::add, e, one));
  }
  if (std::string(kind) == "tanh") {
    const Val e = c.to.unary(Unary::exp, c.to.unary(Unary::linear, x, 2));
    return c.to.binary(Binary::div, c.to.binary(Binary::sub, e, one),
                       c.to.binary(Binary::add, e, one));
  }
  return c.to.unary(Unary::clip, x, 0, std::numeric_limits<double>::max());
}

Vals relu(const Call& c) { return {activated(c, "relu", c.in(0))}; }
Vals sigmoid(const Call& c) { return {activated(c, "sigmoid", c.in(0))}; }
Vals tanh(const Call& c) { return {activated(c, "tanh", c.in(0))}; }

Vals leaky_relu(const Call& c) {
  return {c.to.unary(Unary::leaky_relu, c.in(0), c.attr("alpha", 0.01))};
}
Vals elu(const Call& c) { return {c.to.unary(Unary::elu, c.in(0), c.attr("alpha", 1.0), 1)}; }
Vals celu(const Call& c) { return {c.to.unary(Unary::celu, c.in(0), c.attr("alpha", 1.0))}; }
Vals selu(const Call& c) {
  return {c.to.unary(Unary::elu, c.in(0), c.attr("alpha", 1.67326319217681884765625),
                     c.attr("gamma", 1.05070102214813232421875))};
}
Vals hard_sigmoid(const Call& c) {
  return {c.to.unary(Unary::hard_sigmoid, c.in(0), c.attr("alpha", 0.2), c.attr("beta", 0.5))};
}
Vals hard_swish(const Call& c) { return {c.to.activation("hard_swish", c.in(0))}; }
Vals thresholded_relu(const Call& c) {
  return {c.to.unary(Unary::thresholded_relu, c.in(0), c.attr("alpha", 1.0))};
}
Vals shrink(const Call& c) {
  return {c.to.unary(Unary::shrink, c.in(0), c.attr("lambd", 0.5), c.attr("bias", 0.0))};
}

Vals clip(const Call& c) {
  const double most = std::numeric_limits<float>::max();
  double low = -most, high = most;
  if (c.to.opset() < 11) {
    low = c.attr("min", low);
    high = c.attr("max", high);
  } else {
    if (c.has(1)) low = c.number(1, "min");
    if (c.has(2)) high = c.number(2, "max");
  }
  return {c.to.unary(Unary::clip, c.in(0), low, high)};
}

Vals prelu(const Call& c) {
  const Val zero = c.to.number(0);
  const Val positive = c.to.binary(Binary::max, c.in(0), zero),
            negative = c.to.binary(Binary::min, c.in(0), zero);
  return {c.to.binary(Binary::add, positive, c.to.binary(Binary::mul, negative, c.in(1)))};
}

Vals identity(const Call& c) { return {c.in(0)}; }

Vals dropout(const Call& c) {
  if (c.has(2) && c.known(2, "training_mode").at(0) != 0)
    c.refuse(Code::unsupported, "in training mode; export the model for inference");
  Vals result{c.in(0)};
  if (c.node.outputs.size() > 1) {
    // The mask: everything is kept.
    c.to.spend(c.in(0).shape);
    result.push_back(c.to.known(make_constant(
        c.in(0).shape, std::vector<int64_t>(static_cast<size_t>(numel(c.in(0).shape)), 1))));
  }
  return result;
}

Val cast_to(const Call& c, const Val& x, Type type) {
  if (type_bytes(type) == 0 || type == Type::bf16)
    c.refuse(Code::unsupported, fmt::format("to {}", type_name(type)));
  const bool integer = is_integer(type), boolean = type == Type::boolean;
  if (x.constant) {
    c.to.spend(x.shape);
    return c.to.known(fold_cast(*x.constant, integer, boolean));
  }
  Val result = x;
  if (boolean) {
    result =
        c.to.binary(Binary::equal, c.to.binary(Binary::equal, x, c.to.number(0)), c.to.number(0));
  } else if (integer && !x.integer) {
    result = c.to.unary(Unary::trunc, x);
  }
  result.integer = integer;
  return result;
}

Vals cast(const Call& c) {
  return {cast_to(c, c.in(0), static_cast<Type>(c.attr("to", int64_t{0})))};
}

template <Binary kind>
Vals two(const Call& c) {
  return {c.to.binary(kind, c.in(0), c.in(1))};
}

template <Binary kind>
Vals many(const Call& c) {
  Val result = c.in(0);
  for (size_t i = 1; i < c.inputs.size(); ++i) result = c.to.binary(kind, result, c.in(i));
  return {result};
}

Vals mean(const Call& c) {
  const Val sum = many<Binary::add>(c)[0];
  return {c.to.binary(Binary::mul, sum, c.to.number(1.0 / static_cast<double>(c.inputs.size())))};
}

Vals mod(const Call& c) {
  return {c.to.binary(c.attr("fmod", int64_t{0}) ? Binary::fmod : Binary::mod, c.in(0), c.in(1))};
}

Vals where(const Call& c) { return {c.to.where(c.in(0), c.in(1), c.in(2))}; }

/// Reduced dimensions: an attribute, since version 13 of ReduceSum an input. Nothing: all.
std::vector<int64_t> reduced_axes(const Call& c, bool input, bool& none) {
  const size_t rank = c.in(0).shape.size();
  std::vector<int64_t> axes = c.attr_list("axes", {});
  if (input && c.has(1)) axes = c.integers(1, "axes");
  none = axes.empty() && input && c.attr("noop_with_empty_axes", int64_t{0}) != 0;
  if (!axes.empty()) return c.axes(axes, rank);
  std::vector<int64_t> all(rank);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

enum class Step : uint8_t { none, abs, square };

template <Reduce kind, Step before>
Val reduced(const Call& c) {
  bool none = false;
  const auto axes =
      reduced_axes(c, kind == Reduce::sum && before == Step::none && c.to.opset() >= 13, none);
  Val x = c.in(0);
  if (none) return x;
  if (before == Step::abs) x = c.to.unary(Unary::abs, x);
  if (before == Step::square) x = c.to.unary(Unary::square, x);
  return c.to.reduce(kind, x, axes, c.attr("keepdims", int64_t{1}) != 0);
}

template <Reduce kind, Step before>
Vals reduce(const Call& c) {
  return {reduced<kind, before>(c)};
}

Vals reduce_l2(const Call& c) {
  return {c.to.unary(Unary::sqrt, reduced<Reduce::sum, Step::square>(c))};
}

Vals reduce_log_sum(const Call& c) {
  bool none = false;
  const auto axes = reduced_axes(c, false, none);
  return {c.to.unary(Unary::log,
                     c.to.reduce(Reduce::sum, c.in(0), axes, c.attr("keepdims", int64_t{1}) != 0))};
}

/// log(sum(exp(x))), without overflow.
Val log_sum_exp(const Call& c, const Val& x, const std::vector<int64_t>& axes, bool keep) {
  const Val most = c.to.reduce(Reduce::max, x, axes, true);
  const Val sum = c.to.reduce(
      Reduce::sum, c.to.unary(Unary::exp, c.to.binary(Binary::sub, x, most)), axes, true);
  const Val result = c.to.binary(Binary::add, c.to.unary(Unary::log, sum), most);
  if (keep) return result;
  return c.to.reshape(result, c.to.reduce(Reduce::max, x, axes, false).shape);
}

Vals reduce_log_sum_exp(const Call& c) {
  bool none = false;
  const auto axes = reduced_axes(c, false, none);
  return {log_sum_exp(c, c.in(0), axes, c.attr("keepdims", int64_t{1}) != 0)};
}

template <Reduce kind>
Vals arg(const Call& c) {
  if (c.attr("select_last_index", int64_t{0}) != 0)
    c.refuse(Code::unsupported, "select_last_index; only the first of equal values is found");
  const size_t axis = c.axis(c.attr("axis", int64_t{0}), c.in(0).shape.size());
  return {c.to.reduce(kind, c.in(0), {static_cast<int64_t>(axis)},
                      c.attr("keepdims", int64_t{1}) != 0)};
}

Vals softmax(const Call& c, bool logarithm) {
  const Val& x = c.in(0);
  const size_t rank = x.shape.size();
  if (rank == 0) c.refuse(Code::shape, "of a scalar");
  const bool flat = c.to.opset() < 13;  // over all dimensions from `axis` on
  const size_t axis = c.axis(c.attr("axis", int64_t{flat ? 1 : -1}), rank);
  if (logarithm) {
    std::vector<int64_t> axes{static_cast<int64_t>(axis)};
    if (flat)
      for (size_t i = axis + 1; i < rank; ++i) axes.push_back(static_cast<int64_t>(i));
    const Val moved = c.to.binary(Binary::sub, x, c.to.reduce(Reduce::max, x, axes, true));
    const Val sum = c.to.reduce(Reduce::sum, c.to.unary(Unary::exp, moved), axes, true);
    return {c.to.binary(Binary::sub, moved, c.to.unary(Unary::log, sum))};
  }
  if (!flat) return {c.to.softmax(x, axis)};
  int64_t outer = 1;
  for (size_t i = 0; i < axis; ++i) outer *= x.shape[i];
  const Val rows = c.to.reshape(x, {outer, numel(x.shape) / std::max<int64_t>(outer, 1)});
  return {c.to.reshape(c.to.softmax(rows, 1), x.shape)};
}
Vals plain_softmax(const Call& c) { return softmax(c, false); }
Vals log_softmax(const Call& c) { return softmax(c, true); }

}  // namespace

std::vector<OperatorEntry> elementwise_operators() {
  return {{"Abs", simple<Unary::abs>},
          {"Neg", simple<Unary::neg>},
          {"Exp", simple<Unary::exp>},
          {"Log", simple<Unary::log>},
          {"Sqrt", simple<Unary::sqrt>},
          {"Reciprocal", simple<Unary::reciprocal>},
          {"Erf", simple<Unary::erf>},
          {"Floor", simple<Unary::floor>},
          {"Ceil", simple<Unary::ceil>},
          {"Round", simple<Unary::round>},
          {"Sign", simple<Unary::sign>},
          {"Sin", simple<Unary::sin>},
          {"Cos", simple<Unary::cos>},
          {"Tan", simple<Unary::tan>},
          {"Asin", simple<Unary::asin>},
          {"Acos", simple<Unary::acos>},
          {"Atan", simple<Unary::atan>},
          {"Sinh", simple<Unary::sinh>},
          {"Cosh", simple<Unary::cosh>},
          {"Asinh", simple<Unary::asinh>},
          {"Acosh", simple<Unary::acosh>},
          {"Atanh", simple<Unary::atanh>},
          {"Softplus", simple<Unary::softplus>},
          {"Softsign", simple<Unary::softsign>},
          {"Not", simple<Unary::logical_not>},
          {"Relu", relu},
          {"Sigmoid", sigmoid},
          {"Tanh", tanh},
          {"LeakyRelu", leaky_relu},
          {"Elu", elu},
          {"Celu", celu},
          {"Selu", selu},
          {"HardSigmoid", hard_sigmoid},
          {"HardSwish", hard_swish},
          {"ThresholdedRelu", thresholded_relu},
          {"Shrink", shrink},
          {"Clip", clip},
          {"PRelu", prelu},
          {"Identity", identity},
          {"Dropout", dropout},
          {"Cast", cast},
          {"Add", two<Binary::add>},
          {"Sub", two<Binary::sub>},
          {"Mul", two<Binary::mul>},
          {"Div", two<Binary::div>},
          {"Pow", two<Binary::pow>},
          {"Mod", mod},
          {"Equal", two<Binary::equal>},
          {"Less", two<Binary::less>},
          {"LessOrEqual", two<Binary::less_equal>},
          {"Greater", two<Binary::greater>},
          {"GreaterOrEqual", two<Binary::greater_equal>},
          {"And", two<Binary::logical_and>},
          {"Or", two<Binary::logical_or>},
          {"Xor", two<Binary::logical_xor>},
          {"Min", many<Binary::min>},
          {"Max", many<Binary::max>},
          {"Sum", many<Binary::add>},
          {"Mean", mean},
          {"Where", where},
          {"ReduceSum", reduce<Reduce::sum, Step::none>},
          {"ReduceMean", reduce<Reduce::mean, Step::none>},
          {"ReduceMax", reduce<Reduce::max, Step::none>},
          {"ReduceMin", reduce<Reduce::min, Step::none>},
          {"ReduceProd", reduce<Reduce::prod, Step::none>},
          {"ReduceL1", reduce<Reduce::sum, Step::abs>},
          {"ReduceSumSquare", reduce<Reduce::sum, Step::square>},
          {"ReduceL2", reduce_l2},
          {"ReduceLogSum", reduce_log_sum},
          {"ReduceLogSumExp", reduce_log_sum_exp},
          {"ArgMax", arg<Reduce::argmax>},
          {"ArgMin", arg<Reduce::argmin>},
          {"Softmax", plain_softmax},
          {"LogSoftmax", log_softmax}};
}

}  // namespace sluice::bundle::onnx
