#include "sluice/lab/pass/mask.h"

#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace mask_test {

using namespace testing;  // NOLINT: test helpers

std::shared_ptr<Sequential> two_layers(const at::Tensor& a, const at::Tensor& b) {
  const at::NoGradGuard no_grad;
  auto root = std::make_shared<Sequential>();
  for (const auto& [name, weight] : {std::pair{"a", a}, std::pair{"b", b}}) {
    auto layer = std::make_shared<Linear>(weight.size(1), weight.size(0));
    layer->weight.copy_(weight);
    root->append(name, layer);
  }
  return root;
}

const at::Tensor kA = torch::tensor({{1.f, -2.f}, {3.f, -4.f}});
const at::Tensor kB = torch::tensor({{0.5f, 5.f}, {-2.5f, 6.f}});

at::Tensor mask_of(const MaskSet& masks, const std::string& path) {
  return masks.masks().at(path).flatten();
}

TEST(PruneMasks, LayerScopeTakesItsShareOfEach) {
  const auto root = two_layers(kA, kB);
  const MaskSet masks =
      prune_masks(*root, {}, {{{"**.weight", 0.5}}}, magnitude_score(), PruneScope::layer);
  expect_near(mask_of(masks, "a.weight"), torch::tensor({0.f, 0.f, 1.f, 1.f}));
  expect_near(mask_of(masks, "b.weight"), torch::tensor({0.f, 1.f, 0.f, 1.f}));
  EXPECT_EQ(masks.masks().size(), 2u) << "biases are not pruned";
  EXPECT_DOUBLE_EQ(masks.density(), 0.5);
  EXPECT_DOUBLE_EQ(masks.density_by_path().at("a.weight"), 0.5);
}

TEST(PruneMasks, GlobalScopeRanksAllLayersTogether) {
  const auto root = two_layers(kA, kB);
  const MaskSet masks =
      prune_masks(*root, {}, {{{"**.weight", 0.5}}}, magnitude_score(), PruneScope::global);
  expect_near(mask_of(masks, "a.weight"), torch::tensor({0.f, 0.f, 1.f, 1.f}));
  expect_near(mask_of(masks, "b.weight"), torch::tensor({0.f, 1.f, 0.f, 1.f}));
  const MaskSet more =
      prune_masks(*root, masks, {{{"**.weight", 0.5}}}, magnitude_score(), PruneScope::global);
  expect_near(mask_of(more, "a.weight"), torch::tensor({0.f, 0.f, 0.f, 0.f}));
  expect_near(mask_of(more, "b.weight"), torch::tensor({0.f, 1.f, 0.f, 1.f}));
}

TEST(PruneMasks, CountsSurvivorsOnly) {
  auto root = two_layers(random_tensor({10, 10}, 1), random_tensor({10, 10}, 2));
  MaskSet masks;
  int64_t survivors = 100;
  for (int round = 0; round < 6; ++round) {
    masks = prune_masks(*root, masks, {{{"a.weight", 0.2}}}, magnitude_score(), PruneScope::layer);
    survivors -= std::llround(0.2 * static_cast<double>(survivors));
    EXPECT_EQ(mask_of(masks, "a.weight").sum().item<int64_t>(), survivors) << round;
    // Pruned weights are zero and would rank lowest again if they were counted.
    masks.apply(*root);
  }
  EXPECT_EQ(masks.masks().count("b.weight"), 0u);
}

TEST(PruneMasks, PrunedStayPrunedEvenIfTheyGrow) {
  const auto root = two_layers(kA, kB);
  MaskSet masks =
      prune_masks(*root, {}, {{{"a.weight", 0.25}}}, magnitude_score(), PruneScope::layer);
  {
    const at::NoGradGuard no_grad;
    root->slot("a").as<Linear>().weight.view({-1})[0] = 100;
  }
  masks = prune_masks(*root, masks, {{{"a.weight", 0.34}}}, magnitude_score(), PruneScope::layer);
  expect_near(mask_of(masks, "a.weight"), torch::tensor({0.f, 0.f, 1.f, 1.f}));
}

TEST(PruneMasks, TiesKeepTheLowestIndex) {
  const auto root = two_layers(torch::ones({2, 3}), torch::ones({3, 2}));
  const MaskSet layer =
      prune_masks(*root, {}, {{{"**", 0.5}}}, magnitude_score(), PruneScope::layer);
  expect_near(mask_of(layer, "a.weight"), torch::tensor({1.f, 1.f, 1.f, 0.f, 0.f, 0.f}));
  const MaskSet global =
      prune_masks(*root, {}, {{{"**", 0.5}}}, magnitude_score(), PruneScope::global);
  expect_near(mask_of(global, "a.weight"), at::ones({6}));
  expect_near(mask_of(global, "b.weight"), at::zeros({6}));
}

TEST(PruneMasks, FirstMatchingPatternDecidesTheRate) {
  const auto root = two_layers(kA, kB);
  for (const PruneScope scope : {PruneScope::layer, PruneScope::global}) {
    const MaskSet masks = prune_masks(*root, {}, {{{"b.weight", 0.25}, {"**.weight", 0.75}}},
                                      magnitude_score(), scope);
    EXPECT_EQ(mask_of(masks, "a.weight").sum().item<int64_t>(), 1);
    EXPECT_EQ(mask_of(masks, "b.weight").sum().item<int64_t>(), 3);
  }
}

TEST(PruneMasks, RatesZeroAndOne) {
  const auto root = two_layers(kA, kB);
  const MaskSet none =
      prune_masks(*root, {}, {{{"**", 0.0}}}, magnitude_score(), PruneScope::layer);
  EXPECT_EQ(none.density(), 1);
  const MaskSet all =
      prune_masks(*root, none, {{{"**", 1.0}}}, magnitude_score(), PruneScope::layer);
  EXPECT_EQ(all.density(), 0);
  const MaskSet still =
      prune_masks(*root, all, {{{"**", 0.5}}}, magnitude_score(), PruneScope::layer);
  EXPECT_EQ(still.density(), 0);
}

TEST(PruneMasks, OtherScores) {
  const auto root = two_layers(kA, kB);
  const MaskSet moved = prune_masks(
      *root, {}, {{{"a.weight", 0.5}}},
      movement_score({{"a.weight", torch::tensor({{1.f, 2.f}, {-3.f, -4.f}})}}), PruneScope::layer);
  expect_near(mask_of(moved, "a.weight"), torch::tensor({0.f, 1.f, 1.f, 0.f}));
  const auto random = [&](uint64_t seed) {
    const auto wide = two_layers(torch::ones({20, 20}), kB);
    return mask_of(
        prune_masks(*wide, {}, {{{"a.weight", 0.5}}}, random_score(seed), PruneScope::layer),
        "a.weight");
  };
  EXPECT_TRUE(at::equal(random(1), random(1)));
  EXPECT_FALSE(at::equal(random(1), random(2)));
  EXPECT_EQ(random(1).sum().item<int64_t>(), 200);
}

TEST(PruneMasks, RefusesWhatDoesNotFit) {
  const auto root = two_layers(kA, kB);
  const auto masks = [&](const PruneRates& rates, const PruneScore& score) {
    return prune_masks(*root, {}, rates, score, PruneScope::layer);
  };
  expect_error(Code::config, "prune rate of '**'", [&] {
    masks({{{"**", -0.1}}}, magnitude_score());
  });
  expect_error(Code::usage, "no weight matches", [&] {
    masks({{{"c.weight", 0.1}}}, magnitude_score());
  });
  expect_error(Code::missing, "no start value for 'a.weight'", [&] {
    masks({{{"**", 0.1}}}, movement_score({}));
  });
  expect_error(Code::numeric, "NaN", [&] {
    masks({{{"**", 0.1}}},
          [](const std::string&, const at::Tensor& w) { return w * std::nan(""); });
  });
}

TEST(MaskSet, AppliesToWeightsAndGradients) {
  const auto root = two_layers(kA, kB);
  MaskSet masks;
  masks.set("a.weight", torch::tensor({{1.f, 0.f}, {0.f, 1.f}}));
  Linear& layer = root->slot("a").as<Linear>();
  (layer.weight.sum() + root->slot("b").as<Linear>().weight.sum()).backward();
  masks.apply(*root);
  masks.apply_to_gradients(*root);
  expect_near(layer.weight.detach(), torch::tensor({{1.f, 0.f}, {0.f, -4.f}}));
  expect_near(layer.weight.grad(), torch::tensor({{1.f, 0.f}, {0.f, 1.f}}));
  expect_near(root->slot("b").as<Linear>().weight.detach(), kB);
  masks.set("c.weight", at::ones({1}));
  expect_error(Code::missing, "mask of 'c.weight'", [&] { masks.apply(*root); });
  MaskSet wrong;
  wrong.set("a.weight", at::ones({3}));
  expect_error(Code::shape, "expected 2 x 2, found 3", [&] { wrong.apply(*root); });
  EXPECT_EQ(MaskSet().density(), 1.0);
}

TEST(ShuffleMasks, KeepsTheCountsAndMovesThePlaces) {
  MaskSet masks;
  masks.set("a", (random_tensor({30, 30}, 1) > 1).to(at::kFloat));
  masks.set("b", at::ones({4}));
  const MaskSet shuffled = shuffle_masks(masks, 5);
  EXPECT_EQ(shuffled.density_by_path(), masks.density_by_path());
  EXPECT_FALSE(at::equal(shuffled.masks().at("a"), masks.masks().at("a")));
  EXPECT_TRUE(at::equal(shuffle_masks(masks, 5).masks().at("a"), shuffled.masks().at("a")));
}

TEST(PruneMasks, AGuardKeepsTheBestOfEveryLayer) {
  // A layer of small weights, which a global scope alone would empty.
  auto root = std::make_shared<Sequential>();
  root->append("small", std::make_shared<Linear>(10, 4, false));
  root->append("large", std::make_shared<Linear>(4, 25, false));
  const at::NoGradGuard no_grad;
  at::Tensor small = root->slot("small").as<Linear>().weight;
  small.copy_(at::arange(40).view({4, 10}) * 1e-4);
  root->slot("large").as<Linear>().weight.copy_(at::arange(100).view({25, 4}) + 1);
  const PruneRates rates{{{"**.weight", 0.6}}};
  const auto kept = [&](const PruneScore& score, const char* path) {
    const MaskSet masks = prune_masks(*root, {}, rates, score, PruneScope::global);
    EXPECT_NEAR(masks.density(), 0.4, 1e-9);  // the guard moves the cut, not the number
    return masks.masks().at(path).sum().item<double>();
  };
  EXPECT_EQ(kept(magnitude_score(), "small.weight"), 0);
  EXPECT_EQ(kept(guarded_score(magnitude_score(), 0.1), "small.weight"), 4);
  EXPECT_EQ(kept(guarded_score(magnitude_score(), 0.01), "small.weight"), 1);
  const MaskSet masks =
      prune_masks(*root, {}, rates, guarded_score(magnitude_score(), 0.1), PruneScope::global);
  EXPECT_EQ(masks.masks().at("small.weight")[3].narrow(0, 6, 4).sum().item<double>(), 4);
  EXPECT_EQ(kept(guarded_score(magnitude_score(), 0), "small.weight"), 0);
  expect_error(Code::config, "share of guarded_score", [] { guarded_score(magnitude_score(), 2); });
}

}  // namespace mask_test
}  // namespace sluice::lab
