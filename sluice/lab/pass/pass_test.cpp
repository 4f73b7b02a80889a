#include "sluice/lab/pass/pass.h"

#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace pass_test {

using namespace testing;  // NOLINT: test helpers
using ::testing::ElementsAre;

Model masked(const std::string& name, uint64_t seed, const std::string& pattern) {
  Model model = small_model(name, seed);
  uint64_t draw = seed * 1000;
  for (const BrickRef& ref : all_bricks(model)) {
    for (const ChannelGroup& group : ref.brick->channel_groups()) {
      at::Tensor mask = (random_tensor({group.channels}, ++draw) > 0).to(at::kFloat);
      if (pattern == "all open") mask.fill_(1);
      if (pattern == "all closed") mask.fill_(0);
      if (pattern == "one open") mask.fill_(0)[group.channels - 1] = 1;
      ref.brick->set_channel_mask(group, mask);
    }
  }
  return model;
}

// ---- slice-channels ----

TEST(SliceChannels, KeepsTheFunctionForAnyMask) {
  for (const std::string name : {"resnet", "mlp", "convnet"}) {
    for (const std::string pattern : {"random", "all open", "one open", "all closed"}) {
      for (uint64_t seed = 1; seed <= 3; ++seed) {
        const Model model = masked(name, seed, pattern);
        const Model sliced = run_pass(model, "slice-channels", {});
        expect_equal_and_reloadable(model, sliced, name + " " + pattern);
        if (pattern == "all open") {
          EXPECT_EQ(sliced.cost().macs, model.cost().macs);
          EXPECT_EQ(spec_of(*sliced.root), spec_of(*small_model(name, seed).root)) << name;
        } else if (pattern != "random") {
          EXPECT_LT(sliced.cost().macs, model.cost().macs);
        }
        // Nothing is left to slice.
        const Model again = run_pass(sliced, "slice-channels", {});
        EXPECT_EQ(spec_of(*again.root), spec_of(*sliced.root));
      }
    }
  }
}

TEST(SliceChannels, RemovesExactlyTheClosedChannels) {
  Model model = small_model("resnet", 1);
  mask_blocks(model, [](int64_t n) {
    at::Tensor mask = at::ones({n});
    mask[1] = 0;
    return mask;
  });
  const Model sliced = run_pass(model, "slice-channels", {});
  const auto& block = sliced.root->slot("stage0")->slot("block0").as<ResidualBlock>();
  EXPECT_EQ(block.slot("conv1").as<Conv2d>().options().outputs, 4);
  EXPECT_EQ(block.slot("norm1").as<BatchNorm>().channels(), 4);
  EXPECT_EQ(block.slot("conv2").as<Conv2d>().options().inputs, 4);
  EXPECT_EQ(block.slot("conv2").as<Conv2d>().options().outputs, 5);
  EXPECT_TRUE(block.slot("channel_gate").empty());
  const Json report = sliced.provenance.back().at("report");
  EXPECT_EQ(report.at("channels").at("stage0.block0.hidden").at("after"), 4);
  EXPECT_EQ(report.at("macs").at("after"), sliced.cost().macs);
}

TEST(SliceChannels, KeepsDeviceTypeModeAndGradientFlags) {
  Model model = masked("resnet", 1, "random");
  model.root->to(at::kDouble);
  model.root->train();
  Model sliced = run_pass(model, "slice-channels", {});
  const auto& conv = sliced.root->slot("stage0")->slot("block0")->slot("conv1").as<Conv2d>();
  EXPECT_EQ(conv.weight.scalar_type(), at::kDouble);
  EXPECT_TRUE(conv.is_training());
  EXPECT_TRUE(conv.weight.requires_grad());
}

Model with_block_masks(uint64_t seed, std::vector<std::string> closed, Json options) {
  Model model = small_model("resnet", seed, std::move(options));
  for (const SlotRef& ref : walk(*model.root)) {
    auto* block = dynamic_cast<ResidualBlock*>(ref.slot->get().get());
    if (block == nullptr || !block->identity_shortcut()) continue;
    const bool shut = std::find(closed.begin(), closed.end(), ref.path) != closed.end();
    block->slot("block_gate")
        .exchange(std::make_shared<ConstantMask>(at::full({1}, shut ? 0.0 : 1.0)));
  }
  return model;
}

TEST(SliceChannels, DropsClosedBlocks) {
  const Json options = {{"width", 5}, {"blocks", 3}, {"stages", 2}};
  Model model = with_block_masks(3, {"stage0.block0", "stage0.block1", "stage1.block1"}, options);
  const Model sliced = run_pass(model, "slice-channels", {});
  expect_equal_and_reloadable(model, sliced, "blocks");
  // Behind the stem's relu, or another block's: relu(x) = x.
  EXPECT_EQ(sliced.root->slot("stage0")->slot("block0")->kind(), "identity");
  EXPECT_EQ(sliced.root->slot("stage0")->slot("block1")->kind(), "identity");
  EXPECT_EQ(sliced.root->slot("stage1")->slot("block1")->kind(), "identity");
  EXPECT_TRUE(sliced.root->slot("stage0")->slot("block2")->slot("block_gate").empty());
  EXPECT_EQ(sliced.provenance.back().at("report").at("blocks").size(), 3u);
}

TEST(SliceChannels, KeepsTheActivationWhereTheInputMayBeNegative) {
  Model model =
      with_block_masks(3, {"stage0.block0"}, {{"width", 5}, {"blocks", 2}, {"stages", 1}});
  model.root->slot("stem")->slot("relu").exchange(std::make_shared<Activation>("tanh"));
  const Model sliced = run_pass(model, "slice-channels", {});
  EXPECT_EQ(sliced.root->slot("stage0")->slot("block0")->kind(), "activation");
  expect_equal_and_reloadable(model, sliced, "after tanh");
}

// ---- fold-norm ----

TEST(FoldNorm, KeepsTheFunctionAndLeavesNoNorm) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    for (const std::string name : {"resnet", "convnet", "mlp"}) {
      const Model model = small_model(name, seed);
      const Model folded = run_pass(model, "fold-norm", {});
      expect_equal_and_reloadable(model, folded, name);
      for (const BrickRef& ref : all_bricks(folded)) EXPECT_NE(ref.brick->kind(), "batch_norm");
    }
  }
}

TEST(FoldNorm, FoldsIntoLinearLayersAndKeepsBiases) {
  auto root = std::make_shared<Sequential>();
  root->append("flatten", std::make_shared<Flatten>());
  root->append("fc1", std::make_shared<Linear>(18, 7));
  root->append("norm1", std::make_shared<BatchNorm>(7));
  root->append("act", std::make_shared<Activation>("sigmoid"));
  root->append("fc2", std::make_shared<Linear>(7, 3, /*bias=*/false));
  root->append("norm2", std::make_shared<BatchNorm>(3));
  randomize_norms(*root, 4);
  root->eval();
  const Model model{.root = root, .input_shape = {2, 3, 3}, .task = {}};
  expect_equal_and_reloadable(model, run_pass(model, "fold-norm", {}), "linear");
  // A mask sits behind the sigmoid, where its zero stays one.
  Model pruned = run_pass(model, "prune", with({{"granularity", "channel"}, {"rate", 0.5}}));
  expect_equal_and_reloadable(pruned, run_pass(pruned, "slice-channels", {}), "sigmoid between");
}

TEST(Passes, ComposeInAnyOrder) {
  for (const std::string name : {"resnet", "convnet", "mlp"}) {
    const Model model = masked(name, 5, "random");
    const auto chain = [&](const std::vector<std::string>& passes) {
      Model result = clone(model);
      for (const std::string& pass : passes) result = run_pass(result, pass, {});
      return result;
    };
    const Model a = chain({"slice-channels", "fold-norm"});
    const Model b = chain({"fold-norm", "slice-channels"});
    expect_equal_and_reloadable(model, a, name + " slice fold");
    expect_equal_and_reloadable(model, b, name + " fold slice");
    EXPECT_EQ(spec_of(*a.root), spec_of(*b.root));
    EXPECT_EQ(chain({"fold-norm", "fold-norm"}).provenance.back().at("report").at("folded").size(),
              0u);
  }
}

// ---- reestimate-norm ----

TEST(ReestimateNorm, FindsTheDatasStatistics) {
  auto root = std::make_shared<Sequential>();
  root->append("norm", std::make_shared<BatchNorm>(2));
  root->eval();
  const Model model{.root = root, .input_shape = {2, 4, 4}, .task = {}};
  PassInput input;
  input.calibration = random_tensor({64, 2, 4, 4}, 1) * 3 + 5;
  input.batch = 16;
  const Model after = run_pass(model, "reestimate-norm", input);
  const auto& norm = after.root->slot("norm").as<BatchNorm>();
  const at::Tensor flat = input.calibration.transpose(0, 1).reshape({2, -1});
  expect_near(norm.running_mean, flat.mean(1), 1e-4);
  EXPECT_LE(relative_error(norm.running_var, flat.var(1)), 0.02);
  EXPECT_FALSE(norm.is_training());
}

// ---- prune ----

TEST(Prune, ZeroesExactlyTheShareOfEachLayersSurvivors) {
  Model model = small_model("mlp", 3);
  Model once = run_pass(model, "prune", with({{"rate", 0.5}}));
  Model twice = run_pass(once, "prune", with({{"rate", 0.5}}));
  const auto zeros = [](const Model& m, const char* layer) {
    return (m.root->slot(layer).as<Linear>().weight == 0).sum().item<int64_t>();
  };
  EXPECT_EQ(zeros(once, "fc2"), std::llround(77 * 0.5));
  EXPECT_EQ(zeros(twice, "fc2"), 39 + std::llround(38 * 0.5));
  EXPECT_NEAR(once.provenance.back().at("report").at("layers").at("fc2.weight").get<double>(),
              38.0 / 77, 1e-9);
  // What stays is at least as large as anything that went.
  const at::Tensor before = model.root->slot("fc2").as<Linear>().weight.abs();
  const at::Tensor kept = once.root->slot("fc2").as<Linear>().weight != 0;
  EXPECT_GE(before.masked_select(kept).min().item<float>(),
            before.masked_select(~kept).max().item<float>());
}

TEST(Prune, ASparsityOf0ChangesNothingAndOneOf1LeavesNothingOrTheLastUnits) {
  const Model model = small_model("mlp", 3);
  const auto zeros = [](const Model& m) {
    int64_t count = 0;
    for (const char* layer : {"fc1", "fc2", "fc3"})
      count += (m.root->slot(layer).as<Linear>().weight == 0).sum().item<int64_t>();
    return count;
  };
  int64_t all = 0;
  for (const char* layer : {"fc1", "fc2", "fc3"})
    all += model.root->slot(layer).as<Linear>().weight.numel();
  for (const std::string scope : {"layer", "global"}) {
    EXPECT_EQ(zeros(run_pass(model, "prune", with({{"rate", 0}, {"scope", scope}}))), 0);
    const Model none = run_pass(model, "prune", with({{"rate", 1}, {"scope", scope}}));
    EXPECT_EQ(zeros(none), all);
    EXPECT_EQ(none.provenance.back()["report"]["density"], 0.0);
    const auto open = [&](double rate) {
      const Model cut = run_pass(
          model, "prune", with({{"rate", rate}, {"scope", scope}, {"granularity", "channel"}}));
      std::vector<int64_t> left;
      for (const auto& [name, group] : cut.provenance.back()["report"]["groups"].items())
        left.push_back(group["open"].get<int64_t>());
      return left;
    };
    EXPECT_EQ(open(0), (std::vector<int64_t>{11, 7})) << scope;
    EXPECT_EQ(open(1), (std::vector<int64_t>{1, 1})) << scope;
  }
}

TEST(Prune, GlobalScopeAndPatternsChooseLayers) {
  const Model model = small_model("mlp", 3);
  const Model global = run_pass(model, "prune", with({{"rate", 0.3}, {"scope", "global"}}));
  int64_t zeros = 0, total = 0;
  for (const char* layer : {"fc1", "fc2", "fc3"}) {
    const at::Tensor& weight = global.root->slot(layer).as<Linear>().weight;
    zeros += (weight == 0).sum().item<int64_t>();
    total += weight.numel();
  }
  EXPECT_EQ(zeros, std::llround(0.3 * static_cast<double>(total)));
  const Model one = run_pass(model, "prune", with({{"slots", "fc2"}}));
  EXPECT_EQ((one.root->slot("fc1").as<Linear>().weight == 0).sum().item<int64_t>(), 0);
  EXPECT_GT((one.root->slot("fc2").as<Linear>().weight == 0).sum().item<int64_t>(), 0);
  expect_error(Code::usage, "no linear layer", [&] {
    run_pass(model, "prune", with({{"slots", "relu1"}}));
  });
  expect_error(Code::config, "rate: expected 0 to 1", [&] {
    run_pass(model, "prune", with({{"rate", 1.5}}));
  });
  expect_error(Code::config, "score: expected 'magnitude' or 'random'", [&] {
    run_pass(model, "prune", with({{"score", "taylor"}}));
  });
}

TEST(Prune, MasksTheWeakestChannelsAndSlicesThem) {
  for (const std::string name : {"resnet", "mlp", "convnet"}) {
    for (const std::string scope : {"layer", "global"}) {
      const Model model = small_model(name, 8);
      const Model pruned = run_pass(
          model, "prune", with({{"granularity", "channel"}, {"rate", 0.4}, {"scope", scope}}));
      EXPECT_EQ(pruned.cost().macs, model.cost().macs) << "a mask changes no size";
      const Model sliced = run_pass(pruned, "slice-channels", {});
      EXPECT_LT(sliced.cost().macs, model.cost().macs);
      expect_equal_and_reloadable(pruned, sliced, name + " " + scope);
    }
  }
  const Model mlp = run_pass(small_model("mlp", 8), "prune",
                             with({{"granularity", "channel"}, {"rate", 0.5}, {"slots", "fc1"}}));
  const at::Tensor norms = mlp.root->slot("fc1").as<Linear>().output_norms(1);
  const at::Tensor mask = mlp.root->slot("fc2_mask").as<ChannelMask>().mask != 0;
  EXPECT_EQ(mask.sum().item<int64_t>(), 5);  // 11 - round(5.5)
  EXPECT_GE(norms.masked_select(mask).min().item<float>(),
            norms.masked_select(~mask).max().item<float>());
  EXPECT_FALSE(mlp.root->has_slot("fc3_mask"));
}

TEST(Prune, NeverClosesALastChannel) {
  const Model pruned = run_pass(small_model("resnet", 8), "prune",
                                with({{"granularity", "channel"}, {"rate", 1.0}}));
  for (const Json& group : pruned.provenance.back().at("report").at("groups")) {
    EXPECT_EQ(group.at("open"), 1);
  }
}

TEST(Prune, RandomScoreIsSeeded) {
  const Model model = small_model("mlp", 3);
  const auto weight = [&](int64_t seed) {
    return run_pass(model, "prune", with({{"score", "random"}, {"seed", seed}}))
        .root->slot("fc1")
        .as<Linear>()
        .weight;
  };
  EXPECT_TRUE(at::equal(weight(1), weight(1)));
  EXPECT_FALSE(at::equal(weight(1), weight(2)));
}

// ---- the registry and run_pass ----

Json poison(Model& model, const PassInput&) {
  const at::NoGradGuard no_grad;
  model.root->parameters().front().fill_(std::nan(""));
  return {};
}

Json break_promise(Model& model, const PassInput&) {
  const at::NoGradGuard no_grad;
  model.root->parameters().back().add_(1);
  return {};
}

TEST(RunPass, ChecksTheResultAndLeavesTheModelAlone) {
  EXPECT_TRUE(register_pass({{"test-poison", "", "", false, false}, poison}));
  EXPECT_FALSE(register_pass({{"prune", "", "", false, false}, poison}));
  EXPECT_TRUE(register_pass({{"test-promise", "", "", false, true}, break_promise}));
  const Model model = small_model("mlp", 3);
  const at::Tensor before = model.root->parameters().front().clone();
  expect_error(Code::numeric, "pass test-poison", [&] { run_pass(model, "test-poison", {}); });
  expect_error(Code::internal, "pass test-promise", [&] { run_pass(model, "test-promise", {}); });
  EXPECT_TRUE(at::equal(model.root->parameters().front(), before));
  expect_error(Code::usage, "did you mean 'fold-norm'", [&] { run_pass(model, "fold-nrm", {}); });
  expect_error(Code::config, "speed", [&] { run_pass(model, "fold-norm", with({{"speed", 1}})); });
}

TEST(RunPass, AppendsOneStepWithOptionsAndReport) {
  const Model model = small_model("mlp", 3);
  const Model after = run_pass(model, "prune", with({{"rate", 0.25}}));
  ASSERT_EQ(after.provenance.size(), model.provenance.size() + 1);
  EXPECT_EQ(after.provenance.back().at("step"), "prune");
  EXPECT_EQ(after.provenance.back().at("options").at("rate"), 0.25);
  EXPECT_TRUE(after.provenance.back().at("report").contains("density"));
}

TEST(Passes, AreListedWithTheirPromises) {
  std::vector<std::string> names, equal;
  for (const PassEntry* pass : all_passes()) {
    if (pass->info.name.starts_with("test-")) continue;
    names.push_back(pass->info.name);
    if (pass->info.keeps_function) equal.push_back(pass->info.name);
    EXPECT_FALSE(pass->info.summary.empty());
  }
  EXPECT_THAT(names,
              ElementsAre("insert-gates", "freeze-gates", "slice-channels", "fold-norm",
                          "fold-linear", "prune", "quantize", "dequantize", "rotate-residual",
                          "nest", "set-sizes", "pick-size", "sparsify-activations", "add-exits",
                          "calibrate-exits", "calibrate-gates", "acmize", "apply-delta", "add-lora",
                          "fold-lora", "stitch", "reestimate-norm"));
  EXPECT_THAT(equal, ElementsAre("slice-channels", "fold-norm", "fold-linear", "rotate-residual",
                                 "nest", "add-exits", "add-lora", "fold-lora"));
}

}  // namespace pass_test
}  // namespace sluice::lab
