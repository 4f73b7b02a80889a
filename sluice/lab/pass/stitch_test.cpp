#include "sluice/lab/pass/stitch.h"

#include <set>

#include "sluice/base/temp_directory.h"
#include "sluice/lab/brick/vision_transformer.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace stitch_test {

using namespace testing;  // NOLINT: test helpers

Json vit(int64_t width, int64_t layers, int64_t patch = 3) {
  return {{"patch", patch}, {"width", width}, {"layers", layers}, {"heads", 2}, {"ffn", 10}};
}

std::vector<Model> transformers() {
  return {small_model("vit", 1, vit(6, 3)), small_model("vit", 2, vit(8, 3)),
          small_model("vit", 3, vit(12, 3))};
}

/// Residual networks of two stages whose norms are folded: what flows does not depend on a batch.
std::vector<Model> residual_networks() {
  std::vector<Model> models;
  for (const int64_t width : {3, 5}) {
    models.push_back(run_pass(small_model("resnet", static_cast<uint64_t>(width),
                                          {{"width", width}, {"blocks", 3}, {"stages", 2}}),
                              "fold-norm", {}));
    models.back().root->eval();
  }
  return models;
}

std::vector<Model> text_models(const std::string& name) {
  std::vector<Model> models;
  for (const int64_t ffn : {16, 24}) {
    models.push_back(
        make_model(name,
                   {{"vocab", 30},
                    {"layers", 3},
                    {"width", name == "decoder" ? ffn / 2 : 12},  // texts get vectors of one width
                    {"heads", 2},
                    {"ffn", ffn},
                    {"context", 9},
                    {"init_std", 0.3}},
                   static_cast<uint64_t>(ffn)));
    models.back().root->eval();
  }
  return models;
}

std::vector<std::vector<Model>> all_families() {
  return {transformers(), residual_networks(), text_models("decoder"), text_models("encoder")};
}

TEST(StitchPositions, AreThoseOfSlidingWindows) {
  for (const auto& [blocks, positions, groups] : {std::tuple{12, 34, 11}, {6, 16, 5}, {2, 4, 1}}) {
    const auto found = stitch_positions(blocks, blocks, {});
    std::set<std::pair<int64_t, int64_t>> unique;
    std::set<int64_t> shared;
    for (const StitchPosition& at : found) {
      EXPECT_LE(std::abs(at.out - at.into), 1);
      unique.emplace(at.out, at.into);
      shared.insert(at.group);
    }
    EXPECT_EQ(static_cast<int64_t>(unique.size()), positions);
    EXPECT_EQ(static_cast<int64_t>(found.size()), positions);
    EXPECT_EQ(static_cast<int64_t>(shared.size()), groups);
  }
  EXPECT_EQ(stitch_positions(3, 3, {.window = 1, .stride = 1}),
            (std::vector<StitchPosition>{{0, 0, 0}, {1, 1, 1}, {2, 2, 2}}));
}

TEST(StitchPositions, OfUnequalDepthsFollowTheNearestIndex) {
  EXPECT_EQ(stitch_positions(2, 4, {}),
            (std::vector<StitchPosition>{{0, 1, 0}, {1, 2, 1}, {1, 3, 2}}));
  expect_error(Code::config, "window of stitches: expected 1 to the 2 blocks, found 3",
               [] { stitch_positions(2, 2, {.window = 3}); });
  expect_error(Code::config, "stride of stitches",
               [] { stitch_positions(2, 2, {.window = 1, .stride = 2}); });
}

TEST(Stitch, PathsAreCompositionsOfTheAnchorsParts) {
  const std::vector<Model> anchors = transformers();
  Model model = stitch(anchors);
  EXPECT_EQ(model.sizes.size(), 3u + 2 * 7);
  EXPECT_EQ(model.sizes.back().name, "a2");
  const at::Tensor x = random_input(model, 2, 5);
  auto& root = stitched_root(model);
  for (size_t i = 0; i < root.paths().size(); ++i) {
    const StitchPath& path = root.paths()[i];
    EXPECT_EQ(model.sizes[i].name, path.name());
    const at::NoGradGuard no_grad;
    Context context;
    const auto part = [&](int64_t a) -> VisionTransformer& {
      return dynamic_cast<VisionTransformer&>(*anchors[static_cast<size_t>(a)].root);
    };
    at::Tensor y = part(path.from).embed(x, context);
    int64_t block = 0;
    if (!path.alone()) {
      for (int64_t k = 0; k <= path.out; ++k) {
        y = part(path.from).slot("blocks")->slots()[static_cast<size_t>(k)]->forward(y, context);
      }
      const Stitch& layer = root.stitch(path.stitch);
      y = at::linear(y, layer.weight, layer.bias);
      block = path.into;
    }
    for (; block < 3; ++block) {
      y = part(path.to).slot("blocks")->slots()[static_cast<size_t>(block)]->forward(y, context);
    }
    expect_near(run_size(model, x, static_cast<int64_t>(i)), part(path.to).classify(y, context),
                1e-5);
  }
}

TEST(Stitch, CostsOfPathsAreThoseMeteredAndOfTheGraph) {
  for (const std::vector<Model>& anchors : all_families()) {
    Model model = stitch(anchors);
    bundle::Builder builder;
    lower(model, builder);
    const auto info = bundle::check_graph(builder.graph(), "test");
    const auto sizes = bundle::graph_sizes(builder.graph(), info, "test");
    ASSERT_EQ(sizes.macs.size(), model.sizes.size());
    for (size_t i = 0; i < sizes.macs.size(); ++i) {
      Meter meter;
      run_size(model, random_input(model, 2, 1), static_cast<int64_t>(i), &meter);
      EXPECT_EQ(meter.macs(), 2 * model.sizes[i].macs) << model.sizes[i].name;
      EXPECT_EQ(sizes.macs[i], model.sizes[i].macs) << model.sizes[i].name;
    }
    EXPECT_EQ(info.total.params, model.cost().params);
    EXPECT_EQ(info.total.weight_bytes, model.cost().weight_bytes);
    EXPECT_EQ(model.sizes.front().name, "a0");
    EXPECT_EQ(model.sizes.back().macs, anchors.back().cost().macs);
  }
}

TEST(Stitch, TheMapOfABlockIsFittedToWhatTheNextBlockTakes) {
  // The second anchor is the first with neurons that say nothing: features are equal at every
  // depth. Then only where block out leads into block out + 1 is nothing left to fit.
  Model small = small_model("vit", 1, vit(6, 3)), large = clone(small);
  for (const SlotRef& ref : walk(*large.root, "blocks.*.ffn")) {
    auto& up = ref.slot->get()->slot("up").as<Linear>();
    auto& down = ref.slot->get()->slot("down").as<Linear>();
    auto more_up = std::make_shared<Linear>(6, 13), more_down = std::make_shared<Linear>(13, 6);
    const at::NoGradGuard no_grad;
    more_up->weight.narrow(0, 0, 10).copy_(up.weight);
    more_up->bias.narrow(0, 0, 10).copy_(up.bias);
    more_down->weight.zero_().narrow(1, 0, 10).copy_(down.weight);
    more_down->bias.copy_(down.bias);
    ref.slot->get()->slot("up").exchange(more_up);
    ref.slot->get()->slot("down").exchange(more_down);
  }
  Model model = stitch({small, large}, {.window = 2});
  const auto residuals = fit_stitches(model, calibrated(model), 1e-9);
  ASSERT_EQ(residuals.size(), 7u);
  EXPECT_LT(residuals.at("a0b0-a1b1"), 1e-6);
  EXPECT_LT(residuals.at("a0b1-a1b2"), 1e-6);
  for (const std::string name : {"a0b0-a1b0", "a0b1-a1b0", "a0b1-a1b1", "a0b2-a1b1", "a0b2-a1b2"}) {
    EXPECT_GT(residuals.at(name), 1e-3) << name;
  }
  // One that is shared is the mean of its positions' maps; one by itself is exact.
  Model alone = stitch({small, large}, {.window = 1});
  const auto own = fit_stitches(alone, calibrated(alone), 1e-9);
  EXPECT_EQ(own.size(), 3u);
  EXPECT_EQ(model.provenance.back().at("step"), "fit-stitches");
}

TEST(Stitch, ASharedStitchIsTheMeanOfItsPositions) {
  const std::vector<Model> anchors = {small_model("vit", 1, vit(6, 2)),
                                      small_model("vit", 2, vit(8, 2))};
  Model model = stitch(anchors);
  const PassInput input = calibrated(model);
  fit_stitches(model, input);
  const at::Tensor shared = stitched_root(model).stitch(0).weight.detach().clone();
  at::Tensor sum = at::zeros_like(shared);
  for (const StitchPosition& at : stitch_positions(2, 2, {})) {
    auto single = std::make_shared<StitchedModel>(
        std::vector<StitchPath>{{0, 1, at.out, at.into, 0}, {1, 1}});
    single->adopt("anchor0", clone(*anchors[0].root));
    single->adopt("anchor1", clone(*anchors[1].root));
    single->adopt("stitch0", std::make_shared<Stitch>(6, 8, false));
    Model one = clone(model);
    one.root = single;
    one.sizes.clear();
    fit_stitches(one, input);
    sum += single->stitch(0).weight.detach();
  }
  expect_near(shared, sum / 4, 1e-5);
}

TEST(Stitch, TrainsWhatIsOnThePathOnly) {
  Model model = stitch(transformers());
  const auto& paths = stitched_root(model).paths();
  const auto at = std::find(paths.begin(), paths.end(), StitchPath{0, 1, 1, 2, 1});
  ASSERT_NE(at, paths.end());
  Context context;
  context.size = at - paths.begin();
  model.forward(random_input(model, 2, 5), context).square().sum().backward();
  std::set<std::string> trained;
  for (const auto& item : model.root->named_parameters()) {
    if (item.value().grad().defined()) trained.insert(item.key());
  }
  for (const std::string name :
       {"anchor0.patches.weight", "anchor0.blocks.1.ffn.up.weight", "stitch1.weight",
        "stitch1.bias", "anchor1.blocks.2.attn.q.weight", "anchor1.head.weight"}) {
    EXPECT_TRUE(trained.contains(name)) << name;
  }
  for (const std::string name :
       {"anchor0.blocks.2.ffn.up.weight", "anchor0.head.weight", "anchor1.patches.weight",
        "anchor1.blocks.1.ffn.up.weight", "stitch0.weight", "anchor2.head.weight"}) {
    EXPECT_FALSE(trained.contains(name)) << name;
  }
}

TEST(Stitch, GradientsAreThoseOfFiniteDifferences) {
  for (const bool pixels : {false, true}) {
    Stitch layer(3, 2, pixels);
    layer.to(at::kDouble);
    const at::Tensor x =
        random_tensor(pixels ? at::IntArrayRef{2, 3, 2, 2} : at::IntArrayRef{2, 4, 3}, 1)
            .to(at::kDouble);
    const at::Tensor weights = random_tensor(run(layer, x).sizes(), 2).to(at::kDouble);
    const auto f = [&](const at::Tensor& at) { return run(layer, at); };
    expect_near(autograd_gradient(f, x, weights), numeric_gradient(f, x.clone(), weights), 1e-6);
  }
}

TEST(Stitch, ReloadsWithItsPaths) {
  const TempDirectory folder;
  for (const std::vector<Model>& anchors : all_families()) {
    Model model = stitch(anchors);
    model.sizes[1].quality["accuracy"] = 0.5;
    save_bundle(model, folder / "m.safetensors");
    Model loaded = load_model(folder / "m.safetensors");
    EXPECT_EQ(spec_of(*loaded.root), spec_of(*model.root));
    EXPECT_EQ(stitched_root(loaded).paths(), stitched_root(model).paths());
    ASSERT_EQ(loaded.sizes.size(), model.sizes.size());
    EXPECT_EQ(loaded.sizes[1].quality.at("accuracy"), 0.5);
    const at::Tensor x = random_input(model, 2, 7);
    for (size_t i = 0; i < model.sizes.size(); ++i) {
      const auto size = static_cast<int64_t>(i);
      EXPECT_TRUE(at::equal(run_size(loaded, x, size), run_size(model, x, size)));
    }
  }
}

TEST(Stitch, RefusesNetworksThatDoNotFit) {
  const std::vector<Model> three = transformers();
  expect_error(Code::usage, "at least two networks", [&] { stitch({three[0]}); });
  expect_error(Code::usage, "expected the order of their cost", [&] {
    stitch({three[1], three[0]});
  });
  expect_error(Code::unsupported, "anchor 0: a sequential without a chain of blocks", [&] {
    stitch({small_model("mlp", 1), three[2]});
  });
  // Patches of another size: other rows.
  Model rows = small_model("vit", 1, vit(24, 3, 9));
  Model cheap = small_model("vit", 1, vit(2, 3, 3));
  expect_error(Code::shape, "block 2 of anchor 0 gives 10 x 2", [&] { stitch({cheap, rows}); });
  Model stages = residual_networks()[1];
  Model longer = small_model("resnet", 4, {{"width", 8}, {"blocks", 3}, {"stages", 3}});
  expect_error(Code::shape, "anchor 0 has 2 stages, anchor 1 3", [&] { stitch({stages, longer}); });
  Model other = clone(three[1]);
  other.task.labels[0] = "something else";
  expect_error(Code::shape, "expected the same classes", [&] { stitch({three[0], other}); });
  other = clone(three[1]);
  other.task.mean += 1;
  expect_error(Code::shape, "another mean or deviation", [&] { stitch({three[0], other}); });
  std::vector<Model> texts = text_models("decoder");
  texts[1].tokenizer = "{}";
  expect_error(Code::shape, "have tokens of their own", [&] { stitch(texts); });
  expect_error(Code::shape, "anchor 0 gives", [&] {
    stitch({text_models("encoder")[0], text_models("decoder")[1]});
  });
  Model model = stitch(three);
  expect_error(Code::usage, "needs calibration data", [&] { fit_stitches(model, {}); });
  expect_error(Code::unsupported, "expected one that was stitched", [&] {
    Model plain = clone(three[0]);
    fit_stitches(plain, calibrated(plain));
  });
  expect_error(Code::usage, "the network has 17, from 0",
               [&] { run_size(model, random_input(model, 1, 1), 17); });
}

TEST(PassStitch, MakesOneNetworkOfFilesInTheOrderOfTheirCost) {
  const TempDirectory folder;
  const std::vector<Model> three = transformers();
  for (size_t i = 0; i < 3; ++i) save_bundle(three[i], folder / std::to_string(i));
  PassInput input = calibrated(three[1]);
  input.options = {{"with", {folder / "2", folder / "0"}}};
  const Model made = run_pass(three[1], "stitch", input);
  Model expected = stitch(three);
  fit_stitches(expected, calibrated(expected));
  ASSERT_EQ(made.sizes.size(), expected.sizes.size());
  Model there = clone(made);
  const at::Tensor x = random_input(there, 2, 7);
  for (size_t i = 0; i < made.sizes.size(); ++i) {
    EXPECT_EQ(made.sizes[i].name, expected.sizes[i].name);
    EXPECT_EQ(made.sizes[i].macs, expected.sizes[i].macs);
    const auto size = static_cast<int64_t>(i);
    EXPECT_TRUE(at::equal(run_size(there, x, size), run_size(expected, x, size)));
  }
  const Json report = made.provenance.back()["report"];
  EXPECT_EQ(report["anchors"], Json({folder / "0", "the network itself", folder / "2"}));
  EXPECT_EQ(report["sizes"], made.sizes.size());
  EXPECT_GT(report["layers"]["a0b0-a1b1"]["residual"].get<double>(), 0.0);

  const auto message = [&](Json options, Code code, const std::string& words) {
    PassInput other = calibrated(three[1]);
    other.options = std::move(options);
    expect_error(code, words, [&] { run_pass(three[1], "stitch", other); });
  };
  message(Json::object(), Code::usage, "with is missing");
  message({{"with", Json::array()}}, Code::usage, "expected one file or more");
  message({{"with", folder / "none"}}, Code::missing, "none");
  message({{"with", folder / "1"}}, Code::usage, "expected the order of their cost");
  message({{"with", folder / "2"}, {"window", 9}}, Code::config, "expected 1 to the 3 blocks");
  message({{"with", folder / "2"}, {"stride", 3}}, Code::config, "stride of stitches");
  message({{"with", folder / "2"}, {"ridge", -1}}, Code::config, "ridge");
  save_bundle(small_model("mlp", 1), folder / "mlp");
  message({{"with", folder / "mlp"}}, Code::unsupported, "anchor 0 is " + (folder / "mlp"));
  save_bundle(made, folder / "made");
  message({{"with", folder / "made"}}, Code::usage, "sizes already");
  save_bundle(small_model("vit", 1, vit(24, 3, 9)), folder / "rows");
  message({{"with", folder / "rows"}}, Code::shape, "block 2 of anchor 1 takes 2 x 24");
}

TEST(StitchedModel, RefusesDescriptionsThatAreNone) {
  const auto make = [](const Json& paths) {
    return make_brick({{"kind", "stitched"}, {"attributes", {{"paths", paths}}}});
  };
  expect_error(Code::config, "expected 5 numbers each", [&] { make({0, 0, -1}); });
  expect_error(Code::config, "expected 1 to", [&] { make(Json::array()); });
  expect_error(Code::config, "paths of stitched", [&] { make({1, 0, 0, 0, 0}); });  // backwards
  expect_error(Code::config, "paths of stitched", [&] { make({0, 1, -1, 0, 0}); });
  expect_error(Code::config, "anchor0: not there", [&] { make({0, 0, -1, -1, -1}); });
  Model model = stitch(transformers());
  Json spec = spec_of(*model.root);
  for (const auto& [column, what] : {std::pair(2, "out of"), std::pair(3, "into")}) {
    Json beyond = spec;  // a block that is not there
    Json& numbers = beyond["attributes"]["paths"];
    for (size_t i = 0; i < numbers.size(); i += 5) {
      if (numbers[i] == numbers[i + 1]) continue;
      numbers[i + static_cast<size_t>(column)] = 3;
      break;
    }
    expect_error(
        Code::config, "paths of stitched", [&] { make_brick(beyond); }, what);
  }
  spec["slots"].erase("stitch3");
  expect_error(Code::config, "stitch3: not there", [&] { make_brick(spec); });
  spec = spec_of(*model.root);
  spec["slots"]["stitch0"]["attributes"]["outputs"] = 9;
  expect_error(Code::shape, "changes the columns only",
               [&] { make_brick(spec)->output_shape(model.input_shape); });
}

#if SLUICE_HAS_ENGINE
TEST(EngineParity, HoldsForEveryPathOfAStitchedModel) {
  for (const std::vector<Model>& anchors : all_families()) {
    Model model = stitch(anchors);
    fit_stitches(model, calibrated(model));
    bundle::Builder builder;
    lower(model, builder);
    std::vector<std::byte> bytes = builder.bytes();
    const engine::Network network(bundle::Bundle::parse(bytes, "test", {}));
    engine::Session session(network, {.batch = 1, .threads = 1});
    const at::Tensor x = random_input(model, 1, 50);
    for (size_t i = 0; i < model.sizes.size(); ++i) {
      const auto size = static_cast<int64_t>(i);
      const at::Tensor expected = run_size(model, x, size);
      at::Tensor found = at::empty_like(expected);
      Meter meter;
      const at::Tensor floats = x.to(at::kFloat);  // ids, too
      session.reset();                             // of a decoder: a text of its own
      session.run({floats.data_ptr<float>(), static_cast<size_t>(floats.numel())},
                  {found.data_ptr<float>(), static_cast<size_t>(found.numel())},
                  {.meter = &meter, .size = size});
      EXPECT_LE(relative_error(found, expected), 1e-5) << model.sizes[i].name;
      EXPECT_EQ(meter.macs(), model.sizes[i].macs) << model.sizes[i].name;
    }
  }
}
#endif

}  // namespace stitch_test
}  // namespace sluice::lab
