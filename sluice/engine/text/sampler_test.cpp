#include "sluice/engine/text/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "sluice/base/test_error.h"

namespace sluice::engine {
namespace sampler_test {

using ::testing::ElementsAre;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// How often each token comes in `count` draws.
std::map<int32_t, int> draws(const Sampling& sampling, std::span<const float> logits, int count) {
  Sampler sampler(sampling);
  std::map<int32_t, int> seen;
  for (int i = 0; i < count; ++i) ++seen[sampler.next(logits)];
  return seen;
}

std::set<int32_t> support(const Sampling& sampling, std::span<const float> logits) {
  std::set<int32_t> ids;
  for (const auto& [id, count] : draws(sampling, logits, 2000)) ids.insert(id);
  return ids;
}

TEST(Sampler, GreedyTakesTheFirstOfTheHighest) {
  Sampler sampler(Sampling{});
  EXPECT_EQ(sampler.next(std::vector<float>{1, 5, -kInfinity, 5}), 1);
  EXPECT_EQ(sampler.next(std::vector<float>{-3, -kInfinity}), 0);
}

TEST(Sampler, DrawsWithTheProbabilitiesOfTheSoftmax) {
  const std::vector<float> logits{0, 1, 2, -1};
  for (const double temperature : {1.0, 0.5}) {
    const auto seen = draws({.temperature = temperature, .seed = 3}, logits, 20000);
    double total = 0;
    for (const float l : logits) total += std::exp(l / temperature);
    for (int32_t id = 0; id < 4; ++id) {
      const double p = std::exp(logits[size_t(id)] / temperature) / total;
      EXPECT_NEAR(seen.count(id) ? seen.at(id) / 20000.0 : 0, p, 0.012) << id;
    }
  }
}

TEST(Sampler, FiltersKeepWhatTheySay) {
  // Probabilities 0.5, 0.25, 0.125, ... in some order.
  std::vector<float> logits;
  for (const int rank : {3, 0, 2, 1, 4, 5}) logits.push_back(float(-rank * std::log(2.0)));
  const Sampling all{.temperature = 1};
  const auto with = [&](auto change) {
    Sampling s = all;
    change(s);
    return support(s, logits);
  };
  EXPECT_EQ(with([](Sampling&) {}).size(), 6u);
  EXPECT_EQ(with([](Sampling& s) { s.top_k = 2; }), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(with([](Sampling& s) { s.top_p = 0.7; }), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(with([](Sampling& s) { s.top_p = 1e-9; }), (std::set<int32_t>{1}));
  EXPECT_EQ(with([](Sampling& s) { s.min_p = 0.2; }), (std::set<int32_t>{1, 3, 2}));
  // top-p counts within what top-k left: 0.5 of 0.75 is two thirds.
  EXPECT_EQ(with([](Sampling& s) { s.top_k = 2, s.top_p = 0.6; }), (std::set<int32_t>{1}));
}

TEST(Sampler, LargeVocabulariesAreCutAsSmallOnesAre) {
  std::mt19937 random(1);
  std::normal_distribution<float> values(0, 2);
  std::vector<float> logits(5000);
  for (float& l : logits) l = values(random);
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = int32_t(i);
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return logits[size_t(a)] > logits[size_t(b)]; });
  double total = 0, sum = 0;
  for (const float l : logits) total += std::exp(double(l));
  size_t count = 0;
  while (sum < 0.9 * total) sum += std::exp(double(logits[size_t(order[count++])]));
  ASSERT_GT(count, 300u);
  const std::set<int32_t> kept(order.begin(), order.begin() + std::ptrdiff_t(count));
  ptrdiff_t deepest = 0;
  for (const int32_t id : support({.temperature = 1, .top_p = 0.9}, logits)) {
    EXPECT_TRUE(kept.contains(id));
    deepest = std::max(deepest, std::find(order.begin(), order.end(), id) - order.begin());
  }
  EXPECT_GT(deepest, 256) << "nothing beyond the first numbers that are sorted";
}

TEST(Sampler, PenaltyMovesLogitsOfSeenTokensTowardsLess) {
  Sampler sampler({.repetition_penalty = 2});
  const std::vector<float> logits{3, 2, -1, -1.5f};
  EXPECT_EQ(sampler.next(logits, std::vector<int32_t>{0, 0, 99, -5}), 1);
  EXPECT_EQ(sampler.next(std::vector<float>{-1, -1.5f}, std::vector<int32_t>{0}), 1);
  EXPECT_EQ(sampler.next(logits), 0);
}

TEST(Sampler, TheSeedDecidesAndNothingElse) {
  std::vector<float> logits(300);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = float(i % 7);
  const auto sequence = [&](uint64_t seed) {
    Sampler sampler({.temperature = 1, .top_p = 0.95, .seed = seed});
    std::vector<int32_t> ids;
    for (int i = 0; i < 20; ++i) ids.push_back(sampler.next(logits));
    return ids;
  };
  EXPECT_EQ(sequence(1), sequence(1));
  EXPECT_NE(sequence(1), sequence(2));
}

TEST(Sampler, RefusesLogitsThatAreNoNumbers) {
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler({.temperature = temperature, .repetition_penalty = 1.5});
    const std::vector<int32_t> seen{0};
    EXPECT_ERROR(sampler.next(std::vector<float>{1, std::nanf(""), 2}, seen), Code::numeric,
                 "token 1 is nan");
    EXPECT_ERROR(sampler.next(std::vector<float>{1, kInfinity}, seen), Code::numeric,
                 "token 1 is inf");
    EXPECT_ERROR(sampler.next(std::vector<float>{-kInfinity, -kInfinity}, seen), Code::numeric,
                 "no token to choose");
    EXPECT_ERROR(sampler.next(std::vector<float>{}, seen), Code::numeric, "none of 0 logits");
  }
}

TEST(Sampler, RefusesAbsurdNumbers) {
  const double nan = std::nan("");
  EXPECT_ERROR(check_sampling({.temperature = -1}), Code::usage, "temperature -1");
  EXPECT_ERROR(check_sampling({.temperature = nan}), Code::usage, "temperature nan");
  EXPECT_ERROR(check_sampling({.temperature = 1e9}), Code::usage, "temperature");
  EXPECT_ERROR(check_sampling({.top_k = -1}), Code::usage, "top-k -1");
  EXPECT_ERROR(check_sampling({.top_p = 0}), Code::usage, "top-p 0");
  EXPECT_ERROR(check_sampling({.top_p = 1.5}), Code::usage, "top-p 1.5");
  EXPECT_ERROR(check_sampling({.min_p = nan}), Code::usage, "min-p");
  EXPECT_ERROR(check_sampling({.repetition_penalty = 0}), Code::usage, "repetition penalty 0");
}

}  // namespace sampler_test
}  // namespace sluice::engine
