#include "sluice/lab/brick/choice.h"

#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace choice_test {

using namespace testing;  // NOLINT: test helpers

void randomize(Brick& brick, uint64_t seed) {
  const at::NoGradGuard no_grad;
  for (at::Tensor p : brick.parameters()) p.copy_(random_tensor(p.sizes(), ++seed) * 0.5);
}

/// Big, small and, as the last of three, nothing.
std::shared_ptr<Choice> choice(int64_t width, int64_t options = 3, bool routed = true) {
  auto brick = std::make_shared<Choice>(options);
  brick->option(0).exchange(make_ffn(width, 16, "silu", true, false));
  brick->option(1).exchange(make_ffn(width, 3, "silu", true, false));
  if (routed) brick->router().exchange(std::make_shared<Linear>(width, options));
  randomize(*brick, 7);
  brick->eval();
  return brick;
}

at::Tensor by_hand(Choice& brick, const at::Tensor& x, const at::Tensor& chosen) {
  Context context;
  at::Tensor y = at::zeros_like(x);
  for (int64_t i = 0; i < brick.options(); ++i) {
    y = y + brick.run_option(i, x, context) * (chosen == i).unsqueeze(-1).to(x.scalar_type());
  }
  return y;
}

TEST(Choice, EachRowGoesThroughTheOptionOfItsLargestLogit) {
  const auto brick = choice(6);
  const at::Tensor x = random_tensor({4, 9, 6}, 3);
  const auto& router = brick->router().as<Linear>();
  const at::Tensor logits = at::linear(x, router.weight, router.bias);
  const at::Tensor chosen = logits.argmax(-1);
  for (int64_t i = 0; i < 3; ++i) EXPECT_GT((chosen == i).sum().item<int64_t>(), 0);
  expect_near(run(*brick, x), by_hand(*brick, x, chosen), 1e-5);
}

TEST(Choice, OfEqualLogitsTheFirstOptionWins) {
  const auto brick = choice(6);
  {
    const at::NoGradGuard no_grad;
    brick->router().as<Linear>().weight.zero_();
    brick->router().as<Linear>().bias.copy_(at::tensor({-1.0, 2.0, 2.0}));
  }
  const at::Tensor x = random_tensor({5, 6}, 3);
  expect_near(run(*brick, x), by_hand(*brick, x, at::ones({5}, at::kLong)), 1e-6);
}

TEST(Choice, GivenChoicesAreFollowedAndChecked) {
  const auto brick = choice(6, 3, false);
  const at::Tensor x = random_tensor({5, 6}, 3);
  expect_near(run(*brick, x), by_hand(*brick, x, at::zeros({5}, at::kLong)));
  const at::Tensor each = at::tensor({2, 0, 1, 1, 2}, at::kLong);
  brick->set_route(Route::given(each));
  expect_near(run(*brick, x), by_hand(*brick, x, each), 1e-6);
  brick->set_route(Route::always(2));
  EXPECT_EQ(run(*brick, x).abs().sum().item<double>(), 0);
  brick->set_route(Route::given(at::tensor({0, 1}, at::kLong)));
  EXPECT_ERROR(run(*brick, x), Code::shape, "2 choices are given for 5 rows");
  brick->set_route(Route::given(at::tensor({0, 1, 3, 0, 0}, at::kLong)));
  EXPECT_ERROR(run(*brick, x), Code::usage, "options outside of 0 to 2");
  EXPECT_ERROR(brick->set_route(Route::soft(1)), Code::config, "needs a router");
  EXPECT_ERROR(choice(6)->set_route(Route::soft(0)), Code::config, "temperature of 0");
}

TEST(Choice, SoftMixesAllAndBecomesTheHardChoiceAsItCools) {
  const auto brick = choice(6);
  const at::Tensor x = random_tensor({7, 6}, 3);
  const at::Tensor hard = run(*brick, x);
  brick->set_route(Route::soft(0.5));
  const auto& router = brick->router().as<Linear>();
  const at::Tensor p = at::softmax(at::linear(x, router.weight, router.bias) / 0.5, -1);
  Context context;
  at::Tensor mixed = at::zeros_like(x);
  for (int64_t i = 0; i < 3; ++i)
    mixed = mixed + brick->run_option(i, x, context) * p.narrow(-1, i, 1);
  expect_near(run(*brick, x), mixed, 1e-5);
  brick->set_route(Route::soft(1e-4));
  expect_near(run(*brick, x), hard, 1e-4);
}

TEST(Choice, GradientsOfBothWaysAreThoseOfTheFunction) {
  const auto brick = choice(5);
  brick->to(at::kDouble);
  const at::Tensor x = random_tensor({4, 5}, 8).to(at::kDouble);
  const at::Tensor weights = random_tensor({4, 5}, 9).to(at::kDouble);
  const auto f = [&](const at::Tensor& input) { return run(*brick, input); };
  expect_near(autograd_gradient(f, x, weights), numeric_gradient(f, x, weights), 1e-6);
  brick->set_route(Route::soft(0.7));
  expect_near(autograd_gradient(f, x, weights), numeric_gradient(f, x, weights), 1e-6);
}

TEST(Choice, RandomRowsDrawAllOptionsAndFollowTheGenerator) {
  const auto brick = choice(6);
  brick->set_route(Route::random());
  const at::Tensor x = random_tensor({3000, 6}, 3);
  const auto drawn = [&](uint64_t seed) {
    GateLog log;
    Context context;
    context.gate_log = &log;
    context.generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    brick->forward(x, context);
    return log.records().at(0).decision;
  };
  const at::Tensor share = drawn(1).mean(0);
  expect_near(share, at::full({3}, 1.0 / 3), 0.04);
  EXPECT_TRUE(at::equal(drawn(1), drawn(1)));
  EXPECT_FALSE(at::equal(drawn(1), drawn(2)));
}

TEST(Choice, MeterCountsWhatRowsRanAndTheBoundIsTheLargestOption) {
  const auto brick = choice(6);
  const at::Tensor each = at::tensor({2, 0, 1, 1, 2}, at::kLong);
  brick->set_route(Route::given(each));
  Meter meter;
  Context context;
  context.meter = &meter;
  brick->forward(random_tensor({5, 6}, 3), context);
  EXPECT_EQ(meter.macs(), 1 * 3 * 6 * 16 + 2 * 3 * 6 * 3);
  EXPECT_EQ(brick->cost({5, 6}).macs, 5 * (3 * 6 * 16 + 6 * 3));
}

TEST(Choice, BudgetLossIsOneForTheNetwork) {
  GateLog log;
  log.add({"a", at::tensor({0.9, 0.1, 0.8, 0.2}).view({2, 2}), {}, {}});
  log.add({"b", at::tensor({0.1, 0.9, 0.2, 0.8}).view({2, 2}), {}, {}});
  EXPECT_NEAR(choice_budget_loss(log, 0, 0.5).item<double>(), 0, 1e-12);
  EXPECT_NEAR(choice_budget_loss(log, 0, 0.25).item<double>(), 0.0625, 1e-6);
  EXPECT_EQ(choice_budget_loss(GateLog(), 0, 0.5).item<double>(), 0);
  EXPECT_ERROR(choice_budget_loss(log, 2, 0.5), Code::usage, "a has 2 options");
}

Model model_of(BrickPtr brick, int64_t tokens, int64_t width) {
  auto root = std::make_shared<Sequential>();
  root->append("ffn", std::move(brick));
  Model model;
  model.root = root;
  model.input_shape = {tokens, width};
  return model;
}

TEST(Choice, ReloadsAndAgreesWithTheEngine) {
  const TempDirectory folder;
  for (const int64_t options : {2, 3}) {
    Model model = model_of(choice(6, options), 11, 6);
    const at::Tensor x = random_tensor({3, 11, 6}, 5);
    save_bundle(model, folder / "m.safetensors");
    Model loaded = load_model(folder / "m.safetensors");
    EXPECT_TRUE(at::equal(run(loaded, x), run(model, x)));
#if SLUICE_HAS_ENGINE
    EXPECT_LE(engine_error(model, x), 1e-5);
#endif
  }
}

#if SLUICE_HAS_ENGINE
TEST(Choice, TheEngineSkipsWhatTheRouterLeavesOut) {
  const TempDirectory folder;
  Model model = model_of(choice(6), 11, 6);
  save_bundle(model, folder / "m.safetensors");
  const at::Tensor x = random_tensor({3, 11, 6}, 5);
  Meter counted, executed;
  Context context;
  context.meter = &counted;
  model.forward(x, context);
  const engine::Network network = engine::Network::open(folder / "m.safetensors");
  engine::Session session(network, {.batch = 3, .threads = 1});
  std::vector<float> y(static_cast<size_t>(x.numel()));
  session.run({x.data_ptr<float>(), y.size()}, y, {.meter = &executed});
  EXPECT_EQ(executed.macs(), counted.macs());
  EXPECT_LT(executed.macs(), 3 * model.cost().macs);
}
#endif

TEST(Choice, RefusesWhatDoesNotFit) {
  EXPECT_ERROR(std::make_shared<Choice>(1), Code::config, "options of choice");
  EXPECT_ERROR(make_brick({{"kind", "choice"}, {"attributes", {{"options", 2}}}}), Code::config,
               "all 2 options are empty");
  auto brick = choice(6);
  brick->router().exchange(std::make_shared<Linear>(6, 2));
  EXPECT_ERROR(brick->output_shape({4, 6}), Code::shape, "2 logits for 3 options");
  brick = choice(6);
  brick->option(1).exchange(std::make_shared<Linear>(6, 5));
  EXPECT_ERROR(brick->output_shape({4, 6}), Code::shape, "option1 makes 4 x 5");
  EXPECT_ERROR(brick->option(3), Code::usage, "no option 3");
}

}  // namespace choice_test
}  // namespace sluice::lab
