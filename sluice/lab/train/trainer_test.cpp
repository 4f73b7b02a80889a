#include "sluice/lab/train/trainer.h"

#include <gmock/gmock.h>
#include <torch/optim.h>

#include <fstream>
#include <limits>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/lab/pass/mask.h"
#include "sluice/lab/train/optimizer.h"
#include "sluice/lab/train/state_file.h"
#include "sluice/lab/train/train_testing.h"

namespace sluice::lab {
namespace trainer_test {

using testing::expect_same_state;

TrainOptions quick(int64_t steps = 40, const std::string& optimizer = "sgd") {
  TrainOptions o;
  o.steps = steps;
  o.batch = 32;
  o.optimizer.kind = optimizer;
  o.optimizer.rate = optimizer == "sgd" ? 0.05 : 1e-3;
  o.title = "";
  o.log_every = 7;  // so that checkpoints fall between curve points
  return o;
}

TEST(Feed, EveryEpochIsAPermutationThatDependsOnSeedAndEpochOnly) {
  auto feed = testing::train_feed();
  const int64_t per_epoch = feed.batches_per_epoch(64);
  auto epoch = [&](Feed& f, int64_t index, uint64_t seed) {
    std::vector<at::Tensor> parts;
    for (int64_t i = 0; i < per_epoch; ++i)
      parts.push_back(f.at_step(index * per_epoch + i, 64, seed).inputs);
    return torch::cat(parts);
  };
  const auto first = epoch(feed, 0, 1), second = epoch(feed, 1, 1);
  EXPECT_FALSE(first.equal(second));
  EXPECT_FALSE(first.equal(epoch(feed, 0, 2)));
  EXPECT_NEAR(first.sum().item<double>(), second.sum().item<double>(), 1.0);  // the same samples
  auto fresh = testing::train_feed();
  EXPECT_TRUE(fresh.at_step(per_epoch + 3, 64, 1).inputs.equal(second.narrow(0, 3 * 64, 64)));
}

TEST(Feed, NormalisesAndKeepsOrderForEvaluation) {
  const auto& set = testing::blobs();
  const auto feed = testing::test_feed();
  const auto batch = feed.range(3, 2);
  EXPECT_EQ(batch.labels[1].item<int64_t>(), set.test.labels[4]);
  EXPECT_NEAR(batch.inputs[0].flatten()[7].item<double>(),
              (set.test.sample(3)[7] / 255.0 - set.mean) / set.std, 1e-5);
  expect_error(Code::usage, "split of 200", [&] { feed.range(150, 51); });
  auto train = testing::train_feed();
  expect_error(Code::config, "batch of 641", [&] { train.at_step(0, 641, 1); });
}

TEST(Schedule, RisesThenFallsToTheFloor) {
  const ScheduleOptions cosine{"cosine", 0.1, 0.2};
  EXPECT_DOUBLE_EQ(schedule_factor(cosine, 0, 100), 0.1);
  EXPECT_DOUBLE_EQ(schedule_factor(cosine, 9, 100), 1.0);
  EXPECT_DOUBLE_EQ(schedule_factor(cosine, 10, 100), 1.0);
  EXPECT_NEAR(schedule_factor(cosine, 55, 100), 0.6, 1e-9);
  EXPECT_DOUBLE_EQ(schedule_factor(cosine, 100, 100), 0.2);
  const ScheduleOptions linear{"linear", 0, 0};
  EXPECT_DOUBLE_EQ(schedule_factor(linear, 25, 100), 0.75);
  const ScheduleOptions step{"step", 0, 0};
  EXPECT_DOUBLE_EQ(schedule_factor(step, 49, 100), 1);
  EXPECT_DOUBLE_EQ(schedule_factor(step, 50, 100), 0.1);
  EXPECT_DOUBLE_EQ(schedule_factor(step, 75, 100), 0.01);
  EXPECT_DOUBLE_EQ(schedule_factor({"constant", 0, 0}, 99, 100), 1);
  expect_error(Code::config, "did you mean cosine", [] {
    schedule_factor({"cosin", 0, 0}, 0, 10);
  });
  expect_error(Code::config, "warmup", [] { schedule_factor({"cosine", 1, 0}, 0, 10); });
}

TEST(Trainer, LearnsBlobsWithEveryOptimizer) {
  for (const std::string kind : {"sgd", "adam", "adamw"}) {
    auto feed = testing::train_feed();
    const auto held_out = testing::test_feed();
    auto model = testing::small_resnet();
    auto options = quick(60, kind);
    if (kind != "sgd") options.optimizer.rate = 1e-2;
    const double before = evaluate(model, held_out).loss;
    Trainer trainer(model, feed, options);
    const auto result = trainer.run();
    EXPECT_EQ(result.steps, 60);
    EXPECT_EQ(result.curve.back().step, 60);
    EXPECT_LT(evaluate(model, held_out).loss, 0.8 * before) << kind;
    EXPECT_LT(result.curve.back().loss, result.curve.front().loss) << kind;
  }
}

TEST(Trainer, DecaysMatricesOnlyUnlessTold) {
  for (const bool all : {false, true}) {
    auto model = testing::small_mlp();
    NamedParameters parameters;
    for (const auto& item : model.root->named_parameters())
      parameters.emplace_back(item.key(), item.value());
    OptimizerOptions options;
    options.decay_all = all;
    const auto optimizer = make_optimizer(options, parameters);
    for (const auto& group : optimizer->param_groups()) {
      const auto decay =
          static_cast<const torch::optim::SGDOptions&>(group.options()).weight_decay();
      for (const auto& p : group.params())
        EXPECT_EQ(decay, all || p.dim() >= 2 ? 5e-4 : 0) << p.sizes();
    }
  }
}

TEST(Trainer, ClipsTheGlobalGradientNorm) {
  auto feed = testing::train_feed();
  auto model = testing::small_mlp();
  auto options = quick(1);
  options.optimizer = {"sgd", 1.0, 0, 0, false};
  options.schedule = {"constant", 0, 0};
  options.clip = 1e-3;
  const auto before = clone(model);
  Trainer(model, feed, options).run();
  double squared = 0;
  const auto a = named_state(*before.root), b = named_state(*model.root);
  for (size_t i = 0; i < a.size(); ++i)
    squared += (a[i].second - b[i].second).pow(2).sum().item<double>();
  EXPECT_NEAR(std::sqrt(squared), 1e-3, 2e-5);
}

TEST(Trainer, HooksRunInOrderAndNoiseDependsOnTheStepOnly) {
  auto draw = [&](int64_t resume_at) {
    auto feed = testing::train_feed();
    auto model = testing::small_mlp();
    std::vector<float> noise;
    std::string order;
    TrainHooks hooks;
    hooks.before_step = [&](int64_t, Context& context) {
      order += 'b';
      noise.push_back(torch::empty({1}).uniform_(0, 1, *context.generator).item<float>());
    };
    hooks.extra_loss = [&](const GateLog&, int64_t) {
      order += 'l';
      return at::Tensor();
    };
    hooks.after_backward = [&](int64_t) { order += 'g'; };
    hooks.after_step = [&](int64_t) { order += 'a'; };
    Trainer trainer(model, feed, quick(4), hooks);
    trainer.run(resume_at);
    trainer.run();
    EXPECT_EQ(order, "blgablgablgablga");
    return noise;
  };
  EXPECT_EQ(draw(4), draw(1));
}

TEST(Trainer, StopsAtALossThatIsNotFinite) {
  auto feed = testing::train_feed();
  auto model = testing::small_mlp();
  TrainHooks hooks;
  hooks.extra_loss = [](const GateLog&, int64_t step) {
    return torch::tensor(step == 3 ? std::numeric_limits<float>::infinity() : 0.0f);
  };
  Trainer trainer(model, feed, quick(10), hooks);
  expect_error(Code::numeric, "at step 3 of 10", [&] { trainer.run(); });
}

TEST(Trainer, RefusesOptionsThatCannotWork) {
  auto feed = testing::train_feed();
  auto model = testing::small_mlp();
  auto with = [&](auto change) {
    auto options = quick();
    change(options);
    Trainer(model, feed, options);
  };
  expect_error(Code::config, "did you mean adamw",
               [&] { with([](auto& o) { o.optimizer.kind = "adamww"; }); });
  expect_error(Code::config, "learning rate", [&] { with([](auto& o) { o.optimizer.rate = 0; }); });
  expect_error(Code::config, "steps 0", [&] { with([](auto& o) { o.steps = 0; }); });
  expect_error(Code::config, "batch of 9999", [&] { with([](auto& o) { o.batch = 9999; }); });
  expect_error(Code::config, "label smoothing",
               [&] { with([](auto& o) { o.label_smoothing = 1; }); });
}

class Resume : public ::testing::TestWithParam<const char*> {};

TEST_P(Resume, ContinuesBitForBit) {
  const TempDirectory temp;
  auto options = quick(40, GetParam());
  options.clip = 1;
  options.label_smoothing = 0.1;
  auto feed = testing::train_feed();
  auto whole = testing::small_resnet();
  const auto uninterrupted = Trainer(whole, feed, options).run();

  options.checkpoint = temp / "run.safetensors";
  {
    auto first_feed = testing::train_feed();
    auto model = testing::small_resnet();
    Trainer(model, first_feed, options).run(17);
  }
  auto second_feed = testing::train_feed();
  auto model = testing::small_resnet(/*seed=*/99);  // every value must come from the file
  Trainer trainer(model, second_feed, options);
  trainer.load_checkpoint(options.checkpoint);
  EXPECT_EQ(trainer.step(), 17);
  const auto resumed = trainer.run();
  expect_same_state(*whole.root, *model.root);
  ASSERT_EQ(resumed.curve.size(), uninterrupted.curve.size());
  for (size_t i = 0; i < resumed.curve.size(); ++i) {
    EXPECT_EQ(resumed.curve[i].step, uninterrupted.curve[i].step);
    EXPECT_EQ(resumed.curve[i].loss, uninterrupted.curve[i].loss);
    EXPECT_EQ(resumed.curve[i].accuracy, uninterrupted.curve[i].accuracy);
  }
}
INSTANTIATE_TEST_SUITE_P(Optimizers, Resume, ::testing::Values("sgd", "adam", "adamw"));

TEST(Checkpoint, HoldsExtraStateAndRebuildsBricksAfterSurgery) {
  const TempDirectory temp;
  auto feed = testing::train_feed();
  auto options = quick(10);
  auto small = testing::small_mlp();
  TrainHooks hooks;
  hooks.save_extra = [] { return ExtraState{{"mine", torch::arange(3)}}; };
  Trainer writer(small, feed, options, hooks);
  writer.run(4);
  writer.save_checkpoint(temp / "c.safetensors");

  auto other =
      make_model("mlp", {{"hidden", {9, 7}}}, testing::blobs(), 1);  // as before the surgery
  at::Tensor seen;
  hooks.load_extra = [&](const ExtraState& extra) { seen = extra.at("mine"); };
  Trainer reader(other, feed, options, hooks);
  reader.load_checkpoint(temp / "c.safetensors");
  EXPECT_TRUE(seen.equal(torch::arange(3)));
  expect_same_state(*small.root, *other.root);
  writer.run();
  reader.run();
  expect_same_state(*small.root, *other.root);
}

TEST(Checkpoint, RefusesOtherOptionsNamingTheField) {
  const TempDirectory temp;
  auto feed = testing::train_feed();
  auto model = testing::small_mlp();
  Trainer(model, feed, quick()).save_checkpoint(temp / "c");
  auto options = quick();
  options.optimizer.rate = 0.5;
  Trainer other(model, feed, options);
  expect_error(Code::config, "optimizer.rate = 0.05, this run has 0.5",
               [&] { other.load_checkpoint(temp / "c"); });
}

TEST(Checkpoint, RefusesBrokenFilesWithTheReason) {
  const TempDirectory temp;
  auto feed = testing::train_feed();
  auto model = testing::small_mlp();
  const std::string path = temp / "c";
  Trainer trainer(model, feed, quick());
  trainer.run(5);
  trainer.save_checkpoint(path);
  const std::string key = "sluice.checkpoint";
  const auto good = read_state_file(path, key, "a checkpoint", 1);
  auto broken = [&](auto change) {
    StateFile file = good;
    change(file);
    write_state_file(temp / "bad", key, file);
    trainer.load_checkpoint(temp / "bad");
  };
  expect_error(Code::missing, "none", [&] { trainer.load_checkpoint(temp / "none"); });
  expect_error(Code::unsupported, "version 2",
               [&] { broken([](auto& f) { f.document["version"] = 2; }); });
  expect_error(Code::config, "step", [&] { broken([](auto& f) { f.document.erase("step"); }); });
  expect_error(Code::format, "step 41 of a run of 40",
               [&] { broken([](auto& f) { f.document["step"] = 41; }); });
  expect_error(Code::format, "curve", [&] { broken([](auto& f) { f.document["curve"] = {1}; }); });
  expect_error(Code::format, "model tensors",
               [&] { broken([](auto& f) { f.tensors.erase("model.fc1.weight"); }); });
  expect_error(Code::shape, "fc1.weight",
               [&] { broken([](auto& f) { f.tensors["model.fc1.weight"] = torch::ones({2}); }); });
  expect_error(Code::format, "optimizer.fc1.weight", [&] {
    broken([](auto& f) { f.tensors["optimizer.fc1.weight.momentum_buffer"] = torch::ones({2}); });
  });
  expect_error(Code::format, "no parameter",
               [&] { broken([](auto& f) { f.tensors["optimizer.x.step"] = torch::ones({2}); }); });
  expect_error(Code::format, "pending", [&] {
    broken([](auto& f) { f.tensors["pending.loss"] = torch::ones({2, 2}); });
  });
  write_state_file(temp / "other", "sluice.other", good);
  expect_error(Code::format, "not a checkpoint", [&] { trainer.load_checkpoint(temp / "other"); });
  const std::string bytes = read_text_file(path);
  for (const size_t length : {size_t{0}, size_t{7}, size_t{100}, bytes.size() - 1}) {
    write_text_file(temp / "cut", bytes.substr(0, length));
    EXPECT_THROW(trainer.load_checkpoint(temp / "cut"), Error) << length;
  }
}

TEST(Checkpoint, NeverLeavesATemporaryFileBehind) {
  const TempDirectory temp;
  auto feed = testing::train_feed();
  auto model = testing::small_mlp();
  auto options = quick(6);
  options.checkpoint = temp / "c";
  options.checkpoint_every = 2;
  Trainer(model, feed, options).run();
  EXPECT_EQ(temp.entries(), std::vector<std::string>{"c"});
}

TEST(Evaluate, CountsAndRestoresTheMode) {
  auto model = testing::small_resnet();
  const auto feed = testing::test_feed();
  model.root->train();
  const auto one = evaluate(model, feed, false, 33), two = evaluate(model, feed, false, 200);
  EXPECT_TRUE(model.root->is_training());
  EXPECT_TRUE(one.predictions.equal(two.predictions));
  EXPECT_NEAR(one.loss, two.loss, 1e-5);
  const auto labels = feed.range(0, feed.count()).labels;
  EXPECT_NEAR(one.accuracy, (one.predictions == labels).to(torch::kDouble).mean().item<double>(),
              1e-12);
}

}  // namespace trainer_test
}  // namespace sluice::lab
