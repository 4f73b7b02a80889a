// Operators whose work depends on the input: shapes, costs and what they refuse.
#include <gtest/gtest.h>

#include <limits>

#include "sluice/base/test_error.h"
#include "sluice/bundle/ops.h"

namespace sluice::bundle {
namespace ops_conditional_test {

struct Case {
  std::string op;
  std::vector<Shape> inputs;
  Attributes attrs;
  std::map<std::string, Shape> tensors;
};

Shape check(const Case& c, Cost* cost = nullptr) {
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

const std::string kTop = "topk", kAbove = "threshold", kStatistical = "statistical";
constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

Case sparse_linear() {
  return {"sparse_input_linear",
          {{3, 8}},
          {{"select", kTop}, {"k", int64_t{5}}},
          {{"weight", {8, 6}}, {"bias", {6}}, {"column_norm", {8}}}};
}

Case ffn() {
  return {"sparse_ffn",
          {{3, 8}},
          {},
          {{"up", {20, 8}}, {"gate", {20, 8}}, {"down", {20, 6}}, {"down_bias", {6}}}};
}

Case experts() {
  return {"experts",
          {{3, 8}, {3, 4}},
          {{"top_k", int64_t{2}}},
          {{"up", {4, 20, 8}}, {"gate", {4, 20, 8}}, {"down", {4, 20, 6}}}};
}

Case lora() {
  return {"lora_add",
          {{3, 6}, {3, 8}, {3, 1}},
          {},
          {{"a", {5, 2, 8}}, {"b", {5, 2, 6}}, {"scale", {5}}}};
}

int64_t macs(const Case& c) {
  Cost cost;
  EXPECT_EQ(check(c, &cost), (Shape{3, 6})) << c.op;
  return cost.macs;
}

/// The case with some parts replaced.
Case with(Case c, const Attributes& attrs, const std::map<std::string, Shape>& tensors = {},
          const std::vector<Shape>& inputs = {}) {
  for (const auto& [name, value] : attrs) c.attrs[name] = value;
  for (const auto& [role, shape] : tensors) c.tensors[role] = shape;
  if (!inputs.empty()) c.inputs = inputs;
  return c;
}

TEST(ConditionalOperators, CostIsTheMostThatTheInputMayAskFor) {
  EXPECT_EQ(macs(sparse_linear()), 3 * 5 * 6);
  EXPECT_EQ(macs(with(sparse_linear(), {{"k", kHuge >> 33}})), 3 * 8 * 6);
  EXPECT_EQ(macs(with(sparse_linear(), {{"select", kAbove}})), 3 * 8 * 6);
  EXPECT_EQ(macs(with(sparse_linear(), {{"dense_first", int64_t{2}}})), (2 * 8 + 5) * 6);
  EXPECT_EQ(macs(with(sparse_linear(), {{"dense_first", int64_t{9}}})), 3 * 8 * 6);
  EXPECT_EQ(macs(ffn()), 3 * 20 * (8 + 8 + 6));
  const Attributes top{{"select", kTop}, {"k", int64_t{4}}};
  EXPECT_EQ(macs(with(ffn(), top)), 3 * (20 * 8 + 4 * (8 + 6)));
  EXPECT_EQ(macs(with(ffn(), top, {}, {{3, 8}, {3, 20}})), 3 * 4 * (8 + 8 + 6));
  EXPECT_EQ(macs(with(ffn(), top, {{"predictor_a", {2, 8}}, {"predictor_b", {20, 2}}})),
            3 * (4 * (8 + 8 + 6) + 2 * (20 + 8)));
  EXPECT_EQ(
      macs(with(with(ffn(), top), {{"split", int64_t{3}}}, {{"gate", {20, 3}}, {"up", {20, 5}}})),
      3 * (20 * 3 + 4 * (5 + 6)));
  EXPECT_EQ(macs(experts()), 3 * 2 * 20 * (8 + 8 + 6));
  EXPECT_EQ(macs(lora()), 3 * 2 * (8 + 6));
}

TEST(ConditionalOperators, RefuseWhatDoesNotFit) {
  struct Refused {
    Case node;
    Code code;
    const char* words;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<Refused> cases = {
      {with(sparse_linear(), {}, {{"weight", {6, 8}}}), Code::shape, "expected [8,O]"},
      {with(sparse_linear(), {}, {{"weight", {8, 0}}}), Code::shape, "sizes >= 1"},
      {with(sparse_linear(), {}, {{"weight", {8}}}), Code::shape, "[I,O]"},
      {with(sparse_linear(), {}, {{"weight", {8, kHuge}}}), Code::shape, "[I,O]"},
      {with(sparse_linear(), {}, {{"bias", {8}}}), Code::shape, "bias 'tensor.bias': expected 6"},
      {with(sparse_linear(), {}, {{"column_norm", {6}}}), Code::shape, "column_norm"},
      {with(sparse_linear(), {{"select", std::string("all")}}), Code::shape,
       "expected one of topk, threshold, statistical, found 'all'"},
      {with(sparse_linear(), {{"k", int64_t{-1}}}), Code::shape, "'k': expected 0 to"},
      {with(sparse_linear(), {{"k", kHuge}}), Code::shape, "'k': expected 0 to"},
      {{"sparse_input_linear", {{8}}, {{"select", kTop}}, {{"weight", {8, 6}}}},
       Code::shape,
       "'k': expected 0 to"},
      {{"sparse_input_linear", {{8}}, {}, {{"weight", {8, 6}}}}, Code::shape, "'select'"},
      {with(sparse_linear(), {{"dense_first", int64_t{-1}}}), Code::shape, "'dense_first'"},
      {with(sparse_linear(), {{"dense_first", int64_t{1}}}, {}, {{8}}), Code::shape,
       "'dense_first': counts rows of a sequence; expected [T,8]"},
      {with(sparse_linear(), {{"threshold", nan}}), Code::numeric, "'threshold'"},
      {with(sparse_linear(), {{"threshold", 1e300}}), Code::numeric, "'threshold'"},
      {with(sparse_linear(), {{"select", kStatistical}}), Code::shape, "'keep'"},
      {with(sparse_linear(), {{"select", kStatistical}, {"keep", 1.5}}), Code::shape, "'keep'"},
      {with(sparse_linear(), {{"select", kStatistical}, {"keep", nan}}), Code::shape, "'keep'"},
      {with(ffn(), {}, {{"up", {20, 6}}}), Code::shape, "up 'tensor.up': expected [F,8]"},
      {with(ffn(), {}, {{"gate", {19, 8}}}), Code::shape, "gate 'tensor.gate': expected 20 x 8"},
      {with(ffn(), {}, {{"down", {6, 20}}}), Code::shape, "expected [20,D], one row per neuron"},
      {with(ffn(), {}, {{"up_bias", {8}}}), Code::shape, "up_bias"},
      {with(ffn(), {{"rank", std::string("size")}}), Code::shape, "'rank'"},
      {with(ffn(), {{"scores", std::string("input")}}), Code::shape, "'scores'"},
      {with(ffn(), {{"activation", std::string("swoosh")}}), Code::unsupported, "found 'swoosh'"},
      {with(ffn(), {{"activations", std::string("i4")}}), Code::unsupported, "'activations'"},
      {with(ffn(), {}, {{"predictor_a", {2, 8}}}), Code::missing, "belong together"},
      {with(ffn(), {}, {{"predictor_a", {2, 9}}, {"predictor_b", {20, 2}}}), Code::shape,
       "predictor_a"},
      {with(ffn(), {}, {{"predictor_a", {2, 8}}, {"predictor_b", {20, 3}}}), Code::shape,
       "predictor_b"},
      {with(ffn(), {}, {{"predictor_a", {2, 8}}, {"predictor_b", {20, 2}}}, {{3, 8}, {3, 20}}),
       Code::shape, "not from both"},
      {with(ffn(), {}, {}, {{3, 8}, {3, 19}}), Code::shape, "input 2"},
      {with(ffn(), {{"soft", true}}), Code::shape, "'soft'"},
      {with(ffn(), {{"split", int64_t{3}}}), Code::shape, "up 'tensor.up': expected [F,5]"},
      {with(ffn(), {{"split", int64_t{3}}}, {{"up", {20, 5}}}), Code::shape,
       "gate 'tensor.gate': expected 20 x 3"},
      {with(ffn(), {{"split", int64_t{8}}}), Code::shape, "'split': expected 0 to 7"},
      {{"sparse_ffn", {{8}}, {{"split", int64_t{3}}}, {{"up", {20, 5}}, {"down", {20, 6}}}},
       Code::shape,
       "expected a gate"},
      {with(ffn(), {{"soft", int64_t{1}}}), Code::shape, "expected a boolean"},
      {with(experts(), {{"top_k", int64_t{5}}}), Code::shape, "'top_k': expected 1 to 4"},
      {with(experts(), {{"top_k", int64_t{0}}}), Code::shape, "'top_k'"},
      {with(experts(), {{"normalize", std::string("never")}}), Code::shape, "'normalize'"},
      {with(experts(), {}, {}, {{3, 8}, {3, 5}}), Code::shape, "logits of 4 experts"},
      {with(experts(), {}, {}, {{3, 8}, {2, 4}}), Code::shape, "input 2"},
      {with(experts(), {}, {{"up", {4, 20, 9}}}), Code::shape, "expected [E,F,8]"},
      {with(experts(), {}, {{"gate", {4, 20, 9}}}), Code::shape, "gate"},
      {with(experts(), {}, {{"down", {4, 19, 6}}}), Code::shape, "expected [4,20,D]"},
      {with(experts(), {}, {{"up", {20, 8}}}), Code::shape, "[E,F,D]"},
      {with(lora(), {}, {{"a", {5, 2, 9}}}), Code::shape, "expected [N,R,8]"},
      {with(lora(), {}, {{"b", {5, 3, 6}}}), Code::shape, "b 'tensor.b': expected 5 x 2 x 6"},
      {with(lora(), {}, {{"scale", {2}}}), Code::shape, "scale"},
      {with(lora(), {}, {}, {{3, 6}, {3, 8}, {3, 2}}), Code::shape, "one adapter per row"},
      {with(lora(), {}, {}, {{3, 6}, {2, 8}, {3, 1}}), Code::shape, "the same rows"},
  };
  for (const Refused& c : cases) {
    expect_error(
        c.code, c.words, [&] { check(c.node); }, c.words);
  }
}

}  // namespace ops_conditional_test
}  // namespace sluice::bundle
