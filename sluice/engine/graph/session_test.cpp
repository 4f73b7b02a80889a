#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"
#include "sluice/engine/kernel/reference.h"

namespace sluice::engine {
namespace session_test {

using bundle::Value;
using testing::make_resnet;
using testing::Model;
using testing::NetworkBuilder;

double relative_error(std::span<const float> found, std::span<const float> expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double(found[i]) - expected[i], 2);
    norm += std::pow(double(expected[i]), 2);
  }
  return std::sqrt(difference) / std::max(std::sqrt(norm), 1e-6);
}

std::vector<float> random_input(const Network& network, int64_t count, uint64_t seed = 3) {
  return NetworkBuilder(seed).normal(static_cast<size_t>(count * numel(network.input_shape())),
                                     1.0);
}

std::vector<float> run(const Network& network, std::span<const float> input, int64_t count,
                       Session::Options options) {
  options.batch = count;
  Session session(network, options);
  std::vector<float> output(static_cast<size_t>(count * numel(network.output_shape())));
  session.run(input, output);
  return output;
}

void expect_parity(const Model& model, int64_t count, const std::string& what) {
  const Network network(model.bundle);
  const auto input = random_input(network, count);
  const auto expected = reference_run(model.bundle, input, count);
  for (const bool fuse : {true, false}) {
    for (const int threads : {1, 2}) {
      const auto found = run(network, input, count, {.threads = threads, .fuse = fuse});
      EXPECT_LT(relative_error(found, expected), 1e-5)
          << what << " batch " << count << " fuse " << fuse << " threads " << threads;
    }
  }
}

/// A random value of the graph with rank 3, grown by one random operator.
class RandomGraph {
 public:
  explicit RandomGraph(uint64_t seed) : net_(seed) {}

  Model make() {
    Value x = net_.input({net_.pick(1, 5), net_.pick(5, 13), net_.pick(5, 13)});
    const int64_t steps = net_.pick(3, 7);
    for (int64_t i = 0; i < steps; ++i) x = grow(x, "n" + std::to_string(i));
    return net_.finish(head(x));
  }

 private:
  Value grow(const Value& x, const std::string& path) {
    switch (net_.pick(0, 9)) {
      case 0:
        return net_.activation(path, x, kind());
      case 1:
        return net_.scale(path, x, net_.coin() ? 1 : x.shape[0]);
      case 2:
        return gate(x, path);
      case 3:
        if (x.shape[1] >= 3 && x.shape[2] >= 3) return pool(x, path);
        [[fallthrough]];
      case 4:
        return net_.batch_norm(path, x);
      case 5:
        return residual(x, path);
      case 6:
        return residual(x, path);
      default:
        return convolve(x, path, net_.pick(1, 23), true);
    }
  }

  Value convolve(const Value& x, const std::string& path, int64_t out, bool free) {
    const int64_t kernel = 2 * net_.pick(0, 2) + 1;
    const int64_t stride = free ? net_.pick(1, 2) : 1;
    int64_t groups = 1;
    if (net_.pick(0, 2) == 0) {
      groups = x.shape[0];
      if (out % groups != 0) {
        if (free) {
          out = groups * net_.pick(1, 2);
        } else {
          groups = 1;
        }
      }
    }
    Value y =
        net_.conv(path + ".conv", x, out, kernel, stride, net_.coin(), groups, net_.pick(1, 2));
    if (net_.coin()) y = net_.batch_norm(path + ".bn", y);
    if (net_.pick(0, 2) == 0) y = net_.scale(path + ".scale", y, y.shape[0]);
    if (free && net_.coin()) y = net_.activation(path + ".act", y, kind());
    if (free && net_.pick(0, 2) == 0)
      y = net_.scale(path + ".gate", y, y.shape[0], net_.coin() ? 0.0f : -1.0f);
    return y;
  }

  Value residual(const Value& x, const std::string& path) {
    const Value inner = convolve(x, path + ".a", net_.pick(1, 19), false);
    Value y = convolve(net_.activation(path + ".relu", inner), path + ".b", x.shape[0], false);
    const Value other = net_.coin() ? x : net_.conv(path + ".shortcut", x, x.shape[0], 1);
    y = net_.coin() ? net_.node("add", path + ".add", {y, other})
                    : net_.node("add", path + ".add", {other, y});
    return net_.coin() ? net_.activation(path + ".relu2", y) : y;
  }

  Value gate(const Value& x, const std::string& path) {
    Value g = net_.node("global_avg_pool", path + ".pool", {x});
    g = net_.linear(path + ".fc", g, net_.coin() ? x.shape[0] : 1);
    g = net_.coin() ? net_.activation(path + ".sigmoid", g, "sigmoid")
                    : net_.node("threshold", path + ".threshold", {g}, {{"value", -0.1}});
    return net_.node("mul", path + ".mul", {x, g});
  }

  Value pool(const Value& x, const std::string& path) {
    bundle::Attributes attrs{{"kernel", std::vector<int64_t>{3, 2}},
                             {"stride", std::vector<int64_t>{2, 1}}};
    if (net_.coin()) attrs["padding"] = std::vector<int64_t>{1, 1};
    return net_.node(net_.coin() ? "max_pool2d" : "avg_pool2d", path, {x}, attrs);
  }

  Value head(const Value& x) {
    Value y = net_.coin() ? net_.node("flatten", "flatten", {x})
                          : net_.node("global_avg_pool", "pool", {x});
    y = net_.linear("head", y, net_.pick(1, 21), net_.coin());
    if (net_.coin())
      y = net_.node("layer_norm", "norm",
                    {net_.linear("head2", net_.activation("h", y, kind()), 9)});
    return net_.coin() ? net_.node("softmax", "softmax", {y}) : y;
  }

  std::string kind() {
    static const char* const kinds[] = {"relu", "gelu",       "silu",     "sigmoid",
                                        "tanh", "hard_swish", "gelu_tanh"};
    return kinds[net_.pick(0, 6)];
  }

  NetworkBuilder net_;
};

class RandomGraphs : public ::testing::TestWithParam<int> {};

TEST_P(RandomGraphs, MatchTheReference) {
  for (uint64_t i = 0; i < 8; ++i) {
    const uint64_t seed = static_cast<uint64_t>(GetParam()) * 8 + i;
    const Model model = RandomGraph(seed).make();
    expect_parity(model, 1 + static_cast<int64_t>(seed % 5), "seed " + std::to_string(seed));
  }
}
INSTANTIATE_TEST_SUITE_P(Seeds, RandomGraphs, ::testing::Range(0, 12));

TEST(Session, DenseAndSlicedResnetsMatchTheReference) {
  expect_parity(make_resnet({.size = 14, .width = 16, .blocks = 1}), 2, "dense");
  expect_parity(make_resnet({.size = 14, .width = 16, .blocks = 1, .inner = testing::half_odd}), 2,
                "sliced");
}

TEST(Session, FusesNormResidualAndActivationIntoTheConvolution) {
  const Model model = make_resnet({.size = 14, .blocks = 1});
  Session session{Network(model.bundle)};
  const auto plan = session.plan();
  // stem, 3 x 2 convolutions, 2 shortcuts, pool, head
  EXPECT_EQ(plan.size(), 11u);
  const auto found = std::find_if(plan.begin(), plan.end(),
                                  [](const PlanStep& s) { return s.path == "stage0.0.conv2"; });
  ASSERT_NE(found, plan.end());
  EXPECT_THAT(found->fused,
              ::testing::ElementsAre("stage0.0.bn2", "stage0.0.add", "stage0.0.relu2"));
}

TEST(Session, KeepsAnIntermediateValueThatIsTheOutput) {
  NetworkBuilder net(5);
  const Value x = net.input({6});
  const Value y = net.linear("fc", x, 4);
  net.activation("unused", y);
  expect_parity(net.finish(y), 3, "output inside a chain");
}

TEST(Session, AddsAValueToItself) {
  NetworkBuilder net(6);
  const Value x = net.input({4, 5, 5});
  const Value y = net.conv("conv", x, 4, 3);
  expect_parity(net.finish(net.node("add", "twice", {y, y})), 2, "y + y");
  NetworkBuilder again(6);
  const Value z = again.input({4, 5, 5});
  expect_parity(again.finish(again.node("add", "add", {again.conv("conv", z, 4, 3), z})), 2,
                "conv(x) + x");
}

TEST(Session, ComputesFewerSamplesThanItsBatch) {
  const Model model = make_resnet({.size = 8, .width = 4, .blocks = 1});
  const Network network(model.bundle);
  const auto input = random_input(network, 7);
  Session session(network, {.batch = 7, .threads = 2});
  std::vector<float> all(70), some(70, -1.0f);
  session.run(input, all);
  session.run(std::span(input).first(3 * 64), some, 3);
  EXPECT_THAT(std::vector(some.begin(), some.begin() + 30),
              ::testing::Pointwise(::testing::FloatNear(1e-5f),
                                   std::vector(all.begin(), all.begin() + 30)));
  EXPECT_THAT(std::vector(some.begin() + 30, some.end()), ::testing::Each(-1.0f));
}

TEST(Session, SameInputGivesTheSameBitsInEverySession) {
  const Model model =
      make_resnet({.size = 12, .width = 8, .blocks = 1, .inner = testing::half_odd});
  const Network network(model.bundle);
  const auto input = random_input(network, 4);
  EXPECT_EQ(run(network, input, 4, {.threads = 2}), run(network, input, 4, {.threads = 2}));
}

TEST(Session, LargeNetworksGiveTheSameWhenThreadsShareTheirSteps) {
  for (const bool sliced : {false, true}) {
    testing::ResnetShape shape{.in_channels = 3, .width = 64, .blocks = 1};
    if (sliced) shape.inner = [](int64_t, int64_t width) { return width - 11; };
    const Model model = make_resnet(shape);
    const Network network(model.bundle);
    ASSERT_GT(network.cost().macs, 128'000'000);
    const auto input = random_input(network, 1);
    EXPECT_LT(relative_error(run(network, input, 1, {.threads = 2}),
                             run(network, input, 1, {.threads = 1})),
              1e-5);
  }
}

TEST(Session, LeavesTheCallersThreadCountAlone) {
  const Model model = make_resnet({.size = 8, .width = 4, .blocks = 1});
  const Network network(model.bundle);
  const auto input = random_input(network, 4);
  const int before = omp_get_max_threads();
  omp_set_num_threads(3);
  run(network, input, 4, {.threads = 2});
  EXPECT_EQ(omp_get_max_threads(), 3);
  EXPECT_THROW(run(network, std::span(input).first(1), 4, {.threads = 2}), Error);
  EXPECT_EQ(omp_get_max_threads(), 3);
  omp_set_num_threads(before);
}

TEST(Session, RefusesSpansThatDoNotFit) {
  const Model model = make_resnet({.size = 8, .width = 4, .blocks = 1});
  Session session(Network(model.bundle), {.batch = 2});
  std::vector<float> input(2 * 64), output(20);
  const auto code = [&](std::span<const float> in, std::span<float> out, int64_t count) {
    try {
      session.run(in, out, count);
    } catch (const Error& e) {
      return e.code();
    }
    return Code::internal;
  };
  EXPECT_EQ(code(std::span(input).first(127), output, 2), Code::shape);
  EXPECT_EQ(code(input, std::span(output).first(19), 2), Code::shape);
  EXPECT_EQ(code(input, output, 3), Code::shape);
  EXPECT_THROW(Session(Network(model.bundle), {.batch = 0}), Error);
}

TEST(Session, MeterCountsWhatRanForEverySample) {
  const Model model = make_resnet({.size = 8, .width = 4, .blocks = 1});
  const Network network(model.bundle);
  Session session(network, {.batch = 3, .threads = 1});
  const auto input = random_input(network, 3);
  std::vector<float> output(30);
  Meter meter;
  session.run(input, output, {.meter = &meter});
  session.run(input, output, 2, {.meter = &meter});
  EXPECT_EQ(meter.samples(), 5);
  EXPECT_EQ(meter.macs(), 5 * network.cost().macs);
  EXPECT_DOUBLE_EQ(meter.macs_per_sample(), static_cast<double>(network.cost().macs));
  EXPECT_GT(meter.bytes(), network.cost().weight_bytes);
}

TEST(Session, BudgetIsCheckedBeforeAnythingRuns) {
  const Model model = make_resnet({.size = 8, .width = 4, .blocks = 1});
  const Network network(model.bundle);
  Session session(network);
  const auto input = random_input(network, 1);
  std::vector<float> output(10, -1.0f);
  Budget budget;
  budget.macs_per_sample = network.cost().macs - 1;
  try {
    session.run(input, output, {.budget = &budget});
    FAIL() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::limit);
  }
  EXPECT_THAT(output, ::testing::Each(-1.0f));
  budget.macs_per_sample = network.cost().macs;
  session.run(input, output, {.budget = &budget});
  EXPECT_THAT(output, ::testing::Not(::testing::Each(-1.0f)));
}

Model pruned_mlp(double density) {
  NetworkBuilder net(11);
  Value x = net.node("flatten", "flatten", {net.input({1, 12, 13})});
  x = net.activation("relu1", net.linear("fc1", x, 67, true, density));
  const Value y = net.activation("relu2", net.linear("fc2", x, 67, false, density), "tanh");
  return net.finish(
      net.linear("fc3", net.node("add", "add", {net.linear("fc4", y, 67, true, density), x}), 10));
}

TEST(Session, SparseLinearLayersMatchTheReference) {
  for (const int64_t batch : {1, 2, 5, 8, 16, 33, 70})
    expect_parity(pruned_mlp(0.05), batch, "pruned");
}

TEST(Session, ALayerWithoutWeightsLeftGivesItsBias) {
  expect_parity(pruned_mlp(1e-9), 17, "empty");
}

TEST(Session, MeterAndBudgetCountOnlyWeightsThatAreLeft) {
  const Model model = pruned_mlp(0.05);
  const Network network(model.bundle);
  int64_t nonzero = 67 * 10;  // fc3 is dense
  for (const char* name : {"fc1.weight", "fc2.weight", "fc4.weight"}) {
    for (float w : model.bundle.tensor(name).f32()) nonzero += w != 0;
  }
  Session session(network, {.batch = 20, .threads = 2});
  EXPECT_THAT(session.plan()[0].kernel, ::testing::StartsWith("sluice csr (density 0.0"));
  const auto input = random_input(network, 20);
  std::vector<float> output(200), dense(200);
  Meter meter;
  Budget budget;
  budget.macs_per_sample = nonzero;
  session.run(input, output, {.meter = &meter, .budget = &budget});
  EXPECT_EQ(meter.macs(), 20 * nonzero);

  Session never(network, {.batch = 20, .threads = 1, .sparse = Session::Sparse::never});
  EXPECT_THAT(never.plan()[0].kernel, ::testing::StartsWith("onednn"));
  EXPECT_THROW(never.run(input, dense, {.budget = &budget}), Error);
}

TEST(Session, TimesEveryStepOfItsPlan) {
  const Model model = make_resnet({.size = 8, .width = 4, .blocks = 1});
  const Network network(model.bundle);
  Session session(network, {.batch = 2, .threads = 1});
  const auto input = random_input(network, 2);
  std::vector<float> output(20), timed(20);
  session.run(input, output);
  EXPECT_EQ(session.time_steps(input, timed).size(), session.plan().size());
  EXPECT_EQ(output, timed);
}

TEST(Network, RefusesWeightsThatAreNotFinite) {
  NetworkBuilder net(1);
  const Value x = net.input({3});
  Model good = net.finish(net.linear("fc", x, 2));
  // The writer refuses NaN, so one is planted in the bytes.
  std::vector<std::byte> bytes = good.bytes;
  const auto weight = good.bundle.tensor("fc.weight").bytes;
  const size_t at = static_cast<size_t>(weight.data() - good.bytes.data()) + 4;
  const float nan = NAN;
  std::memcpy(bytes.data() + at, &nan, sizeof nan);
  const Model bad(std::move(bytes), "bad");
  try {
    const Network network(bad.bundle);
    FAIL() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::numeric);
    EXPECT_THAT(e.what(), ::testing::HasSubstr("fc.weight"));
  }
}

}  // namespace session_test
}  // namespace sluice::engine
