#include "sluice/base/normal_quantile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice {
namespace normal_quantile_test {

TEST(NormalQuantile, InvertsTheDistribution) {
  EXPECT_EQ(normal_quantile(0), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(normal_quantile(1), std::numeric_limits<double>::infinity());
  EXPECT_NEAR(normal_quantile(0.5), 0, 1e-12);
  EXPECT_NEAR(normal_quantile(0.975), 1.959963984540054, 1e-12);
  EXPECT_NEAR(normal_quantile(0.08), -1.4050715603096329, 1e-12);
  for (const double z : {-6.0, -1.0, 0.3, 4.0})
    EXPECT_NEAR(normal_quantile(0.5 * std::erfc(-z * std::sqrt(0.5))), z, 1e-9);
}

TEST(NormalQuantile, IsWhatBisectionFindsFarIntoTheTail) {
  for (double p = 1e-300; p < 0.5; p *= 1.7) {
    double low = -40, high = 0;
    for (int i = 0; i < 80; ++i) {
      const double middle = 0.5 * (low + high);
      (0.5 * std::erfc(-middle * std::sqrt(0.5)) < p ? low : high) = middle;
    }
    EXPECT_NEAR(normal_quantile(p), high, 4e-15 * std::max(1.0, -high)) << p;
    if (p > 1e-3) EXPECT_EQ(normal_quantile(1 - p), -normal_quantile(1 - (1 - p))) << p;
  }
}

}  // namespace normal_quantile_test
}  // namespace sluice
