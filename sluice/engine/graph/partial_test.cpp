// Binary layers, gathered channels and nested layers through plan and session.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "sluice/base/error.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"
#include "sluice/engine/kernel/reference.h"

namespace sluice::engine {
namespace partial_test {

using bundle::Attributes;
using bundle::Format;
using bundle::Value;
using testing::Model;
using testing::NetworkBuilder;
using Ints = std::vector<int64_t>;

std::vector<float> random_input(const Network& network, int64_t count) {
  return NetworkBuilder(3).normal(static_cast<size_t>(count * numel(network.input_shape())), 1.0);
}

std::vector<float> run(const Network& network, std::span<const float> input, int64_t count,
                       int threads) {
  Session session(network, {.batch = count, .threads = threads});
  std::vector<float> output(static_cast<size_t>(count * numel(network.output_shape())));
  session.run(input, output);
  return output;
}

void expect_parity(const Model& model, int64_t count, double tolerance) {
  const Network network(model.bundle);
  const auto input = random_input(network, count);
  const auto expected = reference_run(model.bundle, input, count);
  for (const int threads : {1, 2}) {
    const auto found = run(network, input, count, threads);
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i)
      ASSERT_NEAR(found[i], expected[i], tolerance * (1 + std::abs(expected[i]))) << i;
  }
}

std::map<std::string, std::string> packed_weight(NetworkBuilder& net, const std::string& path,
                                                 Format format, int64_t rows, int64_t columns) {
  const auto values = net.normal(static_cast<size_t>(rows * columns), 0.3);
  net.builder().tensor(path + ".weight", format, {rows, columns},
                       bundle::pack(format, values, rows, columns));
  net.tensor(path + ".bias", {rows}, net.normal(static_cast<size_t>(rows), 0.5));
  return {{"weight", path + ".weight"}, {"bias", path + ".bias"}};
}

TEST(BinaryLayers, MatchTheReferenceForEveryScaleAndShape) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    NetworkBuilder net(seed);
    const int64_t channels = net.pick(1, 80), out = net.pick(1, 40), kernel = net.pick(1, 3);
    const Value x = net.input({channels, net.pick(4, 9), net.pick(4, 9)});
    Attributes attrs{{"kernel", kernel},
                     {"stride", net.pick(1, 2)},
                     {"padding", net.pick(0, 2)},
                     {"scale", 0.25}};
    if (net.coin()) attrs["input_scale"] = std::string("mean");
    Value y = net.builder().node(
        "binary_conv2d", "conv", {x}, attrs,
        packed_weight(net, "conv", Format::binary, out, channels * kernel * kernel));
    // A linear layer behind it would see signs of rounded sums; it gets its own input below.
    expect_parity(net.finish(net.node("flatten", "flatten", {y})), 3, 1e-5);
  }
  for (const int64_t width : {1, 64, 100, 300}) {
    NetworkBuilder net(99);
    const Value x = net.input({5, width});
    expect_parity(net.finish(net.builder().node(
                      "binary_linear", "fc", {x}, {{"input_scale", std::string("mean")}},
                      packed_weight(net, "fc", Format::binary, 33, width))),
                  3, 1e-5);
  }
}

TEST(BinaryLayers, TakeF32WeightsOfOneMagnitudePerRowOnly) {
  for (const bool good : {true, false}) {
    NetworkBuilder net(1);
    const Value x = net.input({4});
    net.tensor("w", {2, 4}, {1, -1, 1, 1, 0.5f, 0.5f, -0.5f, good ? 0.5f : 0.25f});
    const Model model =
        net.finish(net.builder().node("binary_linear", "fc", {x}, {}, {{"weight", "w"}}));
    if (good) {
      expect_parity(model, 2, 1e-6);
      continue;
    }
    try {
      Session session{Network(model.bundle)};
      FAIL() << "not refused";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::format);
      EXPECT_THAT(e.what(), ::testing::HasSubstr("fc: row 1 holds 0.5 and 0.25"));
    }
  }
}

Model gated_conv(bool input_mask) {
  NetworkBuilder net(4);
  const Value x = net.input({20, 7, 6});
  const Value pooled = net.node("global_avg_pool", "pool", {x});
  const auto gate = [&](const std::string& path, int64_t channels) {
    return net.node("threshold", path + ".on", {net.linear(path, pooled, channels)});
  };
  const Value out = gate("gate", 37);
  std::vector<Value> inputs{x, out};
  if (input_mask) inputs.push_back(gate("input_gate", 20));
  net.tensor("conv.weight", {37, 20, 3, 3}, net.normal(37 * 20 * 9, 0.1));
  net.tensor("conv.bias", {37}, net.normal(37, 0.5));
  const Value y = net.builder().node("gathered_conv2d", "conv", inputs, {{"padding", int64_t{1}}},
                                     {{"weight", "conv.weight"}, {"bias", "conv.bias"}});
  return net.finish(net.activation("relu", y));
}

TEST(GatheredLayers, MatchTheReferenceWithAndWithoutInputMasks) {
  for (const bool input_mask : {false, true}) expect_parity(gated_conv(input_mask), 5, 1e-4);
}

TEST(GatheredLayers, MeterCountsTheChannelsThatRan) {
  const Model model = gated_conv(true);
  const Network network(model.bundle);
  const auto input = random_input(network, 8);
  Session session(network, {.batch = 8, .threads = 2});
  std::vector<float> output(static_cast<size_t>(8 * numel(network.output_shape())));
  Meter meter;
  session.run(input, output, {.meter = &meter});
  for (const Meter::Entry& entry : meter.entries()) {
    if (entry.path != "conv") continue;
    EXPECT_GT(entry.macs, 0);
    EXPECT_LT(entry.macs, 8 * 37 * 20 * 9 * 42 * 6 / 10);
  }
}

TEST(GatheredLayers, WhatFillsTheLastChunkIsNeitherComputedNorCounted) {
  const Model model = gated_conv(true);
  const Network network(model.bundle);
  constexpr int64_t kBatch = 131;
  const auto input = random_input(network, kBatch);
  Session together(network, {.batch = kBatch, .threads = 1}), alone(network, {.batch = 1});
  ASSERT_NE(kBatch % together.chunk(), 0);
  const auto in = static_cast<size_t>(numel(network.input_shape())),
             out = static_cast<size_t>(numel(network.output_shape()));
  std::vector<float> output(kBatch * out), one(out);
  Meter batched, singly;
  together.run(input, output, {.meter = &batched});
  for (size_t i = 0; i < size_t{kBatch}; ++i) {
    alone.run({input.data() + i * in, in}, one, {.meter = &singly});
    const std::vector<float> want(output.begin() + std::ptrdiff_t(i * out),
                                  output.begin() + std::ptrdiff_t((i + 1) * out));
    EXPECT_THAT(one, ::testing::Pointwise(::testing::FloatNear(1e-4f), want));
  }
  EXPECT_EQ(batched.macs(), singly.macs());
}

/// A nested FFN: three widths of its 96 hidden neurons.
Model nested_ffn(Format format) {
  NetworkBuilder net(5);
  const Value x = net.input({3, 32});
  const auto layer = [&](const std::string& path, const Value& in, int64_t out, Attributes attrs) {
    return net.builder().node("prefix_linear", path, {in}, std::move(attrs),
                              packed_weight(net, path, format, out, in.shape.back()));
  };
  const Value hidden = layer("up", x, 192, {{"rows", Ints{64, 128, 192}}});
  return net.finish(
      layer("down", net.activation("act", hidden, "gelu"), 32, {{"columns", Ints{64, 128, 192}}}));
}

TEST(NestedLayers, TheLastSizeMatchesTheReferenceInEveryFormat) {
  for (const Format format : {Format::f32, Format::bf16, Format::i8, Format::i8_group,
                              Format::i4_group, Format::ternary, Format::binary})
    expect_parity(nested_ffn(format), 5, 1e-3);
}

TEST(NestedLayers, ARunChoosesItsSizeAndTheMeterAndBudgetFollow) {
  for (const Format format : {Format::f32, Format::i8, Format::i4_group, Format::ternary}) {
    const Model model = nested_ffn(format);
    const Network network(model.bundle);
    const auto input = random_input(network, 4);
    Session session(network, {.batch = 4, .threads = 2});
    ASSERT_EQ(session.sizes(), 3);
    const size_t count = static_cast<size_t>(4 * numel(network.output_shape()));
    std::vector<std::vector<float>> results;
    for (const int64_t size : {0, 2, 1, 0}) {
      Meter meter;
      std::vector<float> output(count);
      session.run(input, output, {.meter = &meter, .size = size});
      EXPECT_EQ(meter.macs(), 4 * 3 * 2 * 32 * 64 * (size + 1));
      results.push_back(output);
    }
    EXPECT_EQ(results[0], results[3]);
    EXPECT_NE(results[0], results[2]);

    // The small network by itself: the leading rows and columns of the same weights.
    const auto matrix = [&](const std::string& name) {
      const bundle::TensorSpec& spec = model.bundle.graph().tensors.at(name);
      std::vector<float> values(static_cast<size_t>(numel(spec.shape)));
      bundle::unpack(bundle::view_packed(format, spec.shape[0], spec.shape[1],
                                         model.bundle.tensor(name).bytes, name),
                     values);
      return values;
    };
    const auto up = matrix("up.weight"), down = matrix("down.weight");
    const auto up_bias = model.bundle.tensor("up.bias").f32(),
               down_bias = model.bundle.tensor("down.bias").f32();
    for (size_t row = 0; row < 12; ++row) {
      std::vector<double> hidden(64);
      for (size_t h = 0; h < 64; ++h) {
        double sum = up_bias[h];
        for (size_t i = 0; i < 32; ++i) sum += double(up[h * 32 + i]) * input[row * 32 + i];
        hidden[h] = sum / 2 * (1 + std::erf(sum / std::sqrt(2.0)));
      }
      for (size_t o = 0; o < 32; ++o) {
        double sum = down_bias[o];
        for (size_t h = 0; h < 64; ++h) sum += double(down[o * 192 + h]) * hidden[h];
        ASSERT_NEAR(results[0][row * 32 + o], sum, 1e-3 * (1 + std::abs(sum)));
      }
    }

    // A budget picks the largest size that stays inside, and refuses when none does.
    Budget budget;
    budget.macs_per_sample = 3 * 2 * 32 * 128;
    std::vector<float> output(count);
    session.run(input, output, {.budget = &budget});
    EXPECT_EQ(output, results[2]);
    EXPECT_THROW(session.run(input, output, {.budget = &budget, .size = 2}), Error);
    budget.macs_per_sample = 10;
    EXPECT_THROW(session.run(input, output, {.budget = &budget}), Error);
    EXPECT_THROW(session.run(input, output, {.size = 3}), Error);
    EXPECT_THROW(session.run(input, output, {.size = -2}), Error);
  }
}

TEST(NestedLayers, RefuseListsOfDifferentLengthsAndColumnsThatAreNoView) {
  NetworkBuilder net(6);
  const Value x = net.input({8});
  Value y = net.builder().node("prefix_linear", "a", {x}, {{"rows", Ints{2, 4}}},
                               packed_weight(net, "a", Format::f32, 4, 8));
  y = net.builder().node("prefix_linear", "b", {y}, {{"columns", Ints{1, 2, 4}}},
                         packed_weight(net, "b", Format::f32, 4, 4));
  const Model model = net.finish(y);
  try {
    Session session{Network(model.bundle)};
    FAIL() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::shape);
    EXPECT_THAT(e.what(), ::testing::HasSubstr("b: 3 sizes; other nodes have 2"));
  }
  NetworkBuilder packed(7);
  const Value z = packed.input({128});
  for (const Format format :
       {Format::i4_group, Format::mixed, Format::i4_group_min, Format::binary2}) {
    EXPECT_THROW(
        packed.builder().node(
            "prefix_linear", "c", {z}, {{"columns", int64_t{32}}},
            packed_weight(packed, std::string(bundle::format_name(format)), format, 4, 128)),
        Error);
  }
}

}  // namespace partial_test
}  // namespace sluice::engine
