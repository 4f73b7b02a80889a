#include "sluice/lab/pass/subnet.h"

#include <algorithm>
#include <set>

#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace subnet_test {

using namespace testing;  // NOLINT: test helpers
using ::testing::ElementsAre;

SubnetSpace space() {
  SubnetSpace result;
  result.widths = {0.125, 0.5, 1};
  result.depths = {2, 3};
  return result;
}

TEST(SubnetSpace, NamesAreReadBack) {
  SubnetSpace mixed;
  mixed.widths = {0.25, 0.5, 1};
  mixed.knobs = {"blocks.0.**", "blocks.1.**", "**"};
  for (const SubnetSpace& each : {space(), mixed}) {
    std::set<std::string> names;
    for (const Subnet& subnet : each.all()) {
      const std::string name = each.encode(subnet);
      EXPECT_EQ(each.decode(name), subnet) << name;
      EXPECT_TRUE(names.insert(name).second) << name;
    }
    EXPECT_EQ(names.size(), each.all().size());
  }
  EXPECT_EQ(space().encode({{0}, 2}), "w12.5-d2");
  EXPECT_EQ(space().all().size(), 6u);
  EXPECT_EQ(mixed.all().size(), 27u);
  EXPECT_EQ(mixed.uniform().size(), 3u);
  EXPECT_EQ(mixed.encode({{0, 2, 1}, 0}), "macb");
}

TEST(SubnetSpace, RefusesWhatIsNotInIt) {
  expect_error(Code::usage, "no sub-network 'w60-d2'; expected one of w12.5, w50, w100",
               [] { space().decode("w60-d2"); });
  for (const char* name : {"w50", "w50-d4", "w50-d2x", "", "-d2", "w50-d"}) {
    expect_error(Code::usage, "no sub-network", [&] { space().decode(name); });
  }
  expect_error(Code::usage, "is not in the space", [] { space().encode({{3}, 2}); });
  expect_error(Code::usage, "is not in the space", [] { space().encode({{0, 0}, 2}); });
  SubnetSpace wide;
  wide.widths = {0.25, 0.5, 0.75, 1};
  wide.knobs = std::vector<std::string>(5, "**");
  expect_error(Code::limit, "a space of 1024 sub-networks", [&] { wide.all(); });
}

TEST(SubnetSpace, RefusesSizesOutOfOrder) {
  const auto expect = [](auto change, const char* words) {
    SubnetSpace changed = space();
    change(changed);
    expect_error(Code::config, words, [&] { changed.check(); });
  };
  expect([](auto& s) { s.widths = {0.5, 0.25, 1}; }, "widths: expected 1 to 26 ascending");
  expect([](auto& s) { s.widths = {0.5, 0.5, 1}; }, "widths");
  expect([](auto& s) { s.widths = {0.5, 0.75}; }, "the last of them 1");
  expect([](auto& s) { s.widths = {0.0, 1}; }, "above 0");
  expect([](auto& s) { s.widths = {std::nan(""), 1}; }, "widths");
  expect([](auto& s) { s.widths = {}; }, "widths");
  expect([](auto& s) { s.depths = {3, 2}; }, "depths: expected ascending");
  expect([](auto& s) { s.depths = {0, 2}; }, "depths");
  expect([](auto& s) { s.knobs = {}; }, "knobs");
  expect([](auto& s) { s.multiple = 0; }, "multiple");
}

TEST(SubnetSpace, RefusesToCutUnits) {
  SubnetSpace each;
  EXPECT_EQ(each.units(0.25, 16, "a"), 4);
  EXPECT_EQ(each.units(1.0 / 3, 96, "a"), 32);
  expect_error(Code::shape, "a: a width of 0.3 of 16 units is 4.8, which cuts one of them",
               [&] { each.units(0.3, 16, "a"); });
  expect_error(Code::shape, "cuts one of them", [&] { each.units(0.01, 16, "a"); });
  each.multiple = 4;
  EXPECT_EQ(each.units(0.5, 16, "a"), 8);
  expect_error(Code::shape, "is 6, which cuts a group of 4", [&] { each.units(0.5, 12, "a"); });
  expect_error(Code::shape, "10 units are no multiple of 4", [&] { each.units(1, 10, "a"); });
}

TEST(SizeSampler, IsAFunctionOfSeedAndStep) {
  const SizeSampler sampler{"uniform", 5, 3, 7};
  std::vector<int64_t> seen(5);
  bool differ = false;
  for (int64_t step = 0; step < 500; ++step) {
    const auto sizes = sampler.at_step(step);
    EXPECT_EQ(sizes, sampler.at_step(step));
    differ |= sizes != SizeSampler{"uniform", 5, 3, 8}.at_step(step);
    ASSERT_EQ(sizes.size(), 3u);
    EXPECT_TRUE(std::is_sorted(sizes.begin(), sizes.end()));
    for (const int64_t size : sizes) ++seen.at(size_t(size));
  }
  EXPECT_TRUE(differ);
  for (const int64_t count : seen) EXPECT_NEAR(double(count), 300, 60);  // 1500 draws of 5
}

TEST(SizeSampler, HasThreeKinds) {
  EXPECT_THAT((SizeSampler{"all", 4, 1, 1}.at_step(3)), ElementsAre(0, 1, 2, 3));
  for (int64_t step = 0; step < 20; ++step) {
    const auto sizes = SizeSampler{"sandwich", 6, 3, 1}.at_step(step);
    ASSERT_EQ(sizes.size(), 3u);
    EXPECT_EQ(sizes.front(), 0);
    EXPECT_EQ(sizes.back(), 5);
  }
  expect_error(Code::config, "did you mean uniform", [] { SizeSampler{"unifrom", 4}.check(); });
  expect_error(Code::config, "draws of sizes: expected 1", [] {
    SizeSampler{"uniform", 4, 0}.check();
  });
  expect_error(Code::config, "expected 2", [] { SizeSampler{"sandwich", 4, 1}.check(); });
}

}  // namespace subnet_test
}  // namespace sluice::lab
