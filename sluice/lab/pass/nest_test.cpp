// nest, pick-size, and what they leave behind for training, files and the engine.
#include "sluice/base/json.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/pass/subnet.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/network.h"
#endif

namespace sluice::lab {
namespace nest_test {

using namespace testing;  // NOLINT: test helpers
using ::testing::ElementsAre;

const Json kResnet = {{"widths", {4, 8, 8}}, {"blocks", 2}};

Model even_model(const std::string& name) {
  if (name == "resnet") return small_model("resnet", 3, kResnet);
  if (name == "mlp") return small_model("mlp", 3, {{"hidden", {12, 8}}});
  return small_model("convnet", 3, {{"widths", {4, 8}}, {"hidden", 12}});
}

Model text_model(const std::string& name, bool gated) {
  Model model = make_model(name,
                           {{"vocab", 50},
                            {"layers", 2},
                            {"width", 16},
                            {"heads", 2},
                            {"ffn", 24},
                            {"context", 12},
                            {"gated", gated}},
                           5);
  model.root->eval();
  return model;
}

/// Every size has statistics and thus outputs of its own.
void randomize_statistics(Model& model, uint64_t seed) {
  const at::NoGradGuard no_grad;
  for (const BrickRef& ref : all_bricks(model)) {
    auto* conv = dynamic_cast<NestedConv2d*>(ref.brick.get());
    if (conv == nullptr || !conv->norm().present) continue;
    conv->running_mean.copy_(random_tensor(conv->running_mean.sizes(), ++seed) * 0.3);
    conv->running_var.copy_(random_tensor(conv->running_var.sizes(), ++seed).abs() + 0.5);
  }
}

struct Case {
  std::string name;
  Json options;
};

std::vector<std::pair<Model, Case>> cases() {
  std::vector<std::pair<Model, Case>> result;
  const Json widths = {0.25, 0.5, 1};
  for (const std::string name : {"resnet", "mlp", "convnet"}) {
    for (const std::string scope : {"hidden", "all"}) {
      for (const std::string order : {"magnitude", "none"}) {
        result.emplace_back(even_model(name),
                            Case{name + " " + scope + " " + order,
                                 {{"widths", widths}, {"scope", scope}, {"order", order}}});
      }
    }
  }
  for (const std::string scope : {"hidden", "all"}) {
    result.emplace_back(even_model("resnet"),
                        Case{"resnet depths " + scope,
                             {{"widths", widths}, {"scope", scope}, {"depths", {1, 3, 4, 6}}}});
  }
  for (const bool gated : {true, false}) {
    for (const std::string name : {"decoder", "encoder"}) {
      result.emplace_back(text_model(name, gated), Case{name, {{"widths", widths}}});
      result.emplace_back(text_model(name, gated), Case{name + " depths and widths",
                                                        {{"widths", widths}, {"depths", {1, 2}}}});
      result.emplace_back(text_model(name, gated),
                          Case{name + " depths", {{"widths", {1}}, {"depths", {1, 2}}}});
    }
  }
  return result;
}

TEST(Nest, KeepsTheFunctionOfTheWholeNetwork) {
  for (auto& [model, each] : cases()) {
    const Model nested = run_pass(model, "nest", with(each.options));
    expect_equal_and_reloadable(model, nested, each.name);
    EXPECT_EQ(nested.cost().macs, model.cost().macs) << each.name;
    ASSERT_FALSE(nested.sizes.empty());
    for (size_t i = 1; i < nested.sizes.size(); ++i) {
      EXPECT_GE(nested.sizes[i].macs, nested.sizes[i - 1].macs) << each.name;
    }
    EXPECT_LT(nested.sizes.front().macs, nested.sizes.back().macs) << each.name;
  }
}

TEST(Nest, EachSizeIsAnOrdinaryNetworkByItself) {
  for (auto& [model, each] : cases()) {
    Model nested = run_pass(model, "nest", with(each.options));
    randomize_statistics(nested, 50);
    const at::Tensor x = random_input(nested, 3, 8);
    std::vector<at::Tensor> outputs;
    for (size_t i = 0; i < nested.sizes.size(); ++i) {
      const auto& entry = nested.sizes[i];
      Meter meter;
      const at::Tensor found = run_size(nested, x, int64_t(i), &meter);
      Model alone = run_pass(nested, "pick-size", with({{"size", entry.name}}));
      EXPECT_LE(relative_error(run(alone, x), found), kEqual) << each.name << " " << entry.name;
      Meter other;
      Context context;
      context.meter = &other;
      const at::NoGradGuard no_grad;
      alone.forward(x, context);
      EXPECT_EQ(meter.macs(), other.macs()) << each.name << " " << entry.name;
      for (const BrickRef& ref : all_bricks(alone)) {
        EXPECT_FALSE(ref.brick->kind().starts_with("nested_")) << ref.path;
      }
      for (const at::Tensor& earlier : outputs) {
        EXPECT_GT(relative_error(found, earlier), 5 * kEqual) << each.name << " " << entry.name;
      }
      outputs.push_back(found);
    }
  }
}

#if SLUICE_HAS_ENGINE
TEST(Nest, TheEngineRunsEverySizeOfTheFileAtTheMeteredCost) {
  for (auto& [model, each] : cases()) {
    Model nested = run_pass(model, "nest", with(each.options));
    randomize_statistics(nested, 60);
    for (auto& entry : nested.sizes) entry.quality["accuracy"] = 0.5;
    const TempDirectory folder;
    save_bundle(nested, folder / "nested.safetensors");
    const auto network = engine::Network::open(folder / "nested.safetensors");
    const auto& table = network.bundle().sizes();
    ASSERT_EQ(table.size(), nested.sizes.size()) << each.name;
    const at::Tensor x = random_input(nested, 2, 8).to(at::kFloat).contiguous();
    engine::Session session(network, {.batch = 2, .threads = 1});
    EXPECT_EQ(session.sizes(), int64_t(table.size()));
    for (size_t i = 0; i < table.size(); ++i) {
      Meter lab_meter, engine_meter;
      const at::Tensor expected =
          run_size(nested, x, int64_t(i), &lab_meter).to(at::kFloat).contiguous();
      at::Tensor found = at::empty_like(expected);
      session.reset();
      session.run({x.data_ptr<float>(), size_t(x.numel())},
                  {found.data_ptr<float>(), size_t(found.numel())},
                  {.meter = &engine_meter, .size = int64_t(i)});
      EXPECT_LE(relative_error(found, expected), kEqual) << each.name << " " << table[i].name;
      EXPECT_EQ(table[i].name, nested.sizes[i].name);
      EXPECT_EQ(table[i].quality.at("accuracy"), 0.5);
      EXPECT_EQ(table[i].macs, nested.sizes[i].macs) << each.name << " " << table[i].name;
      EXPECT_EQ(lab_meter.macs(), 2 * table[i].macs) << each.name << " " << table[i].name;
      EXPECT_EQ(engine_meter.macs(), 2 * table[i].macs) << each.name << " " << table[i].name;
    }
  }
}
#endif

TEST(Nest, PutsTheMostImportantUnitsFirst) {
  Model model = even_model("mlp");
  Model nested = run_pass(model, "nest", with({{"widths", {0.5, 1}}}));
  const at::Tensor norms = nested.root->slot("fc1").as<NestedLinear>().weight.detach().abs().sum(1);
  for (int64_t i = 1; i < norms.numel(); ++i) {
    EXPECT_LE(norms[i].item<float>(), norms[i - 1].item<float>());
  }
  // By what calibration inputs make of them: another order, the same function.
  const Model by_data =
      run_pass(model, "nest", calibrated(model, {{"widths", {0.5, 1}}, {"order", "activation"}}));
  expect_equal_and_reloadable(model, by_data, "activation");
  EXPECT_FALSE(nested.root->slot("fc1").as<NestedLinear>().weight.equal(
      by_data.root->slot("fc1").as<NestedLinear>().weight));
  expect_error(Code::usage, "needs calibration data", [&] {
    run_pass(model, "nest", with({{"order", "activation"}}));
  });
}

TEST(Nest, LeavesOtherLayersAloneWhenAskedTo) {
  const Model model = even_model("resnet");
  const Model nested =
      run_pass(model, "nest", with({{"widths", {0.5, 1}}, {"slots", "stage1.block0"}}));
  const auto& block = *nested.root->slot("stage1")->slot("block0");
  EXPECT_TRUE(block.slot("conv1").as<NestedConv2d>().elastic());
  EXPECT_THAT(block.slot("conv2").as<NestedConv2d>().sizes().columns, ElementsAre(4, 8));
  EXPECT_FALSE(
      nested.root->slot("stage0")->slot("block0")->slot("conv1").as<NestedConv2d>().elastic());
}

TEST(Nest, SaysWhatItCannotNest) {
  const auto expect = [](Code code, const char* words, const Model& model, Json options) {
    expect_error(code, words, [&] { run_pass(model, "nest", with(options)); });
  };
  const Model resnet = even_model("resnet");
  expect(Code::config, "pass nest: widths: expected 1 to 26 ascending", resnet,
         {{"widths", {0.5, 0.25, 1}}});
  expect(Code::shape, "a width of 0.3 of 4 units is 1.2, which cuts", resnet,
         {{"widths", {0.3, 1}}});
  expect(Code::shape, "cuts a group of 4", resnet, {{"widths", {0.5, 1}}, {"multiple", 4}});
  expect(Code::shape, "depths: the last is 5; expected all 6 blocks", resnet, {{"depths", {2, 5}}});
  expect(Code::config, "unknown 'al', did you mean 'all'", resnet, {{"scope", "al"}});
  expect(Code::config, "unknown", resnet, {{"width", 0.5}});
  expect(Code::usage, "no hidden channels or neurons under 'stem'", resnet, {{"slots", "stem"}});
  expect(Code::usage, "scope=all every layer takes part", resnet,
         {{"slots", "stem"}, {"scope", "all"}});
  expect(Code::shape, "depths: the last is 3; expected all 2 blocks", text_model("decoder", true),
         {{"depths", {1, 3}}});
  expect(Code::unsupported, "knobs of blocks: expected a transformer", resnet,
         {{"knobs", "blocks"}});
  expect(Code::usage, "graded mixtures: expected several knobs", resnet, {{"mixtures", "graded"}});
  expect(Code::unsupported, "depths: expected residual blocks", even_model("mlp"),
         {{"depths", {1, 2}}});
  expect(Code::unsupported, "networks of pictures", text_model("decoder", true),
         {{"scope", "all"}});
  Model gated = even_model("resnet");
  gated = run_pass(gated, "insert-gates", {});
  expect(Code::state, "run freeze-gates and slice-channels first", gated, Json::object());
  const Model nested = run_pass(resnet, "nest", {});
  expect(Code::state, "nested already", nested, Json::object());
  expect_error(Code::usage, "no size 'w60'", [&] {
    run_pass(nested, "pick-size", with({{"size", "w60"}}));
  });
}

TEST(SetSizes, MakesOtherSizesOfTheSameWeights) {
  Model model = run_pass(text_model("decoder", true), "nest", with({{"widths", {0.25, 1}}}));
  const at::Tensor x = random_input(model, 2, 4);
  const at::Tensor whole = run_size(model, x, -1);
  SubnetSpace mixed;
  mixed.widths = {0.25, 0.5, 1};
  mixed.knobs = {"blocks.0.**", "blocks.1.**"};
  set_sizes(model, mixed, mixed.all());
  ASSERT_EQ(model.sizes.size(), 9u);
  EXPECT_EQ(model.sizes.back().name, "mcc");
  expect_near(run_size(model, x, -1), whole);
  const auto& up = model.root->slot("blocks")->slot("0")->slot("ffn")->slot("up");
  const auto rows = up.as<NestedLinear>().sizes().rows;
  for (size_t i = 0; i < model.sizes.size(); ++i) {
    EXPECT_EQ(rows[i], std::vector<int64_t>({6, 12, 24})[size_t(model.sizes[i].name[1] - 'a')]);
  }
  expect_error(Code::usage, "the whole network, 'mcc', must be one of them", [&] {
    set_sizes(model, mixed, {Subnet{{0, 1}, 0}});
  });
  expect_error(Code::usage, "is there twice", [&] {
    set_sizes(model, mixed, {mixed.full(), mixed.full()});
  });
  Model plain = text_model("decoder", true);
  expect_error(Code::unsupported, "no nested layer",
               [&] { set_sizes(plain, mixed, {mixed.full()}); });
}

TEST(ReestimateNorm, MeasuresEverySizeByItself) {
  Model nested =
      run_pass(even_model("resnet"), "nest", with({{"widths", {0.5, 1}}, {"scope", "all"}}));
  randomize_statistics(nested, 70);
  const PassInput input = calibrated(nested, Json::object(), 64);
  const Model measured = run_pass(nested, "reestimate-norm", input);
  // The statistics of a size are those that its own ordinary network has on the same data.
  for (const std::string name : {"w50", "w100"}) {
    Model once = run_pass(measured, "pick-size", with({{"size", name}}));
    const at::NoGradGuard no_grad;
    const at::Tensor stem = once.root->slot("stem")->slot("conv")->named_parameters()["weight"];
    const at::Tensor y = at::conv2d(input.calibration.narrow(0, 0, 64), stem,
                                    once.root->slot("stem")->slot("conv").as<Conv2d>().bias, 2, 1);
    // Folded into the convolution: normal before scale and shift.
    const auto& conv = measured.root->slot("stem")->slot("conv").as<NestedConv2d>();
    const int64_t rows = stem.size(0);
    expect_near(y.mean({0, 2, 3}), conv.norm_bias.detach().narrow(0, 0, rows), 1e-3);
    expect_near(y.std({0, 2, 3}, true), conv.norm_weight.detach().abs().narrow(0, 0, rows), 2e-2);
  }
}

TEST(LoadModel, RefusesSizesThatLie) {
  Model nested = run_pass(even_model("mlp"), "nest", with({{"widths", {0.25, 0.5, 1}}}));
  bundle::Builder builder;
  lower(nested, builder);
  const auto reload = [&](auto change) {
    Json description = Json::parse(bundle::Bundle::parse(builder.bytes(), "x", {}).model_json());
    change(description["brick"]["slots"]);
    bundle::Builder copy = builder;
    copy.set_model_json(description.dump());
    load_model(bundle::Bundle::parse(copy.bytes(), "x", {}));
  };
  reload([](Json&) {});
  expect_error(Code::format, "'rows' of the model description and of the graph differ",
               [&] { reload([](Json& slots) { slots["fc1"]["attributes"]["rows"][0] = 4; }); });
  expect_error(Code::format, "fc2: 2 sizes; the table of sizes has 3", [&] {
    reload([](Json& slots) {
      slots["fc2"]["attributes"]["sizes"] = 2;
      slots["fc2"]["attributes"]["rows"] = {2, 8};
      slots["fc2"]["attributes"]["columns"] = {3, 12};
    });
  });
  nested.sizes.pop_back();
  bundle::Builder without;
  lower(nested, without);
  expect_error(Code::shape, "2 entries; the graph has 3 sizes", [&] { without.bytes(); });
}

}  // namespace nest_test
}  // namespace sluice::lab
