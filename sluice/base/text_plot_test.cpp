#include "sluice/base/text_plot.h"

#include <gtest/gtest.h>

#include <limits>

namespace sluice {
namespace text_plot_test {

TEST(TextPlot, DrawsLinesWithTheirRangesAndNames) {
  const std::string plot = text_plot({{"loss", {0, 8}, {4, 0}}, {"check", {4}, {2}}}, 9, 5);
  EXPECT_EQ(plot,
            "        4 |**\n"
            "          |  **\n"
            "          |    o*\n"
            "          |      **\n"
            "        0 |        *\n"
            "          +---------\n"
            "           0       8\n"
            "           * loss (last 0)  o check (last 2)\n");
}

TEST(TextPlot, LeavesOutWhatIsNotFiniteAndCopesWithOnePoint) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(text_plot({}), "");
  EXPECT_EQ(text_plot({{"a", {1, 2}, {nan, nan}}}), "");
  EXPECT_NE(text_plot({{"a", {1, 2}, {5, nan}}}).find("a (last 5)"), std::string::npos);
}

}  // namespace text_plot_test
}  // namespace sluice
