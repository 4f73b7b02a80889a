// Activations that fade out, and folding what they leave behind.
#include "sluice/base/json.h"
#include "sluice/lab/brick/fading.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace fold_linear_test {

using namespace testing;  // NOLINT: test helpers

TEST(FadingActivation, GoesFromTheFunctionToTheIdentity) {
  FadingActivation fading;
  const at::Tensor x = torch::tensor({-2.0, -0.5, 0.0, 3.0}, at::kDouble);
  expect_near(run(fading, x), torch::tensor({0.0, 0.0, 0.0, 3.0}, at::kDouble), 0);
  fading.set_amount(0.25);
  expect_near(run(fading, x), torch::tensor({-0.5, -0.125, 0.0, 3.0}, at::kDouble), 1e-7);
  fading.set_amount(1);
  EXPECT_TRUE(fading.faded());
  EXPECT_TRUE(run(fading, x).equal(x));
  const auto f = [&](const at::Tensor& at) { return run(fading, at); };
  fading.set_amount(0.5);
  const at::Tensor weights = torch::ones({4}, at::kDouble);
  const at::Tensor point = torch::tensor({-2.0, -0.5, 0.7, 3.0}, at::kDouble);
  expect_near(autograd_gradient(f, point, weights), numeric_gradient(f, point, weights), 1e-6);
  for (const double amount : {-0.1, 1.1, std::nan("")}) {
    expect_error(Code::config, "amount of fading_activation", [&] { fading.set_amount(amount); });
  }
  expect_error(Code::config, "unknown", [] { FadingActivation("rel"); });
}

Conv2dOptions conv(int64_t inputs, int64_t outputs, int64_t kernel, int64_t stride = 1,
                   int64_t padding = 0, bool bias = true) {
  return {.inputs = inputs,
          .outputs = outputs,
          .kernel = kernel,
          .stride = stride,
          .padding = padding,
          .bias = bias};
}

struct Part {
  std::string name;
  BrickPtr brick;
};

Model model_of(std::vector<Part> parts, Shape input = {3, 7, 6}) {
  auto root = std::make_shared<Sequential>();
  for (Part& part : parts) root->append(part.name, std::move(part.brick));
  Model model;
  model.root = root;
  model.input_shape = std::move(input);
  randomize_norms(*model.root, 7);
  model.root->eval();
  return model;
}

std::shared_ptr<FadingActivation> faded(double amount = 1) {
  auto result = std::make_shared<FadingActivation>();
  result->set_amount(amount);
  return result;
}

BrickPtr conv_brick(const Conv2dOptions& options) { return std::make_shared<Conv2d>(options); }

Json report_of(const Model& model) { return model.provenance.back().at("report"); }

TEST(FoldLinear, KeepsTheFunctionOfWhatItFolds) {
  const std::vector<std::pair<std::string, Model>> cases = {
      {"k x k, then 1 x 1", model_of({{"a", conv_brick(conv(3, 6, 4, 2, 2))},
                                      {"fade", faded()},
                                      {"b", conv_brick(conv(6, 5, 1))}})},
      {"1 x 1, then k x k", model_of({{"a", conv_brick(conv(3, 6, 1))},
                                      {"fade", faded()},
                                      {"b", conv_brick(conv(6, 4, 3, 2, 0))}})},
      {"1 x 1 without bias, then padded", model_of({{"a", conv_brick(conv(3, 6, 1, 1, 0, false))},
                                                    {"b", conv_brick(conv(6, 4, 3, 1, 1))}})},
      {"three in a row", model_of({{"a", conv_brick(conv(3, 9, 1))},
                                   {"b", conv_brick(conv(9, 9, 1, 1, 0, false))},
                                   {"fade", faded()},
                                   {"c", conv_brick(conv(9, 4, 1))}})},
      {"linear", model_of({{"flat", std::make_shared<Flatten>()},
                           {"a", std::make_shared<Linear>(126, 30)},
                           {"fade", faded()},
                           {"b", std::make_shared<Linear>(30, 7, false)}})},
  };
  for (const auto& [name, model] : cases) {
    const Model folded = run_pass(model, "fold-linear", {});
    expect_equal_and_reloadable(model, folded, name);
    EXPECT_LT(folded.cost().macs, model.cost().macs) << name;
    int64_t layers = 0;
    for (const BrickRef& ref : all_bricks(folded))
      layers += ref.brick->kind() == "conv2d" || ref.brick->kind() == "linear";
    EXPECT_EQ(layers, 1) << name;
    EXPECT_TRUE(report_of(folded).at("left").empty()) << name;
  }
}

TEST(FoldLinear, LeavesWhatIsNotLinearOrGetsLarger) {
  const auto left = [](std::vector<Part> parts) {
    const Model model = model_of(std::move(parts));
    const Model same = run_pass(model, "fold-linear", {});
    expect_equal_and_reloadable(model, same, "left alone");
    EXPECT_EQ(same.cost().macs, model.cost().macs);
    const Json reasons = report_of(same).at("left");
    return reasons.empty() ? std::string() : reasons.begin().value().get<std::string>();
  };
  EXPECT_EQ(left({{"a", conv_brick(conv(3, 6, 1))},
                  {"fade", faded(0.5)},
                  {"b", conv_brick(conv(6, 5, 1))}}),
            "fade has faded by 0.5 only");
  EXPECT_EQ(left({{"a", conv_brick(conv(3, 6, 1))}, {"b", conv_brick(conv(6, 5, 3, 1, 1))}}),
            "the second one pads with zeros where the first one's bias would be");
  EXPECT_EQ(left({{"a", conv_brick(conv(3, 6, 3))}, {"b", conv_brick(conv(6, 5, 3))}}),
            "none of the two kernels is 1 x 1 with stride 1");
  EXPECT_EQ(left({{"a", conv_brick(conv(3, 1, 1))}, {"b", conv_brick(conv(1, 9, 1))}}),
            "one layer would have 27 weights, the two have 12");
  Conv2dOptions depthwise = conv(6, 6, 1);
  depthwise.groups = 6;
  EXPECT_EQ(left({{"a", conv_brick(conv(3, 6, 1))}, {"b", conv_brick(depthwise)}}),
            "it has groups");
  EXPECT_EQ(left({{"a", conv_brick(conv(3, 6, 1))},
                  {"relu", std::make_shared<Activation>("relu")},
                  {"b", conv_brick(conv(6, 5, 1))}}),
            "");
}

std::vector<Part> pair_with_norms(double amount) {
  return {{"a", conv_brick(conv(3, 6, 1, 1, 0, false))},
          {"norm", std::make_shared<BatchNorm>(6)},
          {"fade", faded(amount)},
          {"b", conv_brick(conv(6, 5, 1, 1, 0, false))},
          {"norm2", std::make_shared<BatchNorm>(5)}};
}

TEST(FoldLinear, ComesAfterTheNorms) {
  const Model model = model_of(pair_with_norms(1));
  const Model early = run_pass(model, "fold-linear", {});
  EXPECT_EQ(report_of(early).at("left").at("a"), "norm is a batch norm; run fold-norm first");
  const Model folded = run_pass(run_pass(model, "fold-norm", {}), "fold-linear", {});
  expect_equal_and_reloadable(model, folded, "norms first");
  EXPECT_EQ(report_of(folded).at("folded"), Json::array({"b"}));
  EXPECT_EQ(report_of(folded).at("activations"), Json::array({"fade"}));
  EXPECT_EQ(folded.cost().macs, 3 * 5 * 42);
}

TEST(FoldLinear, TheCheckOfEqualOutputsIsReal) {
  const Model model = run_pass(model_of(pair_with_norms(0.5)), "fold-norm", {});
  expect_error(Code::internal, "outputs differ by", [&] {
    run_pass(model, "fold-linear", with({{"fading", "any"}}));
  });
  expect_error(Code::config, "expected 'faded' or 'any'", [&] {
    run_pass(model, "fold-linear", with({{"fading", "all"}}));
  });
  expect_error(Code::usage, "no slot matches", [&] {
    run_pass(model, "fold-linear", with({{"slots", "nowhere"}}));
  });
}

#if SLUICE_HAS_ENGINE
TEST(FoldLinear, TheEngineAgreesAtEveryAmount) {
  for (const double amount : {0.0, 0.5, 1.0}) {
    Model model = model_of(pair_with_norms(amount));
    const at::Tensor x = random_input(model, 3, 5);
    EXPECT_LE(engine_error(model, x), kEqual) << amount;
    Model loaded = clone(model);
    EXPECT_TRUE(run(loaded, x).equal(run(model, x))) << "the amount travels with the weights";
  }
  Model gelu = model_of({{"gelu", std::make_shared<FadingActivation>("gelu")}});
  EXPECT_EQ(set_fade(*gelu.root, 0.5), 1);
  expect_error(Code::unsupported, "gelu that has faded by 0.5", [&] {
    bundle::Builder builder;
    lower(gelu, builder);
  });
}
#endif

}  // namespace fold_linear_test
}  // namespace sluice::lab
