#include "sluice/lab/gate/gate.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/pass/pass.h"

namespace sluice::lab {
namespace gates_test {

using namespace testing;  // NOLINT: test helpers

// Gates with random decisions: the output layer's bias is 0, its weights large.
Model randomly_gated(const std::string& granularity, uint64_t seed,
                     Json options = {{"width", 6}, {"blocks", 3}, {"stages", 2}}) {
  Model model = small_model("resnet", seed, std::move(options));
  model = run_pass(model, "insert-gates",
                   with({{"granularity", granularity}, {"bias", 0.0}, {"seed", 3}}));
  const at::NoGradGuard no_grad;
  uint64_t draw = seed;
  for (const auto& item : model.root->named_parameters()) {
    if (item.key().ends_with("score.output.bias")) {
      at::Tensor(item.value()).copy_(random_tensor(item.value().sizes(), ++draw) * 0.5);
    }
  }
  return model;
}

TEST(InsertGates, StartsWithTheSameFunction) {
  const Model model = small_model("resnet", 2);
  for (const std::string granularity : {"channel", "block"}) {
    const Model gated = run_pass(model, "insert-gates", with({{"granularity", granularity}}));
    expect_equal_and_reloadable(model, gated, granularity);
    const Json report = gated.provenance.back().at("report");
    EXPECT_EQ(report.at("gates").size(), granularity == "channel" ? 4u : 3u);
    EXPECT_EQ(report.at("units"), granularity == "channel" ? 2 * 5 + 2 * 10 : 3);
    expect_error(Code::usage, "empty " + granularity + "_gate", [&] {
      run_pass(gated, "insert-gates", with({{"granularity", granularity}}));
    });
  }
}

TEST(InsertGates, DependsOnItsSeedOnly) {
  const Model model = small_model("resnet", 2);
  const auto first = [&](int64_t seed) {
    const Model gated = run_pass(model, "insert-gates", with({{"seed", seed}}));
    std::map<std::string, at::Tensor> state;
    for (const auto& [path, tensor] : named_state(*gated.root)) state[path] = tensor;
    return state.at("stage0.block0.channel_gate.score.hidden.weight");
  };
  torch::manual_seed(1);
  const at::Tensor a = first(1);
  torch::manual_seed(2);
  EXPECT_TRUE(at::equal(first(1), a));
  EXPECT_FALSE(at::equal(first(2), a));
}

TEST(FreezeGates, KeepsTheUnitsMostSamplesOpen) {
  const Model gated = randomly_gated("channel", 4);
  const PassInput input = calibrated(gated, {{"min_channels", 0.0}});
  // The same statistics by hand.
  Model copy = clone(gated);
  GateLog log;
  Context context;
  context.gate_log = &log;
  copy.root->forward(input.calibration, context);
  const Model frozen = run_pass(gated, "freeze-gates", input);
  std::map<std::string, at::Tensor> state;
  for (const auto& [path, tensor] : named_state(*frozen.root)) state[path] = tensor;
  int64_t mixed = 0;
  for (const GateRecord& record : log.records()) {
    const at::Tensor m = record.decision.detach().mean(0);
    mixed += ((m > 0) & (m < 1)).sum().item<int64_t>();
    at::Tensor expected = (m > 0.5).to(at::kFloat);
    if (expected.sum().item<float>() == 0) expected[m.argmax().item<int64_t>()] = 1;
    EXPECT_TRUE(at::equal(state.at(record.path + ".mask"), expected)) << record.path;
  }
  EXPECT_GT(mixed, 0) << "the test's gates are all constant";
  const Json report = frozen.provenance.back().at("report");
  EXPECT_EQ(report.at("samples"), 30);
  EXPECT_EQ(report.at("units"), 6 * 3 + 12 * 3);
  int64_t counted = 0;
  for (const Json& count : report.at("histogram")) counted += count.get<int64_t>();
  EXPECT_EQ(counted, report.at("units").get<int64_t>());
  EXPECT_GT(report.at("consensus").get<double>(), 0);
  EXPECT_EQ(report.at("kept").size(), 6u);
  expect_equal_and_reloadable(frozen, run_pass(frozen, "slice-channels", {}), "frozen, sliced");
}

void set_gate_bias(Model& model, const std::string& path, const at::Tensor& bias) {
  const at::NoGradGuard no_grad;
  for (const auto& item : model.root->named_parameters()) {
    if (item.key() == path + ".score.output.bias") at::Tensor(item.value()).copy_(bias);
    if (item.key() == path + ".score.output.weight") at::Tensor(item.value()).zero_();
  }
}

TEST(FreezeGates, KeepsAShareOfEachLayersChannels) {
  Model gated = small_model("resnet", 4, {{"width", 12}, {"blocks", 1}, {"stages", 1}});
  gated = run_pass(gated, "insert-gates", {});
  set_gate_bias(gated, "stage0.block0.channel_gate", at::full({12}, -1.0));
  const auto open = [&](double share) {
    const Model frozen =
        run_pass(gated, "freeze-gates", calibrated(gated, {{"min_channels", share}}));
    return frozen.provenance.back().at("report").at("open").get<int64_t>();
  };
  EXPECT_EQ(open(0.0), 1);
  EXPECT_EQ(open(0.1), 2);   // ceil(1.2)
  EXPECT_EQ(open(0.25), 3);  // exactly 3
  EXPECT_EQ(open(1.0), 12);
}

TEST(FreezeGates, KeepsOneBlockPerStage) {
  Model gated = small_model("resnet", 4, {{"width", 6}, {"blocks", 3}, {"stages", 2}});
  gated = run_pass(gated, "insert-gates", with({{"granularity", "block"}}));
  for (const SlotRef& ref : walk(*gated.root, "**.block_gate")) {
    if (!ref.slot->empty()) set_gate_bias(gated, ref.path, at::full({1}, -1.0));
  }
  const Model frozen = run_pass(gated, "freeze-gates", calibrated(gated));
  std::map<std::string, float> masks;
  for (const auto& [path, tensor] : named_state(*frozen.root)) {
    if (path.ends_with("block_gate.mask")) masks[path] = tensor.item<float>();
  }
  // Stage 0 has nothing but gated blocks: one stays. Stage 1 has its first block without a gate.
  EXPECT_EQ(masks.at("stage0.block0.block_gate.mask") + masks.at("stage0.block1.block_gate.mask") +
                masks.at("stage0.block2.block_gate.mask"),
            1);
  EXPECT_EQ(masks.at("stage1.block1.block_gate.mask"), 0);
  EXPECT_EQ(masks.at("stage1.block2.block_gate.mask"), 0);
  const Model sliced = run_pass(frozen, "slice-channels", {});
  expect_equal_and_reloadable(frozen, sliced, "blocks");
  EXPECT_EQ(sliced.root->slot("stage1")->slot("block2")->kind(), "identity");
  expect_equal_and_reloadable(frozen, run_pass(sliced, "fold-norm", {}), "blocks, folded");
}

TEST(FreezeGates, ComposesWithSlicingAndFoldingInAnyOrder) {
  const Model gated = randomly_gated("channel", 6);
  const Model folded = run_pass(gated, "fold-norm", {});
  const Model a =
      run_pass(run_pass(folded, "freeze-gates", calibrated(gated)), "slice-channels", {});
  const Model frozen = run_pass(gated, "freeze-gates", calibrated(gated));
  const Model b = run_pass(run_pass(frozen, "slice-channels", {}), "fold-norm", {});
  EXPECT_EQ(spec_of(*a.root), spec_of(*b.root));
  expect_equal_and_reloadable(frozen, a, "fold freeze slice");
  expect_equal_and_reloadable(frozen, b, "freeze slice fold");
}

TEST(FreezeGates, RefusesWhatItCannotDo) {
  const Model plain = small_model("resnet", 2);
  expect_error(Code::usage, "no per-sample gate",
               [&] { run_pass(plain, "freeze-gates", calibrated(plain)); });
  const Model gated = run_pass(plain, "insert-gates", {});
  expect_error(Code::usage, "needs calibration data", [&] { run_pass(gated, "freeze-gates", {}); });
  PassInput wrong = calibrated(gated);
  wrong.calibration = torch::ones({2, 1, 9, 9});
  expect_error(Code::shape, "expected 2 x 9 x 9, found 1 x 9 x 9",
               [&] { run_pass(gated, "freeze-gates", wrong); });
  expect_error(Code::config, "threshold", [&] {
    run_pass(gated, "freeze-gates", calibrated(gated, {{"threshold", 1.0}}));
  });
  expect_error(Code::state, "run freeze-gates first", [&] {
    run_pass(gated, "prune", with({{"granularity", "channel"}}));
  });
}

}  // namespace gates_test
}  // namespace sluice::lab
