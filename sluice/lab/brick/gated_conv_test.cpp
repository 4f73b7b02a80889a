#include "sluice/lab/brick/gated_conv.h"

#include "sluice/lab/gate/label.h"
#include "sluice/lab/inspect/recorder.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#else
#include "sluice/lab/model/testing.h"
#endif

namespace sluice::lab {
namespace gated_conv_test {

using namespace testing;  // NOLINT: test helpers

BrickPtr predictor(int64_t inputs, int64_t units, int64_t grid = 1) {
  const Json score = {{"kind", "pooled_linear"},
                      {"inputs", inputs},
                      {"units", units},
                      {"grid", grid},
                      {"softmax", true}};
  return std::make_shared<Gate>(Json{{"score", score}, {"estimator", {{"kind", "none"}}}});
}

BrickPtr unit(int64_t inputs, int64_t outputs, bool gated, int64_t grid = 1) {
  BrickPtr made = make_gated_conv_unit(inputs, outputs);
  if (gated) made->slot("gate").exchange(predictor(inputs, outputs, grid));
  return made;
}

/// Two gated units, a pool, a residual chain of two, a unit without a gate; random norms.
Model small_chain(uint64_t seed = 3) {
  auto chain = std::make_shared<GatedConvChain>();
  chain->append("conv1", unit(2, 7, true, 2)).append("conv2", unit(7, 5, true));
  chain->append("pool", std::make_shared<Pool2d>("max"));
  chain->append("conv3", unit(5, 6, true));
  auto residual = std::make_shared<GatedConvChain>(/*residual=*/true);
  residual->append("conv1", unit(6, 4, true));
  BrickPtr last = unit(4, 6, true);
  last->slot("act").exchange(std::make_shared<Identity>());
  residual->append("conv2", last);
  auto root = std::make_shared<Sequential>();
  root->append("features", chain).append("block", residual);
  root->append("plain", unit(6, 5, false));
  root->append("pool", std::make_shared<Pool2d>("global_avg"));
  root->append("head", std::make_shared<Linear>(5, 4));
  at::manual_seed(seed);
  const at::NoGradGuard no_grad;
  for (const auto& item : root->named_parameters()) {
    if (item.key().find("score.linear.weight") != std::string::npos) {
      item.value().copy_(random_tensor(item.value().sizes(), ++seed) * 20);
    }
  }
  randomize_norms(*root, 40);
  Model model;
  model.root = root;
  model.input_shape = {2, 8, 8};
  const data::ImageSet data = image_set({2, 8, 8});
  model.task = {"classify", data.name, data.labels, data.mean, data.std};
  model.root->eval();
  return model;
}

TEST(GatedConv, MetersKeptInputsTimesKeptOutputs) {
  Model model = small_chain();
  const at::Tensor x = random_input(model, 6, 1);
  Meter meter;
  GateLog log;
  Recorder recorder({"features.*"});
  Context context;
  context.meter = &meter;
  context.gate_log = &log;
  context.watcher = &recorder;
  const at::NoGradGuard no_grad;
  model.forward(x, context);
  ASSERT_EQ(log.records().size(), 5u);
  const auto open = [&](size_t i) { return log.records()[i].decision.sum(1); };
  const auto macs = [&](const std::string& path) {
    return meter.entries()[meter.entry(path)].macs;
  };
  EXPECT_EQ(macs("features.conv1.conv"), open(0).sum().item<double>() * 2 * 9 * 64);
  EXPECT_EQ(macs("features.conv2.conv"), (open(0) * open(1)).sum().item<double>() * 9 * 64);
  EXPECT_EQ(macs("features.conv3.conv"), (open(1) * open(2)).sum().item<double>() * 9 * 16);
  EXPECT_EQ(macs("block.conv1.conv"), open(3).sum().item<double>() * 6 * 9 * 16);
  EXPECT_EQ(macs("plain.conv"), 6 * 6 * 5 * 9 * 16);
  EXPECT_EQ(macs("features.conv2.gate"), 6 * 7 * 5);
  const at::Tensor y = recorder.records().at("features.conv2");
  const at::Tensor mask = log.records()[1].decision;
  EXPECT_GT(mask.sum().item<double>(), 0);
  EXPECT_LT(mask.mean().item<double>(), 1);
  EXPECT_EQ((y.abs().amax({2, 3}) * (1 - mask)).sum().item<double>(), 0);
  EXPECT_LT(meter.macs(), 6 * model.cost().macs);
}

TEST(GatedConv, ReloadsAndFoldsItsNorms) {
  const Model model = small_chain();
  expect_equal_and_reloadable(model, model, "gated chain");
  const Model folded = run_pass(model, "fold-norm", with(Json::object()));
  expect_equal_and_reloadable(model, folded, "folded");
}

TEST(GatedConv, FreezesToMasksThatStayCorrect) {
  const Model model = small_chain();
  const Model frozen = run_pass(model, "freeze-gates", calibrated(model));
  Model copy = clone(frozen);
  Meter meter;
  Context context;
  context.meter = &meter;
  const at::NoGradGuard no_grad;
  copy.forward(random_input(model, 2, 5), context);
  EXPECT_EQ(meter.macs(), 2 * frozen.cost().macs);
#if SLUICE_HAS_ENGINE
  EXPECT_LE(engine_error(copy, random_input(model, 3, 6)), kEqual);
#endif
}

TEST(GatedConv, TheTaskDoesNotTeachThePredictorsNorThePredictorsTheTask) {
  Model model = small_chain();
  model.root->train();
  MaskTeacher teacher(heat_mass_label(0.7));
  GateLog log;
  Context context;
  context.gate_log = &log;
  context.watcher = &teacher.watcher();
  const at::Tensor y = model.forward(random_input(model, 4, 2), context);
  const auto gradients = [&](const at::Tensor& loss, bool of_gates) {
    model.root->zero_grad();
    loss.backward({}, /*retain_graph=*/true);
    double sum = 0;
    for (const auto& item : model.root->named_parameters()) {
      const bool gate = item.key().find(".gate.") != std::string::npos;
      if (gate == of_gates && item.value().grad().defined()) {
        sum += item.value().grad().abs().sum().item<double>();
      }
    }
    return sum;
  };
  EXPECT_EQ(gradients(y.square().sum(), true), 0);
  EXPECT_GT(gradients(y.square().sum(), false), 0);
  EXPECT_GT(gradients(teacher.loss(log), true), 0);
  EXPECT_EQ(gradients(teacher.loss(log), false), 0);
  const double agreement = teacher.agreement(log);
  EXPECT_GT(agreement, 0);
  EXPECT_LT(agreement, 1);
}

TEST(GatedConv, SaysWhatDoesNotFit) {
  const BrickPtr wrong = unit(2, 4, true);
  wrong->slot("gate").exchange(predictor(2, 3));
  expect_error(Code::config, "gate: expected 4 units, found 3", [&] { wrong->check_slots(); });
  const BrickPtr curve = unit(2, 4, false);
  curve->slot("act").exchange(std::make_shared<Activation>("sigmoid"));
  expect_error(Code::config, "leaves 0 at 0", [&] { curve->check_slots(); });
  const BrickPtr grouped = unit(2, 4, true);
  grouped->slot("conv").exchange(
      std::make_shared<Conv2d>(Conv2dOptions{.inputs = 2, .outputs = 4, .groups = 2}));
  expect_error(Code::config, "2 groups", [&] { grouped->check_slots(); });
}

#if SLUICE_HAS_ENGINE
TEST(GatedConv, EngineComputesTheSameAndNoMore) {
  Model model = small_chain();
  for (const int64_t samples : {1, 5}) {
    EXPECT_LE(engine_error(model, random_input(model, samples, 9)), kEqual);
  }
  bundle::Builder builder;
  lower(model, builder);
  const std::vector<std::byte> bytes = builder.bytes();
  const engine::Network network(bundle::Bundle::parse(bytes, "test", {}));
  engine::Session session(network, {.batch = 1, .threads = 1});
  const at::NoGradGuard no_grad;
  for (uint64_t seed = 1; seed < 6; ++seed) {
    const at::Tensor x = random_input(model, 1, seed);
    Meter mine, theirs;
    Context context;
    context.meter = &mine;
    at::Tensor y = model.forward(x, context).contiguous();
    session.run({x.data_ptr<float>(), static_cast<size_t>(x.numel())},
                {y.data_ptr<float>(), static_cast<size_t>(y.numel())}, {.meter = &theirs});
    EXPECT_EQ(mine.macs(), theirs.macs());
  }
}
#endif

TEST(MaskLabel, KeepsTheHottestUpToTheMass) {
  at::Tensor o = at::zeros({2, 4, 2, 1});
  o.select(3, 0).select(2, 0).copy_(torch::tensor({{4.f, -3.f, 2.f, 1.f}, {0.f, 0.f, 1.f, 1.f}}));
  expect_near(heat_mass_label(0.7)("u", o),
              torch::tensor({{1.f, 1.f, 0.f, 0.f}, {0.f, 0.f, 1.f, 0.f}}));
  expect_near(heat_mass_label(0.9)("u", o),
              torch::tensor({{1.f, 1.f, 1.f, 0.f}, {0.f, 0.f, 1.f, 0.f}}));
  expect_near(heat_mass_label(1.0)("u", o),
              torch::tensor({{1.f, 1.f, 1.f, 1.f}, {0.f, 0.f, 1.f, 1.f}}));
  expect_near(heat_share_label(0.25)("u", o).sum(1), torch::tensor({1.f, 1.f}));
  EXPECT_EQ(heat_share_label(0.25)("u", o)[0][0].item<float>(), 1);
  expect_error(Code::config, "mass", [] { heat_mass_label(1.5); });
}

TEST(MaskLabel, EstimateIsTheCostOfForwardsUnderTheLabels) {
  const Model model = small_chain();
  const at::Tensor x = random_input(model, 5, 1);
  const LabelRule all = [](const std::string&, const at::Tensor& o) {
    return at::ones({o.size(0), o.size(1)});
  };
  const MaskEstimate whole = estimate_macs(model, x, all);
  EXPECT_EQ(whole.macs, double(model.cost().macs));
  EXPECT_EQ(whole.kept.at("block.conv2"), 1);
  EXPECT_EQ(whole.kept.size(), 6u);  // the unit without a gate is asked, too
  const MaskEstimate part = estimate_macs(model, x, heat_mass_label(0.6));
  EXPECT_LT(part.macs, whole.macs);
  EXPECT_LT(part.kept.at("features.conv2"), 1);
  const Model plain = small_model("mlp", 1);
  expect_error(Code::usage, "no gated convolution",
               [&] { estimate_macs(plain, random_input(plain, 2, 1), all); });
}

}  // namespace gated_conv_test
}  // namespace sluice::lab
