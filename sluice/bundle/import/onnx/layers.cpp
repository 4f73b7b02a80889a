// ONNX operators with weights: products, convolutions, norms.
#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/bundle/import/onnx/lowering.h"
#include "sluice/bundle/import/onnx/window.h"

namespace sluice::bundle::onnx {
namespace {

using Vals = std::vector<Val>;

ConstantPtr reals(const Call& c, size_t i, const char* name) {
  const Constant& value = c.known(i, name);
  if (value.integer) c.refuse(Code::dtype, fmt::format("'{}': expected floats", name));
  return c.in(i).constant;
}

ConstantPtr renamed(ConstantPtr constant, const std::string& name) {
  auto copy = std::make_shared<Constant>(*constant);
  copy->name = name;
  return copy;
}

/// [O,C,k] -> [O,C,1,k]
ConstantPtr two_dimensional(const Call& c, ConstantPtr weight) {
  if (weight->shape.size() == 4) return weight;
  if (weight->shape.size() != 3)
    c.refuse(Code::unsupported, fmt::format("weight {}: convolutions of one and two dimensions "
                                            "are known",
                                            to_string(weight->shape)));
  auto copy = std::make_shared<Constant>(*weight);
  copy->shape.insert(copy->shape.begin() + 2, 1);
  return copy;
}

/// The weight of a convolution over the picture x (or signal, [1,C,W]) as [..,..,kh,kw].
ConstantPtr window_weight(const Call& c, const Shape& x) {
  const ConstantPtr weight = reals(c, 1, "W");
  if (weight->shape.size() != x.size())
    c.refuse(Code::shape, fmt::format("weight {} for {}", to_string(weight->shape), to_string(x)));
  return two_dimensional(c, weight);
}

Vals conv(const Call& c) {
  const ConstantPtr bias = c.has(2) ? reals(c, 2, "B") : nullptr;
  const Shape original = c.in(0).shape;
  const Val x = picture(c, c.in(0));
  ConstantPtr weight = window_weight(c, original);
  const Window window = read_window(c, {weight->shape[2], weight->shape[3]}, original.size() - 2);
  Placed placed = place(c, x, window);
  const int64_t groups = c.attr("group", int64_t{1});
  std::map<std::string, ConstantPtr> tensors{{"weight", weight}};
  if (bias) tensors["bias"] = bias;
  const Shape in{placed.x.shape[1], placed.x.shape[2], placed.x.shape[3]};
  int node = -1;
  const bool point = in[1] == 1 && in[2] == 1 && weight->shape[2] == 1 && weight->shape[3] == 1 &&
                     groups == 1 && weight->shape[1] == in[0] && placed.padding[0] == 0 &&
                     placed.padding[1] == 0;
  if (point) {
    auto flat = std::make_shared<Constant>(*weight);
    flat->shape.resize(2);
    tensors["weight"] = flat;
    node = c.to.add("linear", {c.to.as(placed.x, {in[0]})}, {}, tensors);
    return {c.to.reshape(
        c.to.made(node, {1, weight->shape[0], 1, 1}),
        original.size() == 3 ? Shape{1, weight->shape[0], 1} : Shape{1, weight->shape[0], 1, 1})};
  }
  node = c.to.add("conv2d", {c.to.as(placed.x, in)},
                  {{"stride", window.stride},
                   {"padding", placed.padding},
                   {"dilation", window.dilation},
                   {"groups", groups}},
                  tensors);
  return {unpicture(c, node, original.size())};
}

Vals conv_transpose(const Call& c) {
  const ConstantPtr bias = c.has(2) ? reals(c, 2, "B") : nullptr;
  const Shape original = c.in(0).shape;
  const Val x = picture(c, c.in(0));
  ConstantPtr weight = window_weight(c, original);
  const size_t dims = original.size() - 2;
  Window window = read_window(c, {weight->shape[2], weight->shape[3]}, dims, false);
  std::vector<int64_t> extra = c.attr_list("output_padding", std::vector<int64_t>(dims, 0)),
                       wanted = c.attr_list("output_shape", {});
  if (extra.size() != dims || (!wanted.empty() && wanted.size() != dims))
    c.refuse(Code::shape, "output_padding or output_shape of another number of dimensions");
  if (dims == 1) {
    extra.insert(extra.begin(), 0);
    if (!wanted.empty()) wanted.insert(wanted.begin(), 1);
  }
  const std::string automatic = c.attr("auto_pad", "NOTSET");
  // What the operator makes without padding is cut at both sides.
  std::vector<int64_t> begin(2), end(2);
  for (size_t i = 0; i < 2; ++i) {
    const int64_t size = x.shape[i + 2];
    const int64_t full = checked_add(
        checked_mul(size - 1, window.stride[i], "output"),
        checked_mul(weight->shape[i + 2] - 1, window.dilation[i], "output") + 1, "output");
    int64_t total = -1;
    if (!wanted.empty()) {
      // More than the windows reach is added at the end.
      extra[i] = std::max(extra[i], wanted[i] - full);
      total = full + extra[i] - wanted[i];
    }
    if (wanted.empty() && automatic.starts_with("SAME"))
      total = full + extra[i] - checked_mul(size, window.stride[i], "output");
    if (automatic == "VALID") total = 0;
    if (total >= 0 || !wanted.empty()) {
      total = std::max<int64_t>(total, 0);
      const bool upper = automatic == "SAME_UPPER";
      begin[i] = upper ? total / 2 : total - total / 2;
      end[i] = total - begin[i];
      if (!wanted.empty() && automatic == "NOTSET") {
        begin[i] = total - total / 2;
        end[i] = total / 2;
      }
    } else {
      begin[i] = window.begin[i];
      end[i] = window.end[i];
    }
    if (begin[i] < 0 || end[i] < 0 || extra[i] < 0 || extra[i] > 4096)
      c.refuse(Code::shape, "negative padding");
  }
  std::map<std::string, ConstantPtr> tensors{{"weight", weight}};
  if (bias) tensors["bias"] = bias;
  const int node = c.to.add("conv_transpose2d", {c.to.as(x, {x.shape[1], x.shape[2], x.shape[3]})},
                            {{"stride", window.stride},
                             {"dilation", window.dilation},
                             {"output_padding", extra},
                             {"groups", c.attr("group", int64_t{1})}},
                            tensors);
  const Shape& out = c.to.net().at(node).shape;
  Val result = c.to.made(node, {1, out[0], out[1], out[2]});
  for (size_t i = 0; i < 2; ++i) {
    const int64_t left = result.shape[i + 2] - begin[i] - end[i];
    if (left < 1) c.refuse(Code::shape, "the padding leaves nothing");
    result = c.to.slice(result, i + 2, begin[i], left);
  }
  if (dims == 1) result = c.to.reshape(result, {1, result.shape[1], result.shape[3]});
  return {result};
}

/// A tensor [C] beside [N,C,..].
Val along_channels(const Call& c, const Val& x, size_t rank) {
  Shape shape(rank, 1);
  if (rank > 1) shape[1] = numel(x.shape);
  if (rank == 1) shape[0] = numel(x.shape);
  return c.to.reshape(x, shape);
}

Vals batch_norm(const Call& c) {
  if (c.attr("training_mode", int64_t{0}) != 0)
    c.refuse(Code::unsupported, "in training mode; export the model for inference");
  const Val& x = c.in(0);
  if (x.shape.size() < 2) c.refuse(Code::shape, fmt::format("of {}", to_string(x.shape)));
  const double eps = c.attr("epsilon", 1e-5);
  const char* const names[] = {"", "scale", "B", "mean", "var"};
  for (size_t i = 1; i < 5; ++i)
    if (reals(c, i, names[i])->shape != Shape{x.shape[1]})
      c.refuse(Code::shape, fmt::format("'{}': {} for {} channels", names[i],
                                        to_string(c.in(i).shape), x.shape[1]));
  const bool whole = x.shape[0] == 1 && eps >= 0 && eps <= 1;
  if (whole) {
    const int node =
        c.to.add("batch_norm", {c.to.as(x, Lowering::stripped(x.shape))}, {{"eps", eps}},
                 {{"weight", c.in(1).constant},
                  {"bias", c.in(2).constant},
                  {"running_mean", c.in(3).constant},
                  {"running_var", c.in(4).constant}});
    return {c.to.made(node, x.shape)};
  }
  const Val deviation =
      c.to.unary(Unary::sqrt, c.to.binary(Binary::add, c.in(4), c.to.number(eps)));
  const Val factor = c.to.binary(Binary::div, c.in(1), deviation);
  const Val offset = c.to.binary(Binary::sub, c.in(2), c.to.binary(Binary::mul, c.in(3), factor));
  return {c.to.binary(Binary::add,
                      c.to.binary(Binary::mul, x, along_channels(c, factor, x.shape.size())),
                      along_channels(c, offset, x.shape.size()))};
}

Vals instance_norm(const Call& c) {
  const Val& x = c.in(0);
  if (x.shape.size() < 3) c.refuse(Code::shape, fmt::format("of {}", to_string(x.shape)));
  const int64_t rows = x.shape[0] * x.shape[1];
  const Val flat = c.to.reshape(x, {rows, numel(x.shape) / std::max<int64_t>(1, rows)});
  const int node =
      c.to.add("layer_norm", {c.to.as(flat, flat.shape)}, {{"eps", c.attr("epsilon", 1e-5)}});
  const Val normal = c.to.made(node, x.shape);
  const Val scaled = c.to.binary(Binary::mul, normal, along_channels(c, c.in(1), x.shape.size()));
  return {c.to.binary(Binary::add, scaled, along_channels(c, c.in(2), x.shape.size()))};
}

Vals layer_norm(const Call& c) {
  const Val& x = c.in(0);
  const size_t axis = c.axis(c.attr("axis", int64_t{-1}), x.shape.size());
  int64_t width = 1;
  for (size_t i = axis; i < x.shape.size(); ++i) width = checked_mul(width, x.shape[i], "width");
  if (width < 1) c.refuse(Code::shape, fmt::format("of {}", to_string(x.shape)));
  const double eps = c.attr("epsilon", 1e-5);
  std::map<std::string, ConstantPtr> tensors;
  const auto flat = [&](size_t i, const char* role, const char* name) {
    if (!c.has(i)) return;
    auto copy = std::make_shared<Constant>(*reals(c, i, name));
    if (std::ssize(copy->reals) != width)
      c.refuse(Code::shape, fmt::format("'{}': {} numbers for {}", name, copy->size(), width));
    copy->shape = {width};
    tensors[role] = copy;
  };
  flat(1, "weight", "Scale");
  flat(2, "bias", "B");
  const int node = c.to.add("layer_norm", {c.to.as(x, {numel(x.shape) / width, width})},
                            {{"eps", eps}}, tensors);
  Vals results{c.to.made(node, x.shape)};
  if (c.node.outputs.size() > 1) {
    // Mean and 1 / deviation; nothing is left of them where nobody reads them.
    std::vector<int64_t> axes;
    for (size_t i = axis; i < x.shape.size(); ++i) axes.push_back(static_cast<int64_t>(i));
    const Val mean = c.to.reduce(Reduce::mean, x, axes, true);
    const Val square = c.to.unary(Unary::square, c.to.binary(Binary::sub, x, mean));
    const Val variance = c.to.reduce(Reduce::mean, square, axes, true);
    const Val root = c.to.unary(Unary::sqrt, c.to.binary(Binary::add, variance, c.to.number(eps)));
    results.push_back(mean);
    results.push_back(c.to.unary(Unary::reciprocal, root));
  }
  return results;
}

Vals matmul(const Call& c) { return {c.to.matmul(c.in(0), c.in(1))}; }

Vals gemm(const Call& c) {
  Val a = c.in(0), b = c.in(1);
  if (a.shape.size() != 2 || b.shape.size() != 2)
    c.refuse(Code::shape, fmt::format("of {} and {}", to_string(a.shape), to_string(b.shape)));
  if (c.attr("transA", int64_t{0})) a = c.to.transpose(a, {1, 0});
  const double alpha = c.attr("alpha", 1.0), beta = c.attr("beta", 1.0);
  const bool turned = c.attr("transB", int64_t{0}) != 0;
  const Val scale = c.to.number(alpha);
  Val y;
  if (b.constant && !a.constant) {
    // [out, in] is how linear layers lie.
    Val weight = turned ? b : c.to.transpose(b, {1, 0});
    if (alpha != 1) weight = c.to.binary(Binary::mul, weight, scale);
    if (weight.shape[1] != a.shape[1])
      c.refuse(Code::shape, fmt::format("{} times {}", to_string(a.shape), to_string(b.shape)));
    if (weight.constant->integer) c.refuse(Code::dtype, "'B': expected floats");
    const bool fits = c.has(2) && c.in(2).constant && !c.in(2).constant->integer && beta == 1 &&
                      std::ssize(c.in(2).constant->reals) == weight.shape[0] &&
                      (c.in(2).shape.size() == 1 || c.in(2).shape[0] == 1);
    ConstantPtr bias;
    if (fits) {
      auto copy = std::make_shared<Constant>(*c.in(2).constant);
      copy->shape = {weight.shape[0]};
      bias = copy;
    }
    y = c.to.linear(a, renamed(weight.constant, b.constant->name), bias);
    if (fits || !c.has(2)) return {y};
  } else {
    if (turned) b = c.to.transpose(b, {1, 0});
    y = c.to.matmul(a, b);
    if (alpha != 1) y = c.to.binary(Binary::mul, y, scale);
    if (!c.has(2)) return {y};
  }
  Val offset = c.in(2);
  if (beta != 1) offset = c.to.binary(Binary::mul, offset, c.to.number(beta));
  return {c.to.binary(Binary::add, y, offset)};
}

}  // namespace

std::vector<OperatorEntry> layer_operators() {
  return {{"Conv", conv},
          {"ConvTranspose", conv_transpose},
          {"BatchNormalization", batch_norm},
          {"InstanceNormalization", instance_norm},
          {"LayerNormalization", layer_norm},
          {"MatMul", matmul},
          {"Gemm", gemm}};
}

}  // namespace sluice::bundle::onnx
