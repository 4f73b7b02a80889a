#include "sluice/lab/brick/restoration.h"

#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace restoration_test {

using namespace testing;  // NOLINT: test helpers

/// Three levels, odd widths of heads, pictures of 8 x 12.
RestorationLayers layers() {
  RestorationLayers l;
  l.width = 4;
  l.blocks = {1, 1, 2};
  l.heads = {1, 2, 4};
  l.prompts = 3;
  l.prompt_width = {4, 8};
  l.prompt_side = {5, 3};
  return l;
}

Model tiny(const RestorationLayers& l = layers(), uint64_t seed = 3) {
  Model model;
  model.root = make_restoration_net(l, seed);
  model.input_shape = {l.channels, 8, 12};
  model.task.kind = "restore";
  const at::NoGradGuard no_grad;
  for (const auto& [path, tensor] : named_state(*model.root)) {
    if (tensor.dim() == 1) tensor.add_(random_tensor(tensor.sizes(), ++seed) * 0.3);
  }
  model.root->eval();
  return model;
}

void expect_gradients(Brick& brick, const at::Tensor& x) {
  brick.to(at::kDouble);
  const at::Tensor weights = random_tensor(run(brick, x).sizes(), 4).to(at::kDouble);
  const auto loss = [&] { return (run(brick, x) * weights).sum(); };
  loss().backward();
  for (const auto& item : brick.named_parameters()) {
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
    EXPECT_NEAR(found, expected, 2e-5 * std::max(1.0, std::abs(expected))) << item.key();
  }
}

TEST(ChannelNorm, NormsEachPixel) {
  ChannelNorm norm(3);
  const at::NoGradGuard no_grad;
  norm.weight.copy_(torch::tensor({1.f, 2.f, -1.f}));
  norm.bias.copy_(torch::tensor({0.f, 1.f, 0.f}));
  const at::Tensor x = random_tensor({2, 3, 4, 5}, 1);
  const at::Tensor pixel = x[1].select(1, 2).select(1, 3);
  const at::Tensor expected =
      (pixel - pixel.mean()) / at::sqrt(pixel.var(false) + 1e-5) * norm.weight + norm.bias;
  expect_near(run(norm, x)[1].select(1, 2).select(1, 3), expected, 1e-5);
}

TEST(ChannelAttention, IsTheFormulaHeadByHead) {
  BrickPtr brick = make_channel_attention(4, 2);
  auto& attention = dynamic_cast<ChannelAttention&>(*brick);
  const at::NoGradGuard no_grad;
  attention.temperature.copy_(torch::tensor({0.5f, 3.f}));
  const at::Tensor x = random_tensor({1, 4, 3, 5}, 1);
  const auto conv = [&](const char* name) -> Conv2d& { return brick->slot(name).as<Conv2d>(); };
  const at::Tensor y = run(conv("depthwise"), run(conv("qkv"), x))[0].flatten(1);  // [12, 15]
  at::Tensor mixed = at::zeros({4, 15});
  for (int64_t head = 0; head < 2; ++head) {
    for (int64_t i = 0; i < 2; ++i) {
      const at::Tensor q = y[2 * head + i];
      at::Tensor scores = at::zeros({2});
      for (int64_t j = 0; j < 2; ++j) {
        const at::Tensor k = y[4 + 2 * head + j];
        scores[j] = (q / q.norm()).dot(k / k.norm()) * attention.temperature[head];
      }
      scores = at::softmax(scores, 0);
      mixed[2 * head + i] = scores[0] * y[8 + 2 * head] + scores[1] * y[8 + 2 * head + 1];
    }
  }
  expect_near(run(*brick, x), run(conv("out"), mixed.view({1, 4, 3, 5})), 1e-5);
}

TEST(GatedConvFfn, HalvesGateEachOther) {
  BrickPtr brick = make_gated_conv_ffn(3, 2.66);
  EXPECT_EQ(brick->slot("in").as<Conv2d>().options().outputs, 14);
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_tensor({2, 3, 4, 5}, 1);
  const at::Tensor y = run(*brick->slot("depthwise"), run(*brick->slot("in"), x));
  expect_near(run(*brick, x),
              run(*brick->slot("out"), at::gelu(y.narrow(1, 0, 7)) * y.narrow(1, 7, 7)), 1e-6);
}

TEST(PixelShuffle, IsItsOwnReverse) {
  PixelShuffle up("up"), down("down");
  const at::Tensor x = random_tensor({2, 3, 4, 6}, 1);
  const at::Tensor y = run(down, x);
  EXPECT_EQ(to_string(y.sizes()), "2 x 12 x 2 x 3");
  expect_near(y[1][7], x[1][1].slice(0, 1, 4, 2).slice(1, 1, 6, 2), 0);  // channel 1, place (1, 1)
  expect_near(run(up, y), x, 0);
  expect_error(Code::shape, "a multiple of 4", [&] { up.output_shape({6, 2, 2}); });
  expect_error(Code::shape, "even height", [&] { down.output_shape({1, 2, 3}); });
  expect_error(Code::config, "found 'left'", [] { PixelShuffle("left"); });
}

TEST(PromptGenerator, MixesPromptsAndLogsTheMixture) {
  BrickPtr brick = make_prompt_generator(4, 3, 2, 3);
  auto& generator = dynamic_cast<PromptGenerator&>(*brick);
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_tensor({2, 4, 6, 5}, 1);
  GateLog log;
  Context context;
  context.gate_log = &log;
  const at::Tensor found = brick->forward(x, context);
  ASSERT_EQ(log.records().size(), 1u);
  const at::Tensor w = log.records()[0].probability;
  expect_near(w, at::softmax(run(*brick->slot("choose"), x.mean({2, 3})), 1), 1e-6);
  const at::Tensor mixed = (w.view({2, 3, 1, 1, 1}) * generator.prompts.unsqueeze(0)).sum(1);
  const at::Tensor resized = at::upsample_bilinear2d(mixed, {6, 5}, /*align_corners=*/false);
  expect_near(found, run(*brick->slot("conv"), resized), 1e-5);
}

TEST(BilinearMatrix, IsWhatLibTorchInterpolates) {
  for (const auto& [from, to] : {std::pair{3, 7}, {8, 16}, {5, 5}, {7, 3}, {1, 4}}) {
    const at::Tensor x = random_tensor({1, 1, 1, from}, 1).to(at::kDouble);
    expect_near(at::matmul(bilinear_matrix(from, to), x.flatten()),
                at::upsample_bilinear2d(x, {1, to}, false).flatten(), 1e-9);
  }
}

TEST(RestorationNet, GradientsAreThoseOfFiniteDifferences) {
  RestorationLayers l = layers();
  l.blocks = {1, 1};
  l.heads = {1, 2};
  l.prompt_width = {4};
  l.prompt_side = {3};
  Model model = tiny(l);
  expect_gradients(*model.root, random_tensor({1, 3, 4, 6}, 8).to(at::kDouble));
}

TEST(RestorationNet, ReloadsAndClonesToTheSameFunction) {
  const TempDirectory folder;
  Model model = tiny();
  save_bundle(model, folder / "m.safetensors");
  Model loaded = load_model(folder / "m.safetensors"), copy = clone(model);
  EXPECT_EQ(spec_of(*loaded.root), spec_of(*model.root));
  const at::Tensor x = random_input(model, 2, 7);
  EXPECT_TRUE(at::equal(run(loaded, x), run(model, x)));
  EXPECT_TRUE(at::equal(run(copy, x), run(model, x)));
}

TEST(RestorationNet, GraphAndBricksAgreeOnCostAndMeter) {
  Model model = tiny();
  bundle::Builder builder;
  lower(model, builder);
  const auto info = bundle::check_graph(builder.graph(), "test");
  EXPECT_EQ(info.total.macs, model.cost().macs);
  // Besides its parameters the graph has the matrices of interpolation: prompts of side 5 for 4 x 6
  // places, and of side 3 for 2 x 3.
  EXPECT_EQ(info.total.params, model.cost().params + 5 * (4 + 6) + 3 * 2);
  int64_t params = 0;
  for (const at::Tensor& p : model.root->parameters()) params += p.numel();
  EXPECT_EQ(model.cost().params, params);
  Meter meter;
  Context context;
  context.meter = &meter;
  model.forward(random_input(model, 3, 1), context);
  EXPECT_EQ(meter.macs(), 3 * model.cost().macs);
}

TEST(RestorationNet, TakesPicturesOfAnySizeThatHalves) {
  Model model = tiny();
  EXPECT_EQ(to_string(run(*model.root, random_tensor({1, 3, 16, 4}, 1)).sizes()), "1 x 3 x 16 x 4");
  expect_error(Code::shape, "multiples of 4, found 3 x 10 x 12; pad the picture", [&] {
    model.root->output_shape({3, 10, 12});
  });
}

TEST(RestorationNet, FirstValuesComeFromTheSeed) {
  const auto prompts = [](uint64_t seed) {
    const BrickPtr root = make_restoration_net(layers(), seed);
    return root->slot("prompt1").as<PromptGenerator>().prompts.detach();
  };
  EXPECT_TRUE(at::equal(prompts(1), prompts(1)));
  EXPECT_FALSE(at::equal(prompts(1), prompts(2)));
  EXPECT_GE(prompts(1).min().item<double>(), 0);
  EXPECT_GT(prompts(1).max().item<double>(), 0.8);
}

TEST(RestorationNet, RefusesSizesThatDoNotFit) {
  const auto with = [](const auto& change) {
    return [change] {
      RestorationLayers l = layers();
      change(l);
      make_restoration_net(l, 1);
    };
  };
  expect_error(Code::config, "3 levels, but 2 heads",
               with([](RestorationLayers& l) { l.heads.pop_back(); }));
  expect_error(Code::config, "heads of channel_attention: 3 do not divide the 4 channels",
               with([](RestorationLayers& l) { l.heads[0] = 3; }));
  expect_error(Code::config, "blocks of restoration_net",
               with([](RestorationLayers& l) { l.blocks.clear(); }));
  Model model = tiny();
  Json spec = spec_of(*model.root);
  spec["slots"]["cut0"] = nullptr;
  expect_error(Code::config, "cut0: must be filled", [&] { make_brick(spec); });
}

#if SLUICE_HAS_ENGINE
TEST(EngineParity, HoldsForRestorationNetworks) {
  RestorationLayers one = layers();
  one.channels = 1;
  one.blocks = {2};
  one.heads = {2};
  one.prompt_width = one.prompt_side = {};
  for (const RestorationLayers& l : {layers(), one}) {
    Model model = tiny(l);
    EXPECT_LE(engine_error(model, random_input(model, 2, 50)), 1e-5);
  }
}
#endif

}  // namespace restoration_test
}  // namespace sluice::lab
