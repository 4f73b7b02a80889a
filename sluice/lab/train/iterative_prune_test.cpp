#include "sluice/lab/train/iterative_prune.h"

#include <torch/types.h>

#include "sluice/base/json.h"
#include "sluice/lab/train/train_testing.h"

namespace sluice::lab {
namespace iterative_prune_test {

IterativePruneOptions quick() {
  IterativePruneOptions o;
  o.rounds = 3;
  o.rates.rates = {{"fc2.weight", 0.1}, {"**.weight", 0.2}};
  return o;
}

/// A few masked Adam steps, with the checks that make masks masks.
Json train(Model& model, const MaskSet& masks, int64_t round, Snapshots& snapshots,
           int64_t late = 0) {
  auto feed = testing::train_feed();
  TrainOptions options;
  options.steps = 12;
  options.batch = 32;
  options.optimizer = {"adam", 1e-2, 0, 0.1, false};
  options.seed = uint64_t(round);
  options.title = "";
  TrainHooks hooks;
  hooks.after_backward = [&](int64_t) { masks.apply_to_gradients(*model.root); };
  hooks.after_step = [&](int64_t step) {
    masks.apply(*model.root);
    if (round == 0 && step + 1 == late) snapshots.take("late", *model.root);
  };
  return {{"loss", Trainer(model, feed, options, hooks).run().curve.back().loss}};
}

at::Tensor parameter(const Model& model, const std::string& path) {
  for (const auto& [name, value] : named_state(*model.root))
    if (name == path) return value;
  return {};
}

TEST(IterativePrune, RewindsSurvivorsToTheirFirstValuesAndPrunesOnlyThem) {
  auto model = testing::small_mlp();
  const auto start = clone(model);
  Snapshots snapshots;
  std::vector<MaskSet> seen;
  const auto rounds = iterative_prune(
      model, quick(),
      [&](Model& m, const MaskSet& masks, int64_t round, Snapshots& taken) {
        for (const auto& [path, mask] : masks.masks())
          EXPECT_TRUE(parameter(m, path).equal(parameter(start, path) * mask))
              << path << " round " << round;
        EXPECT_TRUE(parameter(m, "fc1.bias").equal(parameter(start, "fc1.bias")));
        seen.push_back(masks);
        return train(m, masks, round, taken);
      },
      snapshots);
  ASSERT_EQ(rounds.size(), 4u);
  for (size_t r = 1; r < rounds.size(); ++r) {
    for (const auto& [path, mask] : seen[r].masks()) {
      const auto& before = seen[r - 1].masks().at(path);
      EXPECT_EQ((mask * (1 - before)).sum().item<double>(), 0)
          << "a pruned weight came back: " << path;
      const double rate = path == "fc2.weight" ? 0.1 : 0.2;
      const double alive = before.sum().item<double>();
      EXPECT_EQ(mask.sum().item<double>(), alive - std::round(rate * alive)) << path;
    }
  }
  EXPECT_DOUBLE_EQ(rounds[0].density, 1);
  EXPECT_LT(rounds[3].density, rounds[2].density);
  for (const auto& [path, mask] : rounds[3].masks.masks())
    EXPECT_EQ((parameter(model, path) * (1 - mask)).abs().sum().item<double>(), 0) << path;
}

TEST(IterativePrune, RewindsToALaterStepWhenAsked) {
  auto model = testing::small_mlp();
  auto options = quick();
  options.rounds = 1;
  options.rewind_to = "late";
  Snapshots snapshots;
  iterative_prune(
      model, options,
      [&](Model& m, const MaskSet& masks, int64_t round, Snapshots& taken) {
        if (round == 1) {
          const auto& late = taken.at("late").at("fc1.weight");
          EXPECT_TRUE(parameter(m, "fc1.weight").equal(late * masks.masks().at("fc1.weight")));
          EXPECT_FALSE(late.equal(taken.at("init").at("fc1.weight")));
        }
        return train(m, masks, round, taken, /*late=*/5);
      },
      snapshots);
  Snapshots empty;
  auto other = testing::small_mlp();
  expect_error(Code::state, "'late'", [&] {
    iterative_prune(
        other, options, [](Model&, const MaskSet&, int64_t, Snapshots&) { return Json(); }, empty);
  });
}

TEST(IterativePrune, ContinuesAKilledRunRoundByRound) {
  const TempDirectory temp;
  auto options = quick();
  auto whole = testing::small_mlp();
  Snapshots snapshots;
  const auto expected = iterative_prune(
      whole, options,
      [](Model& m, const MaskSet& masks, int64_t round, Snapshots& taken) {
        return train(m, masks, round, taken);
      },
      snapshots);

  options.state_file = temp / "state";
  struct Killed {};
  for (const int64_t dies : {0, 1, 3}) {
    auto model = testing::small_mlp();
    Snapshots own;
    EXPECT_THROW(iterative_prune(
                     model, options,
                     [&](Model& m, const MaskSet& masks, int64_t round, Snapshots& taken) -> Json {
                       if (round == dies) throw Killed();
                       return train(m, masks, round, taken);
                     },
                     own),
                 Killed);
  }
  auto model = testing::small_mlp(/*seed=*/77);  // every value must come from the file
  Snapshots own;
  const auto rounds = iterative_prune(
      model, options,
      [](Model& m, const MaskSet& masks, int64_t round, Snapshots& taken) {
        return train(m, masks, round, taken);
      },
      own);
  testing::expect_same_state(*whole.root, *model.root);
  ASSERT_EQ(rounds.size(), expected.size());
  for (size_t i = 0; i < rounds.size(); ++i) {
    EXPECT_EQ(rounds[i].result, expected[i].result);
    EXPECT_EQ(rounds[i].density, expected[i].density);
    for (const auto& [path, mask] : expected[i].masks.masks())
      EXPECT_TRUE(rounds[i].masks.masks().at(path).equal(mask));
  }
  options.fingerprint = "another seed";
  expect_error(Code::config, "Remove the file", [&] {
    iterative_prune(
        model, options,
        [](Model& m, const MaskSet& masks, int64_t round, Snapshots& taken) {
          return train(m, masks, round, taken);
        },
        own);
  });
}

TEST(IterativePrune, NamesWhatIsMissing) {
  auto model = testing::small_mlp();
  Snapshots snapshots;
  snapshots.take("init", *model.root);
  expect_error(Code::missing, "there are: init", [&] { snapshots.restore("late", *model.root); });
  auto options = quick();
  options.rounds = 0;
  expect_error(Code::config, "rounds 0", [&] {
    iterative_prune(
        model, options,
        [](Model& m, const MaskSet& masks, int64_t round, Snapshots& taken) {
          return train(m, masks, round, taken);
        },
        snapshots);
  });
  expect_error(Code::usage, "no weight matches", [&] {
    full_masks(*model.root, {{{"nothing.*", 0.5}}});
  });
}

}  // namespace iterative_prune_test
}  // namespace sluice::lab
