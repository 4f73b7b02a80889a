#include "sluice/base/path_pattern.h"
#include "sluice/lab/train/optimizer.h"
#include "sluice/lab/train/train_testing.h"

namespace sluice::lab {
namespace parameter_groups_test {

using testing::expect_same_state;

TrainOptions two_groups() {
  TrainOptions options;
  options.steps = 20;
  options.batch = 32;
  options.title = "";
  options.optimizer.rate = 0.05;
  options.schedule = {"step", 0, 0, {0.25}};
  options.groups = {{"stage1.**", {"adam", 1e-3, 0.9, 0}, {"constant", 0, 0}, 0.5}};
  return options;
}

std::map<std::string, at::Tensor> copies(const Brick& root) {
  std::map<std::string, at::Tensor> out;
  for (const auto& item : root.named_parameters()) out[item.key()] = item.value().detach().clone();
  return out;
}

TEST(ParameterGroups, StayWhenTheirTimeIsOver) {
  auto feed = testing::train_feed();
  auto model = testing::small_resnet();
  Trainer trainer(model, feed, two_groups());
  const auto start = copies(*model.root);
  trainer.run(10);
  const auto half = copies(*model.root);
  trainer.run();
  int64_t members = 0;
  for (const auto& [name, value] : copies(*model.root)) {
    const bool member = path_matches("stage1.**", name);
    members += member;
    EXPECT_FALSE(half.at(name).equal(start.at(name))) << name;
    EXPECT_EQ(value.equal(half.at(name)), member) << name;
  }
  EXPECT_GT(members, 0);
}

TEST(ParameterGroups, ContinueFromACheckpointBitForBit) {
  const TempDirectory folder;
  auto feed = testing::train_feed();
  auto whole = testing::small_resnet(), first = testing::small_resnet(),
       second = testing::small_resnet(6);
  Trainer(whole, feed, two_groups()).run();
  {
    Trainer trainer(first, feed, two_groups());
    trainer.run(7);
    trainer.save_checkpoint(folder / "c");
  }
  Trainer trainer(second, feed, two_groups());
  trainer.load_checkpoint(folder / "c");
  trainer.run();
  expect_same_state(*whole.root, *second.root);
  auto other = two_groups();
  other.groups[0].until = 1;
  Trainer changed(second, feed, other);
  expect_error(Code::config, "groups", [&] { changed.load_checkpoint(folder / "c"); });
}

TEST(ParameterGroups, RefuseWhatMatchesNothing) {
  auto feed = testing::train_feed();
  auto model = testing::small_mlp();
  auto options = two_groups();
  expect_error(Code::config, "'stage1.**': no parameter", [&] { Trainer(model, feed, options); });
  options.groups[0].pattern = "**";
  expect_error(Code::config, "none is left", [&] { Trainer(model, feed, options); });
  options.groups[0].until = 1.5;
  expect_error(Code::config, "until", [&] { Trainer(model, feed, options); });
}

TEST(Schedule, FallsAtEveryMilestone) {
  const ScheduleOptions step{"step", 0, 0, {0.25, 0.5}};
  EXPECT_DOUBLE_EQ(schedule_factor(step, 24, 100), 1);
  EXPECT_DOUBLE_EQ(schedule_factor(step, 25, 100), 0.1);
  EXPECT_DOUBLE_EQ(schedule_factor(step, 99, 100), 0.01);
}

}  // namespace parameter_groups_test
}  // namespace sluice::lab
