#include "sluice/lab/train/elastic.h"

#include <gmock/gmock.h>
#include <torch/types.h>

#include "sluice/lab/brick/nested.h"
#include "sluice/lab/pass/pass.h"
#include "sluice/lab/train/train_testing.h"

namespace sluice::lab {
namespace elastic_test {

using testing::expect_same_state;

TrainOptions quick(int64_t steps) {
  TrainOptions o;
  o.steps = steps;
  o.batch = 32;
  o.optimizer.rate = 0.05;
  o.optimizer.weight_decay = 0;
  o.title = "";
  return o;
}

Model nested_mlp() {
  PassInput input;
  input.options = {{"widths", {0.25, 1}}, {"order", "none"}};
  return run_pass(testing::small_mlp(), "nest", input);
}

TEST(Trainer, AveragesTheGradientsOfTheSizesOfAStep) {
  auto feed = testing::train_feed();
  const auto gradient = [&](std::vector<int64_t> sizes) {
    Model model = nested_mlp();
    TrainHooks hooks;
    at::Tensor found;
    hooks.sizes = [&](int64_t) { return sizes; };
    hooks.after_backward = [&](int64_t) {
      found = model.root->slot("fc1").as<NestedLinear>().weight.grad().clone();
    };
    Trainer trainer(model, feed, quick(1), hooks);
    const auto loss = trainer.run().curve.back().loss;
    EXPECT_TRUE(std::isfinite(loss));
    return found;
  };
  const auto small = gradient({0}), large = gradient({1}), both = gradient({0, 1});
  EXPECT_EQ(small.narrow(0, 4, 12).abs().sum().item<double>(), 0);
  EXPECT_GT(small.narrow(0, 0, 4).abs().sum().item<double>(), 0);
  EXPECT_GT(large.narrow(0, 4, 12).abs().sum().item<double>(), 0);
  EXPECT_LT((both - (small + large) / 2).abs().max().item<double>(), 1e-6);
  EXPECT_LT((gradient({1, 1}) - large).abs().max().item<double>(), 1e-6);
  expect_error(Code::config, "no size to train", [&] { gradient({}); });
  expect_error(Code::usage, "size 2; the network has 2", [&] { gradient({2}); });
}

TEST(TrainElastic, EverySizeLearns) {
  auto feed = testing::train_feed();
  ElasticOptions options = elastic_options(
      {{"widths", {0.25, 0.5, 1}}, {"scope", "all"}, {"draws", 2}, {"calibration", 300}});
  EXPECT_FALSE(options.nest.contains("draws"));
  TrainOptions train = quick(150);
  train.optimizer.rate = 0.2;
  Model model = train_elastic(testing::small_resnet(), feed, train, options).model;
  ASSERT_EQ(model.sizes.size(), 3u);
  for (int64_t size = 0; size < 3; ++size) {  // of ten classes
    EXPECT_GT(evaluate(model, testing::test_feed(), false, 100, size).accuracy, 0.4) << size;
  }
}

TEST(TrainElastic, AKilledRunContinuesToTheSameNetwork) {
  auto feed = testing::train_feed();
  const TempDirectory folder;
  const ElasticOptions options = elastic_options({{"widths", {0.5, 1}}, {"scope", "all"}});
  auto train = quick(20);
  const Model whole = train_elastic(testing::small_resnet(), feed, train, options).model;
  train.checkpoint = folder / "c.safetensors";
  train.checkpoint_every = 8;
  struct Killed {};
  train.after_checkpoint = [](int64_t step) {
    if (step == 8) throw Killed();
  };
  EXPECT_THROW(train_elastic(testing::small_resnet(), feed, train, options), Killed);
  train.after_checkpoint = nullptr;
  const Model again = train_elastic(testing::small_resnet(), feed, train, options, true).model;
  expect_same_state(*again.root, *whole.root);
}

TEST(TrainElastic, SaysWhatDoesNotFit) {
  auto feed = testing::train_feed();
  expect_error(Code::usage, "nested already, of 2 sizes; options of pass nest (widths, ...)", [&] {
    train_elastic(nested_mlp(), feed, quick(1), elastic_options({{"widths", {0.5, 1}}}));
  });
  expect_error(Code::config, "did you mean uniform", [] {
    elastic_options({{"sampling", "unifrm"}});
  });
  expect_error(Code::config, "draws of sizes", [] { elastic_options({{"draws", 0}}); });
  expect_error(Code::config, "calibration = 0", [] { elastic_options({{"calibration", 0}}); });
}

}  // namespace elastic_test
}  // namespace sluice::lab
