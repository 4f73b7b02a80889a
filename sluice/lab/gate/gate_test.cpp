#include "sluice/lab/gate/gate.h"

#include <torch/optim/sgd.h>

#include "sluice/lab/gate/regularizer.h"
#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace gate_test {

using namespace testing;  // NOLINT: test helpers

at::Tensor hard(const Json& decision, const at::Tensor& logits, bool training = false) {
  Context context;
  context.generator = at::make_generator<at::CPUGeneratorImpl>(5);
  return make_decision(decision)->decide(logits, training, context);
}

TEST(Decision, ThresholdIsStrictOnTheProbability) {
  const at::Tensor z = torch::tensor({{-1.f, 0.f, 0.001f, 2.f}});
  expect_near(hard({{"kind", "threshold"}}, z), torch::tensor({{0.f, 0.f, 1.f, 1.f}}));
  expect_near(hard({{"kind", "threshold"}, {"at", 0.9}}, torch::tensor({{2.1f, 2.3f}})),
              torch::tensor({{0.f, 1.f}}));  // logit(0.9) = 2.197
}

TEST(Decision, TopKTiesKeepTheLowestIndex) {
  const at::Tensor z = torch::tensor({{1.f, 3.f, 3.f, 2.f}, {0.f, 0.f, 0.f, 0.f}});
  expect_near(hard({{"kind", "top_k"}, {"k", 2}}, z),
              torch::tensor({{0.f, 1.f, 1.f, 0.f}, {1.f, 1.f, 0.f, 0.f}}));
  expect_near(hard({{"kind", "top_k"}, {"k", 1}}, z),
              torch::tensor({{0.f, 1.f, 0.f, 0.f}, {1.f, 0.f, 0.f, 0.f}}));
}

TEST(Decision, StatisticalTopKKeepsAboutKOfNormalLogits) {
  const at::Tensor z = random_tensor({4, 2000}, 3);
  const at::Tensor kept = hard({{"kind", "statistical_top_k"}, {"k", 200}}, z).sum(-1);
  EXPECT_GT(kept.min().item<float>(), 150);
  EXPECT_LT(kept.max().item<float>(), 250);
  EXPECT_EQ(hard({{"kind", "statistical_top_k"}, {"k", 2000}}, z).sum().item<float>(), 8000);
}

TEST(Decision, SampleFollowsTheProbabilityOnlyWhileTraining) {
  const at::Tensor z = at::full({1, 20000}, 1.0);
  EXPECT_NEAR(hard({{"kind", "sample"}}, z, true).mean().item<double>(), 0.7311, 0.015);
  EXPECT_EQ(hard({{"kind", "sample"}}, z, false).mean().item<double>(), 1.0);
}

TEST(Decision, SoftmaxIsOneHot) {
  expect_near(hard({{"kind", "softmax"}}, torch::tensor({{1.f, 4.f, 4.f}})),
              torch::tensor({{0.f, 1.f, 0.f}}));
}

// Each estimator's gradient against finite differences of the function whose slope it promises.
TEST(Estimator, GradientsMatchTheirSurrogates) {
  const at::Tensor z =
      torch::tensor({-3.0, -1.2, -0.7, -0.3, -0.15, 0.12, 0.4, 0.9, 1.3, 2.5}, at::kDouble);
  const at::Tensor weights = torch::arange(1, 11, at::kDouble);
  const auto power = [](double o) {
    return [o](const at::Tensor& x) { return x.sign() * x.abs().pow(1 / o) * (x.abs() <= 1.5); };
  };
  const std::vector<std::pair<Json, std::function<at::Tensor(const at::Tensor&)>>> cases = {
      {{{"kind", "ste"}}, [](const at::Tensor& x) { return x.clamp(-1, 1); }},
      {{{"kind", "ste"}, {"clip", 0.5}}, [](const at::Tensor& x) { return x.clamp(-0.5, 0.5); }},
      {{{"kind", "ste_sigmoid"}}, [](const at::Tensor& x) { return at::sigmoid(x); }},
      {{{"kind", "gumbel_sigmoid"}, {"temperature", 0.5}},
       [](const at::Tensor& x) { return at::sigmoid(x / 0.5); }},
      {{{"kind", "reste"}}, power(1.5)},
      {{{"kind", "reste"}, {"o", 3.0}}, power(3)},
      {{{"kind", "sigmoid"}}, [](const at::Tensor& x) { return at::sigmoid(x); }},
  };
  for (const auto& [attributes, surrogate] : cases) {
    const auto estimator = make_estimator(attributes);
    const at::Tensor hard_values = (z > 0).to(at::kDouble);
    const auto f = [&](const at::Tensor& x) { return estimator->apply(hard_values, x); };
    SCOPED_TRACE(attributes.dump());
    expect_near(autograd_gradient(f, z, weights), numeric_gradient(surrogate, z, weights), 1e-6);
    if (attributes["kind"] != "sigmoid") {
      EXPECT_TRUE(at::equal(f(z), hard_values));
    }
    EXPECT_EQ(make_estimator(estimator->attributes())->attributes(), estimator->attributes());
  }
}

TEST(Estimator, ResteStaysFiniteAtZero) {
  const auto estimator = make_estimator({{"kind", "reste"}});
  const at::Tensor z = torch::zeros({1}, at::TensorOptions(at::kDouble));
  const at::Tensor gradient =
      autograd_gradient([&](const at::Tensor& x) { return estimator->apply(at::zeros_like(x), x); },
                        z, torch::ones({1}, at::kDouble));
  EXPECT_NEAR(gradient.item<double>(), std::pow(0.1, -1.0 / 3) / 1.5, 1e-9);
}

Json pooled(int64_t inputs, int64_t units, double noise = 0) {
  return {{"score", {{"kind", "pooled_mlp"}, {"inputs", inputs}, {"units", units}}},
          {"noise", noise}};
}

TEST(Gate, StartsOpenAndLogsWhatItDecided) {
  Gate gate(pooled(16, 5));
  EXPECT_EQ(gate.attributes()["score"]["hidden"], 4);
  GateLog log;
  Context context;
  context.gate_log = &log;
  const at::Tensor unit_macs = at::ones({5});
  const at::Tensor x = random_tensor({3, 16, 4, 4}, 1) * 0.1;
  const at::Tensor g = gate.decide(x, unit_macs, context);
  expect_near(g.detach(), at::ones({3, 5}));
  ASSERT_EQ(log.records().size(), 1u);
  EXPECT_TRUE(log.records()[0].probability.requires_grad());
  EXPECT_TRUE(log.records()[0].decision.requires_grad());
  EXPECT_GT(log.records()[0].probability.min().item<double>(), 0.6);
  const Json attributes = gate.attributes();
  EXPECT_EQ(Gate(attributes).attributes(), attributes);
}

TEST(Gate, ForcedOpenLogsNothing) {
  Gate gate(pooled(4, 3));
  GateLog log;
  Context context;
  context.gate_log = &log;
  context.gates_forced_open = true;
  const at::Tensor x = at::full({2, 4, 2, 2}, -100.0);
  expect_near(gate.decide(x, at::ones({3}), context), at::ones({2, 3}));
  EXPECT_TRUE(log.empty());
}

TEST(Gate, NoiseComesFromTheContextAndOnlyInTraining) {
  Gate gate(Json{{"score", {{"kind", "learned"}, {"units", 400}, {"init", 0.5}}}, {"noise", 1.0}});
  const at::Tensor x = torch::zeros({1, 1});
  const auto decide = [&](uint64_t seed) {
    Context context;
    context.generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    return gate.decide(x, {}, context).detach();
  };
  EXPECT_TRUE(at::equal(decide(1), decide(1)));
  EXPECT_FALSE(at::equal(decide(1), decide(2)));
  EXPECT_NEAR(decide(3).mean().item<double>(), 0.6225, 0.08);  // sigmoid(0.5)
  gate.eval();
  EXPECT_EQ(decide(1).mean().item<double>(), 1.0);
}

TEST(Gate, CanLearnToClose) {
  Gate gate(pooled(4, 2));
  torch::optim::SGD optimizer(gate.parameters(), torch::optim::SGDOptions(1.0));
  const at::Tensor x = random_tensor({8, 4, 3, 3}, 2);
  Context context;
  for (int step = 0; step < 60; ++step) {
    optimizer.zero_grad();
    gate.decide(x, {}, context).select(1, 0).mean().backward();
    optimizer.step();
  }
  const at::Tensor g = gate.decide(x, {}, context).mean(0);
  EXPECT_EQ(g[0].item<float>(), 0);
  EXPECT_EQ(g[1].item<float>(), 1);
}

TEST(Gate, RefusesToLowerWhatTheEngineCannotRun) {
  const auto lower_with = [](const Json& attributes) {
    bundle::Builder builder;
    Gate(attributes).lower(builder, builder.input("x", {4, 2, 2}), "g");
  };
  Json attributes = pooled(4, 3);
  EXPECT_NO_THROW(lower_with(attributes));
  attributes["decision"] = {{"kind", "top_k"}, {"k", 1}};
  expect_error(Code::unsupported, "g: the engine has no node for decision 'top_k'",
               [&] { lower_with(attributes); });
  attributes = pooled(4, 3);
  attributes["estimator"] = {{"kind", "sigmoid"}};
  expect_error(Code::unsupported, "soft", [&] { lower_with(attributes); });
  expect_error(Code::unsupported, "freeze-gates", [&] {
    lower_with({{"score", {{"kind", "learned"}, {"units", 2}}}});
  });
}

TEST(Gate, PooledLinearSeesPlacesAndGivesTheInputNoGradient) {
  const Json attributes = {
      {"score", {{"kind", "pooled_linear"}, {"inputs", 2}, {"units", 3}, {"grid", 2}}},
      {"estimator", {{"kind", "none"}}}};
  Gate gate(attributes);
  at::Tensor x = random_tensor({5, 2, 4, 6}, 3).requires_grad_(true);
  GateLog log;
  Context context;
  context.gate_log = &log;
  const at::Tensor decision = gate.decide(x, at::ones({3}), context);
  EXPECT_FALSE(decision.requires_grad());
  const GateRecord& record = log.records().at(0);
  record.probability.sum().backward();
  EXPECT_FALSE(x.grad().defined());
  for (const at::Tensor& parameter : gate.parameters()) EXPECT_TRUE(parameter.grad().defined());
  const auto parameters = gate.named_parameters();
  const at::Tensor pooled = at::softmax(at::avg_pool2d(x.detach(), {2, 3}, {2, 3}).flatten(1), -1);
  expect_near(record.probability.detach(),
              at::sigmoid(at::linear(pooled, parameters["score.linear.weight"],
                                     parameters["score.linear.bias"])));
  expect_error(Code::shape, "2 equal parts", [&] {
    Context other;
    gate.decide(random_tensor({1, 2, 4, 5}, 1), at::ones({3}), other);
  });
}

TEST(Gate, PartTablesListTheirKinds) {
  EXPECT_THAT(score_kinds(), ::testing::UnorderedElementsAre("pooled_mlp", "learned", "linear",
                                                             "pooled_linear", "mlp"));
  EXPECT_THAT(decision_kinds(),
              ::testing::UnorderedElementsAre("threshold", "top_k", "statistical_top_k", "sample",
                                              "softmax"));
  EXPECT_THAT(estimator_kinds(),
              ::testing::UnorderedElementsAre("ste", "ste_sigmoid", "reste", "gumbel_sigmoid",
                                              "sigmoid", "none"));
}

TEST(ConstantMask, SaysTheSameForEverySample) {
  ConstantMask mask(torch::tensor({1.f, 0.f}));
  GateLog log;
  Context context;
  context.gate_log = &log;
  const at::Tensor expected = torch::tensor({{1.f, 0.f}, {1.f, 0.f}});
  expect_near(mask.decide(torch::ones({2, 3}), at::ones({2}), context), expected);
  EXPECT_EQ(log.records().size(), 1u);
  context.gates_forced_open = true;  // a mask is no gate that could be forced
  expect_near(mask.decide(torch::ones({2, 3}), at::ones({2}), context), expected);
  EXPECT_EQ(log.records().size(), 1u);
  bundle::Builder builder;
  const bundle::Value x = builder.input("x", {3});
  expect_error(Code::state, "g: ", [&] { mask.lower(builder, x, "g"); });
  expect_error(Code::numeric, "0 and 1", [] { ConstantMask(torch::tensor({2.f})); });
  expect_error(Code::shape, "[units]", [] { ConstantMask(torch::ones({2, 2})); });
}

// ---- regularizers ----

GateRecord record(const std::string& path, const at::Tensor& p, std::vector<double> macs) {
  return {path, p, (p.detach() > 0.5).to(p.scalar_type()),
          torch::tensor(macs, p.options().requires_grad(false))};
}

at::Tensor probabilities() {
  return torch::tensor({{0.9, 0.2, 0.6}, {0.7, 0.4, 0.1}}, at::kDouble);
}

TEST(Regularizer, ValuesByHand) {
  GateLog log;
  log.add(record("a", probabilities(), {1, 2, 1}));
  const BatchMeans means = batch_means(log, nullptr);
  expect_near(means.means.at(0), torch::tensor({0.8, 0.3, 0.35}, at::kDouble));
  EXPECT_NEAR(polarization_loss(means).item<double>(), (0.8 * 0.2 + 0.3 * 0.7 + 0.35 * 0.65) / 3,
              1e-12);
  EXPECT_NEAR(budget_loss(means, 0.5).item<double>(), std::pow((0.8 + 2 * 0.3 + 0.35) / 4 - 0.5, 2),
              1e-12);
  EXPECT_NEAR(l1_loss(means).item<double>(), (0.8 + 0.3 + 0.35) / 3, 1e-12);
  EXPECT_NEAR(certainty_loss(log).item<double>(), (0.09 + 0.16 + 0.24 + 0.21 + 0.24 + 0.09) / 6,
              1e-12);
  // decisions: (1,0,1), (1,0,0): f = (2,0,1)/3; P = means of rows / 1.7 and / 1.2
  const double p0 = (0.9 / 1.7 + 0.7 / 1.2) / 2, p2 = (0.6 / 1.7 + 0.1 / 1.2) / 2;
  EXPECT_NEAR(load_balance_loss(log).item<double>(), 3 * (2.0 / 3 * p0 + 1.0 / 3 * p2), 1e-12);
}

TEST(Regularizer, PolarizationIsZeroOnlyWhenTheBatchAgrees) {
  GateLog agree, split;
  agree.add(record("a", torch::tensor({{1., 0.}, {1., 0.}}, at::kDouble), {1, 1}));
  split.add(record("a", torch::tensor({{1., 0.}, {0., 0.}}, at::kDouble), {1, 1}));
  EXPECT_EQ(polarization_loss(batch_means(agree, nullptr)).item<double>(), 0);
  EXPECT_GT(polarization_loss(batch_means(split, nullptr)).item<double>(), 0.1);
  EXPECT_EQ(certainty_loss(split).item<double>(), 0);  // each sample is certain: not consensus
}

TEST(Regularizer, GradientsMatchFiniteDifferences) {
  const at::Tensor other = probabilities().flip(0).flip(1);
  const auto with_log = [&](const std::function<at::Tensor(const GateLog&)>& loss) {
    return [&, loss](const at::Tensor& p) {
      GateLog log;
      GateRecord first = record("a", p, {1, 2, 5});
      first.decision = (probabilities() > 0.5).to(at::kDouble);
      log.add(first);
      log.add(record("b", other, {3, 1, 4}));
      return loss(log).reshape({1});
    };
  };
  const std::vector<std::function<at::Tensor(const GateLog&)>> losses = {
      [](const GateLog& log) { return polarization_loss(batch_means(log, nullptr)); },
      [](const GateLog& log) { return budget_loss(batch_means(log, nullptr), 0.3); },
      [](const GateLog& log) { return l1_loss(batch_means(log, nullptr)); },
      [](const GateLog& log) { return certainty_loss(log); },
      [](const GateLog& log) { return load_balance_loss(log); },
  };
  for (size_t i = 0; i < losses.size(); ++i) {
    SCOPED_TRACE(i);
    const auto f = with_log(losses[i]);
    const at::Tensor one = torch::ones({1}, at::kDouble);
    expect_near(autograd_gradient(f, probabilities(), one),
                numeric_gradient(f, probabilities(), one), 1e-8);
  }
}

TEST(Regularizer, EmptyLogGivesZero) {
  const GateLog log;
  const BatchMeans means = batch_means(log, nullptr);
  for (const at::Tensor& loss : {polarization_loss(means), budget_loss(means, 0.5), l1_loss(means),
                                 certainty_loss(log), load_balance_loss(log)}) {
    EXPECT_EQ(loss.item<double>(), 0);
  }
}

TEST(GateMeans, ValueIsTheRunningAverageGradientTheBatchs) {
  GateMeans averages(0.75);
  averages.update(record("a", torch::tensor({{0.2}, {0.4}}, at::kDouble), {1}));
  EXPECT_NEAR(averages.means().at("a").item<double>(), 0.3, 1e-12);
  at::Tensor p = torch::tensor({{0.7}, {0.9}}, at::kDouble).requires_grad_(true);
  const at::Tensor m = averages.update(record("a", p, {1}));
  EXPECT_NEAR(m.item<double>(), 0.75 * 0.3 + 0.25 * 0.8, 1e-12);
  (m * (1 - m)).sum().backward();
  const double slope = (1 - 2 * 0.425) / 2;  // of m (1 - m) at the average, per sample of the batch
  expect_near(p.grad(), torch::tensor({{slope}, {slope}}, at::kDouble), 1e-12);
  EXPECT_FALSE(averages.means().at("a").requires_grad());
}

TEST(GateMeans, StartsAnewWhenTheUnitsChange) {
  GateMeans averages;
  averages.update(record("a", torch::full({2, 3}, 0.5, at::kDouble), {1, 1, 1}));
  const at::Tensor m = averages.update(record("a", torch::full({2, 2}, 0.25, at::kDouble), {1, 1}));
  expect_near(m, torch::full({2}, 0.25, at::kDouble));
  GateMeans other;
  other.restore(averages.means());
  expect_near(other.means().at("a"), m);
  other.clear();
  EXPECT_TRUE(other.means().empty());
}

}  // namespace gate_test
}  // namespace sluice::lab
