// Layers as ONNX operators.
#include <cmath>
#include <limits>

#include "sluice/bundle/export/onnx/writer.h"
#include "sluice/bundle/ops_sparse.h"

namespace sluice::bundle::onnx {
namespace {

std::vector<int64_t> pair(const Writer& to, const char* name, int64_t fallback) {
  return attr_ints(to.current().attrs, name, 2, fallback);
}
std::vector<int64_t> doubled(const std::vector<int64_t>& padding) {
  return {padding[0], padding[1], padding[0], padding[1]};
}
std::string kind(const Writer& to) { return attr_string(to.current().attrs, "kind", ""); }

void conv2d(Writer& to) {
  const std::vector<float> weight = to.tensor("weight");  // refuses packed ones
  const Shape& shape = to.model().graph().tensors.at(to.current().tensors.at("weight")).shape;
  std::vector<std::string> inputs{in(to), to.stored("weight")};
  if (to.has("bias")) inputs.push_back(to.stored("bias"));
  to.node("Conv", inputs,
          {{"kernel_shape", std::vector<int64_t>{shape[2], shape[3]}},
           {"strides", pair(to, "stride", 1)},
           {"pads", doubled(pair(to, "padding", 0))},
           {"dilations", pair(to, "dilation", 1)},
           {"group", attr_int(to.current().attrs, "groups", 1)}},
          out(to));
}

void conv_transpose2d(Writer& to) {
  const Shape& shape = to.model().graph().tensors.at(to.current().tensors.at("weight")).shape;
  std::vector<std::string> inputs{in(to), to.stored("weight")};
  if (to.has("bias")) inputs.push_back(to.stored("bias"));
  to.node("ConvTranspose", inputs,
          {{"kernel_shape", std::vector<int64_t>{shape[2], shape[3]}},
           {"strides", pair(to, "stride", 1)},
           {"pads", doubled(pair(to, "padding", 0))},
           {"dilations", pair(to, "dilation", 1)},
           {"output_padding", pair(to, "output_padding", 0)},
           {"group", attr_int(to.current().attrs, "groups", 1)}},
          out(to));
}

void linear(Writer& to) {
  if (attr_string(to.current().attrs, "activations", "f32") != "f32")
    to.refuse("its input is rounded to " + attr_string(to.current().attrs, "activations", ""));
  const Shape& x = to.shape(in(to));
  if (x.size() == 1) {
    std::vector<std::string> inputs{in(to), to.stored("weight")};
    if (to.has("bias")) inputs.push_back(to.stored("bias"));
    to.node("Gemm", inputs, {{"transB", int64_t{1}}}, out(to));
    return;
  }
  // Rows: MatMul wants [I,O].
  const std::vector<float> weight = to.tensor("weight");
  const Shape& shape = to.model().graph().tensors.at(to.current().tensors.at("weight")).shape;
  const size_t rows = static_cast<size_t>(shape[0]), columns = static_cast<size_t>(shape[1]);
  std::vector<float> turned(weight.size());
  for (size_t r = 0; r < rows; ++r)
    for (size_t c = 0; c < columns; ++c) turned[c * rows + r] = weight[r * columns + c];
  const std::string matrix =
      to.reals({shape[1], shape[0]}, turned, to.current().tensors.at("weight") + ".transposed");
  if (!to.has("bias")) {
    to.node("MatMul", {in(to), matrix}, {}, out(to));
    return;
  }
  to.node("Add", {to.node("MatMul", {in(to), matrix}), to.stored("bias")}, {}, out(to));
}

void batch_norm(Writer& to) {
  const std::vector<float> mean = to.tensor("running_mean");
  const Shape channels{std::ssize(mean)};
  const auto role = [&](const char* name, float fallback) {
    return to.has(name) ? to.stored(name)
                        : to.reals(channels, std::vector<float>(mean.size(), fallback));
  };
  const std::string scale = role("weight", 1), bias = role("bias", 0);
  to.node("BatchNormalization",
          {in(to), scale, bias, to.stored("running_mean"), to.stored("running_var")},
          {{"epsilon", static_cast<float>(attr_double(to.current().attrs, "eps", 1e-5))}}, out(to));
}

void layer_norm(Writer& to) {
  const int64_t width = to.shape(in(to)).back();
  const std::string scale =
      to.has("weight") ? to.stored("weight")
                       : to.reals({width}, std::vector<float>(static_cast<size_t>(width), 1.0f));
  std::vector<std::string> inputs{in(to), scale};
  if (to.has("bias")) inputs.push_back(to.stored("bias"));
  to.node("LayerNormalization", inputs,
          {{"axis", int64_t{-1}},
           {"epsilon", static_cast<float>(attr_double(to.current().attrs, "eps", 1e-5))}},
          out(to));
}

void rms_norm(Writer& to) {
  if (attr_int(to.current().attrs, "heads", 1) != 1) to.refuse("it works on parts of a row");
  const std::string square = to.node("Mul", {in(to), in(to)});
  const std::string mean = to.node("ReduceMean", {square},
                                   {{"axes", std::vector<int64_t>{-1}}, {"keepdims", int64_t{1}}});
  const std::string eps =
      to.number(static_cast<float>(attr_double(to.current().attrs, "eps", 1e-5)));
  const std::string root = to.node("Sqrt", {to.node("Add", {mean, eps})});
  if (!to.has("weight")) {
    to.node("Div", {in(to), root}, {}, out(to));
    return;
  }
  to.node("Mul", {to.node("Div", {in(to), root}), to.stored("weight")}, {}, out(to));
}

void l2_normalize(Writer& to) {
  const std::string length =
      to.node("ReduceL2", {in(to)}, {{"axes", std::vector<int64_t>{-1}}, {"keepdims", int64_t{1}}});
  const float eps = static_cast<float>(attr_double(to.current().attrs, "eps", 1e-12));
  to.node("Div", {in(to), to.node("Max", {length, to.number(std::max(eps, 1e-30f))})}, {}, out(to));
}

void activation(Writer& to) {
  const std::string what = kind(to);
  const std::string& x = in(to);
  if (what == "relu" || what == "sigmoid" || what == "tanh") {
    to.node(what == "relu" ? "Relu" : what == "sigmoid" ? "Sigmoid" : "Tanh", {x}, {}, out(to));
  } else if (what == "hard_swish") {
    to.node("HardSwish", {x}, {}, out(to));
  } else if (what == "silu") {
    to.node("Mul", {x, to.node("Sigmoid", {x})}, {}, out(to));
  } else if (what == "gelu") {
    const std::string inner = to.node("Mul", {x, to.number(std::sqrt(0.5f))});
    const std::string one = to.node("Add", {to.node("Erf", {inner}), to.number(1)});
    to.node("Mul", {to.node("Mul", {x, to.number(0.5f)}), one}, {}, out(to));
  } else {
    // x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
    const std::string cube = to.node("Mul", {to.node("Mul", {x, x}), x});
    const std::string sum = to.node("Add", {x, to.node("Mul", {cube, to.number(0.044715f)})});
    const std::string inner =
        to.node("Mul", {sum, to.number(static_cast<float>(std::sqrt(2 / M_PI)))});
    const std::string one = to.node("Add", {to.node("Tanh", {inner}), to.number(1)});
    to.node("Mul", {to.node("Mul", {x, to.number(0.5f)}), one}, {}, out(to));
  }
}

void pool(Writer& to) {
  const bool maximum = to.current().op == "max_pool2d";
  const auto kernel = pair(to, "kernel", 1);
  const auto stride = to.current().attrs.count("stride") ? pair(to, "stride", 1) : kernel;
  std::vector<Attribute> attributes{
      {"kernel_shape", kernel}, {"strides", stride}, {"pads", doubled(pair(to, "padding", 0))}};
  if (!maximum) attributes.push_back({"count_include_pad", int64_t{0}});
  to.node(maximum ? "MaxPool" : "AveragePool", {in(to)}, attributes, out(to));
}

void global_avg_pool(Writer& to) {
  to.node("Flatten", {to.node("GlobalAveragePool", {in(to)})}, {{"axis", int64_t{1}}}, out(to));
}

void flatten(Writer& to) { to.node("Flatten", {in(to)}, {{"axis", int64_t{1}}}, out(to)); }

void softmax(Writer& to) { to.node("Softmax", {in(to)}, {{"axis", int64_t{-1}}}, out(to)); }

void threshold(Writer& to) {
  const auto values = threshold_values(to.current().attrs);
  if (values.size() > 1) to.refuse("it has a threshold for each size; pick-size first");
  const float value = static_cast<float>(values.front());
  to.node("Cast", {to.node("Greater", {in(to), to.number(value)})}, {{"to", int64_t{1}}}, out(to));
}

void add(Writer& to) { to.node("Add", {in(to, 0), in(to, 1)}, {}, out(to)); }

/// [C] beside [C,..] is [C,1,..].
Shape per_channel(const Shape& x, int64_t count) {
  Shape shape(x.size(), 1);
  if (count > 1) shape[0] = count;
  return shape;
}

void mul(Writer& to) {
  const Shape &a = to.shape(in(to, 0)), &b = to.shape(in(to, 1));
  const std::string second = a == b ? in(to, 1) : to.reshaped(in(to, 1), per_channel(a, numel(b)));
  to.node("Mul", {in(to, 0), second}, {}, out(to));
}

void scale(Writer& to) {
  const std::vector<float> values = to.tensor("scale");
  const std::string factor = to.reals(per_channel(to.shape(in(to)), std::ssize(values)), values);
  to.node("Mul", {in(to), factor}, {}, out(to));
}

void embedding(Writer& to) {
  const std::string ids =
      to.is_ids(in(to)) ? in(to) : to.node("Cast", {in(to)}, {{"to", int64_t{7}}});
  to.node("Gather", {to.stored("weight"), ids}, {{"axis", int64_t{0}}}, out(to));
}

/// 0, 1, .. for every sample.
void positions(Writer& to) {
  const std::string sizes =
      to.node("Shape", {in(to)}, {{"start", int64_t{0}}, {"end", int64_t{2}}});
  const std::string count = to.node(
      "Squeeze", {to.node("Slice", {sizes, to.integers({1}), to.integers({2}), to.integers({0})}),
                  to.integers({0})});
  const std::string row = to.node("Range", {to.integer(0), count, to.integer(1)});
  to.node("Cast", {to.node("Expand", {row, sizes})}, {{"to", int64_t{1}}}, out(to));
}

void recurrent(Writer& to) {
  const bool lstm = to.current().op == "lstm";
  const Shape& x = to.shape(in(to));
  const int64_t gates = lstm ? 4 : 3;
  const std::vector<float> w = to.tensor("weight"), r = to.tensor("recurrent");
  const int64_t hidden =
      to.model().graph().tensors.at(to.current().tensors.at("recurrent")).shape[1];
  const size_t n = static_cast<size_t>(hidden);
  const bool cells = attr_bool(to.current().attrs, "cells", false),
             reverse = attr_bool(to.current().attrs, "reverse", false);
  if (cells && x[0] != 1) to.refuse("the cell states of all rows are an output");
  // i, f, g, o -> i, o, f, c; r, z, n -> z, r, h.
  const std::vector<size_t> order =
      lstm ? std::vector<size_t>{0, 3, 1, 2} : std::vector<size_t>{1, 0, 2};
  const auto turned = [&](const std::vector<float>& values) {
    const size_t each = values.size() / order.size();
    std::vector<float> result;
    for (const size_t gate : order)
      result.insert(result.end(), values.begin() + static_cast<std::ptrdiff_t>(gate * each),
                    values.begin() + static_cast<std::ptrdiff_t>((gate + 1) * each));
    return result;
  };
  std::vector<float> bias(static_cast<size_t>(gates) * n, 0.0f);
  if (to.has("bias")) bias = turned(to.tensor("bias"));
  bias.resize(2 * bias.size(), 0.0f);
  if (to.has("recurrent_bias")) {
    const std::vector<float> extra = to.tensor("recurrent_bias");
    std::copy(extra.begin(), extra.end(), bias.end() - static_cast<std::ptrdiff_t>(n));
  }
  const auto state = [&](size_t i) {
    // [N,H] -> [1,N,H]
    return to.node("Unsqueeze", {in(to, i), to.integers({0})});
  };
  std::vector<std::string> inputs{
      to.node("Transpose", {in(to)}, {{"perm", std::vector<int64_t>{1, 0, 2}}}),
      to.reals({1, gates * hidden, x[1]}, turned(w)),
      to.reals({1, gates * hidden, hidden}, turned(r)), to.reals({1, 2 * gates * hidden}, bias),
      ""};
  if (to.current().inputs.size() > 1) inputs.push_back(state(1));
  if (to.current().inputs.size() > 2) inputs.push_back(state(2));
  if (inputs.back().empty()) inputs.pop_back();
  std::vector<Attribute> attributes{{"hidden_size", hidden},
                                    {"direction", std::string(reverse ? "reverse" : "forward")}};
  if (!lstm)
    attributes.push_back(
        {"linear_before_reset", int64_t{!attr_bool(to.current().attrs, "reset_before", false)}});
  const auto outputs = to.node_of(lstm ? "LSTM" : "GRU", inputs, lstm ? 3 : 1, attributes);
  // [T,1,N,H] -> [N,T,H]
  const std::string rows = to.node("Squeeze", {outputs[0], to.integers({1})});
  const std::string y =
      to.node("Transpose", {rows}, {{"perm", std::vector<int64_t>{1, 0, 2}}}, cells ? "" : out(to));
  if (!cells) return;
  const std::string c =
      to.node("Transpose", {outputs[2]}, {{"perm", std::vector<int64_t>{1, 0, 2}}});
  to.node("Concat", {y, c}, {{"axis", int64_t{2}}}, out(to));
}

/// Heads of full or causal attention, without a cache: products and a softmax.
void attention(Writer& to) {
  const Attributes& attrs = to.current().attrs;
  if (attr_int(attrs, "cache", 0) != 0) to.refuse("it keeps a cache from run to run");
  if (attr_int(attrs, "window", 0) != 0) to.refuse("it looks through a window");
  if (to.current().inputs.size() > 3) to.refuse("not every row looks with every head");
  const int64_t heads = attr_int(attrs, "heads", 1), kv = attr_int(attrs, "kv_heads", heads);
  if (heads != kv) to.refuse("several heads share their keys");
  const Shape &q = to.shape(in(to, 0)), &k = to.shape(in(to, 1)), &v = to.shape(in(to, 2));
  const int64_t width = q[1] / heads, value_width = v[1] / heads;
  const double scale = attr_double(attrs, "scale", 1 / std::sqrt(static_cast<double>(width)));
  const auto split = [&](size_t i, int64_t each, const std::vector<int64_t>& perm) {
    const std::string& rows = in(to, i);
    return to.node("Transpose", {to.reshaped(rows, {to.rows(rows), heads, each})},
                   {{"perm", perm}});
  };
  const std::string queries =
      to.node("Mul", {split(0, width, {0, 2, 1, 3}), to.number(static_cast<float>(scale))});
  const std::string keys = split(1, width, {0, 2, 3, 1}),
                    values = split(2, value_width, {0, 2, 1, 3});
  std::string scores = to.node("MatMul", {queries, keys});
  if (attr_string(attrs, "mask", "causal") == "causal") {
    std::vector<float> mask(static_cast<size_t>(q[0] * k[0]), 0.0f);
    for (int64_t r = 0; r < q[0]; ++r)
      for (int64_t c = r + 1; c < k[0]; ++c) mask[static_cast<size_t>(r * k[0] + c)] = -1e30f;
    scores = to.node("Add", {scores, to.reals({q[0], k[0]}, mask)});
  }
  const std::string weights = to.node("Softmax", {scores}, {{"axis", int64_t{-1}}});
  const std::string mixed = to.node("Transpose", {to.node("MatMul", {weights, values})},
                                    {{"perm", std::vector<int64_t>{0, 2, 1, 3}}});
  to.reshaped(mixed, {to.rows(in(to)), v[1]}, out(to));
}

void pool_rows(Writer& to) {
  const std::string what = attr_string(to.current().attrs, "kind", "mean");
  if (what == "mean") {
    to.node("ReduceMean", {in(to)}, {{"axes", std::vector<int64_t>{1}}, {"keepdims", int64_t{0}}},
            out(to));
    return;
  }
  // The last row from behind: how many there are may be open.
  constexpr int64_t kEnd = std::numeric_limits<int64_t>::max();
  const int64_t row = what == "first" ? 0 : -1, end = what == "first" ? 1 : kEnd;
  const std::string one =
      to.node("Slice", {in(to), to.integers({row}), to.integers({end}), to.integers({1})});
  to.node("Squeeze", {one, to.integers({1})}, {}, out(to));
}

}  // namespace

std::vector<ExportEntry> layer_exports() {
  return {{"conv2d", conv2d},
          {"conv_transpose2d", conv_transpose2d},
          {"linear", linear},
          {"batch_norm", batch_norm},
          {"layer_norm", layer_norm},
          {"rms_norm", rms_norm},
          {"l2_normalize", l2_normalize},
          {"activation", activation},
          {"max_pool2d", pool},
          {"avg_pool2d", pool},
          {"global_avg_pool", global_avg_pool},
          {"flatten", flatten},
          {"softmax", softmax},
          {"threshold", threshold},
          {"add", add},
          {"mul", mul},
          {"scale", scale},
          {"embedding", embedding},
          {"positions", positions},
          {"lstm", recurrent},
          {"gru", recurrent},
          {"attention", attention},
          {"pool_rows", pool_rows}};
}

}  // namespace sluice::bundle::onnx
