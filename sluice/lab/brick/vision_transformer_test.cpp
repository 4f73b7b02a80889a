#include "sluice/lab/brick/vision_transformer.h"

#include "sluice/lab/brick/norms.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace vision_transformer_test {

using namespace testing;  // NOLINT: test helpers
using ::testing::ElementsAre;

/// Pictures [2, 9, 9], four classes; norms and biases that matter.
Model tiny(const std::string& pooling, uint64_t seed = 3) {
  Model model = small_model(
      "vit", seed,
      {{"patch", 3}, {"width", 6}, {"layers", 2}, {"heads", 2}, {"ffn", 10}, {"pooling", pooling}});
  const at::NoGradGuard no_grad;
  for (const auto& [path, tensor] : named_state(*model.root)) {
    if (tensor.dim() == 1) tensor.add_(random_tensor(tensor.sizes(), ++seed) * 0.3);
  }
  return model;
}

TEST(VisionTransformer, RowsArePatchesInReadingOrderBehindTheClassToken) {
  Model model = tiny("first");
  auto& root = dynamic_cast<VisionTransformer&>(*model.root);
  const at::Tensor x = random_input(model, 2, 5);
  const at::NoGradGuard no_grad;
  Context context;
  const at::Tensor rows = root.embed(x, context);
  ASSERT_THAT(rows.sizes().vec(), ElementsAre(2, 10, 6));
  const auto& conv = root.slot("patches").as<Conv2d>();
  const at::Tensor positions = root.slot("positions").as<LearnedRows>().weight;
  // Patch (1, 2) is row 1 * 3 + 2, behind the class token.
  const at::Tensor patch = x[1].narrow(1, 3, 3).narrow(2, 6, 3).flatten();
  expect_near(rows[1][6], at::linear(patch, conv.weight.flatten(1), conv.bias) + positions[6],
              1e-5);
  expect_near(rows[1][0], root.slot("class_token").as<LearnedRows>().weight[0] + positions[0], 0);
}

TEST(VisionTransformer, PoolsAsItSays) {
  for (const std::string pooling : {"first", "mean"}) {
    Model model = tiny(pooling);
    auto& root = dynamic_cast<VisionTransformer&>(*model.root);
    const at::NoGradGuard no_grad;
    const at::Tensor rows = random_tensor({2, 5, 6}, 4);
    Context context;
    const auto& norm = root.slot("norm").as<LayerNorm>();
    const auto& head = root.slot("head").as<Linear>();
    const at::Tensor normed = at::layer_norm(rows, {6}, norm.weight, norm.bias, norm.eps());
    expect_near(root.classify(rows, context),
                at::linear(pooling == "first" ? normed.select(1, 0) : normed.mean(1), head.weight,
                           head.bias),
                1e-5);
  }
}

TEST(VisionTransformer, EveryPatchMattersToEveryOther) {  // attention looks both ways
  Model model = tiny("first");
  auto& root = dynamic_cast<VisionTransformer&>(*model.root);
  const at::NoGradGuard no_grad;
  Context context;
  at::Tensor rows = random_tensor({1, 10, 6}, 4);
  const at::Tensor before = root.slot("blocks").forward(rows, context);
  rows[0][9] += random_tensor({6}, 6);  // a constant would vanish in the norm
  const at::Tensor change = (root.slot("blocks").forward(rows, context) - before).abs().sum(-1)[0];
  EXPECT_GT(change.min().item<double>(), 1e-5);
}

TEST(VisionTransformer, GradientsAreThoseOfFiniteDifferences) {
  for (const std::string pooling : {"first", "mean"}) {
    Model model = tiny(pooling);
    model.root->to(at::kDouble);
    const at::Tensor x = random_input(model, 2, 8).to(at::kDouble);
    Context context;
    const at::Tensor weights = random_tensor({2, 4}, 4).to(at::kDouble);
    const auto loss = [&] { return (model.forward(x, context) * weights).sum(); };
    loss().backward();
    for (const auto& item : model.root->named_parameters()) {
      at::Tensor parameter = item.value();
      ASSERT_TRUE(parameter.grad().defined()) << item.key();
      const at::Tensor direction = random_tensor(parameter.sizes(), 9).to(at::kDouble);
      const double found = (parameter.grad() * direction).sum().item<double>();
      const at::NoGradGuard no_grad;
      const double step = 1e-6;
      parameter += step * direction;
      const double high = loss().item<double>();
      parameter -= 2 * step * direction;
      const double low = loss().item<double>();
      parameter += step * direction;
      const double expected = (high - low) / (2 * step);
      EXPECT_NEAR(found, expected, 1e-5 * std::max(1.0, std::abs(expected))) << item.key();
    }
  }
}

TEST(VisionTransformer, ReloadsAndClonesToTheSameFunction) {
  const TempDirectory folder;
  for (const std::string pooling : {"first", "mean"}) {
    Model model = tiny(pooling);
    save_bundle(model, folder / "m.safetensors");
    Model loaded = load_model(folder / "m.safetensors"), copy = clone(model);
    EXPECT_EQ(spec_of(*loaded.root), spec_of(*model.root));
    const at::Tensor x = random_input(model, 2, 7);
    EXPECT_TRUE(at::equal(run(loaded, x), run(model, x)));
    EXPECT_TRUE(at::equal(run(copy, x), run(model, x)));
  }
}

TEST(VisionTransformer, GraphAndBricksAgreeOnCostAndMeter) {
  for (const std::string pooling : {"first", "mean"}) {
    Model model = tiny(pooling);
    bundle::Builder builder;
    lower(model, builder);
    const auto info = bundle::check_graph(builder.graph(), "test");
    EXPECT_EQ(info.total.macs, model.cost().macs);
    EXPECT_EQ(info.total.params, model.cost().params);
    EXPECT_EQ(info.total.weight_bytes, model.cost().weight_bytes);
    Meter meter;
    Context context;
    context.meter = &meter;
    model.forward(random_input(model, 3, 1), context);
    EXPECT_EQ(meter.macs(), 3 * model.cost().macs);
  }
}

TEST(VisionTransformer, FoldsItsNormsIntoWhatReadsThem) {
  for (const std::string pooling : {"first", "mean"}) {
    const Model model = tiny(pooling);
    const Model folded = run_pass(model, "fold-norm", {});
    EXPECT_FALSE(folded.root->slot("norm").as<LayerNorm>().weight.defined());
    expect_equal_and_reloadable(model, folded, pooling);
  }
}

TEST(VisionTransformer, FirstValuesComeFromTheSeed) {
  const Model a = small_model("vit", 5), b = small_model("vit", 5), c = small_model("vit", 6);
  const auto positions = [](const Model& model) {
    return model.root->slot("positions").as<LearnedRows>().weight;
  };
  EXPECT_TRUE(at::equal(positions(a), positions(b)));
  EXPECT_FALSE(at::equal(positions(a), positions(c)));
  EXPECT_NEAR(positions(a).std().item<double>(), 0.02, 0.008);
}

TEST(VisionTransformer, RefusesWhatDoesNotFit) {
  const auto set = image_set();
  const auto make = [&](const Json& options) { make_model("vit", options, set, 1); };
  expect_error(Code::config, "patch of vision_transformer: expected a divisor", [&] {
    make({{"patch", 4}});
  });
  expect_error(Code::config, "heads of vision_transformer: 4 do not divide the width 6", [&] {
    make({{"patch", 3}, {"width", 6}});
  });
  expect_error(Code::config, "expected first or mean, found 'last'", [&] {
    make({{"patch", 3}, {"pooling", "last"}});
  });
  expect_error(Code::config, "did you mean 'layers'", [&] { make({{"layer", 3}}); });
  Model model = tiny("first");
  expect_error(Code::shape, "positions of 10 x 6 on rows 7 x 6", [&] {
    model.root->output_shape({2, 6, 9});
  });
  model.root->slot("class_token").exchange(nullptr);
  expect_error(Code::config, "class_token: must be filled", [&] { model.root->check_slots(); });
}

#if SLUICE_HAS_ENGINE
TEST(EngineParity, HoldsForVisionTransformers) {
  for (const std::string pooling : {"first", "mean"}) {
    Model model = tiny(pooling);
    EXPECT_LE(engine_error(model, random_input(model, 5, 50)), 1e-5) << pooling;
  }
}
#endif

}  // namespace vision_transformer_test
}  // namespace sluice::lab
