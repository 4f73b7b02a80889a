#include "sluice/base/temp_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <optional>

#include "sluice/base/file.h"

namespace sluice {
namespace temp_directory_test {

using ::testing::ElementsAre;

TEST(TempDirectory, GoesWithEverythingInItAndFollowsNoLink) {
  const TempDirectory other;
  write_text_file(other / "kept", "x");
  std::string path;
  {
    const TempDirectory directory("some-purpose");
    path = directory.path();
    EXPECT_NE(path.find("sluice-some-purpose-"), std::string::npos);
    make_directories(directory / "a/b");
    write_text_file(directory / "a/b/c", "x");
    write_text_file(directory / "z", "x");
    std::filesystem::create_directory_symlink(other.path(), directory / "link");
    EXPECT_THAT(directory.entries(), ElementsAre("a", "link", "z"));
  }
  EXPECT_FALSE(file_exists(path));
  EXPECT_THAT(other.entries(), ElementsAre("kept"));
}

TEST(TempDirectory, TwoAreNeverTheSame) {
  const TempDirectory a, b;
  EXPECT_NE(a.path(), b.path());
}

}  // namespace temp_directory_test
}  // namespace sluice
