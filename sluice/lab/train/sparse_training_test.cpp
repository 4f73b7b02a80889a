#include "sluice/lab/train/sparse_training.h"

#include <gmock/gmock.h>
#include <torch/types.h>

#include "sluice/base/json.h"
#include "sluice/lab/train/optimizer.h"
#include "sluice/lab/train/train_testing.h"

namespace sluice::lab {
namespace sparse_training_test {

using Tensors = std::map<std::string, at::Tensor>;

TrainOptions quick(int64_t steps, const char* optimizer = "adamw") {
  TrainOptions o;
  o.steps = steps;
  o.batch = 32;
  o.optimizer.kind = optimizer;
  o.optimizer.rate = std::string(optimizer) == "sgd" ? 0.05 : 1e-2;
  o.title = "";
  return o;
}

Tensors parameters(const Model& model) {
  Tensors out;
  for (const auto& item : model.root->named_parameters()) out[item.key()] = item.value();
  return out;
}

/// Kept weights of each layer.
std::map<std::string, int64_t> counts(const MaskSet& masks) {
  std::map<std::string, int64_t> out;
  for (const auto& [path, mask] : masks.masks()) out[path] = (mask != 0).sum().item<int64_t>();
  return out;
}

SparseOptions regrowing(const std::string& method) {
  SparseOptions o = sparse_options({{"method", method}, {"density", 0.2}, {"every", 5}});
  return o;
}

class Regrowth : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(Regrowth, KeepsTheNumberAndWhatIsOutsideAtZero) {
  const auto [method, optimizer] = GetParam();
  // Muon is for hidden matrices.
  Model model = std::string(optimizer) == "muon" ? testing::small_mlp() : testing::small_resnet();
  auto feed = testing::train_feed();
  const TrainOptions train = quick(40, optimizer);
  SparseTraining sparse(model, regrowing(method), train.steps, 3);
  const auto first = counts(sparse.masks());
  int64_t kept = 0, all = 0;
  for (const auto& [path, count] : first) {
    EXPECT_EQ(parameters(model).at(path).count_nonzero().item<int64_t>(), count) << path;
    kept += count;
    all += parameters(model).at(path).numel();
  }
  EXPECT_EQ(kept, std::llround(0.2 * double(all)));

  TrainHooks hooks;
  Trainer* now = nullptr;
  MaskSet before = sparse.masks();
  int64_t changed = 0;
  sparse.attach(hooks);
  hooks.after_step = [&, own = hooks.after_step](int64_t step) {
    own(step);
    ASSERT_EQ(counts(sparse.masks()), first) << "step " << step;
    const auto values = parameters(model);
    const auto moments = now->moments();
    EXPECT_FALSE(moments.empty());
    bool differs = false;
    for (const auto& [path, mask] : sparse.masks().masks()) {
      EXPECT_EQ((values.at(path).detach() * (1 - mask)).count_nonzero().item<int64_t>(), 0)
          << path << " step " << step;
      const at::Tensor grown = mask * (1 - before.masks().at(path));
      differs |= grown.count_nonzero().item<int64_t>() > 0;
      EXPECT_EQ((values.at(path).detach() * grown).count_nonzero().item<int64_t>(), 0)
          << "a grown weight begins at 0";
      for (const char* part : {".exp_avg", ".exp_avg_sq", ".momentum_buffer"}) {
        const auto moment = moments.find(path + part);
        if (moment == moments.end()) continue;
        EXPECT_EQ((moment->second * (1 - mask)).count_nonzero().item<int64_t>(), 0) << path;
        EXPECT_EQ((moment->second * grown).count_nonzero().item<int64_t>(), 0) << path;
      }
    }
    // Every 5 steps in the first three quarters of 40.
    EXPECT_EQ(differs, (step + 1) % 5 == 0 && step + 1 < 30) << "step " << step;
    changed += differs;
    before = sparse.masks();
  };
  Trainer trainer(model, feed, train, hooks);
  now = &trainer;
  sparse.follow(trainer);
  trainer.run();
  EXPECT_EQ(changed, 5);
  EXPECT_EQ(sparse.updates(), 5);
  EXPECT_NEAR(sparse.report()["density"].get<double>(), 0.2, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(SparseTraining, Regrowth,
                         ::testing::Values(std::pair("set", "sgd"), std::pair("set", "adam"),
                                           std::pair("rigl", "sgd"), std::pair("rigl", "adamw"),
                                           std::pair("rigl", "muon")));

TEST(SparseTraining, RiglDropsTheSmallestAndGrowsTheSteepest) {
  Model model = testing::small_mlp();
  auto feed = testing::train_feed();
  SparseOptions options = regrowing("rigl");
  options.slots = "fc1";
  options.drop = 0.5;
  const TrainOptions train = quick(20, "sgd");
  SparseTraining sparse(model, options, train.steps, 3);
  TrainHooks hooks;
  at::Tensor gradient, weight;
  hooks.after_backward = [&](int64_t) {
    gradient = parameters(model).at("fc1.weight").grad().detach().abs().flatten().clone();
  };
  hooks.after_step = [&](int64_t) {
    weight = parameters(model).at("fc1.weight").detach().abs().flatten().clone();
  };
  at::Tensor old = sparse.masks().masks().at("fc1.weight").flatten() != 0;
  sparse.attach(hooks);
  Trainer trainer(model, feed, train, hooks);
  sparse.follow(trainer);
  trainer.run(5);
  const at::Tensor mask = sparse.masks().masks().at("fc1.weight").flatten() != 0;
  // The fraction after 5 of 15 steps: 0.25 (1 + cos(pi / 3)).
  const auto kept = old.sum().item<int64_t>();
  const auto change = std::llround(0.25 * 1.5 * double(kept));
  const at::Tensor stay = old & mask, grown = mask & ~old, dropped = old & ~mask;
  ASSERT_GT(grown.sum().item<int64_t>(), change / 2);
  ASSERT_LE(grown.sum().item<int64_t>(), change);
  EXPECT_EQ(grown.sum().item<int64_t>(), dropped.sum().item<int64_t>());
  // Nothing that was left out is steeper than what was grown.
  EXPECT_GE(gradient.masked_select(grown).min().item<float>(),
            gradient.masked_select(~mask).max().item<float>());
  // What went is among the smallest; one of those may stay because it is steep.
  const at::Tensor ranked = std::get<0>(weight.masked_select(old).sort());
  EXPECT_LE(weight.masked_select(dropped).max().item<float>(), ranked[change - 1].item<float>());
  EXPECT_EQ((stay & (weight > ranked[change - 1])).sum().item<int64_t>(), kept - change);
}

TEST(SparseTraining, SetGrowsElsewhereWithAnotherSeed) {
  const auto after = [](uint64_t seed) {
    Model model = testing::small_mlp();
    auto feed = testing::train_feed();
    const TrainOptions train = quick(10);
    SparseTraining sparse(model, regrowing("set"), train.steps, seed);
    TrainHooks hooks;
    sparse.attach(hooks);
    Trainer(model, feed, train, hooks).run();
    return sparse.masks().masks().at("fc1.weight");
  };
  EXPECT_TRUE(after(1).equal(after(1)));
  EXPECT_FALSE(after(1).equal(after(2)));
}

class SoftMasksOf : public ::testing::TestWithParam<std::tuple<const char*, const char*, double>> {
};

TEST_P(SoftMasksOf, HardenToExactlyTheDensity) {
  const auto [estimator, granularity, density] = GetParam();
  Model model = testing::small_mlp();
  auto feed = testing::train_feed();
  const TrainOptions train = quick(150);
  const SparseOptions options = sparse_options({{"method", "soft"},
                                                {"density", density},
                                                {"estimator", estimator},
                                                {"granularity", granularity},
                                                {"rate", 0.05},
                                                {"harden", 0.6}});
  SparseTraining sparse(model, options, train.steps, 3);
  EXPECT_TRUE(sparse.masks().empty());
  TrainHooks hooks;
  double soft = 0;
  sparse.attach(hooks);
  hooks.after_step = [&, own = hooks.after_step](int64_t step) {
    if (step == 88) soft = sparse.density();
    own(step);
    EXPECT_EQ(sparse.masks().empty(), step < 89) << step;
    if (step < 89) return;
    for (const auto& [path, mask] : sparse.masks().masks())
      EXPECT_EQ((parameters(model).at(path).detach() * (1 - mask)).count_nonzero().item<int64_t>(),
                0);
  };
  Trainer trainer(model, feed, train, hooks);
  sparse.follow(trainer);
  trainer.run();
  const bool units = std::string(granularity) == "unit";
  EXPECT_NEAR(soft, density, units ? 0.12 : 0.06) << "the loss alone leads there";
  int64_t kept = 0, all = 0;
  for (const auto& [path, mask] : sparse.masks().masks()) {
    if (units) {  // whole rows
      const at::Tensor rows = mask.flatten(1).mean(1);
      EXPECT_EQ(((rows != 0) & (rows != 1)).sum().item<int64_t>(), 0);
      kept += rows.sum().item<int64_t>();
      all += rows.numel();
    } else {
      kept += mask.count_nonzero().item<int64_t>();
      all += mask.numel();
    }
  }
  EXPECT_EQ(kept, std::llround(density * double(all)));
  if (!units) {
    EXPECT_GT(evaluate(model, testing::test_feed()).accuracy, 0.5);  // of ten classes
  }
}

INSTANTIATE_TEST_SUITE_P(SparseTraining, SoftMasksOf,
                         ::testing::Values(std::tuple("sigmoid", "weight", 0.1),
                                           std::tuple("sigmoid", "weight", 0.5),
                                           std::tuple("straight_through", "weight", 0.1),
                                           std::tuple("sigmoid", "unit", 0.5)));

TEST(SparseTraining, GradientsOfSoftMasksAreThoseOfTheirProduct) {
  // One step of the whole against autograd through w * sigmoid(s).
  Model model = testing::small_mlp();
  auto feed = testing::train_feed();
  TrainOptions train = quick(1, "sgd");
  train.optimizer.momentum = 0;
  train.optimizer.weight_decay = 0;
  train.schedule = {"constant", 0, 0};
  const Model start = clone(model);
  SparseTraining sparse(
      model, sparse_options({{"method", "soft"}, {"slots", "fc1"}, {"harden", 1}}), 2, 3);
  TrainHooks hooks;
  sparse.attach(hooks);
  Trainer(model, feed, train, hooks).run();

  const Batch batch = feed.at_step(0, train.batch, train.seed, 0, train.batch);
  Tensors p = parameters(start);
  at::Tensor w = p.at("fc1.weight");
  const at::Tensor hidden = at::relu(at::linear(
      batch.inputs.flatten(1), w * at::sigmoid(at::ones({}, w.options())), p.at("fc1.bias")));
  const at::Tensor logits = at::linear(hidden, p.at("fc2.weight"), p.at("fc2.bias"));
  at::cross_entropy_loss(logits, batch.labels).backward();
  const at::Tensor expected = w.detach() - train.optimizer.rate * w.grad();
  EXPECT_LT((parameters(model).at("fc1.weight").detach() - expected).abs().max().item<double>(),
            1e-6);
}

TEST(SparseTraining, AKilledRunContinuesToTheSameNetwork) {
  for (const char* method : {"set", "rigl", "soft"}) {
    auto feed = testing::train_feed();
    const TempDirectory folder;
    const SparseOptions options =
        std::string(method) == "soft"
            ? sparse_options({{"method", "soft"}, {"density", 0.3}, {"harden", 0.6}})
            : regrowing(method);
    const auto run = [&](Model& model, TrainOptions train, bool resume) {
      SparseTraining sparse(model, options, train.steps, train.seed);
      TrainHooks hooks;
      sparse.attach(hooks);
      Trainer trainer(model, feed, train, hooks);
      sparse.follow(trainer);
      if (resume) trainer.load_checkpoint(train.checkpoint);
      trainer.run();
      return sparse.report();
    };
    TrainOptions train = quick(30);
    Model whole = testing::small_mlp();
    const Json expected = run(whole, train, false);
    for (const int64_t dies : {8, 24}) {  // while soft, and when hard
      train.checkpoint = folder / "c.safetensors";
      train.checkpoint_every = 8;
      struct Killed {};
      train.after_checkpoint = [&](int64_t step) {
        if (step == dies) throw Killed();
      };
      Model killed = testing::small_mlp();
      EXPECT_THROW(run(killed, train, false), Killed);
      train.after_checkpoint = nullptr;
      Model again = testing::small_mlp(/*seed=*/77);  // every value must come from the file
      EXPECT_EQ(run(again, train, true), expected) << method;
      testing::expect_same_state(*whole.root, *again.root);
    }
    // A checkpoint of a dense run has no masks to continue with.
    TrainOptions dense = quick(30);
    dense.checkpoint = folder / "dense.safetensors";
    Model model = testing::small_mlp();
    Trainer(model, feed, dense).run(4);
    Model other = testing::small_mlp();
    expect_error(Code::format, "does not hold the masks of 2 weights", [&] {
      SparseTraining sparse(other, options, 30, 1);
      TrainHooks hooks;
      sparse.attach(hooks);
      Trainer(other, feed, dense, hooks).load_checkpoint(dense.checkpoint);
    });
  }
}

TEST(SparseCounts, AddUpExactlyAndFavourSmallLayers) {
  const Tensors weights{
      {"a", at::ones({300, 100})}, {"b", at::ones({10, 300})}, {"c", at::ones({8, 4, 3, 3})}};
  for (const double density : {0.01, 0.05, 0.3, 0.77, 0.999, 1.0}) {
    for (const char* distribution : {"erk", "uniform"}) {
      int64_t sum = 0;
      for (const auto& [path, count] : sparse_counts(weights, density, distribution)) {
        EXPECT_GE(count, 1);
        EXPECT_LE(count, weights.at(path).numel());
        sum += count;
      }
      EXPECT_EQ(sum, std::llround(density * (30000 + 3000 + 288))) << density << distribution;
    }
  }
  const auto erk = sparse_counts(weights, 0.05, "erk");
  EXPECT_NEAR(double(erk.at("b")) / double(erk.at("a")), 310.0 / 400.0, 0.01);
  const auto uniform = sparse_counts(weights, 0.05, "uniform");
  EXPECT_EQ(uniform.at("a"), 1500);
  EXPECT_EQ(uniform.at("b"), 150);
  expect_error(Code::config, "fewer than one in each of 3 layers",
               [&] { sparse_counts(weights, 1e-5, "erk"); });
}

TEST(SparseTraining, SaysWhatDoesNotFit) {
  expect_error(Code::config, "did you mean rigl", [] { sparse_options({{"method", "rigel"}}); });
  expect_error(Code::config, "above 0 (nothing would be left)", [] {
    sparse_options({{"density", 0}});
  });
  expect_error(Code::config, "density = 1.5", [] { sparse_options({{"density", 1.5}}); });
  expect_error(Code::config, "every = 0", [] { sparse_options({{"every", 0}}); });
  expect_error(Code::config, "harden is of method soft", [] { sparse_options({{"harden", 0.5}}); });
  expect_error(Code::config, "drop is of methods set and rigl", [] {
    sparse_options({{"method", "soft"}, {"drop", 0.5}});
  });
  expect_error(Code::config, "densty", [] { sparse_options({{"densty", 0.5}}); });
  Model model = testing::small_mlp();
  SparseOptions options;
  options.slots = "fc*";
  options.skip = {"fc1", "fc2"};
  expect_error(Code::usage, "no linear layer or convolution that learns",
               [&] { SparseTraining(model, options, 10, 1); });
  options.skip = {};
  options.slots = "fd*";
  expect_error(Code::usage, "fd*", [&] { SparseTraining(model, options, 10, 1); });
}

TEST(SparseTraining, ADensityOf1ChangesNothing) {
  auto feed = testing::train_feed();
  const TrainOptions train = quick(12);
  Model plain = testing::small_mlp(), full = testing::small_mlp();
  Trainer(plain, feed, train).run();
  SparseOptions options = regrowing("rigl");
  options.density = 1;
  SparseTraining sparse(full, options, train.steps, 1);
  TrainHooks hooks;
  sparse.attach(hooks);
  Trainer trainer(full, feed, train, hooks);
  sparse.follow(trainer);
  trainer.run();
  testing::expect_same_state(*plain.root, *full.root);
}

}  // namespace sparse_training_test
}  // namespace sluice::lab
