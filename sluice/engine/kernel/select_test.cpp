#include "sluice/engine/kernel/select.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace select_test {

using ::testing::ElementsAre;
using testing::for_each_target;
using testing::random_floats;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

Scores scores_of(const std::vector<float>& x, Rank rank = Rank::magnitude,
                 const std::vector<float>* weight = nullptr) {
  return {x.data(), x.size(), rank, weight ? weight->data() : nullptr};
}

float score(const Scores& s, size_t i) {
  const float x = s.rank == Rank::magnitude ? std::fabs(s.x[i]) : s.x[i];
  return s.weight ? x * s.weight[i] : x;
}

std::vector<int32_t> reference_top_k(const Scores& s, size_t k) {
  std::vector<int32_t> order(s.n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const float x = score(s, size_t(a)), y = score(s, size_t(b));
    return std::isnan(y) ? !std::isnan(x) : x > y;
  });
  order.resize(std::min(k, s.n));
  std::sort(order.begin(), order.end());
  return order;
}

/// Calls select(index), whose list has exactly n places before a guard.
template <class Select>
std::vector<int32_t> list(size_t n, Select select) {
  std::vector<int32_t> index(n + 4, -7);
  const size_t count = select(index.data());
  EXPECT_LE(count, n);
  for (size_t i = n; i < index.size(); ++i) EXPECT_EQ(index[i], -7) << "written past n";
  index.resize(count);
  return index;
}

TEST(Select, TopKMatchesSortingForEveryLengthAndRank) {
  std::mt19937_64 random(1);
  for_each_target([&] {
    for (size_t n = 1; n < 150; n += 1 + n / 20) {
      for (const Rank rank : {Rank::magnitude, Rank::value}) {
        auto x = random_floats(random, n + 1);
        if (n % 3 == 0) {  // many ties
          for (float& v : x) v = std::round(2 * v) / 2;
        }
        if (n % 4 == 0) x[n / 2] = kNan;
        if (n % 5 == 0) x[n / 3] = -kInf;
        const auto weight = random_floats(random, n + 1, 0, 3);
        for (const bool weighted : {false, true}) {
          // One element in, so that nothing is aligned.
          const Scores s{x.data() + 1, n, rank, weighted ? weight.data() + 1 : nullptr};
          for (const size_t k : {size_t{0}, size_t{1}, n / 3, n - 1, n, n + 5}) {
            EXPECT_EQ(list(n, [&](int32_t* i) { return select_top_k(s, k, i); }),
                      reference_top_k(s, k))
                << n << " " << k;
          }
        }
      }
    }
  });
}

TEST(Select, TopKOfAnyBitsMatchesSorting) {
  std::mt19937_64 random(7);
  for_each_target([&] {
    for (int round = 0; round < 60; ++round) {
      std::vector<float> x(1 + random() % 200);
      // Few different exponents or all: denormals, infinities and NaN of either sign among them.
      const uint32_t mask = round % 2 ? 0xffffffffu : 0xff800003u;
      for (float& v : x) v = std::bit_cast<float>(static_cast<uint32_t>(random()) & mask);
      const size_t k = random() % (x.size() + 2);
      for (const Rank rank : {Rank::magnitude, Rank::value}) {
        const Scores s = scores_of(x, rank);
        ASSERT_EQ(list(x.size(), [&](int32_t* i) { return select_top_k(s, k, i); }),
                  reference_top_k(s, k));
      }
    }
  });
}

TEST(Select, TiesKeepTheLowestIndices) {
  for_each_target([&] {
    const std::vector<float> x{1, -3, 3, 2, 3, 0};
    const auto top = [&](size_t k, Rank rank) {
      return list(6, [&](int32_t* i) { return select_top_k(scores_of(x, rank), k, i); });
    };
    EXPECT_THAT(top(2, Rank::magnitude), ElementsAre(1, 2));
    EXPECT_THAT(top(2, Rank::value), ElementsAre(2, 4));
    const std::vector<float> same(100, 0.5f);
    const auto first = list(100, [&](int32_t* i) { return select_top_k(scores_of(same), 37, i); });
    ASSERT_EQ(first.size(), 37u);
    EXPECT_EQ(first.back(), 36);
  });
}

TEST(Select, NanRanksLowestAndInfinityHighest) {
  for_each_target([&] {
    const std::vector<float> x{kNan, 0, -kInf, -kNan, 1, -0.0f};
    const auto top = [&](size_t k, Rank rank) {
      return list(6, [&](int32_t* i) { return select_top_k(scores_of(x, rank), k, i); });
    };
    EXPECT_THAT(top(4, Rank::magnitude), ElementsAre(1, 2, 4, 5));
    EXPECT_THAT(top(1, Rank::magnitude), ElementsAre(2));
    EXPECT_THAT(top(3, Rank::value), ElementsAre(1, 4, 5));
    EXPECT_THAT(top(5, Rank::value), ElementsAre(0, 1, 2, 4, 5));
    EXPECT_THAT(list(6, [&](int32_t* i) { return select_above(scores_of(x), 0.5f, i); }),
                ElementsAre(2, 4));
    EXPECT_THAT(list(6, [&](int32_t* i) { return select_above(scores_of(x), kNan, i); }),
                ElementsAre());
  });
}

TEST(Select, ThresholdKeepsWhatIsStrictlyAbove) {
  std::mt19937_64 random(2);
  for_each_target([&] {
    for (const size_t n : {0, 1, 7, 16, 33, 130}) {
      const auto x = random_floats(random, n), weight = random_floats(random, n, 0, 2);
      for (const Rank rank : {Rank::magnitude, Rank::value}) {
        const Scores s = scores_of(x, rank, &weight);
        for (const float bound : {-kInf, -0.5f, 0.0f, 0.7f, kInf}) {
          std::vector<int32_t> expected;
          for (size_t i = 0; i < n; ++i) {
            if (score(s, i) > bound) expected.push_back(int32_t(i));
          }
          EXPECT_EQ(list(n, [&](int32_t* i) { return select_above(s, bound, i); }), expected);
        }
      }
    }
  });
}

TEST(Select, StatisticalThresholdKeepsItsShareOfNormalScores) {
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal(0.7f, 2.5f);
  std::vector<float> x(20000);
  for (float& v : x) v = normal(random);
  for_each_target([&] {
    for (const double keep : {0.02, 0.08, 0.35, 0.5, 0.9}) {
      const size_t count = list(x.size(), [&](int32_t* i) {
                             return select_statistical(scores_of(x, Rank::value), keep, i);
                           }).size();
      EXPECT_NEAR(double(count) / double(x.size()), keep, 0.01);
    }
  });
}

TEST(Select, StatisticalThresholdIsMeanPlusDeviationTimesQuantile) {
  for_each_target([&] {
    // mean 3, deviation sqrt(10 / 4); the NaN and infinities do not count
    const std::vector<float> x{1, 2, kNan, 3, 4, kInf, 5, -kInf};
    EXPECT_NEAR(statistical_threshold(scores_of(x, Rank::value), 0.1),
                3 + std::sqrt(2.5) * 1.2815515655446004, 1e-6);
    EXPECT_THAT(
        list(8, [&](int32_t* i) { return select_statistical(scores_of(x, Rank::value), 0.5, i); }),
        ElementsAre(4, 5, 6));
    EXPECT_EQ(statistical_threshold(scores_of(x), 1.0), -kInf);
    EXPECT_EQ(statistical_threshold(scores_of(x), 0.0), kInf);
    const std::vector<float> nothing{kNan, kInf};
    EXPECT_EQ(statistical_threshold(scores_of(nothing), 0.5), kInf);
    const std::vector<float> one{2};
    EXPECT_EQ(statistical_threshold(scores_of(one), 0.3), 2.0f);
    const std::vector<float> large(50, 3e38f);  // squares overflow f32
    EXPECT_FLOAT_EQ(statistical_threshold(scores_of(large), 0.3), 3e38f);
  });
}

}  // namespace select_test
}  // namespace sluice::engine
