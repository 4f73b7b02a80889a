#include "sluice/bundle/sizes.h"

#include <cmath>

#include "sluice/base/test_error.h"
#include "sluice/bundle/testing.h"

namespace sluice::bundle {
namespace {

using Ints = std::vector<int64_t>;

Builder nested() {
  Builder builder;
  builder.tensor("w", {6, 4}, std::vector<float>(24, 0.5f));
  builder.tensor("v", {6, 6}, std::vector<float>(36, 0.5f));
  const Value x = builder.input("x", {4});
  Value y = builder.node("prefix_linear", "a", {x}, {{"rows", Ints{2, 4, 6}}}, {{"weight", "w"}});
  const Value z = builder.node("linear", "b", {y}, {}, {{"weight", "v"}});
  y = builder.node("size_switch", "c", {z, y}, {{"choice", Ints{1, 0, 0}}});
  builder.output(y);
  return builder;
}

std::vector<SizeEntry> table() {
  return {{"small", 8, {{"accuracy", 0.5}}}, {"middle", 52, {}}, {"large", 60, {}}};
}

TEST(Sizes, CountWhatEachRuns) {
  const Builder builder = nested();
  const GraphInfo info = check_graph(builder.graph(), "test");
  const GraphSizes sizes = graph_sizes(builder.graph(), info, "test");
  EXPECT_EQ(sizes.macs, (Ints{8, 16 + 36, 24 + 36}));
  EXPECT_EQ(sizes.skipped[0], (std::vector<bool>{false, true, false}));
  EXPECT_EQ(sizes.skipped[2], (std::vector<bool>{false, false, false}));
}

TEST(Sizes, GoIntoTheFileAndBack) {
  Builder builder = nested();
  builder.set_sizes(table());
  const auto bytes = builder.bytes();
  const Bundle bundle = Bundle::parse(bytes, "x", {});
  ASSERT_EQ(bundle.sizes().size(), 3u);
  EXPECT_EQ(bundle.sizes()[0].name, "small");
  EXPECT_EQ(bundle.sizes()[0].quality.at("accuracy"), 0.5);
  EXPECT_EQ(bundle.sizes()[2].macs, 60);
  EXPECT_EQ(find_size(bundle.sizes(), "middle", "x"), 1);
  EXPECT_EQ(find_size(bundle.sizes(), "2", "x"), 2);
  EXPECT_ERROR(find_size(bundle.sizes(), "midle", "x"), Code::usage, "did you mean 'middle'");
  EXPECT_ERROR(find_size(bundle.sizes(), "3", "x"), Code::usage, "it has 3");
  EXPECT_ERROR(find_size({}, "3", "x"), Code::usage, "no table of sizes");
}

TEST(Sizes, RefuseATableThatLies) {
  const auto expect = [](auto change, Code code, const char* words) {
    Builder builder = nested();
    std::vector<SizeEntry> sizes = table();
    change(sizes);
    builder.set_sizes(sizes);
    EXPECT_ERROR(builder.bytes(), code, words);
  };
  expect([](auto& s) { s.pop_back(); }, Code::shape, "2 entries; the graph has 3 sizes");
  expect([](auto& s) { s[1].macs = 51; }, Code::format, "says 51 multiply-accumulates");
  expect([](auto& s) { s[1].name = "small"; }, Code::format, "'small' is there twice");
  expect([](auto& s) { s[1].name = "a b"; }, Code::format, "name 'a b'");
  expect([](auto& s) { s[1].quality["x"] = NAN; }, Code::format, "expected a name and a finite");
}

TEST(Sizes, RefuseListsOfDifferentLengths) {
  Builder builder = nested();
  const Value x = builder.input("x2", {4});
  builder.output(
      builder.node("prefix_linear", "d", {x}, {{"rows", Ints{2, 4}}}, {{"weight", "w"}}));
  const GraphInfo info = check_graph(builder.graph(), "test");
  EXPECT_ERROR(graph_sizes(builder.graph(), info, "test"), Code::shape,
               "'d' has 2 sizes; other nodes have 3");
}

}  // namespace
}  // namespace sluice::bundle
