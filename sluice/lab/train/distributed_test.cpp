#include "sluice/lab/train/distributed.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "sluice/base/test_error.h"

namespace sluice::lab {
namespace distributed_test {

TEST(Launch, ReadsTorchrunAndMpirunAndNamesWhatMakesNoSense) {
  const auto with = [](std::vector<std::pair<const char*, const char*>> variables, auto use) {
    for (const auto& [name, value] : variables) ::setenv(name, value, 1);
    use();
    for (const auto& [name, value] : variables) ::unsetenv(name);
  };
  EXPECT_EQ(launch_from_environment().size, 1);
  with({{"RANK", "1"},
        {"WORLD_SIZE", "4"},
        {"LOCAL_RANK", "1"},
        {"MASTER_ADDR", "host"},
        {"MASTER_PORT", "1234"}},
       [] {
         const Launch launch = launch_from_environment();
         EXPECT_EQ(launch.rank, 1);
         EXPECT_EQ(launch.size, 4);
         EXPECT_EQ(launch.local_rank, 1);
         EXPECT_EQ(launch.address, "host");
         EXPECT_EQ(launch.port, 1234);
       });
  with({{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "2"}}, [] {
    EXPECT_EQ(launch_from_environment().size, 2);
    EXPECT_EQ(launch_from_environment().address, "127.0.0.1");
  });
  with({{"RANK", "4"}, {"WORLD_SIZE", "4"}}, [] {
    EXPECT_ERROR(launch_from_environment(), Code::config,
                 "RANK='4': expected a number from 0 to 3");
  });
  with({{"RANK", "x"}, {"WORLD_SIZE", "2"}},
       [] { EXPECT_ERROR(launch_from_environment(), Code::config, "RANK='x'"); });
}

}  // namespace distributed_test
}  // namespace sluice::lab
