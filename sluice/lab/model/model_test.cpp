#include "sluice/lab/model/model.h"

#include "sluice/base/file.h"
#include "sluice/base/temp_directory.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace model_test {

using namespace testing;  // NOLINT: test helpers

void expect_same_state(const Model& a, const Model& b) {
  const auto x = named_state(*a.root), y = named_state(*b.root);
  ASSERT_EQ(x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(x[i].first, y[i].first);
    EXPECT_TRUE(at::equal(x[i].second, y[i].second)) << x[i].first;
  }
}

// A network with every kind of gate in it.
Model gated_resnet(uint64_t seed) {
  Model model = small_model("resnet", seed);
  PassInput input;
  input.options = {{"granularity", "channel"}, {"slots", "stage1.**"}, {"bias", 0.0}};
  insert_gates(model, input);
  input.options = {{"granularity", "block"}, {"slots", "stage0.block0"}, {"bias", 0.1}};
  insert_gates(model, input);
  auto& block = model.root->slot("stage0")->slot("block1").as<ResidualBlock>();
  block.slot("channel_gate")
      .exchange(std::make_shared<ConstantMask>(torch::tensor({1.f, 0.f, 1.f, 0.f, 1.f})));
  block.slot("block_gate").exchange(std::make_shared<ConstantMask>(1));
  model.root->eval();
  return model;
}

TEST(MakeModel, SeedAloneFixesTheWeights) {
  torch::manual_seed(1);
  const Model a = small_model("resnet", 5);
  torch::manual_seed(2);
  const at::Tensor expected = torch::rand({2});
  torch::manual_seed(2);
  const Model b = small_model("resnet", 5);
  EXPECT_TRUE(at::equal(torch::rand({2}), expected)) << "drew from the default generator";
  expect_same_state(a, b);
  const Model c = small_model("resnet", 6);
  EXPECT_FALSE(
      at::equal(a.root->slot("fc").as<Linear>().weight, c.root->slot("fc").as<Linear>().weight));
}

TEST(MakeModel, InitialWeightsHaveTheirSchemesSpread) {
  const auto set = image_set({3, 16, 16}, 10);
  Model resnet = make_model("resnet", {{"width", 64}, {"blocks", 1}}, set, 1);
  const at::Tensor conv =
      resnet.root->slot("stage1")->slot("block0")->slot("conv2").as<Conv2d>().weight;
  EXPECT_NEAR(conv.std().item<double>(), std::sqrt(2.0 / (128 * 9)), 0.001);
  Model mlp = make_model("mlp", {}, set, 1);
  const auto& fc1 = mlp.root->slot("fc1").as<Linear>();
  EXPECT_NEAR(fc1.weight.std().item<double>(), std::sqrt(2.0 / (768 + 300)), 0.001);
  EXPECT_EQ(fc1.bias.abs().sum().item<double>(), 0);
  Model uniform = make_model("mlp", {{"init", "uniform"}}, set, 1);
  EXPECT_LE(uniform.root->slot("fc1").as<Linear>().weight.abs().max().item<double>(),
            1 / std::sqrt(768.0));
  EXPECT_GT(uniform.root->slot("fc1").as<Linear>().bias.abs().sum().item<double>(), 0);
}

TEST(MakeModel, BuildsTheAskedSizes) {
  const auto set = image_set({1, 28, 28}, 10);
  const Model resnet = make_model("resnet", {}, set, 1);
  EXPECT_EQ(resnet.root->output_shape(resnet.input_shape), Shape{10});
  EXPECT_EQ(walk(*resnet.root, "stage*.block*").size(), 6u);
  const Model mlp = make_model("mlp", {}, set, 1);
  EXPECT_EQ(mlp.cost().macs, 784 * 300 + 300 * 100 + 100 * 10);
  EXPECT_EQ(mlp.cost().params, 266610);
  const Model convnet = make_model("convnet", {}, set, 1);
  EXPECT_EQ(convnet.root->output_shape(convnet.input_shape), Shape{10});
  EXPECT_EQ(mlp.task.labels.size(), 10u);
  EXPECT_EQ(mlp.provenance.at(0).at("model"), "mlp");
}

TEST(MakeModel, RefusesUnknownNamesOptionsAndSizes) {
  const auto set = image_set();
  expect_error(Code::config, "did you mean 'resnet'", [&] { make_model("resnt", {}, set, 1); });
  expect_error(Code::config, "widht", [&] { make_model("resnet", {{"widht", 3}}, set, 1); });
  expect_error(Code::config, "width of resnet", [&] {
    make_model("resnet", {{"width", 0}}, set, 1);
  });
  expect_error(Code::config, "hidden of mlp", [&] {
    make_model("mlp", {{"hidden", {3, -1}}}, set, 1);
  });
  expect_error(Code::config, "init 'xavier'", [&] {
    make_model("mlp", {{"init", "xavier"}}, set, 1);
  });
  expect_error(Code::shape, "does not fit", [&] {
    make_model("convnet", {{"widths", {2, 2, 2, 2, 2}}}, set, 1);
  });
}

TEST(Bundle, RoundTripKeepsBricksStateTaskAndProvenance) {
  const TempDirectory folder;
  std::vector<Model> models = {gated_resnet(1), small_model("mlp", 2), small_model("convnet", 3)};
  models[2].root->set_channel_mask(models[2].root->channel_groups().at(0),
                                   torch::tensor({1.f, 0.f, 1.f, 1.f, 0.f}));
  for (Model& model : models) {
    model.add_step({{"step", "test"}, {"value", 0.1}});
    const std::string path = folder / "model.safetensors";
    save_bundle(model, path);
    Model loaded = load_model(path);
    loaded.root->eval();
    EXPECT_EQ(spec_of(*loaded.root), spec_of(*model.root));
    expect_same_state(loaded, model);
    EXPECT_EQ(loaded.input_shape, model.input_shape);
    EXPECT_EQ(loaded.provenance, model.provenance);
    EXPECT_EQ(loaded.task.labels, model.task.labels);
    EXPECT_EQ(loaded.task.mean, model.task.mean);
    const at::Tensor x = random_input(model, 3, 7);
    EXPECT_TRUE(at::equal(run(loaded, x), run(model, x)));
  }
}

TEST(Bundle, GraphAndBricksAgreeOnCost) {
  for (Model model : {small_model("resnet", 1), small_model("mlp", 1), small_model("convnet", 1)}) {
    bundle::Builder builder;
    lower(model, builder);
    const auto info = bundle::check_graph(builder.graph(), "test");
    EXPECT_EQ(info.total.macs, model.cost().macs);
    EXPECT_EQ(info.total.params, model.cost().params);
    EXPECT_EQ(info.total.weight_bytes, model.cost().weight_bytes);
  }
}

TEST(Bundle, KeepsDoublesAsFloats) {
  const TempDirectory folder;
  Model model = small_model("mlp", 2);
  model.root->to(at::kDouble);
  save_bundle(model, folder / "m.safetensors");
  Model loaded = load_model(folder / "m.safetensors");
  EXPECT_EQ(loaded.root->slot("fc1").as<Linear>().weight.scalar_type(), at::kFloat);
}

bundle::Bundle parsed(const bundle::Builder& builder, std::vector<std::byte>& bytes) {
  bytes = builder.bytes();
  return bundle::Bundle::parse(bytes, "test", {});
}

TEST(LoadModel, RefusesWhatDoesNotFitTogether) {
  const Model model = small_model("mlp", 2);
  std::vector<std::byte> bytes;
  const auto with = [&](const std::function<void(bundle::Builder&)>& change) {
    bundle::Builder builder;
    lower(model, builder);
    change(builder);
    load_model(parsed(builder, bytes));
  };
  EXPECT_NO_THROW(with([](bundle::Builder&) {}));
  expect_error(Code::unsupported, "no bricks",
               [&] { with([](bundle::Builder& b) { b.set_model_json(""); }); });
  expect_error(Code::format, "'stray'", [&] {
    with([](bundle::Builder& b) { b.tensor("stray", {1}, std::vector<float>{1}); });
  });
  Json description = {{"brick", spec_of(*model.root)}, {"input_shape", model.input_shape}};
  Json wider = description;
  wider["brick"]["slots"]["fc1"]["attributes"]["outputs"] = 12;
  expect_error(Code::shape, "sluice.model: fc2 / linear: expected [.., 12]", [&] {
    wider["brick"]["slots"]["fc2"]["attributes"]["inputs"] = 12;
    Json broken = wider;
    broken["brick"]["slots"]["fc1"]["attributes"]["outputs"] = 13;
    with([&](bundle::Builder& b) { b.set_model_json(broken.dump()); });
  });
  expect_error(Code::shape, "tensor 'fc1.weight'",
               [&] { with([&](bundle::Builder& b) { b.set_model_json(wider.dump()); }); });
  Json more = description;
  more["brick"]["slots"]["extra"] = spec_of(Linear(4, 4));
  expect_error(Code::missing, "extra.weight",
               [&] { with([&](bundle::Builder& b) { b.set_model_json(more.dump()); }); });
  Json huge = description;
  huge["brick"]["slots"]["fc1"]["attributes"]["outputs"] = 1'000'000'000'000;
  expect_error(Code::config, "model.slots.fc1.attributes.outputs",
               [&] { with([&](bundle::Builder& b) { b.set_model_json(huge.dump()); }); });
  Json many = description;
  many["brick"]["slots"]["norm"] = {{"kind", "batch_norm"},
                                    {"attributes", {{"channels", 900'000}}}};
  expect_error(Code::limit, "model.slots.norm: up to here",
               [&] { with([&](bundle::Builder& b) { b.set_model_json(many.dump()); }); });
  for (const Shape& shape : {Shape{}, Shape{0}, Shape{-1}, Shape(9, 1), Shape{1L << 62, 8}}) {
    Json odd = description;
    odd["input_shape"] = shape;
    expect_error(Code::limit, "input_shape",
                 [&] { with([&](bundle::Builder& b) { b.set_model_json(odd.dump()); }); });
  }
  expect_error(Code::config, "input_shape",
               [&] { with([](bundle::Builder& b) { b.set_model_json("{}"); }); });
  expect_error(Code::format, "not valid JSON",
               [&] { with([](bundle::Builder& b) { b.set_model_json("{"); }); });
}

TEST(LoadModel, RefusesMasksThatAreNone) {
  Model model = small_model("mlp", 2);
  model.root->set_channel_mask(model.root->channel_groups().at(0), at::ones({11}));
  const at::NoGradGuard no_grad;
  model.root->slot("fc2_mask").as<ChannelMask>().mask[3] = 0.5;
  bundle::Builder builder;
  lower(model, builder);
  std::vector<std::byte> bytes;
  expect_error(Code::numeric, "fc2_mask: values other than 0 and 1",
               [&] { load_model(parsed(builder, bytes)); });
}

TEST(LoadState, ChecksEverythingBeforeChangingAnything) {
  Model model = small_model("mlp", 2);
  std::map<std::string, at::Tensor> state;
  for (const auto& [path, tensor] : named_state(*model.root)) {
    state[path] = at::zeros_like(tensor, at::kDouble);
  }
  auto broken = state;
  broken["fc3.weight"] = at::zeros({1});
  expect_error(Code::shape, "'fc3.weight': expected 4 x 7",
               [&] { load_state(*model.root, broken); });
  broken.erase("fc3.weight");
  broken["fc3.weigth"] = at::zeros({1});
  expect_error(Code::missing, "no value for 'fc3.weight' among 6 tensors",
               [&] { load_state(*model.root, broken); });
  EXPECT_GT(model.root->slot("fc1").as<Linear>().weight.abs().sum().item<double>(), 0);
  load_state(*model.root, state);
  EXPECT_EQ(model.root->slot("fc1").as<Linear>().weight.abs().sum().item<double>(), 0);
}

#if SLUICE_HAS_ENGINE
TEST(EngineParity, HoldsForRandomNetworksAndAfterEveryFunctionKeepingPass) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    std::vector<Model> models = {small_model("resnet", seed), gated_resnet(seed),
                                 small_model("mlp", seed), small_model("convnet", seed)};
    for (size_t i = 0; i < models.size(); ++i) {
      Model model = models[i];
      if (i != 1) {
        PassInput input;
        input.options = {{"granularity", "channel"}, {"rate", 0.4}};
        model = run_pass(model, "prune", input);
      }
      const at::Tensor x = random_input(model, 5, seed + 50);
      EXPECT_LE(engine_error(models[i], x), 1e-5) << seed << " " << i;
      EXPECT_LE(engine_error(model, x), 1e-5) << seed << " " << i << " masked";
      for (const PassEntry* pass : all_passes()) {
        // The stream of these networks is not a decoder's; nest and add-lora take no masks (their
        // tests).
        const std::string& name = pass->info.name;
        if (!pass->info.keeps_function || name == "rotate-residual" || name == "nest" ||
            name == "add-exits" || name == "add-lora" || name.starts_with("test-"))
          continue;
        Model after = run_pass(model, pass->info.name, {});
        EXPECT_LE(engine_error(after, x), 1e-5) << seed << " " << i << " " << pass->info.name;
      }
    }
  }
}
#endif

}  // namespace model_test
}  // namespace sluice::lab
