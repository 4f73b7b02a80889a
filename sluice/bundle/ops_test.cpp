#include "sluice/bundle/ops.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "sluice/base/test_error.h"

namespace sluice::bundle {
namespace {

using Ints = std::vector<int64_t>;

struct NodeCase {
  const char* op;
  std::vector<Shape> inputs;
  Attributes attrs;
  std::map<std::string, Shape> tensors;  // by role
  Shape output;
  int64_t macs = 0;
};

Shape check(const NodeCase& c, Cost* cost = nullptr) {
  Node node{c.op, "path", {}, "out", c.attrs, {}};
  std::map<std::string, Shape> shapes;
  std::map<std::string, TensorSpec> tensors;
  for (const Shape& shape : c.inputs) {
    node.inputs.push_back("x" + std::to_string(shapes.size()));
    shapes[node.inputs.back()] = shape;
  }
  for (const auto& [role, shape] : c.tensors) {
    node.tensors[role] = "tensor." + role;
    tensors["tensor." + role] = {"tensor." + role, "f32", DType::f32, shape, {}};
  }
  return check_node(node, shapes, tensors, "test", cost);
}

std::vector<NodeCase> valid_cases() {
  const std::string gelu = "gelu";
  const Shape image{6, 9, 8};
  return {
      {"conv2d", {image}, {}, {{"weight", {4, 6, 3, 3}}}, {4, 7, 6}, 4 * 6 * 9 * 7 * 6},
      {"conv2d",
       {image},
       {{"padding", int64_t{1}}, {"stride", int64_t{2}}},
       {{"weight", {4, 6, 3, 3}}, {"bias", {4}}},
       {4, 5, 4},
       4 * 6 * 9 * 20},
      {"conv2d",
       {image},
       {{"padding", Ints{2, 0}}, {"stride", Ints{1, 3}}, {"dilation", Ints{2, 1}}},
       {{"weight", {1, 6, 3, 2}}},
       {1, 9, 3},
       6 * 6 * 27},
      {"conv2d",
       {image},
       {{"groups", int64_t{3}}},
       {{"weight", {9, 2, 1, 1}}},
       {9, 9, 8},
       9 * 2 * 72},
      {"conv2d", {image}, {{"groups", int64_t{6}}}, {{"weight", {6, 1, 9, 8}}}, {6, 1, 1}, 6 * 72},
      {"linear", {{5}}, {}, {{"weight", {3, 5}}, {"bias", {3}}}, {3}, 15},
      {"linear", {{2, 7, 5}}, {}, {{"weight", {3, 5}}}, {2, 7, 3}, 2 * 7 * 15},
      {"batch_norm",
       {image},
       {{"eps", 1e-3}},
       {{"weight", {6}}, {"bias", {6}}, {"running_mean", {6}}, {"running_var", {6}}},
       image},
      {"batch_norm", {{6}}, {}, {{"running_mean", {6}}, {"running_var", {6}}}, {6}},
      {"layer_norm", {{4, 6}}, {{"eps", int64_t{0}}}, {{"weight", {6}}}, {4, 6}},
      {"activation", {image}, {{"kind", gelu}}, {}, image},
      {"add", {image, image}, {}, {}, image},
      {"mul", {image, image}, {}, {}, image},
      {"mul", {image, {6}}, {}, {}, image},
      {"mul", {image, {1}}, {}, {}, image},
      {"mul", {{7, 5}, {7, 1}}, {}, {}, {7, 5}},
      {"scale", {image}, {}, {{"scale", {6}}}, image},
      {"scale", {image}, {}, {{"scale", {1}}}, image},
      {"max_pool2d",
       {image},
       {{"kernel", int64_t{3}}, {"stride", int64_t{2}}, {"padding", int64_t{1}}},
       {},
       {6, 5, 4}},
      {"max_pool2d", {image}, {{"kernel", Ints{2, 3}}}, {}, {6, 4, 2}},
      {"avg_pool2d", {image}, {{"kernel", int64_t{2}}, {"stride", int64_t{1}}}, {}, {6, 8, 7}},
      {"global_avg_pool", {image}, {}, {}, {6}},
      {"flatten", {image}, {}, {}, {432}},
      {"softmax", {{2, 10}}, {}, {}, {2, 10}},
      {"threshold", {image}, {{"value", int64_t{2}}}, {}, image},
      {"threshold", {image}, {}, {}, image},
      {"compact_rows", {{7, 5}, {7, 1}}, {}, {}, {7, 5}},
      {"compact_rows", {image, {1}}, {}, {}, image},
      {"scatter_rows", {{7, 5}, {7, 5}, {7}}, {{"mode", std::string("add")}}, {}, {7, 5}},
      {"pool_rows", {{7, 5}}, {{"kind", std::string("last")}}, {}, {5}},
      {"rms_norm", {{7, 5}}, {{"eps", 1e-6}}, {{"weight", {5}}}, {7, 5}},
      {"l2_normalize", {{7, 5}}, {{"eps", 1e-6}}, {}, {7, 5}},
      {"embedding", {{7}}, {}, {{"weight", {100, 5}}}, {7, 5}},
      {"slice", {{7, 12}}, {{"start", int64_t{4}}, {"size", int64_t{3}}}, {}, {7, 3}},
      {"positions", {{7, 12}}, {}, {}, {7}},
      {"rope",
       {{7, 12}, {7}},
       {{"heads", int64_t{2}}, {"dims", int64_t{4}}, {"layout", std::string("interleaved")}},
       {},
       {7, 12}},
      {"attention",
       {{7, 12}, {7, 6}, {7, 10}},
       {{"heads", int64_t{4}}, {"kv_heads", int64_t{2}}, {"cache", int64_t{32}}},
       {},
       {7, 20},
       28 * 4 * (3 + 5)},
      {"attention",
       {{7, 12}, {7, 12}, {7, 12}},
       {{"heads", int64_t{4}}, {"window", int64_t{3}}},
       {},
       {7, 12},
       (1 + 2 + 5 * 3) * 4 * (3 + 3)},
      {"attention",
       {{7, 12}, {9, 12}, {9, 12}},
       {{"heads", int64_t{4}}, {"mask", std::string("full")}},
       {},
       {7, 12},
       63 * 4 * (3 + 3)},
      {"binary_linear",
       {{7, 70}},
       {{"scale", 0.5}},
       {{"weight", {3, 70}}, {"bias", {3}}},
       {7, 3},
       7 * 210},
      {"binary_conv2d",
       {image},
       {{"kernel", Ints{3, 2}}, {"padding", int64_t{1}}, {"input_scale", std::string("mean")}},
       {{"weight", {4, 6 * 6}}},
       {4, 9, 9},
       4 * 36 * 81},
      {"gathered_conv2d",
       {image, {4}},
       {{"padding", int64_t{1}}},
       {{"weight", {4, 6, 3, 3}}, {"bias", {4}}},
       {4, 9, 8},
       4 * 6 * 9 * 72},
      {"gathered_conv2d",
       {image, {4}, {6}},
       {{"stride", int64_t{2}}},
       {{"weight", {4, 6, 1, 1}}},
       {4, 5, 4},
       4 * 6 * 20},
      {"prefix_linear", {{7, 8}}, {}, {{"weight", {6, 8}}, {"bias", {6}}}, {7, 6}, 7 * 48},
      {"prefix_linear",
       {{7, 8}},
       {{"rows", Ints{2, 6, 3}}, {"columns", int64_t{4}}},
       {{"weight", {6, 8}}},
       {7, 6},
       7 * 24},
      {"prefix_conv2d",
       {{6, 5, 4}},
       {{"rows", Ints{2, 4}}, {"columns", Ints{3, 6}}, {"padding", int64_t{1}}},
       {{"weight", {4, 6, 3, 3}}, {"scale", {2, 4}}, {"bias", {2, 4}}},
       {4, 5, 4},
       4 * 6 * 9 * 20},
      {"size_switch",
       {{6, 5, 4}, {6, 5, 4}, {6, 5, 4}},
       {{"choice", Ints{2, 0, 1, 0}}},
       {},
       {6, 5, 4},
       0},
      {"sparse_input_linear",
       {{7, 8}},
       {{"select", std::string("topk")}, {"k", int64_t{3}}},
       {{"weight", {8, 6}}, {"bias", {6}}},
       {7, 6},
       7 * 3 * 6},
      {"sparse_ffn", {{8}}, {}, {{"up", {20, 8}}, {"down", {20, 6}}}, {6}, 20 * (8 + 6)},
      {"experts",
       {{7, 8}, {7, 4}},
       {{"top_k", int64_t{2}}},
       {{"up", {4, 20, 8}}, {"down", {4, 20, 6}}},
       {7, 6},
       7 * 2 * 20 * (8 + 6)},
      {"lora_add",
       {{7, 6}, {7, 8}, {7, 1}},
       {},
       {{"a", {3, 2, 8}}, {"b", {3, 2, 6}}},
       {7, 6},
       7 * 2 * (8 + 6)},
      {"linear_attention",
       {{7, 12}, {7, 12}, {7, 20}, {7, 4}},
       {{"heads", int64_t{4}}, {"carry", true}},
       {},
       {7, 20},
       2 * 7 * 4 * 3 * 5},
  };
}

TEST(Operators, ShapesAndMacsMatchHandWrittenValues) {
  for (const NodeCase& c : valid_cases()) {
    Cost cost;
    EXPECT_EQ(check(c, &cost), c.output) << c.op;
    EXPECT_EQ(cost.macs, c.macs) << c.op;
  }
}

TEST(Operators, EveryOneHasACase) {
  std::set<std::string_view> tested;
  for (const NodeCase& c : valid_cases()) tested.insert(c.op);
  for (const Operator& op : all_operators()) {
    EXPECT_TRUE(tested.count(op.name)) << op.name;
    EXPECT_EQ(find_operator(op.name), &op);
  }
  EXPECT_EQ(find_operator("conv3d"), nullptr);
}

TEST(Operators, RefuseWhatDoesNotFit) {
  const std::map<std::string, Shape> weight = {{"weight", {4, 6, 3, 3}}};
  const std::map<std::string, Shape> statistics = {{"running_mean", {6}}, {"running_var", {6}}};
  const Shape image{6, 9, 8};
  struct Case {
    NodeCase node;
    Code code;
    const char* words;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<Case> cases = {
      {{"conv3d", {image}, {}, weight}, Code::unsupported, "did you mean 'conv2d'"},
      {{"conv2d", {}, {}, weight}, Code::shape, "expected 1 input, found 0"},
      {{"add", {image}, {}, {}}, Code::shape, "expected 2 inputs, found 1"},
      {{"conv2d", {image}, {}, {}}, Code::missing, "tensor 'weight' is not there"},
      {{"conv2d", {image}, {}, {{"weight", {4, 6, 3, 3}}, {"scale", {4}}}},
       Code::format,
       "unknown tensor role 'scale'; expected weight, bias"},
      {{"conv2d", {image}, {{"strides", int64_t{1}}}, weight},
       Code::format,
       "unknown attribute 'strides'; expected stride, padding, dilation, groups"},
      {{"flatten", {image}, {{"axis", int64_t{1}}}, {}},
       Code::format,
       "unknown attribute 'axis'; expected none"},
      {{"conv2d", {{6, 9}}, {}, weight}, Code::shape, "expected [C,H,W], found 6 x 9"},
      {{"conv2d", {image}, {}, {{"weight", {4, 6, 3}}}},
       Code::shape,
       "expected [O,C/groups,kh,kw]"},
      {{"conv2d", {image}, {}, {{"weight", {4, 6, 0, 3}}}}, Code::shape, "sizes >= 1"},
      {{"conv2d", {image}, {}, {{"weight", {4, 5, 3, 3}}}},
       Code::shape,
       "expected 6 input channels per group"},
      {{"conv2d", {image}, {}, {{"weight", {4, 6, 3, 3}}, {"bias", {5}}}},
       Code::shape,
       "bias 'tensor.bias': expected 4, found 5"},
      {{"conv2d", {image}, {{"groups", int64_t{4}}}, weight},
       Code::shape,
       "must divide 6 input and 4 output channels"},
      {{"conv2d", {image}, {{"groups", int64_t{0}}}, weight}, Code::shape, "'groups'"},
      {{"conv2d", {image}, {{"stride", int64_t{0}}}, weight},
       Code::shape,
       "'stride': expected 1 to"},
      {{"conv2d", {image}, {{"dilation", int64_t{0}}}, weight},
       Code::shape,
       "'dilation': expected 1 to"},
      {{"conv2d", {image}, {{"padding", int64_t{-1}}}, weight},
       Code::shape,
       "'padding': expected 0 to"},
      {{"conv2d", {image}, {{"padding", std::numeric_limits<int64_t>::max()}}, weight},
       Code::shape,
       "'padding': expected 0 to"},
      {{"conv2d", {image}, {{"stride", Ints{1, 1, 1}}}, weight},
       Code::shape,
       "expected 2 integers, found 3"},
      {{"conv2d", {image}, {{"stride", 1.0}}, weight},
       Code::shape,
       "'stride': expected a list of integers, found a number"},
      {{"conv2d", {image}, {{"dilation", int64_t{5}}}, weight},
       Code::shape,
       "smaller than the window of 11"},
      {{"conv2d", {{1, 1 << 15, 1 << 15}}, {}, {{"weight", {1 << 20, 1, 1, 1}}}},
       Code::limit,
       "value 'out'"},
      {{"linear", {{5}}, {}, {{"weight", {3, 4}}}}, Code::shape, "expected [O,5], found 3 x 4"},
      {{"linear", {{5}}, {}, {{"weight", {0, 5}}}}, Code::shape, "expected [O,5]"},
      {{"linear", {{5}}, {}, {{"weight", {3, 5}}, {"bias", {1, 3}}}}, Code::shape, "bias"},
      {{"batch_norm", {image}, {}, {{"running_mean", {6}}}}, Code::missing, "running_var"},
      {{"batch_norm", {image}, {}, {{"running_mean", {6}}, {"running_var", {9}}}},
       Code::shape,
       "running_var 'tensor.running_var': expected 6"},
      {{"batch_norm", {image}, {{"eps", -1.0}}, statistics}, Code::shape, "'eps'"},
      {{"batch_norm", {image}, {{"eps", nan}}, statistics}, Code::shape, "'eps'"},
      {{"layer_norm", {image}, {}, {{"weight", {6}}}}, Code::shape, "expected 8, found 6"},
      {{"activation", {image}, {}, {}}, Code::unsupported, "'kind': expected relu"},
      {{"activation", {image}, {{"kind", std::string("swoosh")}}, {}},
       Code::unsupported,
       "found 'swoosh'"},
      {{"activation", {image}, {{"kind", true}}, {}},
       Code::shape,
       "expected text, found a boolean"},
      {{"add", {image, {6}}, {}, {}}, Code::shape, "same shape"},
      {{"mul", {image, {9}}, {}, {}}, Code::shape, "expected 6 x 9 x 8, 6 or 1, found 9"},
      {{"scale", {image}, {}, {{"scale", {6, 1}}}}, Code::shape, "expected 6 or 1"},
      {{"max_pool2d", {image}, {}, {}}, Code::shape, "'kernel': expected 1 to"},
      {{"max_pool2d", {image}, {{"kernel", int64_t{3}}, {"padding", int64_t{2}}}, {}},
       Code::shape,
       "more than half of kernel 3"},
      {{"avg_pool2d", {image}, {{"kernel", int64_t{10}}}, {}},
       Code::shape,
       "smaller than the window of 10"},
      {{"global_avg_pool", {{6}}, {}, {}}, Code::shape, "expected [C,H,W]"},
      {{"threshold", {image}, {{"value", nan}}, {}}, Code::numeric, "'value'"},
      {{"binary_linear", {{5}}, {}, {{"weight", {3, 4}}}},
       Code::shape,
       "expected [O,5], found 3 x 4"},
      {{"binary_linear", {{5}}, {}, {{"weight", {0, 5}}}}, Code::shape, "expected [O,5]"},
      {{"binary_linear", {{5}}, {{"input_scale", std::string("most")}}, {{"weight", {3, 5}}}},
       Code::unsupported,
       "'input_scale': expected one or mean, found 'most'"},
      {{"binary_linear", {{5}}, {{"scale", nan}}, {{"weight", {3, 5}}}}, Code::numeric, "'scale'"},
      {{"binary_conv2d", {image}, {}, {{"weight", {4, 54}}}},
       Code::shape,
       "'kernel': expected 1 to"},
      {{"binary_conv2d", {image}, {{"kernel", int64_t{3}}}, {{"weight", {4, 6, 3, 3}}}},
       Code::shape,
       "expected [O,54], found 4 x 6 x 3 x 3"},
      {{"binary_conv2d", {image}, {{"kernel", int64_t{1 << 20}}}, {{"weight", {4, 54}}}},
       Code::shape,
       "expected [O,"},
      {{"binary_conv2d",
        {image},
        {{"kernel", int64_t{3}}, {"dilation", int64_t{5}}},
        {{"weight", {4, 54}}}},
       Code::shape,
       "smaller than the window of 11"},
      {{"gathered_conv2d", {image}, {}, weight}, Code::shape, "expected 2 to 3 inputs, found 1"},
      {{"gathered_conv2d", {image, {5}}, {}, weight},
       Code::shape,
       "output mask: expected 4, found 5"},
      {{"gathered_conv2d", {image, {4}, {5}}, {}, weight},
       Code::shape,
       "input mask: expected 6, found 5"},
      {{"gathered_conv2d", {image, {4}}, {}, {{"weight", {4, 3, 3, 3}}}},
       Code::shape,
       "expected [O,6,kh,kw]"},
      {{"gathered_conv2d", {image, {4}}, {{"groups", int64_t{2}}}, weight},
       Code::format,
       "unknown attribute 'groups'"},
      {{"prefix_linear", {{8}}, {{"rows", int64_t{7}}}, {{"weight", {6, 8}}}},
       Code::shape,
       "'rows': expected 1 to 6, found 7"},
      {{"prefix_linear", {{8}}, {{"columns", Ints{4, 0}}}, {{"weight", {6, 8}}}},
       Code::shape,
       "'columns': expected 1 to 8, found 0"},
      {{"prefix_linear", {{8}}, {{"rows", Ints{}}}, {{"weight", {6, 8}}}},
       Code::shape,
       "expected 1 to 256 sizes, found 0"},
      {{"prefix_linear",
        {{8}},
        {{"rows", Ints{1, 2, 3}}, {"columns", Ints{1, 2}}},
        {{"weight", {6, 8}}}},
       Code::shape,
       "3 and 2 sizes"},
      {{"prefix_linear", {{8}}, {{"rows", 0.5}}, {{"weight", {6, 8}}}}, Code::shape, "'rows'"},
      {{"prefix_linear", {{9}}, {}, {{"weight", {6, 8}}}}, Code::shape, "expected [O,9]"},
      {{"prefix_conv2d", {image}, {{"rows", int64_t{5}}}, weight},
       Code::shape,
       "'rows': expected 1 to 4, found 5"},
      {{"prefix_conv2d",
        {image},
        {{"rows", Ints{2, 4}}},
        {{"weight", {4, 6, 3, 3}}, {"bias", {4}}}},
       Code::shape,
       "2 x 4"},
      {{"prefix_conv2d", {image}, {{"groups", int64_t{2}}}, weight},
       Code::format,
       "unknown attribute 'groups'"},
      {{"size_switch", {{4}, {5}}, {{"choice", int64_t{0}}}, {}},
       Code::shape,
       "input 2: expected 4 as input 1, found 5"},
      {{"size_switch", {{4}, {4}}, {{"choice", Ints{0, 2}}}, {}},
       Code::shape,
       "'choice': expected 0 to 1, found 2"},
      {{"size_switch", {{4}}, {}, {}}, Code::shape, "expected 2 to 64 inputs, found 1"},
  };
  for (const Case& c : cases) {
    expect_error(
        c.code, c.words, [&] { check(c.node); }, c.words);
    expect_error(
        c.code, "test: node 'path' (", [&] { check(c.node); }, c.words);
  }
}

TEST(Operators, CostCountsParametersAndBytesButNotRunningStatisticsAsParameters) {
  Cost cost;
  check({"batch_norm",
         {{6, 2, 2}},
         {},
         {{"weight", {6}}, {"bias", {6}}, {"running_mean", {6}}, {"running_var", {6}}},
         {}},
        &cost);
  EXPECT_EQ(cost.params, 12);
  EXPECT_EQ(cost.weight_bytes, 4 * 24);
}

}  // namespace
}  // namespace sluice::bundle
