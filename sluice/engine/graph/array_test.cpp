// Operators on arrays of any rank and recurrent layers: each alone on random shapes, and in chains
// with pictures in either memory order, against the reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sluice/base/test_error.h"
#include "sluice/bundle/scalar_ops.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"
#include "sluice/engine/kernel/array.h"
#include "sluice/engine/kernel/reference.h"

namespace sluice::engine {
namespace array_test {

using bundle::Attributes;
using bundle::Value;
using testing::Model;
using testing::NetworkBuilder;

/// The engine's outputs equal the reference's for all inputs of the graph.
void expect_parity(const Model& model, int64_t count, const std::string& what,
                   double tolerance = 2e-5, float low = -2, float high = 2) {
  NetworkBuilder random(11);
  const Network network(model.bundle);
  std::vector<std::vector<float>> inputs, outputs;
  for (const Value& input : network.inputs())
    inputs.push_back(random.uniform(size_t(count * numel(input.shape)), low, high));
  const std::vector<std::span<const float>> in(inputs.begin(), inputs.end());
  const auto expected = reference_run_all(model.bundle, in, count);
  for (const int threads : {1, 2}) {
    Session session(network, {.batch = count, .threads = threads});
    outputs.clear();
    for (const Value& output : network.outputs())
      outputs.emplace_back(size_t(count * numel(output.shape)));
    const std::vector<std::span<float>> out(outputs.begin(), outputs.end());
    session.run(in, out, count);
    for (size_t o = 0; o < outputs.size(); ++o)
      for (size_t i = 0; i < outputs[o].size(); ++i) {
        if (std::isnan(expected[o][i]) && std::isnan(outputs[o][i])) continue;  // acosh(0.5)
        ASSERT_NEAR(outputs[o][i], expected[o][i], tolerance * (1 + std::abs(expected[o][i])))
            << what << ", output " << o << ", element " << i;
      }
  }
}

Shape random_shape(NetworkBuilder& net, int64_t least = 1, int64_t most = 4) {
  Shape shape(size_t(net.pick(least, most)));
  for (int64_t& size : shape) size = net.pick(1, 6);
  return shape;
}

class Seeds : public ::testing::TestWithParam<uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Arrays, Seeds, ::testing::Range<uint64_t>(0, 12));

TEST_P(Seeds, MovesElementsAsTheReference) {
  NetworkBuilder net(GetParam());
  const Shape shape = random_shape(net);
  const Value x = net.input(shape);
  const int64_t rank = std::ssize(shape);
  std::vector<int64_t> perm(shape.size());
  std::iota(perm.begin(), perm.end(), 0);
  for (size_t i = perm.size(); i-- > 1;) std::swap(perm[i], perm[size_t(net.pick(0, int64_t(i)))]);
  net.builder().output(net.node("transpose", "transpose", {x}, {{"perm", perm}}));

  const int64_t axis = net.pick(0, rank - 1), size = shape[size_t(axis)];
  std::vector<int64_t> indices(size_t(net.pick(1, 7)));
  for (int64_t& i : indices) i = net.pick(0, size - 1);
  net.builder().output(net.node("gather", "gather", {x}, {{"axis", axis}, {"indices", indices}}));
  const int64_t start = net.pick(0, size - 1);
  const Value part =
      net.node("slice", "slice", {x},
               {{"axis", axis}, {"start", start}, {"size", net.pick(1, size - start)}});
  net.builder().output(part);
  net.builder().output(net.node("concat", "concat", {x, part, x}, {{"axis", axis}}));
  std::vector<int64_t> before, after;
  for (int64_t i = 0; i < rank; ++i) {
    before.push_back(net.pick(0, 2));
    after.push_back(net.pick(0, 2));
  }
  net.builder().output(
      net.node("pad", "pad", {x}, {{"before", before}, {"after", after}, {"value", -1.5}}));
  const Model model =
      net.finish(net.node("reshape", "flat", {x}, {{"shape", std::vector<int64_t>{numel(shape)}}}));
  expect_parity(model, 3, to_string(shape));
}

TEST_P(Seeds, BroadcastsAsTheReference) {
  NetworkBuilder net(GetParam());
  const Shape shape = random_shape(net);
  const auto some_ones = [&] {
    Shape other(shape.begin() + net.pick(0, std::ssize(shape) - 1), shape.end());
    for (int64_t& size : other)
      if (net.coin()) size = 1;
    return other;
  };
  const Value x = net.input(shape), y = net.builder().input("y", some_ones()),
              z = net.builder().input("z", some_ones());
  int n = 0;
  for (const std::string_view kind : bundle::binary_names()) {
    if (kind == "pow" || kind == "mod" || kind == "fmod") continue;  // jump where rounding does
    const bool turned = net.coin();
    net.builder().output(net.node("binary", std::string(kind),
                                  turned ? std::vector{y, x} : std::vector{x, y},
                                  {{"kind", std::string(kind)}}));
    const Shape constant = some_ones();
    const std::string name = "c" + std::to_string(n++);
    net.tensor(name, constant, net.uniform(size_t(numel(constant)), 0.5f, 2));
    net.builder().output(net.builder().node("binary", "const." + std::string(kind), {x},
                                            {{"kind", std::string(kind)}, {"reversed", net.coin()}},
                                            {{"other", name}}));
  }
  const Value mask = net.node("binary", "mask", {y, z}, {{"kind", std::string("less")}});
  net.tensor("value", shape, net.normal(size_t(numel(shape)), 1));
  const Value constant = net.builder().node("constant", "constant", {x}, {}, {{"value", "value"}});
  const Model model = net.finish(net.node("where", "where", {mask, constant, x}));
  expect_parity(model, 2, to_string(shape), 1e-4, 0.25f, 2);
}

TEST_P(Seeds, ReducesAsTheReference) {
  NetworkBuilder net(GetParam());
  const Shape shape = random_shape(net);
  const Value x = net.input(shape);
  for (const char* kind : {"sum", "mean", "max", "min", "prod"}) {
    std::vector<int64_t> axes;
    for (int64_t i = 0; i < std::ssize(shape); ++i)
      if (net.coin()) axes.push_back(i);
    if (axes.empty()) axes.push_back(0);
    net.builder().output(
        net.node("reduce", kind, {x}, {{"kind", std::string(kind)}, {"axes", axes}}));
  }
  const std::vector<int64_t> axis{net.pick(0, std::ssize(shape) - 1)};
  net.builder().output(
      net.node("reduce", "argmax", {x}, {{"kind", std::string("argmax")}, {"axes", axis}}));
  const Model model = net.finish(
      net.node("reduce", "argmin", {x}, {{"kind", std::string("argmin")}, {"axes", axis}}));
  expect_parity(model, 3, to_string(shape), 1e-4);
}

TEST_P(Seeds, MultipliesMatricesAsTheReference) {
  NetworkBuilder net(GetParam());
  const int64_t rows = net.pick(1, 7), inner = net.pick(1, 9), columns = net.pick(1, 8);
  Shape outer = random_shape(net, 1, 2), outer_b = outer;
  for (int64_t& size : outer_b)
    if (net.coin()) size = 1;
  if (net.coin()) outer_b.erase(outer_b.begin());
  const bool turned = net.coin();
  Shape a = outer, b = outer_b;
  for (const int64_t size : {rows, inner}) a.push_back(size);
  for (const int64_t size : {turned ? columns : inner, turned ? inner : columns}) b.push_back(size);
  const Value x = net.input(a), y = net.builder().input("y", b);
  const Model model =
      net.finish(net.node("matmul", "product", {x, y}, {{"transpose_b", turned}, {"scale", 0.5}}));
  expect_parity(model, 2, to_string(a) + " times " + to_string(b));
}

TEST_P(Seeds, TransposedConvolutionsMatchTheReference) {
  NetworkBuilder net(GetParam());
  const int64_t groups = net.pick(1, 2), in = groups * net.pick(1, 4), out = net.pick(1, 3);
  const Shape weight{in, out, net.pick(1, 4), net.pick(1, 3)};
  const Value x = net.input({in, net.pick(1, 5), net.pick(1, 6)});
  net.tensor("weight", weight, net.normal(size_t(numel(weight)), 1));
  net.tensor("bias", {out * groups}, net.normal(size_t(out * groups), 1));
  const std::vector<int64_t> stride{net.pick(1, 3), net.pick(1, 2)},
      padding{net.pick(0, (weight[2] - 1) / 2), 0}, dilation{net.pick(1, 2), net.pick(1, 2)};
  std::map<std::string, std::string> tensors{{"weight", "weight"}};
  if (net.coin()) tensors["bias"] = "bias";
  const Model model = net.finish(
      net.builder().node("conv_transpose2d", "up", {x},
                         {{"stride", stride},
                          {"padding", padding},
                          {"dilation", dilation},
                          {"output_padding", std::vector<int64_t>{net.pick(0, stride[0] - 1), 0}},
                          {"groups", groups}},
                         tensors));
  expect_parity(model, 2, to_string(weight), 1e-4);
}

TEST_P(Seeds, RecurrentLayersMatchTheReference) {
  NetworkBuilder net(GetParam());
  const int64_t rows = net.pick(1, 6), width = net.pick(1, 7), hidden = net.pick(1, 9);
  const Value x = net.input({rows, width}), h = net.builder().input("h", {hidden}),
              c = net.builder().input("c", {hidden});
  for (const int64_t gates : {4, 3}) {
    const std::string op = gates == 4 ? "lstm" : "gru";
    net.tensor(op + ".w", {gates * hidden, width}, net.normal(size_t(gates * hidden * width), 0.5));
    net.tensor(op + ".r", {gates * hidden, hidden},
               net.normal(size_t(gates * hidden * hidden), 0.5));
    net.tensor(op + ".b", {gates * hidden}, net.normal(size_t(gates * hidden), 0.5));
    std::map<std::string, std::string> tensors{{"weight", op + ".w"}, {"recurrent", op + ".r"}};
    Attributes attrs{{"reverse", net.coin()}};
    net.builder().output(net.builder().node(op, op + ".bare", {x}, attrs, tensors));
    tensors["bias"] = op + ".b";
    std::vector<Value> inputs{x, h};
    if (gates == 4) {
      inputs.push_back(c);
      attrs["cells"] = true;
    } else {
      net.tensor("gru.rb", {hidden}, net.normal(size_t(hidden), 0.5));
      tensors["recurrent_bias"] = "gru.rb";
      attrs["reset_before"] = net.coin();
    }
    const Value y = net.builder().node(op, op, inputs, attrs, tensors);
    if (gates == 4) {
      net.builder().output(y);
    } else {
      expect_parity(net.finish(y), 2, op, 1e-4);
    }
  }
}

TEST(Arrays, EveryUnaryKindMatchesTheReference) {
  NetworkBuilder net(1);
  const Value x = net.input({37});
  const auto names = bundle::unary_names();
  Value last;
  for (const std::string_view kind : names) {
    const Attributes attrs{{"kind", std::string(kind)}, {"alpha", 0.7}, {"beta", 0.9}};
    last = net.node("unary", std::string(kind), {x}, attrs);
    if (kind != names.back()) net.builder().output(last);
  }
  const Model model = net.finish(last);
  expect_parity(model, 1, "0.05 to 0.95", 1e-5, 0.05f, 0.95f);
  NetworkBuilder signs(2);
  const Value y = signs.input({37});
  for (const char* kind :
       {"clip", "leaky_relu", "elu", "celu", "hard_sigmoid", "abs", "neg", "erf", "sign",
        "softplus", "softsign", "shrink", "floor", "ceil", "round", "trunc", "not"})
    signs.builder().output(signs.node(
        "unary", kind, {y}, {{"kind", std::string(kind)}, {"alpha", 0.2}, {"beta", 0.5}}));
  expect_parity(signs.finish(signs.node("unary", "last", {y}, {{"kind", std::string("square")}})),
                2, "both signs");
}

TEST(Arrays, WhatIsNoNumberStaysNone) {
  std::vector<float> x(37, std::nanf("")), y(x.size());
  for (const bundle::Unary kind :
       {bundle::Unary::linear, bundle::Unary::clip, bundle::Unary::hard_sigmoid,
        bundle::Unary::celu, bundle::Unary::leaky_relu, bundle::Unary::softplus}) {
    unary_array(kind, 0.2f, 0.5f, x.data(), y.data(), x.size());
    for (const float value : y)
      EXPECT_TRUE(std::isnan(value)) << bundle::unary_name(kind) << " " << value;
    EXPECT_TRUE(std::isnan(bundle::unary_value(kind, std::nan(""), 0.2, 0.5)))
        << bundle::unary_name(kind);
  }
}

// A convolution leaves pictures channels last: everything after it has to see the same values.
TEST(Arrays, PicturesOfEitherMemoryOrderGiveTheSame) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    NetworkBuilder net(seed);
    const Value x = net.input({5, 6, 7});
    const Value y = net.conv("conv", x, 24, 3), w = net.conv("conv2", x, 24, 3);
    net.tensor("c", {24, 1, 1}, net.normal(24, 1));
    net.tensor("row", {1, 7}, net.normal(7, 1));
    Value z = net.builder().node("binary", "channels", {y}, {{"kind", std::string("add")}},
                                 {{"other", "c"}});
    z = net.builder().node("binary", "columns", {z}, {{"kind", std::string("mul")}},
                           {{"other", "row"}});
    z = net.node("binary", "both", {z, w}, {{"kind", std::string("max")}});
    const int64_t axis = int64_t(seed % 3);
    z = net.node("concat", "concat", {z, x.shape == z.shape ? x : w}, {{"axis", axis}});
    z = net.node("slice", "slice", {z}, {{"axis", axis}, {"start", 2}});
    z = net.node("gather", "gather", {z},
                 {{"axis", axis}, {"indices", std::vector<int64_t>{3, 0, 1}}});
    z = net.node(
        "pad", "pad", {z},
        {{"before", std::vector<int64_t>{1, 0, 2}}, {"after", std::vector<int64_t>{0, 3, 1}}});
    z = net.node("unary", "unary", {z},
                 {{"kind", std::string("linear")}, {"alpha", 2}, {"beta", 1}});
    z = net.node("transpose", "transpose", {z}, {{"perm", std::vector<int64_t>{1, 2, 0}}});
    expect_parity(
        net.finish(net.node("reduce", "reduce", {z},
                            {{"kind", std::string("mean")}, {"axes", std::vector<int64_t>{0, 2}}})),
        3, "seed " + std::to_string(seed));
  }
}

TEST(Arrays, AFactorAndAnOffsetBehindAConvolutionAreFused) {
  for (const int64_t groups : {1, 16}) {
    NetworkBuilder net(3);
    const Value x = net.input({16, 9, 9});
    Value y = net.activation("act", net.conv("conv", x, 16, 3, 1, true, groups), "hard_swish");
    y = net.node("unary", "affine", {y},
                 {{"kind", std::string("linear")}, {"alpha", 1.7}, {"beta", -0.3}});
    const Model model = net.finish(y);
    Session session{Network(model.bundle)};
    const auto plan = session.plan();  // reorders around it aside
    const auto step =
        std::find_if(plan.begin(), plan.end(), [](const PlanStep& s) { return s.path == "conv"; });
    ASSERT_NE(step, plan.end());
    EXPECT_EQ(step->fused, (std::vector<std::string>{"act", "affine"}));
    expect_parity(model, 2, "groups " + std::to_string(groups));
  }
}

/// state' = state / 2 + x; out = 10 state'
Model accumulator() {
  NetworkBuilder net(1);
  const Value x = net.input({2}), state = net.builder().input("state", {2});
  const Value half =
      net.node("unary", "half", {state}, {{"kind", std::string("linear")}, {"alpha", 0.5}});
  const Value next = net.node("add", "next", {half, x});
  const Value out =
      net.node("unary", "out", {next}, {{"kind", std::string("linear")}, {"alpha", 10}});
  net.builder().output(out);
  net.builder().output(next);
  net.builder().carry("state", next);
  return Model(net.builder().bytes());
}

TEST(Carry, GoesFromRunToRunPerSampleUntilItIsReset) {
  const Model model = accumulator();
  const Network network(model.bundle);
  ASSERT_EQ(network.inputs().size(), 1u);
  ASSERT_EQ(network.outputs().size(), 1u);
  Session session(network, {.batch = 2, .threads = 2});
  std::vector<float> out(4);
  const std::vector<float> x{1, 2, 3, 4};
  session.run(x, out);
  EXPECT_EQ(out, (std::vector<float>{10, 20, 30, 40}));
  session.run(x, out);
  EXPECT_EQ(out, (std::vector<float>{15, 30, 45, 60}));
  session.reset(0);
  session.run(x, out);
  EXPECT_EQ(out, (std::vector<float>{10, 20, 52.5, 70}));
  session.run(x, out, 1);  // the second sample waits
  session.run(x, out);
  EXPECT_EQ(out, (std::vector<float>{17.5, 35, 56.25, 75}));
  session.reset();
  session.run(x, out);
  EXPECT_EQ(out, (std::vector<float>{10, 20, 30, 40}));
  EXPECT_EQ(session.state_bytes(), 16);
}

TEST(Carry, IsRefusedWhereItDoesNotFit) {
  NetworkBuilder net(1);
  const Value x = net.input({2}), state = net.builder().input("state", {3});
  const Value y = net.node("unary", "y", {x}, {{"kind", std::string("neg")}});
  const Value z = net.node("unary", "z", {state}, {{"kind", std::string("neg")}});
  net.builder().output(y);
  expect_error(Code::missing, "no output", [&] { net.builder().carry("state", z); });
  net.builder().output(z);
  expect_error(Code::shape, "2", [&] { net.builder().carry("state", y); });
  expect_error(Code::missing, "nobody", [&] { net.builder().carry("nobody", y); });
  net.builder().carry("state", z);
  expect_error(Code::format, "twice", [&] { net.builder().carry("state", z); });
}

TEST(Session, RefusesAnotherNumberOfInputs) {
  NetworkBuilder net(1);
  const Value x = net.input({2}), y = net.builder().input("y", {2});
  const Model model = net.finish(net.node("add", "sum", {x, y}));
  Session session(Network(model.bundle), {.batch = 1});
  std::vector<float> in(2), out(2);
  expect_error(Code::shape, "1 inputs", [&] { session.run(in, out); });
  const std::vector<std::span<const float>> both{in, std::span(in).first(1)};
  const std::vector<std::span<float>> results{out};
  expect_error(Code::shape, "'y'", [&] { session.run(both, results, 1); });
}

}  // namespace array_test
}  // namespace sluice::engine
