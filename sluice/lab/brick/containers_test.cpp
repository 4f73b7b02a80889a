#include "sluice/lab/brick/containers.h"

#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace containers_test {

using namespace testing;  // NOLINT: test helpers
using ::testing::ElementsAre;

// 1x1 convolutions on one pixel, norms that do nothing: y = relu(x + b * relu(a * x)).
std::shared_ptr<ResidualBlock> pixel_block(const at::Tensor& a, const at::Tensor& b) {
  auto block = std::make_shared<ResidualBlock>();
  const auto conv = [](const at::Tensor& w) {
    const at::NoGradGuard no_grad;
    auto layer = std::make_shared<Conv2d>(
        Conv2dOptions{.inputs = w.size(1), .outputs = w.size(0), .kernel = 1, .bias = false});
    layer->weight.copy_(w.view({w.size(0), w.size(1), 1, 1}));
    return layer;
  };
  block->slot("conv1").exchange(conv(a));
  block->slot("norm1").exchange(std::make_shared<Identity>());
  block->slot("conv2").exchange(conv(b));
  block->slot("norm2").exchange(std::make_shared<Identity>());
  return block;
}

const at::Tensor kA = torch::tensor({{1.f, 0.f}, {0.f, -1.f}, {1.f, 1.f}});
const at::Tensor kB = torch::tensor({{1.f, 2.f, 3.f}, {-1.f, 1.f, -4.f}});
at::Tensor pixel(float a, float b) { return torch::tensor({a, b}).view({1, 2, 1, 1}); }

TEST(ResidualBlock, AddsTheBranchToItsInput) {
  const auto block = pixel_block(kA, kB);
  // x = (2, -1): hidden relu(2, 1, 1), branch (2+2+3, -2+1-4) = (7, -5), sum (9, -6)
  expect_near(run(*block, pixel(2, -1)), pixel(9, 0));
}

TEST(ResidualBlock, ClosedChannelsDoNotReachTheSecondConvolution) {
  const auto block = pixel_block(kA, kB);
  block->slot("channel_gate")
      .exchange(std::make_shared<ConstantMask>(torch::tensor({1.f, 0.f, 1.f})));
  expect_near(run(*block, pixel(2, -1)), pixel(7, 0));  // branch (2 + 3, ..)
}

TEST(ResidualBlock, ClosedBlockPassesItsInputThroughTheActivation) {
  const auto block = pixel_block(kA, kB);
  block->slot("block_gate").exchange(std::make_shared<ConstantMask>(at::zeros({1})));
  expect_near(run(*block, pixel(2, -1)), pixel(2, 0));
}

TEST(ResidualBlock, LogsDecisionsWithTheMacsTheySave) {
  const BrickPtr block = make_residual_block(4, 6, 4, 1);
  block->slot("channel_gate").exchange(std::make_shared<ConstantMask>(6));
  block->slot("block_gate").exchange(std::make_shared<ConstantMask>(1));
  GateLog log;
  Context context;
  context.gate_log = &log;
  block->forward(torch::ones({2, 4, 5, 5}), context);
  ASSERT_EQ(log.records().size(), 2u);
  const GateRecord& channel = log.records()[0];
  EXPECT_EQ(channel.path, "channel_gate");
  EXPECT_THAT(Shape(channel.decision.sizes().begin(), channel.decision.sizes().end()),
              ElementsAre(2, 6));
  const double both = 2.0 * 4 * 6 * 9 * 25;
  expect_near(channel.unit_macs, at::full({6}, both / 6), 1e-3);
  expect_near(log.records()[1].unit_macs, at::full({1}, both), 1e-3);
}

TEST(ResidualBlock, UnitMacsFollowTheStride) {
  const BrickPtr block = make_residual_block(2, 3, 2, 2);
  block->slot("channel_gate").exchange(std::make_shared<ConstantMask>(3));
  GateLog log;
  Context context;
  context.gate_log = &log;
  block->forward(torch::ones({1, 2, 6, 6}), context);
  expect_near(log.records().at(0).unit_macs, at::full({3}, 2.0 * 9 * 9 + 2.0 * 9 * 9), 1e-3);
}

TEST(ResidualBlock, MetersWhatItsCostSays) {
  Model model = small_model("resnet", 2);
  Meter meter;
  Context context;
  context.meter = &meter;
  model.forward(random_input(model, 3, 1), context);
  EXPECT_EQ(meter.samples(), 3);
  EXPECT_EQ(meter.macs(), 3 * model.cost().macs);
  int64_t params = 0;
  for (const at::Tensor& p : model.root->parameters()) params += p.numel();
  EXPECT_EQ(model.cost().params, params);
}

TEST(Model, RefusesToRunOverItsBudget) {
  Model model = small_model("resnet", 2);
  Context context;
  context.budget.macs_per_sample = model.cost().macs;
  EXPECT_NO_THROW(model.forward(random_input(model, 1, 1), context));
  context.budget.macs_per_sample = model.cost().macs - 1;
  expect_error(Code::limit, "model", [&] { model.forward(random_input(model, 1, 1), context); });
}

TEST(ResidualBlock, ShapeErrorsNameTheWay) {
  BrickPtr block = make_residual_block(4, 6, 4, 1);
  block->slot("conv2").exchange(std::make_shared<Conv2d>(Conv2dOptions{.inputs = 5, .outputs = 4}));
  Sequential root;
  root.append("block0", block);
  expect_error(Code::shape, "block0 / conv2 / conv2d: expected [5, height, width], found 6", [&] {
    root.output_shape({4, 8, 8});
  });
}

TEST(ResidualBlock, GradientsMatchFiniteDifferences) {
  BrickPtr block = make_residual_block(2, 3, 4, 2);
  randomize_norms(*block, 9);
  block->to(at::kDouble);
  block->eval();
  const auto f = [&](const at::Tensor& x) { return run(*block, x); };
  const at::Tensor x = random_tensor({2, 2, 5, 5}, 3).to(at::kDouble);
  const at::Tensor weights = random_tensor({2, 4, 3, 3}, 4).to(at::kDouble);
  expect_near(autograd_gradient(f, x, weights), numeric_gradient(f, x, weights), 1e-6);
}

TEST(Sequential, DeclaresGroupsWhereChannelsFlowFromLayerToLayer) {
  const Model convnet = small_model("convnet", 1), mlp = small_model("mlp", 1);
  const auto groups = convnet.root->channel_groups();
  // Not across flatten: conv2 -> fc1 is none.
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_THAT(groups[0].producers, ElementsAre("conv1"));
  EXPECT_THAT(groups[0].carriers, ElementsAre("norm1"));
  EXPECT_THAT(groups[0].consumers, ElementsAre("conv2"));
  EXPECT_EQ(groups[0].channels, 5);
  EXPECT_EQ(groups[0].gate, "");
  EXPECT_THAT(groups[1].producers, ElementsAre("fc1"));
  ASSERT_EQ(mlp.root->channel_groups().size(), 2u);
  EXPECT_THAT(mlp.root->channel_groups()[1].consumers, ElementsAre("fc3"));
  ASSERT_EQ(convnet.root->fold_pairs().size(), 2u);
  EXPECT_EQ(convnet.root->fold_pairs()[1].norm, "norm2");
}

TEST(Sequential, OffersNoGroupForGroupedConvolutions) {
  Sequential root;
  root.append("a", std::make_shared<Conv2d>(Conv2dOptions{.inputs = 2, .outputs = 4}));
  root.append("b", std::make_shared<Conv2d>(Conv2dOptions{.inputs = 4, .outputs = 4, .groups = 4}));
  root.append("c", std::make_shared<Conv2d>(Conv2dOptions{.inputs = 4, .outputs = 2}));
  EXPECT_TRUE(root.channel_groups().empty());
}

TEST(Sequential, ChannelMaskComesAndGoesWithoutTrace) {
  Model model = small_model("convnet", 1);
  const Json before = spec_of(*model.root);
  const at::Tensor x = random_input(model, 2, 1);
  const at::Tensor full = run(model, x);
  const auto group = model.root->channel_groups().at(0);
  model.root->set_channel_mask(group, torch::tensor({1.f, 0.f, 1.f, 1.f, 0.f}));
  const auto masked = model.root->channel_groups().at(0);
  EXPECT_EQ(masked.gate, "conv2_mask");
  expect_near(model.root->channel_mask(masked), torch::tensor({1.f, 0.f, 1.f, 1.f, 0.f}));
  EXPECT_GT(relative_error(run(model, x), full), 1e-3);
  EXPECT_EQ(spec_of(*make_brick(spec_of(*model.root))), spec_of(*model.root));
  model.root->set_channel_mask(masked, at::ones({5}));
  expect_near(run(model, x), full);
  model.root->clear_channel_mask(model.root->channel_groups().at(0));
  EXPECT_EQ(spec_of(*model.root), before);
}

TEST(Sequential, RefusesNamesThatAreTaken) {
  Sequential root;
  root.append("a", std::make_shared<Identity>());
  expect_error(Code::config, "slot 'a' is there twice",
               [&] { root.append("a", std::make_shared<Identity>()); });
}

}  // namespace containers_test
}  // namespace sluice::lab
