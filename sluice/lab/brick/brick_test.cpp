#include "sluice/lab/brick/brick.h"

#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace brick_test {

using namespace testing;  // NOLINT: test helpers
using ::testing::ElementsAre;

at::Tensor t(std::vector<float> values, std::vector<int64_t> shape) {
  return torch::tensor(values).view(shape);
}

TEST(Linear, MultipliesAddsBiasAndMeters) {
  Linear linear(2, 3);
  const at::NoGradGuard no_grad;
  linear.weight.copy_(t({1, 2, 3, 4, 5, 6}, {3, 2}));
  linear.bias.copy_(t({10, 20, 30}, {3}));
  Meter meter;
  Context context;
  context.meter = &meter;
  expect_near(linear.forward(t({1, -1, 2, 0}, {2, 2}), context),
              t({9, 19, 29, 12, 26, 40}, {2, 3}));
  EXPECT_EQ(meter.macs(), 2 * 6);
  EXPECT_EQ(meter.bytes(), 4 * (4 + 6 + 6 + 3));
  EXPECT_EQ(linear.cost({2}).macs, 6);
  EXPECT_EQ(linear.cost({2}).params, 9);
  EXPECT_THAT(linear.output_shape({5, 2}), ElementsAre(5, 3));
  EXPECT_EQ(linear.cost({5, 2}).macs, 30);
  expect_error(Code::shape, "expected [.., 2], found 3", [&] { linear.output_shape({3}); });
}

TEST(Conv2d, CrossCorrelatesWithStrideAndPadding) {
  Conv2d conv({.inputs = 1, .outputs = 1, .kernel = 2, .stride = 2, .padding = 1});
  const at::NoGradGuard no_grad;
  conv.weight.copy_(t({1, 2, 3, 4}, {1, 1, 2, 2}));
  conv.bias.fill_(0.5);
  Meter meter;
  Context context;
  context.meter = &meter;
  // padded: 0 0 0 0 / 0 1 2 0 / 0 3 5 0 / 0 0 0 0
  expect_near(conv.forward(t({1, 2, 3, 5}, {1, 1, 2, 2}), context),
              t({4.5, 6.5, 6.5, 5.5}, {1, 1, 2, 2}));
  EXPECT_EQ(meter.macs(), 4 * 4);
  EXPECT_EQ(conv.cost({1, 2, 2}).macs, 16);
  EXPECT_THAT(conv.output_shape({1, 2, 2}), ElementsAre(1, 2, 2));
  expect_error(Code::shape, "does not fit", [&] { conv.output_shape({1, 2, 0}); });
}

TEST(Conv2d, KeepsGroupsApart) {
  Conv2d conv({.inputs = 2, .outputs = 2, .kernel = 1, .groups = 2, .bias = false});
  const at::NoGradGuard no_grad;
  conv.weight.copy_(t({2, 3}, {2, 1, 1, 1}));
  expect_near(run(conv, t({1, 10}, {1, 2, 1, 1})), t({2, 30}, {1, 2, 1, 1}));
  EXPECT_EQ(conv.cost({2, 1, 1}).macs, 2);
  expect_error(Code::unsupported, "2 groups", [&] { conv.slice_inputs(torch::tensor({0L})); });
  expect_error(Code::config, "groups of conv2d",
               [] { Conv2d({.inputs = 3, .outputs = 2, .groups = 2}); });
}

TEST(Conv2d, SlicesAreTheFullResultsChannels) {
  Conv2d conv({.inputs = 3, .outputs = 5, .kernel = 3, .padding = 1});
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_tensor({2, 3, 4, 4}, 1), keep = torch::tensor({1L, 4L});
  expect_near(run(*conv.slice_outputs(keep), x), run(conv, x).index_select(1, keep), 1e-5);
  at::Tensor zeroed = x.clone();
  zeroed.select(1, 0).zero_();
  zeroed.select(1, 2).zero_();
  const at::Tensor one = torch::tensor({1L});
  expect_near(run(*conv.slice_inputs(one), x.index_select(1, one)), run(conv, zeroed), 1e-5);
  expect_near(conv.output_norms(1), conv.weight.abs().sum({1, 2, 3}), 1e-4);
  expect_near(conv.output_norms(2), conv.weight.pow(2).sum({1, 2, 3}).sqrt(), 1e-5);
}

TEST(BatchNorm, UsesRunningStatisticsInEvaluation) {
  BatchNorm norm(2, /*eps=*/0.01);
  const at::NoGradGuard no_grad;
  norm.weight.copy_(t({2, 1}, {2}));
  norm.bias.copy_(t({0, 5}, {2}));
  norm.running_mean.copy_(t({1, -1}, {2}));
  norm.running_var.copy_(t({0.24, 0.99}, {2}));
  norm.eval();
  expect_near(run(norm, t({2, 3}, {1, 2})), t({4, 9}, {1, 2}), 1e-5);
}

TEST(BatchNorm, UsesAndTracksBatchStatisticsInTraining) {
  BatchNorm norm(1, 1e-5, 0.5);
  const at::NoGradGuard no_grad;
  expect_near(run(norm, t({1, 3}, {2, 1})), t({-1, 1}, {2, 1}), 1e-4);
  expect_near(norm.running_mean, t({1}, {1}));   // halfway from 0 to 2
  expect_near(norm.running_var, t({1.5}, {1}));  // halfway from 1 to 2 (unbiased)
}

TEST(BatchNorm, EstimateIsThePlainAverageOfBatches) {
  BatchNorm norm(1);
  const at::NoGradGuard no_grad;
  norm.begin_estimate();
  run(norm, t({0, 2}, {2, 1}));
  run(norm, t({4, 4}, {2, 1}));
  run(norm, t({7, 7}, {2, 1}));
  expect_near(norm.running_mean, t({4}, {1}), 1e-5);
  norm.end_estimate();
  run(norm, t({14, 14}, {2, 1}));
  expect_near(norm.running_mean, t({5}, {1}), 1e-5);
}

TEST(Activation, HasTheNamedFunctions) {
  const at::Tensor x = t({-4, -1, 0, 2}, {1, 4});
  const auto f = [&](const std::string& name) {
    Activation activation(name);
    return run(activation, x);
  };
  expect_near(f("relu"), t({0, 0, 0, 2}, {1, 4}));
  expect_near(f("sigmoid"), t({0.01798621f, 0.26894142f, 0.5, 0.88079708f}, {1, 4}));
  expect_near(f("tanh"), t({-0.99932930f, -0.76159416f, 0, 0.96402758f}, {1, 4}));
  expect_near(f("silu"), t({-0.07194484f, -0.26894142f, 0, 1.76159416f}, {1, 4}));
  expect_near(f("gelu"), t({-0.00012668f, -0.15865525f, 0, 1.95449974f}, {1, 4}));
  expect_near(f("gelu_tanh"), t({-0.00007025f, -0.15880801f, 0, 1.95459769f}, {1, 4}));
  expect_near(f("hard_swish"), t({0, -1.f / 3, 0, 5.f / 3}, {1, 4}));
  expect_error(Code::config, "unknown; known: relu", [] { Activation("relo"); });
}

TEST(Pool2d, PoolsWindows) {
  const at::Tensor x = t({1, 2, 3, 4, 5, 6, 7, 8, -9}, {1, 1, 3, 3});
  Pool2d max("max", 2, 1), average("avg", 2, 2, 1), global("global_avg");
  expect_near(run(max, x), t({5, 6, 8, 8}, {1, 1, 2, 2}));
  // Padding is not counted: corners average one value, edges two.
  expect_near(run(average, x), t({1, 2.5, 5.5, 2.5}, {1, 1, 2, 2}));
  expect_near(run(global, x), t({3}, {1, 1}));
  EXPECT_THAT(max.output_shape({4, 3, 3}), ElementsAre(4, 2, 2));
  EXPECT_THAT(average.output_shape({4, 3, 3}), ElementsAre(4, 2, 2));
  EXPECT_THAT(global.output_shape({4, 3, 3}), ElementsAre(4));
  expect_error(Code::config, "padding of pool2d", [] { Pool2d("max", 2, 2, 2); });
}

TEST(SimpleLayers, FlattenIdentityAndMask) {
  Flatten flatten;
  Identity identity;
  ChannelMask mask(t({1, 0}, {2}));
  const at::Tensor x = t({1, 2, 3, 4}, {1, 2, 1, 2});
  expect_near(run(flatten, x), t({1, 2, 3, 4}, {1, 4}));
  expect_near(run(identity, x), x);
  expect_near(run(mask, x), t({1, 2, 0, 0}, {1, 2, 1, 2}));
  EXPECT_THAT(flatten.output_shape({2, 1, 2}), ElementsAre(4));
  expect_error(Code::numeric, "0 and 1", [] { ChannelMask(t({0.5}, {1})); });
}

// ---- slots and walking ----

TEST(Slot, ExchangeKeepsParametersInSlotOrder) {
  BrickPtr block = make_residual_block(2, 3, 2, 1);
  std::vector<std::string> before;
  for (const auto& item : block->named_parameters()) before.push_back(item.key());
  EXPECT_EQ(before.front(), "conv1.weight");
  BrickPtr conv = block->slot("conv1").exchange(nullptr);
  EXPECT_TRUE(block->slot("conv1").empty());
  EXPECT_EQ(block->named_parameters().contains("conv1.weight"), false);
  EXPECT_EQ(block->slot("conv1").exchange(conv), nullptr);
  std::vector<std::string> after;
  for (const auto& item : block->named_parameters()) after.push_back(item.key());
  EXPECT_EQ(after, before);
}

TEST(Slot, ErrorsNameSlotsAndKinds) {
  BrickPtr block = make_residual_block(2, 3, 2, 1);
  expect_error(Code::usage, "no slot 'conv3'; it has: conv1, norm1", [&] { block->slot("conv3"); });
  expect_error(Code::unsupported, "'norm1' holds a batch_norm",
               [&] { block->slot("norm1").as<Conv2d>(); });
  expect_error(Code::internal, "brick_", [&] { *block->slot("shortcut"); });
}

TEST(Slot, ForwardTurnsLibTorchErrorsIntoOnesWithThePath) {
  Model model = small_model("resnet", 1);
  Context context;
  expect_error(Code::shape, "stem.conv (conv2d): ", [&] {
    model.root->forward(torch::ones({1, 3, 9, 9}), context);
  });
  EXPECT_EQ(context.path(), "");
}

TEST(Walk, ListsParentsFirstAndMatchesPatterns) {
  Model model = small_model("resnet", 1);
  const auto paths = [&](const std::string& pattern) {
    std::vector<std::string> result;
    for (const SlotRef& ref : walk(*model.root, pattern)) result.push_back(ref.path);
    return result;
  };
  EXPECT_EQ(walk(*model.root).front().path, "stem");
  EXPECT_EQ(walk(*model.root)[1].path, "stem.conv");
  EXPECT_THAT(paths("stage*.block1.conv1"),
              ElementsAre("stage0.block1.conv1", "stage1.block1.conv1"));
  EXPECT_THAT(paths("**.shortcut.conv"), ElementsAre("stage1.block0.shortcut.conv"));
  EXPECT_EQ(paths("**").size(), walk(*model.root).size());
  expect_error(Code::usage, "did you mean 'stage0'", [&] { walk(*model.root, "stagee0"); });
}

// ---- descriptions ----

TEST(Spec, RebuildsEveryReferenceNetworkAfterSurgery) {
  for (const std::string& name : model_names()) {
    Model model = small_model(name, 3);
    if (name == "resnet") {
      mask_blocks(model, [](int64_t n) { return at::ones({n}); });
      model.root->slot("stage0")
          .as<Sequential>()
          .slot("block0")
          ->slot("shortcut")
          .exchange(std::make_shared<Identity>());
    }
    const Json spec = spec_of(*model.root);
    const BrickPtr rebuilt = make_brick(spec);
    EXPECT_EQ(spec_of(*rebuilt), spec) << name;
    EXPECT_EQ(rebuilt->output_shape(model.input_shape),
              model.root->output_shape(model.input_shape));
  }
}

TEST(Clone, SharesNothingAndKeepsModeTypeAndGradientFlags) {
  Model model = small_model("resnet", 4);
  model.root->to(at::kDouble);
  model.root->slot("fc").get()->train();
  model.root->slot("fc").as<Linear>().weight.set_requires_grad(false);
  const BrickPtr copy = clone(*model.root);
  const auto from = named_state(*model.root), to = named_state(*copy);
  ASSERT_EQ(from.size(), to.size());
  for (size_t i = 0; i < from.size(); ++i) {
    EXPECT_EQ(from[i].first, to[i].first);
    EXPECT_TRUE(at::equal(from[i].second, to[i].second)) << from[i].first;
    EXPECT_NE(from[i].second.data_ptr(), to[i].second.data_ptr());
    EXPECT_EQ(from[i].second.requires_grad(), to[i].second.requires_grad());
    EXPECT_EQ(to[i].second.scalar_type(), at::kDouble);
  }
  EXPECT_TRUE(copy->slot("fc")->is_training());
  EXPECT_FALSE(copy->slot("stem")->is_training());
  const at::NoGradGuard no_grad;
  copy->slot("fc").as<Linear>().weight.zero_();
  EXPECT_GT(model.root->slot("fc").as<Linear>().weight.abs().sum().item<double>(), 0);
}

TEST(Clone, DrawsNothingFromTheDefaultGenerator) {
  Model model = small_model("resnet", 5);
  torch::manual_seed(7);
  const at::Tensor expected = torch::rand({3});
  torch::manual_seed(7);
  clone(*model.root);
  EXPECT_TRUE(at::equal(torch::rand({3}), expected));
}

struct Malformed {
  std::string spec;
  Code code;
  std::string words;
};

std::string nested(int depth) {
  std::string text = R"({"kind":"identity"})";
  for (int i = 0; i < depth; ++i) text = R"({"kind":"sequential","slots":{"a":)" + text + "}}";
  return text;
}

const char* const kBlock =
    R"({"kind":"sequential","slots":{"stage0":{"kind":"sequential","slots":{"block1":)";

TEST(Spec, RefusesHostileTextNamingThePlace) {
  const std::vector<Malformed> cases = {
      Malformed{"[]", Code::format, "model: expected a table"},
      Malformed{"{}", Code::config, "model: the key 'kind'"},
      Malformed{R"({"kind":7})", Code::config, "model: 'kind'"},
      Malformed{R"({"kind":"identity","extra":1})", Code::config, "extra"},
      Malformed{R"({"kind":"linaer"})", Code::config,
                "model.kind: unknown brick 'linaer', did you mean 'linear'"},
      Malformed{std::string(kBlock) +
                    R"({"kind":"conv2d","attributes":{"inputs":1,"outputs":1,"kernel":0}}}}}})",
                Code::config, "model.slots.stage0.slots.block1.attributes.kernel"},
      Malformed{std::string(kBlock) +
                    R"({"kind":"conv2d","attributes":{"inputs":1,"outputs":1,"kernal":3}}}}}})",
                Code::config,
                "model.slots.stage0.slots.block1.attributes.kernal of conv2d: unknown, did you "
                "mean 'kernel'"},
      Malformed{R"({"kind":"conv2d","attributes":{"inputs":1,"outputs":"8"}})", Code::config,
                "model.attributes.outputs of conv2d: expected an integer"},
      Malformed{R"({"kind":"conv2d","attributes":{"inputs":1,"outputs":18446744073709551615}})",
                Code::config, "outputs of conv2d"},
      Malformed{R"({"kind":"conv2d","attributes":{"inputs":1,"outputs":1.5}})", Code::config,
                "outputs of conv2d"},
      Malformed{R"({"kind":"conv2d","attributes":{"inputs":1000000,"outputs":1000000}})",
                Code::limit, "weight of conv2d"},
      Malformed{R"({"kind":"linear","attributes":{"inputs":8589934592,"outputs":8589934592}})",
                Code::limit, "weight"},
      Malformed{R"({"kind":"linear","attributes":{"inputs":0,"outputs":1}})", Code::config,
                "inputs of linear"},
      Malformed{R"({"kind":"linear","attributes":[]})", Code::format, "model.attributes.linear"},
      Malformed{R"({"kind":"linear"})", Code::config, "of linear: missing"},
      Malformed{R"({"kind":"batch_norm","attributes":{"channels":3,"eps":-1}})", Code::config,
                "eps of batch_norm"},
      Malformed{R"({"kind":"identity","slots":{"x":null}})", Code::usage, "no slot 'x'"},
      Malformed{R"({"kind":"sequential","slots":{"x":null}})", Code::config, "model.slots.x"},
      Malformed{R"({"kind":"sequential","slots":{"a.b":{"kind":"identity"}}})", Code::config,
                "slot name 'a.b'"},
      Malformed{R"({"kind":"sequential","slots":{"":{"kind":"identity"}}})", Code::config,
                "slot name ''"},
      Malformed{R"({"kind":"sequential","slots":[]})", Code::format, "model.slots: expected"},
      Malformed{R"({"kind":"residual_block"})", Code::config, "model.slots.conv1"},
      Malformed{R"({"kind":"gate","attributes":{}})", Code::config, "score of gate: missing"},
      Malformed{R"({"kind":"gate","attributes":{"score":{"kind":"learned","units":2},
                      "decision":{"kind":"top_k","k":3}}})",
                Code::config, "k of the gate's decision"},
      Malformed{R"({"kind":"gate","attributes":{"score":{"kind":"pooled"}}})", Code::config,
                "unknown kind 'pooled'"},
      Malformed{R"({"kind":"constant_mask","attributes":{"units":-1}})", Code::config,
                "units of constant_mask"},
      Malformed{R"({"kind":"activation","attributes":{"function":"exp"}})", Code::config,
                "function of activation"},
      Malformed{nested(32), Code::limit, "nested deeper than 32"}};
  for (const Malformed& bad : cases) {
    expect_error(
        bad.code, bad.words, [&] { make_brick(Json::parse(bad.spec)); }, bad.spec);
  }
}

TEST(Spec, AcceptsTheDeepestAllowedNesting) {
  EXPECT_NO_THROW(make_brick(Json::parse(nested(31))));
}

TEST(Spec, RefusesGatesThatDoNotFitTheirBlock) {
  Json spec = spec_of(*make_residual_block(2, 3, 2, 1));
  spec["slots"]["channel_gate"] = {{"kind", "constant_mask"}, {"attributes", {{"units", 4}}}};
  expect_error(Code::config, "channel_gate: expected 3 units, found 4", [&] { make_brick(spec); });
  spec["slots"]["channel_gate"] = {{"kind", "identity"}};
  expect_error(Code::config, "channel_gate: expected a gate", [&] { make_brick(spec); });
  spec = spec_of(*make_residual_block(2, 3, 4, 2));
  spec["slots"]["block_gate"] = {{"kind", "constant_mask"}, {"attributes", {{"units", 1}}}};
  expect_error(Code::config, "identity shortcut", [&] { make_brick(spec); });
}

class Doubled final : public Brick {
 public:
  std::string kind() const override { return "test_doubled"; }
  Json attributes() const override { return Json::object(); }
  at::Tensor forward(const at::Tensor& x, Context&) override { return x * 2; }
  Shape output_shape(const Shape& input) const override { return input; }
  Cost cost(const Shape&) const override { return {}; }
  bundle::Value lower(bundle::Builder&, const bundle::Value&, const std::string&) const override {
    fail(Code::unsupported, "test only");
  }
};

TEST(Registry, TakesNewKindsOnce) {
  const auto make = [](const Json&) -> BrickPtr { return std::make_shared<Doubled>(); };
  EXPECT_TRUE(register_brick("test_doubled", make));
  EXPECT_FALSE(register_brick("test_doubled", make));
  EXPECT_FALSE(register_brick("linear", make));
  EXPECT_EQ(make_brick({{"kind", "test_doubled"}})->kind(), "test_doubled");
  EXPECT_THAT(brick_kinds(), ::testing::IsSupersetOf({"conv2d", "residual_block", "gate"}));
}

}  // namespace brick_test
}  // namespace sluice::lab
