#include "sluice/base/path_pattern.h"

#include <gtest/gtest.h>

namespace sluice {
namespace path_pattern_test {

struct Case {
  const char* pattern;
  const char* path;
  bool matches;
};

TEST(PathMatches, FollowsTheTable) {
  const Case cases[] = {
      {"blocks.*.ffn", "blocks.0.ffn", true},
      {"blocks.*.ffn", "blocks.12.ffn", true},
      {"blocks.*.ffn", "blocks.0.attention", false},
      {"blocks.*.ffn", "blocks.0.1.ffn", false},
      {"blocks.*.ffn", "blocks.ffn", false},
      {"blocks.*.ffn", "blocks.0.ffn.up", false},
      {"**.conv1", "conv1", true},
      {"**.conv1", "stage0.0.conv1", true},
      {"**.conv1", "stage0.0.conv10", false},
      {"**", "", true},
      {"**", "a.b.c", true},
      {"a.**", "a", true},
      {"a.**.z", "a.z", true},
      {"a.**.z", "a.b.c.z", true},
      {"a.**.z", "a.b.c", false},
      {"**.b.**", "a.b.c", true},
      {"**.b.**", "a.c", false},
      {"*", "a", true},
      {"*", "a.b", false},
      {"*", "", false},
      {"", "", true},
      {"", "a", false},
      {"conv*", "conv1", true},
      {"conv*", "conv", true},
      {"*conv", "myconv", true},
      {"c*v*1", "conv_v11", true},
      {"c*v*1", "conv_v12", false},
      {"a**b", "axxb", true},
      {"a.b", "a.B", false},
      {"a..b", "a..b", true},
      {"a.*.b", "a..b", true},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(path_matches(c.pattern, c.path), c.matches) << c.pattern << " against " << c.path;
  }
}

TEST(PathMatches, StaysFastOnHostilePatterns) {
  std::string stars, text(2000, 'a'), segments, path;
  for (int i = 0; i < 200; ++i) {
    stars += "*a";
    segments += "**.a.";
    path += "a.";
  }
  EXPECT_FALSE(path_matches(stars + "b", text));
  EXPECT_FALSE(path_matches(segments + "b", path + "a"));
}

TEST(JoinPath, LeavesNoEmptySegments) {
  EXPECT_EQ(join_path("stage0", "conv1"), "stage0.conv1");
  EXPECT_EQ(join_path("", "conv1"), "conv1");
  EXPECT_EQ(join_path("stage0", ""), "stage0");
}

TEST(NearestName, FindsTyposSwapsAndAbbreviations) {
  const std::vector<std::string> names{"fashion-mnist", "digits", "blobs"};
  EXPECT_EQ(nearest_name("blops", names), "blobs");
  EXPECT_EQ(nearest_name("digist", names), "digits");
  EXPECT_EQ(nearest_name("Fashion_MNIST", names), "fashion-mnist");
  EXPECT_EQ(nearest_name("fashion", names), "fashion-mnist");
}

TEST(NearestName, SuggestsNothingWhenNothingIsNear) {
  const std::vector<std::string> names{"fashion-mnist", "digits", "blobs"};
  EXPECT_EQ(nearest_name("cifar10", names), "");
  EXPECT_EQ(nearest_name("", names), "");
  EXPECT_EQ(nearest_name("x", {"y"}), "");
  EXPECT_EQ(nearest_name(std::string(100000, 'x'), names), "");
}

}  // namespace path_pattern_test
}  // namespace sluice
