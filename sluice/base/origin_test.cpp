#include "sluice/base/origin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/base/json.h"

namespace sluice {
namespace origin_test {

TEST(Origin, TodayIsAnIsoDate) {
  EXPECT_THAT(today(), ::testing::MatchesRegex("20[0-9][0-9]-[01][0-9]-[0-3][0-9]"));
}

TEST(Origin, CommitIsAHashOrSaysThatItIsUnknown) {
  EXPECT_THAT(build_commit(),
              ::testing::AnyOf("unknown", ::testing::MatchesRegex("[0-9a-f]+(-dirty)?")));
}

TEST(Origin, MachineNamesItsDeviceOnlyWhenItIsNotTheCpu) {
  const Json cpu = machine_json(3);
  EXPECT_EQ(cpu["threads"], 3);
  EXPECT_FALSE(cpu["cpu"].get<std::string>().empty());
  EXPECT_GT(cpu["memory"].get<int64_t>(), 0);
  EXPECT_FALSE(cpu.contains("device"));
  EXPECT_EQ(machine_json(1, "cuda:1")["device"], "cuda:1");
}

}  // namespace origin_test
}  // namespace sluice
