#include "sluice/base/normal_quantile.h"

#include <gtest/gtest.h>

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

}  // namespace normal_quantile_test
}  // namespace sluice
