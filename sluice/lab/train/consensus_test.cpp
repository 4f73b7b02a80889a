#include "sluice/lab/train/consensus.h"

#include <torch/types.h>

#include "sluice/base/json.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/train/train_testing.h"

namespace sluice::lab {
namespace consensus_test {

TrainOptions quick() {
  TrainOptions o;
  o.steps = 40;
  o.batch = 32;
  o.optimizer.rate = 0.05;
  o.title = "";
  return o;
}

ConsensusOptions gentle(const std::string& granularity = "channel") {
  ConsensusOptions o;
  o.granularity = granularity;
  o.calibration = 100;
  return o;
}

std::map<std::string, at::Tensor> masks_of(const Model& model) {
  std::map<std::string, at::Tensor> out;
  for (const auto& ref : walk(*model.root))
    if (const auto* mask = dynamic_cast<const ConstantMask*>(ref.slot->get().get()))
      out[ref.path] = mask->mask;
  return out;
}

TEST(Consensus, EndsWithConstantMasksAndKeepsTheGatedNetwork) {
  for (const std::string granularity : {"channel", "block"}) {
    auto feed = testing::train_feed();
    const auto start =
        make_model("resnet", {{"width", 8}, {"blocks", 2}, {"stages", 2}, {"stem_stride", 2}},
                   testing::blobs(), 5);
    const auto before = clone(start);
    auto result = train_consensus(start, feed, quick(), gentle(granularity));
    testing::expect_same_state(*before.root, *start.root);
    int gates = 0, constant = 0;
    for (const auto& ref : walk(*result.gated.root))
      gates += dynamic_cast<const Gate*>(ref.slot->get().get()) != nullptr;
    for (const auto& ref : walk(*result.model.root)) {
      EXPECT_EQ(dynamic_cast<const Gate*>(ref.slot->get().get()), nullptr) << ref.path;
      constant += dynamic_cast<const ConstantMask*>(ref.slot->get().get()) != nullptr;
    }
    EXPECT_GT(gates, 0) << granularity;
    EXPECT_EQ(gates, constant) << granularity;
    EXPECT_EQ(result.training.steps, 40);
    EXPECT_TRUE(result.freeze_report.is_object());
    ASSERT_FALSE(result.gate_history.empty());
    EXPECT_EQ(result.gate_history.back().at("step"), 32);  // the freeze, at 80%
    EXPECT_GT(result.gate_history.size(), 3u);
    EXPECT_LT(evaluate(result.model, feed).loss, 2.3) << granularity;
  }
}

TEST(Consensus, ResumesBitForBitBeforeAtAndAfterTheFreeze) {
  const auto start = testing::small_resnet();
  auto feed = testing::train_feed();
  const auto whole = train_consensus(start, feed, quick(), gentle());
  for (const int64_t stop : {10, 32, 36}) {
    SCOPED_TRACE(stop);
    const TempDirectory temp;
    struct Killed {};
    auto options = quick();
    options.checkpoint = temp / "run";
    options.checkpoint_every = stop;
    options.after_checkpoint = [&](int64_t step) {
      if (step == stop) throw Killed();
    };
    auto first = testing::train_feed();
    EXPECT_THROW(train_consensus(start, first, options, gentle()), Killed);

    auto second = testing::train_feed();
    options.after_checkpoint = nullptr;
    const auto resumed = train_consensus(start, second, options, gentle(), /*resume=*/true);
    testing::expect_same_state(*whole.model.root, *resumed.model.root);
    testing::expect_same_state(*whole.gated.root, *resumed.gated.root);
    EXPECT_EQ(whole.gate_history, resumed.gate_history);
    EXPECT_EQ(whole.freeze_report, resumed.freeze_report);
    EXPECT_EQ(whole.model.provenance, resumed.model.provenance);
  }
}

TEST(Consensus, RefusesACheckpointOfAnotherKindOrOtherOptions) {
  const TempDirectory temp;
  const auto start = testing::small_resnet();
  auto feed = testing::train_feed();
  auto options = quick();
  options.checkpoint = temp / "plain";
  {
    auto model = clone(start);
    Trainer(model, feed, options).run(5);
  }
  expect_error(Code::format, "not of a consensus run",
               [&] { train_consensus(start, feed, options, gentle(), true); });
  options.checkpoint = temp / "run";
  train_consensus(start, feed, options, gentle());
  auto other = gentle();
  other.kept = 0.7;
  expect_error(Code::config, "kept = 0.5, this run has 0.7",
               [&] { train_consensus(start, feed, options, other, true); });
}

TEST(Consensus, RandomMaskKeepsAsManyUnitsPerLayerElsewhere) {
  const auto start = testing::small_resnet();
  auto feed = testing::train_feed();
  auto options = gentle();
  options.kept = 0.4;
  options.budget_weight = 30;
  const auto agreed = masks_of(train_consensus(start, feed, quick(), options).model);
  options.mask_rule = "random";
  const auto random = masks_of(train_consensus(start, feed, quick(), options).model);
  ASSERT_EQ(agreed.size(), random.size());
  for (const auto& [path, mask] : agreed)
    EXPECT_EQ(mask.sum().item<double>(), random.at(path).sum().item<double>()) << path;
}

TEST(Consensus, ReadsOptionsByNameAndRefusesBadOnes) {
  const auto options =
      consensus_options({{"granularity", "block"}, {"kept", 0.6}, {"polarization_weight", 0}});
  EXPECT_EQ(options.granularity, "block");
  EXPECT_EQ(options.kept, 0.6);
  EXPECT_EQ(options.polarization_weight, 0);
  EXPECT_EQ(options.ramp, 0.5);
  expect_error(Code::config, "kpet", [] { consensus_options({{"kpet", 0.5}}); });
  expect_error(Code::config, "warmup", [] { consensus_options({{"warmup", 0.5}}); });
  expect_error(Code::config, "mask_rule", [] { consensus_options({{"mask_rule", "best"}}); });
}

}  // namespace consensus_test
}  // namespace sluice::lab
