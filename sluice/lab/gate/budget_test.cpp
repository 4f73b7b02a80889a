#include "sluice/lab/gate/budget.h"

#include <limits>

#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/model/text_testing.h"
#include "sluice/lab/pass/pass.h"

namespace sluice::lab {
namespace budget_test {

using namespace testing;  // NOLINT: test helpers

Model decoder(const Json& gates = {}) {
  Model model = text_model();
  if (gates.is_null()) return model;
  return run_pass(model, "insert-gates", with(gates));
}

GateRecord record(const std::string& path, const at::Tensor& decision, std::vector<double> macs) {
  return {path, decision, decision, torch::tensor(macs, at::kDouble)};
}

const char* const kFirst = "blocks.0.ffn.neuron_gate";
const char* const kSecond = "blocks.1.ffn.neuron_gate";

TEST(GateBudget, CountsWhatIsOpenByItsCost) {
  Model model = decoder({{"granularity", "neuron"}});
  const GateBudget budget(*model.root, {.open = 0.25, .weight = 2});
  EXPECT_EQ(budget.gates(), 2);
  GateLog log;
  // Two samples of three rows, MACs of a whole sample; rows by themselves; somebody else's gate.
  log.add(record(
      kFirst,
      torch::tensor({{{1., 0.}, {1., 1.}, {0., 0.}}, {{0., 1.}, {0., 0.}, {1., 1.}}}, at::kDouble),
      {3, 6}));
  log.add(record(kSecond, torch::tensor({{1., 0.}, {0., 0.}}, at::kDouble), {5, 7}));
  log.add(record("elsewhere", torch::tensor({{1.}}, at::kDouble), {1000}));
  const double opened = 3 * 1 + 3 * 2 + 5, all = 2 * 9 + 2 * 12;
  EXPECT_NEAR(budget.open_share(log, {}).item<double>(), opened / all, 1e-12);
  OpenedMacs sum = budget.opened(log, {});
  sum.add({1, 8});
  EXPECT_NEAR(sum.share(), (opened + 1) / (all + 8), 1e-12);
  EXPECT_EQ(OpenedMacs().share(), 1);
  // Of the first sample the last row is padding, of the second the last two.
  const at::Tensor lengths = torch::tensor({2, 1}, at::kLong);
  EXPECT_NEAR(budget.open_share(log, lengths).item<double>(),
              (1 * 2 + 2 * 2 + 5) / (1. * 9 + 2 * 12), 1e-12);
}

TEST(GateBudget, TheMultiplierTakesOverWhatTheSquareLeaves) {
  // Quality falls by 1 for each share that closes: the square alone ends 1 / (2 * 10) above.
  Model model = decoder({{"granularity", "neuron"}});
  GateBudget budget(*model.root, {.open = 0.5, .weight = 10, .ramp = 0.5});
  at::Tensor share = torch::tensor(1.0, at::kDouble).requires_grad_(true);
  constexpr int64_t kSteps = 400;
  for (int64_t step = 0; step < kSteps; ++step) {
    share.mutable_grad() = at::Tensor();
    (budget.loss(share, step, kSteps) - share).backward();
    const at::NoGradGuard no_grad;
    budget.learn(share.item<double>(), step, kSteps);
    if (step < kSteps / 2) {
      EXPECT_EQ(budget.multiplier(), 0);
    }
    share -= 0.02 * share.grad();
  }
  EXPECT_NEAR(share.item<double>(), 0.5, 1e-3);
  EXPECT_NEAR(budget.multiplier(), 1, 1e-2);
}

TEST(GateBudget, FallsToTheBudgetAndPullsWithASquare) {
  Model model = decoder({{"granularity", "neuron"}});
  const GateBudget budget(*model.root, {.open = 0.25, .weight = 2, .ramp = 0.5});
  EXPECT_EQ(budget.target(0, 8), 1);
  EXPECT_NEAR(budget.target(2, 8), 0.625, 1e-12);
  EXPECT_EQ(budget.target(4, 8), 0.25);
  EXPECT_EQ(budget.target(7, 8), 0.25);
  EXPECT_NEAR(budget.loss(torch::tensor(0.75, at::kDouble), 4, 8).item<double>(), 2 * 0.25, 1e-12);
  const GateBudget at_once(*model.root, {.open = 0.25, .ramp = 0});
  EXPECT_EQ(at_once.target(0, 8), 0.25);
  EXPECT_TRUE(budget.owns(std::string(kFirst) + ".score.0.weight"));
  EXPECT_FALSE(budget.owns("blocks.0.ffn.up.weight"));
  EXPECT_FALSE(budget.owns("blocks.0.ffn.neuron_gates.weight"));
}

TEST(GateBudget, LooksAtWhatGatesSayWithoutNoiseAndLearnsByTheirProbabilities) {
  Model model = decoder({{"granularity", "neuron"}});
  const GateBudget budget(*model.root, {.open = 0.25, .weight = 2, .ramp = 0});
  GateLog log;
  at::Tensor p = torch::tensor({{{0.9, 0.2}, {0.6, 0.1}}}, at::kDouble).requires_grad_(true);
  GateRecord noisy = record(kFirst, p, {3, 6});
  noisy.decision = 1 - (p.detach() > 0.5).to(at::kDouble);
  log.add(noisy);
  const at::Tensor share = budget.open_share(log, {});
  EXPECT_NEAR(share.item<double>(), 3. / 9, 1e-12);
  budget.loss(share, 0, 1).backward();
  const double slope = 2 * 2 * (3. / 9 - 0.25);  // of the square; a row is half of the sample
  expect_near(p.grad(), slope * torch::tensor({{{1.5, 3.}, {1.5, 3.}}}, at::kDouble) / 9., 1e-12);
}

TEST(GateBudget, CountsAnOrdinalChoiceAsOneOfItsCosts) {
  Model plain = decoder();
  Model model = run_pass(plain, "acmize", with({{"slots", "blocks.*.ffn"}}));
  model.root->eval();
  const GateBudget budget(*model.root, {});
  EXPECT_EQ(budget.gates(), 2);
  GateLog log;
  Context context;
  context.gate_log = &log;
  const at::NoGradGuard no_grad;
  model.forward(random_input(model, 2, 5), context);
  double opened = 0, all = 0;
  for (const GateRecord& each : log.records()) {
    const at::Tensor macs = each.unit_macs.to(each.decision.options());
    opened += at::matmul(each.decision, macs).sum().item<double>();
    all += macs.max().item<double>() * 2 * 12;
  }
  EXPECT_NEAR(budget.open_share(log, {}).item<double>(), opened / all, 1e-6);
}

TEST(GateBudget, RefusesNetworksWhoseGatesCannotLearnHowMuchTheyOpen) {
  Model plain = decoder();
  expect_error(Code::usage, "the network has no gates", [&] { GateBudget(*plain.root, {}); });
  for (const Json& gates : {Json{{"granularity", "neuron"}, {"decision", "top_k"}},
                            Json{{"granularity", "head"}, {"estimator", "none"}}}) {
    Model model = decoder(gates);
    expect_error(Code::usage, "none of the network's 2 gates can learn",
                 [&] { GateBudget(*model.root, {}); });
  }
  Model still = decoder({{"granularity", "token"}});
  for (at::Tensor parameter : still.root->parameters()) parameter.set_requires_grad(false);
  expect_error(Code::usage, "none of the network's 2 gates can learn",
               [&] { GateBudget(*still.root, {}); });
}

TEST(GateBudget, RefusesOptionsOutOfRangeAndForeignLogs) {
  Model model = decoder({{"granularity", "neuron"}});
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto refused = [&](GateBudgetOptions options, const std::string& what) {
    expect_error(Code::config, what, [&] { GateBudget(*model.root, options); });
  };
  for (const double open : {0.0, -0.5, 1.01, kNan, kInfinity}) refused({.open = open}, "a share");
  for (const double bad : {0.0, -1.0, kNan, kInfinity}) {
    refused({.weight = bad}, "weight");
    refused({.rate = bad}, "rate");
  }
  for (const double ramp : {-0.1, 1.1, kNan}) refused({.ramp = ramp}, "ramp");
  const GateBudget budget(*model.root, {.open = 1});
  GateLog log;
  expect_error(Code::state, "none of the 2 gates has decided", [&] { budget.open_share(log, {}); });
}

}  // namespace budget_test
}  // namespace sluice::lab
