#include "sluice/lab/brick/prefix_mlp.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/gate/ordinal.h"
#include "sluice/lab/pass/steps.h"
#include "sluice/lab/train/layerwise.h"
#include "sluice/lab/train/token_feed.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#else
#include "sluice/lab/model/testing.h"
#endif

namespace sluice::lab {
namespace prefix_mlp_test {

using namespace testing;  // NOLINT: test helpers

BrickPtr ordinal(int64_t inputs, int64_t choices, int64_t least = 0) {
  const Json score = {{"kind", "mlp"}, {"inputs", inputs}, {"units", choices}};
  auto gate = std::make_shared<OrdinalGate>(Json{{"score", score}, {"least", least}});
  const at::NoGradGuard no_grad;
  uint64_t seed = 11;
  for (const auto& item : gate->named_parameters()) {
    item.value().copy_(random_tensor(item.value().sizes(), ++seed) * 2);
  }
  return gate;
}

std::shared_ptr<PrefixMlp> module(BrickPtr gate, int64_t width = 5) {
  at::manual_seed(4);
  auto mlp = make_prefix_mlp({6, 6, 3, width, "gelu"});
  mlp->slot("gate").exchange(std::move(gate));
  mlp->check_slots();
  mlp->eval();
  return mlp;
}

Model alone(BrickPtr brick, Shape input) {
  Model model;
  model.root = std::move(brick);
  model.input_shape = std::move(input);
  return model;
}

TEST(PrefixMlp, GivesThePrefixThatTheGateChose) {
  const auto mlp = module(ordinal(6, 4));
  const at::Tensor x = random_tensor({4, 9, 6}, 1);
  GateLog log;
  Meter meter;
  Context context;
  context.gate_log = &log;
  context.meter = &meter;
  const at::NoGradGuard no_grad;
  const at::Tensor y = mlp->forward(x, context).reshape({-1, 6});
  const at::Tensor choice = log.records().at(0).decision.argmax(-1).flatten();
  const at::Tensor h = mlp->prefixes(x);
  EXPECT_EQ(h[0].abs().max().item<double>(), 0);
  for (int64_t row = 0; row < choice.size(0); ++row) {
    expect_near(y[row], h[choice[row].item<int64_t>()][row], 1e-5);
  }
  EXPECT_GE(std::get<0>(at::_unique(choice)).size(0), 3);  // choices differ
  EXPECT_EQ(meter.entries()[meter.entry("learners")].macs,
            choice.sum().item<int64_t>() * mlp->macs_of_learner());
  EXPECT_EQ(meter.entries()[meter.entry("gate")].macs, 36 * (6 * 16 + 16 * 16 + 16 * 4));
  expect_near(log.records()[0].unit_macs,
              at::arange(4, at::kFloat) * double(mlp->macs_of_learner()) + (6 * 16 + 16 * 16 + 64));
  // Without a gate, and with gates forced open: all learners.
  context.gates_forced_open = true;
  expect_near(mlp->forward(x, context).reshape({-1, 6}), h[3], 1e-5);
  mlp->slot("gate").exchange(nullptr);
  expect_near(run(*mlp, x).reshape({-1, 6}), h[3], 1e-5);
}

TEST(PrefixMlp, GradientsReachTheGateThroughTheOutput) {
  const auto mlp = module(ordinal(6, 4));
  mlp->to(at::kDouble);
  mlp->train();
  const at::Tensor x = random_tensor({3, 4, 6}, 2).to(at::kDouble);
  Context context;
  mlp->forward(x, context).square().sum().backward();
  for (const auto& item : mlp->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_GT(item.value().grad().abs().sum().item<double>(), 0) << item.key();
  }
  // Of the learners: by finite differences, the choice being fixed.
  mlp->eval();
  const auto f = [&](const at::Tensor& weight) {
    const at::NoGradGuard no_grad;
    mlp->slot("up").as<Linear>().weight.copy_(weight);
    Context each;
    return mlp->forward(x, each);
  };
  const at::Tensor weight = mlp->slot("up").as<Linear>().weight.detach().clone();
  const at::Tensor weights = random_tensor({3, 4, 6}, 5).to(at::kDouble);
  mlp->zero_grad();
  Context again;
  (mlp->forward(x, again) * weights).sum().backward();
  const at::Tensor found = mlp->slot("up").as<Linear>().weight.grad().clone();
  expect_near(found, numeric_gradient(f, weight, weights), 1e-6);
}

TEST(PrefixMlp, ReloadsWithAnyGate) {
  for (const BrickPtr& gate : {ordinal(6, 4), ordinal(6, 4, 1),
                               BrickPtr(std::make_shared<ConstantChoice>(4, 2)), BrickPtr()}) {
    const auto mlp = module(gate);
    const BrickPtr copy = clone(*mlp);
    EXPECT_EQ(spec_of(*copy), spec_of(*mlp));
    const at::Tensor x = random_tensor({2, 5, 6}, 3);
    EXPECT_TRUE(at::equal(run(*copy, x), run(*mlp, x)));
  }
}

TEST(PrefixMlp, SaysWhatDoesNotFit) {
  expect_error(Code::config, "gate: expected 4 choices, found 3", [] { module(ordinal(6, 3)); });
  expect_error(Code::config, "found a linear", [] { module(std::make_shared<Linear>(6, 4)); });
  auto mlp = module(nullptr);
  mlp->slot("down").exchange(std::make_shared<Linear>(15, 6));
  expect_error(Code::config, "without bias", [&] { mlp->check_slots(); });
  mlp->slot("down").exchange(std::make_shared<Linear>(12, 6, false));
  expect_error(Code::config, "15 neurons up and 12 down", [&] { mlp->check_slots(); });
  expect_error(Code::config, "choice", [] { ConstantChoice(4, 4); });
  expect_error(Code::usage, "no ordinal gate", [&] {
    const at::Tensor x = random_tensor({1, 6}, 1);
    choice_loss(*module(nullptr), x, x);
  });
}

TEST(PrefixMlp, LabelIsTheFirstLearnerThatIsNotWorthIt) {
  // Three learners on one number: errors are |h_k - y| by hand.
  auto mlp = make_prefix_mlp({1, 1, 3, 1, "identity"});
  const at::NoGradGuard no_grad;
  mlp->slot("up").as<Linear>().weight.fill_(1);
  mlp->slot("up").as<Linear>().bias.zero_();
  mlp->slot("down").as<Linear>().weight.copy_(torch::tensor({{4.f, 2.f, 1.f}}));
  // x = 1: h = 0, 4, 6, 7.
  const at::Tensor x = torch::ones({5, 1});
  const at::Tensor y = torch::tensor({{7.5f}, {5.9f}, {5.f}, {-1.f}, {1.9f}});
  // errors: 7.5 3.5 1.5 .5 | 5.9 1.9 .1 1.1 | 5 1 1 2 | 1 5 7 8 | 1.9 2.1 ..
  expect_near(choice_label(*mlp, x, y).to(at::kFloat), torch::tensor({3.f, 2.f, 1.f, 0.f, 0.f}));
  const at::Tensor h = mlp->prefixes(x);
  EXPECT_NEAR(prefix_loss(*mlp, x.narrow(0, 0, 1), y.narrow(0, 0, 1)).item<double>(),
              (7.5 * 7.5 + 3.5 * 3.5 + 1.5 * 1.5 + 0.25) / 4, 1e-4);
}

GateLog two_samples() {
  // Sample 0 takes choices 0 and 2, sample 1 takes 2 and 2; of 3, each step 10 MACs, the gate 1.
  GateLog log;
  const at::Tensor g = one_hot(torch::tensor({{0, 2}, {2, 2}}), 3, torch::ones({1}));
  log.add({"a", g, g, torch::tensor({1.f, 11.f, 21.f})});
  return log;
}

TEST(OrdinalLoss, ValuesByHand) {
  const GateLog log = two_samples();
  EXPECT_NEAR(ordinal_budget_loss(log, 0.5).item<double>(), (1 + 21 * 3) / 4.0 / 20 - 0.5, 1e-6);
  EXPECT_NEAR(ordinal_entropy_loss(log).item<double>(), -0.5 * std::log(2.0) / std::log(3.0), 1e-6);
  EXPECT_NEAR(ordinal_diversity_loss(log).item<double>(), -0.5, 1e-6);
  const GateLog none;
  EXPECT_EQ(ordinal_budget_loss(none, 0.5).item<double>(), 0);
  EXPECT_EQ(ordinal_entropy_loss(none).item<double>(), 0);
  EXPECT_EQ(ordinal_diversity_loss(none).item<double>(), 0);
}

Model small_decoder() {
  return make_model("decoder",
                    {{"layers", 2},
                     {"width", 12},
                     {"heads", 2},
                     {"ffn", 20},
                     {"vocab", 17},
                     {"context", 8},
                     {"gated", false},
                     {"activation", "gelu"}},
                    3);
}

TEST(Acmize, ReplacesNetworksAndProjectionsAtEqualCost) {
  const Model dense = small_decoder();
  const Model acm = run_pass(dense, "acmize", with({{"projections", true}, {"seed", 5}}));
  int64_t modules = 0;
  for (const SlotRef& ref : walk(*acm.root)) {
    const auto* mlp = dynamic_cast<const PrefixMlp*>(ref.slot->get().get());
    if (mlp == nullptr) continue;
    ++modules;
    const bool ffn = ref.path.ends_with(".ffn");
    EXPECT_EQ(mlp->width(), ffn ? 5 : 2) << ref.path;  // 20 / 4; (144 + 12) / 25 / 4 is 1.56
    EXPECT_EQ(dynamic_cast<const OrdinalGate&>(*mlp->gate()).least(), ffn ? 0 : 1);
  }
  EXPECT_EQ(modules, 10);
  const Model again = run_pass(dense, "acmize", with({{"projections", true}, {"seed", 5}}));
  Model a = clone(acm), b = clone(again);
  const at::Tensor x = random_input(a, 2, 1);
  EXPECT_TRUE(at::equal(run(a, x), run(b, x)));
  const TempDirectory folder;
  save_bundle(acm, folder / "m.safetensors");
  Model loaded = load_model(folder / "m.safetensors");
  EXPECT_TRUE(at::equal(run(loaded, x), run(a, x)));
  const Model two = run_pass(dense, "acmize", with({{"choice", 2}, {"slots", "blocks.1.*"}}));
  EXPECT_EQ((**walk(*two.root, "blocks.0.ffn")[0].slot).kind(), "ffn");
  expect_error(Code::usage, "no feed-forward", [&] {
    run_pass(dense, "acmize", with({{"slots", "head"}}));
  });
  expect_error(Code::config, "choice", [&] { run_pass(dense, "acmize", with({{"choice", 5}})); });
}

class RandomTokens final : public BatchSource {
 public:
  int64_t count() const override { return 1000; }
  void check_batch(int64_t) const override {}
  Batch at_step(int64_t step, int64_t, uint64_t seed, int64_t, int64_t samples) override {
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed + uint64_t(step));
    return {at::randint(0, 17, {samples, 8}, generator, at::TensorOptions(at::kLong)), {}};
  }
};

TEST(Layerwise, LearnsEachLayerAndOnlyWhatIsNamed) {
  const Model dense = small_decoder();
  Model acm = run_pass(dense, "acmize", {});
  RandomTokens feed;
  LayerwiseOptions options;
  options.steps = 60;
  options.batch = 8;
  options.optimizer.rate = 1e-2;
  options.parameters = {"up.*", "down.*"};
  const std::string before = "blocks.0.ffn.gate.score.layer0.weight";
  const at::Tensor gate = acm.root->named_parameters()[before].clone();
  const auto loss = [](Brick& student, const at::Tensor& x, const at::Tensor& y) {
    return prefix_loss(dynamic_cast<const PrefixMlp&>(student), x, y);
  };
  const LayerwiseResult result = train_layers(dense, acm, "blocks.*.ffn", feed, loss, options);
  ASSERT_EQ(result.first.size(), 2u);
  for (const auto& [path, first] : result.first) EXPECT_LT(result.last.at(path), 0.9 * first);
  EXPECT_TRUE(acm.root->named_parameters()[before].equal(gate));
  options.parameters = {"gate.**"};
  const auto teach = [](Brick& student, const at::Tensor& x, const at::Tensor& y) {
    return choice_loss(dynamic_cast<const PrefixMlp&>(student), x, y);
  };
  const LayerwiseResult gates = train_layers(dense, acm, "blocks.*.ffn", feed, teach, options);
  EXPECT_LT(gates.last.at("blocks.1.ffn"), gates.first.at("blocks.1.ffn"));
  EXPECT_FALSE(acm.root->named_parameters()[before].equal(gate));
  options.parameters = {"nothing"};
  expect_error(Code::usage, "no parameter of this prefix_mlp",
               [&] { train_layers(dense, acm, "blocks.*.ffn", feed, loss, options); });
  expect_error(Code::usage, "blocks",
               [&] { train_layers(dense, acm, "block.*.ffn", feed, loss, options); });
}

#if SLUICE_HAS_ENGINE
TEST(PrefixMlp, EngineRunsTheRowsThatWereChosenAndNoMore) {
  for (const BrickPtr& gate : {ordinal(6, 4), ordinal(6, 4, 1), ordinal(6, 4, 3),
                               BrickPtr(std::make_shared<ConstantChoice>(4, 2)),
                               BrickPtr(std::make_shared<ConstantChoice>(4, 0)), BrickPtr()}) {
    Model model = alone(module(gate), {9, 6});
    for (const int64_t samples : {1, 5}) {
      const at::Tensor x = random_input(model, samples, 9);
      EXPECT_LE(engine_error(model, x), kEqual);
    }
    bundle::Builder builder;
    lower(model, builder);
    const std::vector<std::byte> bytes = builder.bytes();
    const engine::Network network(bundle::Bundle::parse(bytes, "test", {}));
    engine::Session session(network, {.batch = 1, .threads = 1});
    const at::NoGradGuard no_grad;
    for (uint64_t seed = 1; seed < 4; ++seed) {
      const at::Tensor x = random_input(model, 1, seed);
      Meter mine, theirs;
      Context context;
      context.meter = &mine;
      at::Tensor y = model.forward(x, context).contiguous();
      session.run({x.data_ptr<float>(), static_cast<size_t>(x.numel())},
                  {y.data_ptr<float>(), static_cast<size_t>(y.numel())}, {.meter = &theirs});
      EXPECT_EQ(mine.macs(), theirs.macs());
    }
  }
}

TEST(PrefixMlp, EngineRunsAcmizedDecoders) {
  Model acm = run_pass(small_decoder(), "acmize", with({{"projections", true}}));
  EXPECT_LE(engine_error(acm, random_input(acm, 3, 2)), 1e-4);
}

TEST(PrefixMlp, EngineGeneratesWithAcmizedDecodersTokenByToken) {
  Model acm = run_pass(small_decoder(), "acmize", with({{"projections", true}}));
  bundle::Builder builder;
  lower(acm, builder);
  const std::vector<std::byte> bytes = builder.bytes();
  const engine::Network network(bundle::Bundle::parse(bytes, "test", {}));
  const at::Tensor ids = random_input(acm, 2, 9);
  const at::Tensor expected = run(acm, ids);
  Meter counted, executed;
  {
    const at::NoGradGuard no_grad;
    const EvaluationMode evaluation(*acm.root);
    Context context;
    context.meter = &counted;
    acm.forward(ids, context);
  }
  engine::Session session(network, {.batch = 2, .threads = 1, .sequences = true});
  int64_t done = 0;
  for (const int64_t count : {4, 1, 1, 2}) {
    const at::Tensor part = ids.narrow(1, done, count).to(at::kFloat).contiguous();
    at::Tensor found = at::empty({2, count, expected.size(2)});
    session.run_tokens({part.data_ptr<float>(), static_cast<size_t>(part.numel())},
                       {found.data_ptr<float>(), static_cast<size_t>(found.numel())},
                       std::vector<int64_t>(2, count), {.meter = &executed});
    expect_near(found, expected.narrow(1, done, count), 1e-4);
    done += count;
  }
  EXPECT_EQ(executed.macs(), counted.macs());
}
#endif

}  // namespace prefix_mlp_test
}  // namespace sluice::lab
