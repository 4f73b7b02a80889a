// conv2d with packed weights and rounded inputs, engine against reference.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "sluice/base/test_error.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/packed_networks.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/packed_conv.h"
#include "sluice/engine/kernel/reference.h"

namespace sluice::engine {
namespace packed_conv_test {

using bundle::Format;
using bundle::Value;
using testing::Model;
using testing::NetworkBuilder;
using Ints = std::vector<int64_t>;
using Window = testing::ConvWindow;
using testing::packed_conv;

std::vector<float> run(const Network& network, std::span<const float> input, int64_t batch,
                       int threads, bool fuse = true) {
  Session session(network, {.batch = batch, .threads = threads, .fuse = fuse});
  std::vector<float> output(static_cast<size_t>(batch * numel(network.output_shape())));
  session.run(input, output);
  return output;
}

/// Nothing is said about one code that falls on the other side of a half: single layers only.
void expect_close(std::span<const float> found, std::span<const float> expected,
                  double tolerance = 1e-5) {
  ASSERT_EQ(found.size(), expected.size());
  double largest = 1e-30;
  for (const float v : expected) largest = std::max(largest, std::fabs(double{v}));
  for (size_t i = 0; i < found.size(); ++i)
    ASSERT_NEAR(found[i], expected[i], tolerance * largest) << i;
}

TEST(PackedConvOperator, MatchesTheReferenceForAnyShapeAndTail) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    NetworkBuilder net(seed);
    const auto pair = [&](int64_t low, int64_t high) {
      return Ints{net.pick(low, high), net.pick(low, high)};
    };
    Window w;
    const int64_t shape = net.pick(0, 3);  // depthwise, pointwise, grouped, any
    w.groups = shape == 0 ? net.pick(2, 40) : shape == 2 ? net.pick(2, 5) : 1;
    const int64_t in = w.groups * (shape == 0 ? 1 : net.pick(1, 37));
    w.out = w.groups * (shape == 0 ? net.pick(1, 2) : net.pick(1, 40));
    if (shape != 1) {
      w.kernel = pair(1, 7);
      if (w.kernel[0] > 5) w.kernel[1] = w.kernel[0];
      w.dilation = w.kernel[0] + w.kernel[1] > 10 ? Ints{1, 1} : pair(1, 2);
      for (size_t d = 0; d < 2; ++d)  // up to outputs that see nothing of the picture
        w.padding[d] =
            net.pick(0, (w.kernel[d] - 1) * w.dilation[d] + (net.pick(0, 3) == 0 ? 2 : 0));
    }
    w.stride = pair(1, 2);
    w.bias = net.coin();
    const std::string activations = seed % 4 == 3 ? "f32" : "i8";
    const Value x = net.input({in, net.pick(13, 24), net.pick(13, 24)});
    Value y = packed_conv(net, "conv", x, w, activations);
    SCOPED_TRACE(fmt::format("seed {}: {} -> {} groups {} kernel {}x{} activations {}", seed,
                             to_string(x.shape), to_string(y.shape), w.groups, w.kernel[0],
                             w.kernel[1], activations));
    const Value plain = y;
    if (net.coin()) y = net.batch_norm("norm", y);
    const bool adds = net.coin();
    if (adds) y = net.node("add", "add", {y, net.builder().input("other", y.shape)});
    const char* kinds[] = {"none", "relu", "gelu", "silu", "hard_swish", "tanh"};
    if (const int64_t kind = net.pick(0, 5); kind > 0) y = net.activation("act", y, kinds[kind]);
    if (net.coin())
      y = net.builder().node("unary", "affine", {y},
                             {{"kind", std::string("linear")}, {"alpha", 0.5}, {"beta", -0.25}});
    const Model model = net.finish(y);
    const Network network(model.bundle);
    for (const int64_t batch : {1, 3}) {
      const auto picture = net.normal(static_cast<size_t>(batch * numel(x.shape)), 1.0),
                 other = net.normal(static_cast<size_t>(batch * numel(plain.shape)), 1.0);
      const std::span<const float> both[] = {picture, other};
      const auto inputs = std::span(both).first(adds ? 2 : 1);
      const auto expected = reference_run_all(model.bundle, inputs, batch)[0];
      bool codes = false;
      const auto found = [&](int threads, bool fuse) {
        Session session(network, {.batch = batch, .threads = threads, .fuse = fuse});
        for (const PlanStep& step : session.plan()) codes |= step.kernel.ends_with(" s8");
        std::vector<float> output(expected.size());
        const std::span<float> outputs[] = {output};
        session.run(inputs, outputs, batch);
        return output;
      };
      for (const bool fuse : {true, false}) expect_close(found(1, fuse), expected);
      const auto one = found(1, true), two = found(2, true);
      expect_close(two, one);
      if (codes) EXPECT_EQ(two, one);
    }
  }
}

TEST(PackedConvOperator, SamplesHaveScalesOfTheirOwnAtAnySize) {
  NetworkBuilder net(5);
  const Value x = net.input({8, 5, 7});
  const Model model = net.finish(
      packed_conv(net, "conv", x, {.out = 12, .kernel = {3, 3}, .padding = {1, 1}}, "i8"));
  const Network network(model.bundle);
  const size_t each = static_cast<size_t>(numel(x.shape));
  const float sizes[] = {1e-6f, 1, 1e6f, 0, 1e30f, 1e-42f};
  std::vector<float> input;
  for (const float size : sizes)
    for (const float v : net.normal(each, 1.0)) input.push_back(v * size);
  const auto found = run(network, input, std::ssize(sizes), 1),
             expected = reference_run(model.bundle, input, std::ssize(sizes));
  const size_t out = found.size() / std::size(sizes);
  for (size_t s = 0; s < std::size(sizes); ++s) {
    SCOPED_TRACE(s);
    expect_close(std::span(found).subspan(s * out, out), std::span(expected).subspan(s * out, out));
  }
}

TEST(PackedConvOperator, LargestCodesDoNotSaturate) {
  NetworkBuilder net(6);
  const Value x = net.input({130, 4, 4});
  const std::vector<float> ones(130 * 9 * 3, 1.0f);
  net.builder().tensor("w", Format::i8, {3, 130 * 9}, bundle::pack(Format::i8, ones, 3, 130 * 9));
  const Model model = net.finish(net.builder().node(
      "conv2d", "conv", {x}, {{"kernel", int64_t{3}}, {"activations", std::string("i8")}},
      {{"weight", "w"}}));
  const Network network(model.bundle);
  for (const float value : {1.0f, -1.0f}) {
    const std::vector<float> input(static_cast<size_t>(numel(x.shape)), value);
    for (const float y : run(network, input, 1, 1)) EXPECT_NEAR(y, value * 130 * 9, 0.01);
  }
}

TEST(PackedConvOperator, BadInputsGiveResultsThatAreNotFiniteInTheirSampleAlone) {
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    NetworkBuilder net(7);
    const Value x = net.input({16, 6, 6});
    const Model model = net.finish(packed_conv(net, "conv", x, {.out = 5, .bias = true}, "i8"));
    const Network network(model.bundle);
    const size_t each = static_cast<size_t>(numel(x.shape));
    auto input = net.normal(3 * each, 1.0);
    input[each + 100] = bad;
    const auto output = run(network, input, 3, 1);
    for (size_t i = 0; i < output.size(); ++i)
      EXPECT_EQ(std::isfinite(output[i]), i / (output.size() / 3) != 1) << i;
  }
}

TEST(PackedConvOperator, OfLargePicturesTwoThreadsGiveWhatOneGives) {
  NetworkBuilder net(8);
  Value x = net.input({32, 96, 96});
  const Model model = net.finish(packed_conv(
      net, "conv", x, {.out = 48, .kernel = {3, 3}, .padding = {1, 1}, .bias = true}, "i8"));
  const Network network(model.bundle);
  const auto input = net.normal(static_cast<size_t>(2 * numel(x.shape)), 1.0);
  const auto one = run(network, input, 2, 1), two = run(network, input, 2, 2);
  expect_close(two, one);
  if (onednn::product_usable(onednn::ProductType::i8)) EXPECT_EQ(two, one);
}

TEST(PackedConvKernels, CodesAndRoundedValuesGiveTheSame) {
  NetworkBuilder net(9);
  onednn::ConvShape shape;
  shape.samples = 3;
  shape.in_channels = 20;
  shape.out_channels = 7;
  shape.in_height = shape.out_height = 9;
  shape.in_width = shape.out_width = 11;
  shape.kernel[0] = shape.kernel[1] = 3;
  shape.padding[0] = shape.padding[1] = 1;
  const int64_t columns = 20 * 9, each = 20 * 99;
  const auto bytes = bundle::pack(Format::i8, net.normal(7 * columns, 0.2), 7, columns);
  const auto matrix = bundle::view_packed(Format::i8, 7, columns, bytes, "w");
  std::vector<float> values(7 * columns), scales(7);
  bundle::unpack(matrix, values);
  std::memcpy(scales.data(), matrix.scales, 28);
  const auto bias = net.normal(7, 0.5);
  auto x = net.normal(static_cast<size_t>(3 * each), 1.0);
  onednn::Tail tail;
  tail.activation = Activation::hard_swish;
  onednn::PackCache cache;
  const auto result = [&](const Kernel& kernel) {
    Buffer scratch(kernel.scratch_bytes);
    std::vector<float> y(3 * 7 * 99, std::nanf(""));
    float* inputs[] = {x.data()};
    Binding binding;
    binding.inputs = inputs;
    binding.output = y.data();
    binding.scratch = scratch.data();
    const auto call = kernel.bind(binding);
    call();
    call();  // nothing is left behind by the first
    return y;
  };
  auto conv =
      onednn::make_conv(shape, Layout::channels_last, tail, values, bias, 1, cache, "f", true);
  ASSERT_TRUE(conv);
  const auto rounded = result(make_rounded(*conv, 3, each, 1));
  const auto exact = result(*conv);
  double off = 0;
  for (size_t i = 0; i < exact.size(); ++i) off += std::fabs(exact[i] - rounded[i]);
  EXPECT_GT(off, 0.1);  // rounding is there
  const auto codes = make_packed_conv({shape, matrix.codes, scales, bias, tail, 1}, cache, "c");
  if (!codes) GTEST_SKIP() << "no exact products of int8 on this processor";
  EXPECT_THAT(codes->name, ::testing::HasSubstr("s8"));
  expect_close(result(*codes), rounded);
}

TEST(PackedConvOperator, FoldsNormsIntoItsScales) {
  for (const std::string activations : {"f32", "i8"}) {
    NetworkBuilder net(10);
    const Value x = net.input({16, 8, 8});
    Value y = packed_conv(net, "conv", x, {.out = 24, .kernel = {3, 3}}, activations);
    y = net.activation("relu", net.batch_norm("norm", y), "relu");
    net.tensor("gate", {24}, net.uniform(24, 0, 2));
    y = net.builder().node("scale", "gate", {y}, {}, {{"scale", "gate"}});
    const Model model = net.finish(y);
    const Network network(model.bundle);
    Session session(network, {.batch = 1, .threads = 1});
    EXPECT_EQ(session.plan().size(), 1 + (session.plan().back().op == "reorder" ? 1u : 0u) +
                                         (session.plan().front().op == "reorder" ? 1u : 0u));
    const auto input = net.normal(static_cast<size_t>(numel(x.shape)), 1.0);
    expect_close(run(network, input, 1, 1), reference_run(model.bundle, input, 1));
  }
}

TEST(PackedConvOperator, CostsSayWhatIsStoredAndTheMeterWhatIsRead) {
  for (const std::string activations : {"f32", "i8"}) {
    NetworkBuilder net(11);
    const Value x = net.input({64, 8, 8});
    const Model model = net.finish(
        packed_conv(net, "conv", x, {.out = 32, .kernel = {3, 3}, .padding = {1, 1}}, activations));
    const Network network(model.bundle);
    const int64_t weights = 32 * 64 * 9, stored = weights + 32 * 4;
    EXPECT_EQ(network.cost().params, weights);
    EXPECT_EQ(network.cost().macs, weights * 64);
    EXPECT_EQ(network.cost().weight_bytes, stored);
    Session session(network, {.batch = 2, .threads = 1});
    const auto input = net.normal(static_cast<size_t>(2 * numel(x.shape)), 1.0);
    std::vector<float> output(2 * 32 * 64);
    Meter meter;
    session.run(input, output, {.meter = &meter});
    EXPECT_EQ(meter.macs(), 2 * weights * 64);
    bool codes = false;
    for (const PlanStep& step : session.plan()) {
      if (step.op != "conv2d") continue;
      codes = step.kernel.ends_with(" s8");
      EXPECT_EQ(step.cost.weight_bytes, codes ? stored : 4 * weights) << step.kernel;
    }
    EXPECT_EQ(codes, activations == "i8" && onednn::product_usable(onednn::ProductType::i8));
  }
}

TEST(PackedConvOperator, NetworkRefusesDamagedScalesAndCodes) {
  NetworkBuilder net(12);
  const Value x = net.input({4, 5, 5});
  const Model good = net.finish(packed_conv(net, "conv", x, {.out = 3}, "i8"));
  for (const bool scale : {true, false}) {
    auto bytes = good.bytes;
    const auto weight = good.bundle.tensor("conv.weight").bytes;
    const size_t at = static_cast<size_t>(weight.data() - good.bytes.data()) + (scale ? 12 : 0);
    for (size_t i = 0; i < 4; ++i) bytes[at + i] = scale ? std::byte{0xFF} : std::byte{0x80};
    const Model bad(std::move(bytes), "bad");
    expect_error(scale ? Code::numeric : Code::format, "bad: tensor 'conv.weight'",
                 [&] { Network network(bad.bundle); });
  }
}

}  // namespace packed_conv_test
}  // namespace sluice::engine
