#include "sluice/engine/graph/evaluate.h"

#include <gmock/gmock.h>

#include <cmath>

#include "sluice/base/error.h"
#include "sluice/engine/graph/test_networks.h"

namespace sluice::engine {
namespace evaluate_test {

/// Two outputs: the pixel, and one minus the pixel (after normalization).
testing::Model two_class() {
  testing::NetworkBuilder net(1);
  const auto x = net.input({1});
  net.tensor("w", {2, 1}, {1, -1});
  net.tensor("b", {2}, {0, 1});
  return net.finish(net.builder().node("linear", "fc", {x}, {}, {{"weight", "w"}, {"bias", "b"}}));
}

TEST(Evaluate, CountsCorrectTopOnesAndTheCrossEntropy) {
  const auto model = two_class();
  const std::vector<uint8_t> pixels{255, 0, 255, 0, 51};
  const std::vector<int64_t> labels{0, 1, 1, 0, 1};
  const LabelledPixels samples{pixels, labels, 0.0, 1.0};
  for (const int64_t batch : {1, 2, 250}) {
    const Evaluation result = evaluate(Network(model.bundle), samples, batch, 1);
    EXPECT_THAT(result.predictions, ::testing::ElementsAre(0, 1, 0, 1, 1));
    EXPECT_DOUBLE_EQ(result.accuracy, 0.6);
    EXPECT_EQ(result.count, 5);
    EXPECT_DOUBLE_EQ(result.macs_per_sample, 2);
    double loss = 0;
    for (size_t i = 0; i < 5; ++i) {
      const double p = pixels[i] / 255.0, a = std::exp(p), b = std::exp(1 - p);
      loss -= std::log((labels[i] == 0 ? a : b) / (a + b)) / 5;
    }
    EXPECT_NEAR(result.loss, loss, 1e-6);
  }
}

TEST(Evaluate, NormalizesPixelsWithMeanAndDeviation) {
  const auto model = two_class();
  const std::vector<uint8_t> pixels{102};  // 0.4 becomes (0.4 - 0.5) / 0.1 = -1: class 1 by far
  const std::vector<int64_t> labels{1};
  const Evaluation result = evaluate(Network(model.bundle), {pixels, labels, 0.5, 0.1}, 1, 1);
  EXPECT_NEAR(result.loss, std::log1p(std::exp(-3.0)), 1e-5);
}

TEST(Evaluate, RefusesSamplesThatDoNotFit) {
  const auto model = two_class();
  const Network network(model.bundle);
  const std::vector<uint8_t> pixels{1, 2, 3};
  const std::vector<int64_t> labels{0, 1, 2}, two{0, 1};
  const auto code = [&](const LabelledPixels& samples, int64_t batch, const Budget* budget) {
    try {
      evaluate(network, samples, batch, 1, budget);
    } catch (const Error& e) {
      return e.code();
    }
    return Code::internal;
  };
  Budget budget;
  budget.macs_per_sample = 1;
  EXPECT_EQ(code({pixels, two, 0, 1}, 1, nullptr), Code::shape);
  EXPECT_EQ(code({pixels, labels, 0, 1}, 1, nullptr), Code::shape);
  EXPECT_EQ(code({std::span(pixels).first(2), two, 0, 0}, 1, nullptr), Code::usage);
  EXPECT_EQ(code({std::span(pixels).first(2), two, 0, 1}, 0, nullptr), Code::usage);
  EXPECT_EQ(code({std::span(pixels).first(2), two, 0, 1}, 1, &budget), Code::limit);
}

TEST(Evaluate, CrossEntropyOfExtremeLogits) {
  std::vector<float> logits{0, 200, -300};
  EXPECT_NEAR(cross_entropy(logits, 2), 500, 1e-3);
  logits = {1, 1, 1, 1};
  EXPECT_NEAR(cross_entropy(logits, 3), std::log(4.0), 1e-6);
  logits = {1, std::nanf("")};
  EXPECT_FALSE(std::isfinite(cross_entropy(logits, 0)));
  logits = {1, std::numeric_limits<float>::infinity()};
  EXPECT_FALSE(std::isfinite(cross_entropy(logits, 0)));
}

}  // namespace evaluate_test
}  // namespace sluice::engine
