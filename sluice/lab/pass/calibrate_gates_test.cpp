// calibrate-gates: prices that make gates spend a share of the dense cost, in the lab and in the
// engine.
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/bundle/size_choice.h"
#include "sluice/lab/brick/choice.h"
#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/brick/gated_conv.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/sized_linear.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/pass/pass.h"
#include "sluice/lab/pass/steps.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/network.h"
#endif

namespace sluice::lab {
namespace calibrate_gates_test {

using namespace testing;  // NOLINT: test helpers

/// Weights large enough that gates do not all say the same.
void spread(Model& model, const std::string& pattern, double bound) {
  for (const auto& item : model.root->named_parameters()) {
    if (!path_matches(pattern, item.key())) continue;
    at::Tensor values = item.value().detach();
    fill_uniform(values, bound, derive_seed(7, item.key()));
  }
}

Model plain_decoder() {
  Model model = make_model("decoder",
                           {{"layers", 2},
                            {"width", 12},
                            {"heads", 2},
                            {"ffn", 20},
                            {"vocab", 17},
                            {"context", 8},
                            {"gated", false},
                            {"activation", "gelu"},
                            {"init_std", 0.4}},
                           3);
  model.task.kind = "generate";
  model.root->eval();
  return model;
}

Model with_learners() {
  Model model = run_pass(plain_decoder(), "acmize", with({{"projections", true}, {"seed", 5}}));
  spread(model, "**.gate.score.**", 1.5);
  return model;
}

Model with_choices() {
  Model model = plain_decoder();
  for (const SlotRef& ref : walk(*model.root, "blocks.*.ffn")) {
    auto choice = std::make_shared<Choice>(2);
    choice->adopt("option0", ref.slot->get());
    choice->adopt("router", std::make_shared<Linear>(12, 2));
    choice->train(false);
    ref.slot->exchange(choice);
  }
  spread(model, "**.router.*", 1.0);
  return model;
}

Model with_filters() {
  auto chain = std::make_shared<GatedConvChain>();
  for (int i = 0; i < 3; ++i) {
    BrickPtr unit = make_gated_conv_unit(i == 0 ? 2 : 8, 8);
    if (i > 0) {
      unit->slot("gate").exchange(std::make_shared<Gate>(
          Json{{"score", {{"kind", "pooled_linear"}, {"inputs", 8}, {"units", 8}}},
               {"estimator", {{"kind", "none"}}}}));
    }
    chain->append(fmt::format("conv{}", i), unit);
  }
  auto root = std::make_shared<Sequential>();
  root->append("features", chain).append("pool", std::make_shared<Pool2d>("global_avg"));
  root->append("head", std::make_shared<Linear>(8, 4));
  randomize_norms(*root, 40);
  Model model;
  model.root = root;
  model.input_shape = {2, 8, 8};
  const data::ImageSet data = image_set({2, 8, 8});
  model.task = {"classify", data.name, data.labels, data.mean, data.std};
  model.root->eval();
  spread(model, "**.score.linear.*", 8.0);
  return model;
}

int64_t index_of(const Model& model, const std::string& name) {
  return bundle::find_size(model.sizes, name, "model");
}

TEST(SizedLinear, HasABiasForEachSize) {
  const auto plain = std::make_shared<Linear>(5, 3);
  const auto one = SizedLinear::of(*plain);
  const at::Tensor x = random_tensor({4, 5}, 1);
  EXPECT_TRUE(at::equal(run(*one, x), run(*plain, x)));
  const auto two = one->with_offsets({at::full({3}, 2.0), at::zeros({3})});
  EXPECT_EQ(two->sizes(), 2);
  expect_near(two->at_size(x, 0), run(*plain, x) + 2, 1e-6);
  EXPECT_TRUE(at::equal(two->at_size(x), run(*plain, x)));
  const auto back = two->with_offsets({at::zeros({3})});
  EXPECT_EQ(back->sizes(), 1);
  EXPECT_TRUE(at::equal(run(*back, x), run(*plain, x)));
  Context context;
  context.size = 2;
  expect_error(Code::usage, "size 2", [&] { two->forward(x, context); });
  expect_error(Code::config, "sizes of sized_linear", [&] { one->with_offsets({}); });
}

TEST(CalibrateGates, SizesSpendTheirSharesAndTheTrainedOneIsAsItWas) {
  for (const auto& [name, make] : std::map<std::string, Model (*)()>{
           {"learners", with_learners}, {"choices", with_choices}, {"filters", with_filters}}) {
    SCOPED_TRACE(name);
    Model before = make();
    const PassInput input = calibrated(before, {{"shares", {0.8, 0.9}}}, 64);
    Model model = run_pass(before, "calibrate-gates", input);
    ASSERT_EQ(model.sizes.size(), 4u);
    EXPECT_EQ(model.sizes.back().name, "dense");
    const at::Tensor x = random_input(model, 12, 3);
    Meter trained, as_before, dense;
    EXPECT_TRUE(at::equal(run_size(model, x, index_of(model, "trained"), &trained),
                          run_size(before, x, -1, &as_before)));
    EXPECT_EQ(trained.macs(), as_before.macs());
    run_size(model, x, -1, &dense);
    EXPECT_LT(trained.macs(), dense.macs());
    for (const char* size : {"gate80", "gate90"}) {
      const auto& quality = model.sizes[size_t(index_of(model, size))].quality;
      const double share = std::stod(std::string(size).substr(4)) / 100;
      // Chosen on one half of 64 samples, measured on the other.
      EXPECT_NEAR(quality.at("cost_share"), share, 0.12) << size;
    }
    EXPECT_LT(model.sizes[0].quality.at("cost_share"), model.sizes[1].quality.at("cost_share"));
    if (name == "learners") {
      Context context;
      context.gates_forced_open = true;
      const at::NoGradGuard no_grad;
      expect_near(run_size(model, x, -1), before.forward(x, context), 1e-5);
    }
    // Again, with other shares, and from a file.
    const TempDirectory folder;
    save_bundle(model, folder / "m.safetensors");
    Model loaded = load_model(folder / "m.safetensors");
    ASSERT_EQ(loaded.sizes.size(), 4u);
    expect_near(run_size(loaded, x, 0), run_size(model, x, 0), 1e-6);
    Model other = run_pass(loaded, "calibrate-gates", calibrated(before, {{"shares", {0.85}}}, 64));
    EXPECT_EQ(other.sizes.size(), 3u);
    expect_near(run_size(other, x, 1), run_size(before, x, -1), 1e-6);
#if SLUICE_HAS_ENGINE
    const engine::Network network = engine::Network::open(folder / "m.safetensors");
    engine::Session session(network, {.batch = 12, .threads = 1});
    const at::Tensor floats = x.to(at::kFloat).contiguous();
    for (int64_t size = 0; size < 4; ++size) {
      Meter counted, executed;
      const at::Tensor expected = run_size(model, x, size, &counted);
      std::vector<float> y(static_cast<size_t>(expected.numel()));
      session.reset();
      session.run({floats.data_ptr<float>(), static_cast<size_t>(floats.numel())}, y,
                  {.meter = &executed, .size = size});
      EXPECT_EQ(executed.macs(), counted.macs()) << size;
      expect_near(at::tensor(at::ArrayRef<float>(y)).view_as(expected), expected, 1e-4);
    }
#endif
  }
}

TEST(CalibrateGates, SaysWhatIsInTheWay) {
  const Model plain = plain_decoder();
  expect_error(Code::unsupported, "no gate",
               [&] { run_pass(plain, "calibrate-gates", calibrated(plain)); });
  const Model gated = with_choices();
  expect_error(Code::usage, "calibration", [&] { run_pass(gated, "calibrate-gates", {}); });
  for (const double share : {0.0, 1.0, -0.5, std::nan("")}) {
    expect_error(Code::config, "shares", [&] {
      run_pass(gated, "calibrate-gates", calibrated(gated, {{"shares", {share}}}));
    });
  }
  expect_error(Code::limit, "of the dense cost", [&] {
    run_pass(gated, "calibrate-gates", calibrated(gated, {{"shares", {0.01}}}, 16));
  });
  const Model nested = run_pass(plain, "nest", with({{"widths", {0.5, 1}}}));
  expect_error(Code::usage, "pick-size",
               [&] { run_pass(nested, "calibrate-gates", calibrated(nested)); });
}

}  // namespace calibrate_gates_test
}  // namespace sluice::lab
