#include "sluice/bundle/sizes.h"

#include <cmath>

#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/size_choice.h"
#include "sluice/bundle/testing.h"

namespace sluice::bundle {
namespace sizes_test {

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
  expect([](auto& s) { s[1].quality["cost_share"] = 0.9; }, Code::format, "the graph allows it 52");
  expect([](auto& s) { s[1].quality["cost_share"] = 1.1; }, Code::format, "1.1; expected above 0");
  expect([](auto& s) { s[1].quality["seconds"] = -1; }, Code::format, "-1 seconds");
}

TEST(Sizes, MeasuredCostsGoIntoTheFileAndIntoAnother) {
  const TempDirectory folder;
  Builder builder = nested();
  std::vector<SizeEntry> sizes = table();
  sizes[1].quality["cost_share"] = 0.5;
  sizes[1].quality["seconds"] = 0.25;
  builder.set_sizes(sizes);
  builder.write(folder / "a.safetensors");
  const Bundle first = Bundle::open(folder / "a.safetensors");
  EXPECT_EQ(measured(first.sizes()[1], kCostShare), 0.5);
  EXPECT_EQ(measured(first.sizes()[1], kSeconds), 0.25);
  EXPECT_EQ(measured(first.sizes()[2], kCostShare), std::nullopt);
  sizes[0].quality["perplexity"] = 9;
  write_with_sizes(first, sizes, folder / "b.safetensors");
  const Bundle second = Bundle::open(folder / "b.safetensors");
  EXPECT_EQ(second.sizes()[0].quality.at("perplexity"), 9);
  EXPECT_EQ(second.verify(), first.verify());
  sizes[0].macs = 7;
  EXPECT_ERROR(write_with_sizes(first, sizes, folder / "c.safetensors"), Code::format,
               "'small': the table says 7");
}

TEST(Sizes, TheBestThatFitsIsTaken) {
  std::vector<SizeEntry> sizes = table();
  std::vector<double> costs;
  const auto measure = [&] {
    costs.clear();
    for (size_t i = 0; i < sizes.size(); ++i) costs.push_back(cost_share(sizes, i));
  };
  measure();
  EXPECT_NEAR(costs[1], 52.0 / 60, 1e-12);
  EXPECT_EQ(best_size(sizes, costs, 1.0, "x"), 2);
  EXPECT_EQ(best_size(sizes, costs, 0.9, "x"), 1);
  EXPECT_EQ(best_size(sizes, costs, 0.5, "x"), 0);
  EXPECT_ERROR(best_size(sizes, costs, 0.1, "x"), Code::limit,
               "the cheapest, 'small', costs 0.1333");
  EXPECT_ERROR(best_size({}, {}, 0.1, "x"), Code::usage, "sparsify-activations:keep=");
  sizes[2].quality["cost_share"] = 0.4;  // on what it was measured on it is the cheap one
  measure();
  EXPECT_EQ(best_size(sizes, costs, 0.5, "x"), 2);
  EXPECT_EQ(best_size(sizes, {1, 1, 1}, 1.0, "x"), 2) << "as dear: the whole network";
  for (size_t i = 0; i < 3; ++i) sizes[i].quality["perplexity"] = double(i == 0 ? 5 : 6);
  EXPECT_EQ(best_size(sizes, costs, 1.0, "x"), 0) << "lower perplexity is better, at any cost";
  const std::vector<bool> last_two{false, true, true}, none{false, false, false};
  EXPECT_EQ(best_size(sizes, costs, last_two), 2) << "equal: the cheaper";
  EXPECT_EQ(best_size(sizes, costs, none), -1);
}

/// k, threshold and value with a number per size.
TEST(Sizes, CountWhatSelectorsOfEachSizeMayKeep) {
  Builder builder;
  builder.tensor("w", {10, 6}, std::vector<float>(60, 0.5f));
  builder.tensor("up", {8, 6}, std::vector<float>(48, 0.5f));
  const Value x = builder.input("x", {5, 10});
  Value y = builder.node(
      "sparse_input_linear", "a", {x},
      {{"select", std::string("topk")}, {"k", Ints{2, 5, 10}}, {"dense_first", int64_t{1}}},
      {{"weight", "w"}});
  y = builder.node("sparse_ffn", "b", {y}, {{"select", std::string("topk")}, {"k", Ints{1, 4, 8}}},
                   {{"up", "up"}, {"down", "up"}});
  y = builder.node("threshold", "c", {y}, {{"value", std::vector<double>{0.5, 0.25, 0}}});
  builder.output(y);
  const GraphInfo info = check_graph(builder.graph(), "test");
  const auto macs = [](int64_t inputs, int64_t neurons) {
    return (4 * inputs + 10) * 6 + 5 * (8 * 6 + neurons * 6);
  };
  EXPECT_EQ(graph_sizes(builder.graph(), info, "test").macs,
            (Ints{macs(2, 1), macs(5, 4), macs(10, 8)}));
  EXPECT_EQ(info.total.macs, macs(10, 8));
}

TEST(Sizes, RefuseSelectorListsThatMakeNoSense) {
  Builder builder;
  builder.tensor("w", {10, 6}, std::vector<float>(60, 0.5f));
  const Value x = builder.input("x", {10});
  const auto sparse = [&](Attributes attrs) {
    builder.node("sparse_input_linear", "a", {x}, std::move(attrs), {{"weight", "w"}});
  };
  const std::string top = "topk", share = "statistical", above = "threshold";
  EXPECT_ERROR(sparse({{"select", top}, {"k", Ints{2, -1}}}), Code::shape, "'k': expected 0 to");
  EXPECT_ERROR(sparse({{"select", top}, {"k", Ints{}}}), Code::shape, "one per size, found 0");
  EXPECT_ERROR(sparse({{"select", top}, {"k", std::vector<double>{0.5, 1}}}), Code::shape, "'k'");
  EXPECT_ERROR(sparse({{"select", share}, {"keep", std::vector<double>{0.5, 0}}}), Code::shape,
               "'keep': expected a share above 0");
  EXPECT_ERROR(sparse({{"select", above}, {"threshold", std::vector<double>{0, 1e300}}}),
               Code::numeric, "'threshold'");
  EXPECT_ERROR(sparse({{"select", top}, {"k", int64_t{3}}, {"keep", std::vector<double>{1, 1}}}),
               Code::shape, "'keep'");
  EXPECT_ERROR(builder.node("threshold", "t", {x}, {{"value", std::vector<double>{0, NAN}}}),
               Code::numeric, "'value'");
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

}  // namespace sizes_test
}  // namespace sluice::bundle
