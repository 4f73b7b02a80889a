#include <gtest/gtest.h>

#include <map>

#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"
#include "sluice/engine/kernel/reference.h"

namespace sluice::engine {
namespace pruned_conv_test {

using bundle::Value;
using testing::Model;
using testing::NetworkBuilder;

std::vector<float> random_input(const Network& network, int64_t count) {
  return NetworkBuilder(3).normal(static_cast<size_t>(count * numel(network.input_shape())), 1.0);
}

/// 1 x 1 convolutions of every kind of tail between others, `density` of their weights left.
Model pruned_pointwise(double density) {
  NetworkBuilder net(12);
  const auto pointwise = [&](const std::string& path, const Value& x, int64_t out, bool bias,
                             int64_t stride = 1) {
    std::vector<float> weight = net.normal(static_cast<size_t>(out * x.shape[0]), 0.5);
    const std::vector<float> draw = net.uniform(weight.size(), 0, 1);
    for (size_t i = 0; i < weight.size(); ++i) {
      if (draw[i] >= static_cast<float>(density)) weight[i] = 0;
    }
    net.tensor(path + ".weight", {out, x.shape[0], 1, 1}, weight);
    std::map<std::string, std::string> tensors{{"weight", path + ".weight"}};
    if (bias) {
      net.tensor(path + ".bias", {out}, net.normal(static_cast<size_t>(out), 0.3));
      tensors["bias"] = path + ".bias";
    }
    return net.builder().node("conv2d", path, {x}, {{"stride", stride}}, tensors);
  };
  Value x = net.conv("stem", net.input({3, 9, 7}), 37, 3);
  x = net.activation("relu", pointwise("p1", x, 83, true), "gelu");
  const Value y = net.conv("depthwise", pointwise("p2", x, 37, false), 37, 3, 1, false, 37);
  x = net.node("add", "add", {pointwise("p3", y, 37, false), y});
  return net.finish(
      net.batch_norm("norm", pointwise("strided", pointwise("p4", x, 41, true), 5, true, 2)));
}

TEST(PrunedConvolutions, OfOnePixelSkipTheirZerosAndMatchTheReference) {
  const Model model = pruned_pointwise(0.06);
  for (const int64_t batch : {1, 2, 5, 17}) {
    const Network tested(model.bundle);
    const auto input = random_input(tested, batch);
    const auto expected = reference_run(model.bundle, input, batch);
    for (const bool fuse : {true, false}) {
      std::vector<float> found(expected.size());
      Session(tested, {.batch = batch, .threads = fuse ? 2 : 1, .fuse = fuse}).run(input, found);
      for (size_t i = 0; i < found.size(); ++i) {
        ASSERT_NEAR(found[i], expected[i], 1e-4) << "batch " << batch << " fuse " << fuse;
      }
    }
  }
  const Network network(model.bundle);
  Session session(network, {.batch = 3, .threads = 1});
  int64_t compressed = 0, nonzero = 0;
  for (const auto& step : session.plan()) compressed += step.kernel.starts_with("sluice csr");
  EXPECT_EQ(compressed, 4);
  const auto& graph = network.bundle().graph();
  for (const char* name : {"p1", "p2", "p3", "p4"}) {
    for (const float w : model.bundle.tensor(std::string(name) + ".weight").f32())
      nonzero += w != 0;
  }
  int64_t dense = 0;
  for (const auto& node : graph.nodes) {
    if (node.op != "conv2d" || node.path.starts_with("p")) continue;
    const bool strided = node.path == "strided";
    dense += numel(graph.tensors.at(node.tensors.at("weight")).shape) * (strided ? 5 * 4 : 9 * 7);
  }
  const auto input = random_input(network, 3);
  std::vector<float> output(static_cast<size_t>(3 * 5 * 5 * 4));
  Meter meter;
  session.run(input, output, {.meter = &meter});
  EXPECT_EQ(meter.macs(), 3 * (63 * nonzero + dense));
  Session never(network, {.batch = 3, .threads = 1, .sparse = Session::Sparse::never});
  for (const auto& step : never.plan()) EXPECT_FALSE(step.kernel.starts_with("sluice csr"));
}

}  // namespace pruned_conv_test
}  // namespace sluice::engine
