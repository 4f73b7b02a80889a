#include "sluice/lab/pass/allocate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "sluice/base/test_error.h"

namespace sluice::lab {
namespace allocate_test {

double weighted(std::span<const double> sizes, std::span<const double> levels) {
  double sum = 0, total = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    sum += sizes[i] * levels[i];
    total += sizes[i];
  }
  return sum / total;
}

TEST(AllocateGreedy, GivesMoreToPartsThatSufferLess) {
  const std::vector<double> sizes = {1, 4, 2}, targets = {0.2, 0.33, 0.6};
  const auto error = [](std::span<const double> p) {
    return 9 * p[0] * p[0] + p[1] * p[1] + 3 * p[2] * p[2];
  };
  const auto levels = allocate_greedy(sizes, targets, error);
  ASSERT_EQ(levels.size(), 3u);
  for (size_t t = 0; t < 3; ++t) {
    EXPECT_NEAR(weighted(sizes, levels[t]), targets[t], 1e-8);
    // At least as good as the same level for all.
    EXPECT_LT(error(levels[t]), error(std::vector<double>(3, targets[t])));
    EXPECT_GT(levels[t][1], levels[t][0]);
  }
  for (size_t i = 0; i < 3; ++i) EXPECT_LE(levels[0][i], levels[2][i]);
}

TEST(AllocateGreedy, RespectsTheMostOfAPart) {
  // The first part costs nothing; when it is full the other has to give the rest.
  const std::vector<double> sizes = {1, 1}, targets = {0.0, 0.7};
  const auto levels =
      allocate_greedy(sizes, targets, [](std::span<const double> p) { return p[1]; }, {0.1, 0.8});
  EXPECT_EQ(levels[0], (std::vector<double>{0, 0}));
  EXPECT_NEAR(levels[1][0], 0.8, 1e-9);
  EXPECT_NEAR(levels[1][1], 0.6, 1e-9);
}

TEST(AllocateGreedy, RefusesWhatMakesNoSense) {
  const auto zero = [](std::span<const double>) { return 0.0; };
  const auto call = [&](std::vector<double> sizes, std::vector<double> targets,
                        GreedyOptions options = {}) {
    return [=] { allocate_greedy(sizes, targets, zero, options); };
  };
  expect_error(Code::config, "no parts", call({}, {0.5}));
  expect_error(Code::config, "size 0", call({1, 0}, {0.5}));
  expect_error(Code::config, "target 0.99", call({1}, {0.99}));
  expect_error(Code::config, "target 0.2", call({1}, {0.3, 0.2}));
  expect_error(Code::config, "target nan", call({1}, {NAN}));
  expect_error(Code::config, "step 0", call({1}, {0.5}, {0, 0.9}));
  expect_error(Code::numeric, "NaN with part 0", [] {
    const double sizes[] = {1}, targets[] = {0.5};
    allocate_greedy(sizes, targets, [](std::span<const double>) { return NAN; });
  });
}

}  // namespace allocate_test
}  // namespace sluice::lab
