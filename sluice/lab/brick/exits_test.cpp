#include "sluice/lab/brick/exits.h"

#include <cmath>

#include "sluice/lab/brick/init.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace exits_test {

using namespace testing;  // NOLINT: test helpers
using Ints = std::vector<int64_t>;

std::shared_ptr<Sequential> head(int64_t channels, int64_t classes) {
  auto result = std::make_shared<Sequential>();
  result->append("pool", std::make_shared<Pool2d>("global_avg"));
  result->append("fc", std::make_shared<Linear>(channels, classes));
  return result;
}

// Three blocks on [2, 9, 9], exits behind the first two. `scale`: of the gates' weights.
Model small_chain(const std::string& rule, uint64_t seed, double scale = 20) {
  const at::NoGradGuard no_grad;
  auto chain = std::make_shared<ExitChain>(rule);
  int64_t channels = 2;
  for (int64_t i = 0; i < 3; ++i) {
    chain->append(fmt::format("block{}", i), make_residual_block(channels, 5, 5, i == 1 ? 2 : 1));
    channels = 5;
    if (i == 2) continue;
    auto gate = std::make_shared<ExitGate>();
    auto exit = head(5, 4);
    gate->weight.copy_(at::tensor({1.0f, -0.3f, 1.0f, -0.3f}).view({1, 4}) * scale);
    gate->bias.zero_();
    chain->append_exit(exit, gate);
  }
  chain->append("head", head(5, 4));
  Model model;
  model.root = chain;
  model.input_shape = {2, 9, 9};
  model.task = {"classify", "made-up", {"a", "b", "c", "d"}, 0, 1};
  initialize(*model.root, "kaiming_normal", seed);
  for (const SlotRef& ref : walk(*model.root, "*_exit.fc"))
    ref.slot->as<Linear>().weight.copy_(random_tensor({4, 5}, ++seed + 10));
  randomize_norms(*model.root, seed);
  model.root->eval();
  // Biases that let some leave at each exit.
  Context context;
  at::Tensor y = random_tensor({64, 2, 9, 9}, seed + 50);
  for (const std::string name : {"block0", "block1"}) {
    y = chain->slot(name).forward(y, context);
    auto& gate = chain->slot(name + "_gate").as<ExitGate>();
    const at::Tensor score = gate.forward(chain->slot(name + "_exit").forward(y, context), context);
    // By mass the second exit takes what is likely enough of the rest.
    gate.bias.fill_(-at::quantile(score.flatten(), name == "block0" || rule != "mass" ? 0.5 : 0.8));
  }
  return model;
}

struct Reference {
  at::Tensor outputs;
  std::vector<int64_t> left;  ///< by exit
};

// Everything computed for all, then chosen.
Reference reference(const Model& model, const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  const auto& chain = dynamic_cast<const ExitChain&>(*model.root);
  Context context;
  at::Tensor y = x;
  std::vector<at::Tensor> logits, scores;
  for (int64_t i = 0; i < 3; ++i) {
    const std::string name = fmt::format("block{}", i);
    y = chain.slot(name).forward(y, context);
    if (i == 2) break;
    logits.push_back(chain.slot(name + "_exit").forward(y, context));
    scores.push_back(chain.slot(name + "_gate").forward(logits.back(), context));
  }
  logits.push_back(chain.slot("head").forward(y, context));
  const at::Tensor z = at::cat(scores, 1);
  const at::Tensor threshold = (z < 0).to(at::kLong).cumprod(1).sum(1);
  const at::Tensor chosen = chain.rule() == "mass" ? chosen_exit(at::sigmoid(z)) : threshold;
  Reference result{at::empty_like(logits[0]), {0, 0, 0}};
  for (int64_t i = 0; i < x.size(0); ++i) {
    const auto at = static_cast<size_t>(chosen[i].item<int64_t>());
    result.outputs[i] = logits[at][i];
    ++result.left[at];
  }
  return result;
}

TEST(ExitStatistics, AreThoseOfThePrediction) {
  const at::Tensor p = at::tensor({0.5, 0.3, 0.2}).to(at::kDouble);
  const at::Tensor s = prediction_statistics(p.log().view({1, 3}))[0];
  EXPECT_NEAR(s[0].item<double>(), 0.5, 1e-9);
  EXPECT_NEAR(s[1].item<double>(), -(p * p.log()).sum().item<double>(), 1e-9);
  EXPECT_NEAR(s[2].item<double>(), 0.2, 1e-9);
  const at::Tensor q = p.square() / p.square().sum();
  EXPECT_NEAR(s[3].item<double>(), -(q * q.log()).sum().item<double>(), 1e-9);
  at::Tensor logits = random_tensor({3, 4}, 1).requires_grad_(true);
  EXPECT_FALSE(prediction_statistics(logits).requires_grad());
  // A certain prediction has no logarithm of 0 in it; of equal ones the margin is 0.
  const at::Tensor sure = prediction_statistics(torch::tensor({{200.0f, 0.0f}, {1.0f, 1.0f}}));
  expect_near(sure[0], at::tensor({1.0f, 0.0f, 1.0f, 0.0f}), 1e-6);
  EXPECT_NEAR(sure[1][2].item<double>(), 0, 1e-7);
}

TEST(ExitMass, SumsToOneAndFollowsTheRecursion) {
  const at::Tensor g = at::sigmoid(random_tensor({50, 4}, 2));
  const at::Tensor mass = exit_mass(g);
  expect_near(mass.sum(1), at::ones({50}), 1e-5);
  const at::Tensor chosen = chosen_exit(g);
  for (int64_t i = 0; i < 50; ++i) {
    double sum = 0, passed = 1;
    int64_t at = 4;
    for (int64_t l = 0; l < 4; ++l) {
      const double one = g[i][l].item<double>();
      const double p = std::max(0.0, std::min(one, 1 - sum));
      EXPECT_NEAR(mass[i][l].item<double>(), p, 1e-6);
      const double c = passed > 0 ? std::clamp(p / passed, 0.0, 1.0) : 1;
      if (at == 4 && c >= 0.5) at = l;
      passed *= 1 - c;
      sum += one;
    }
    EXPECT_EQ(chosen[i].item<int64_t>(), at);
  }
}

TEST(ExitChain, RowsLeaveAtTheFirstExitThatTakesThem) {
  for (const std::string rule : {"mass", "threshold"}) {
    Model model = small_chain(rule, 5);
    const at::Tensor x = random_tensor({40, 2, 9, 9}, 6);
    const Reference expected = reference(model, x);
    for (const int64_t count : expected.left)
      EXPECT_GT(count, 0) << rule << ::testing::PrintToString(expected.left);
    Context context;
    Meter meter;
    context.meter = &meter;
    const at::NoGradGuard no_grad;
    expect_near(model.root->forward(x, context), expected.outputs, 1e-5);
    const Ints macs = dynamic_cast<ExitChain&>(*model.root).exit_macs(model.input_shape);
    int64_t total = 0;
    for (size_t i = 0; i < macs.size(); ++i) total += expected.left[i] * macs[i];
    EXPECT_EQ(meter.macs(), total) << rule;
    EXPECT_EQ(macs.back(), model.cost().macs);
  }
}

TEST(ExitChain, NobodyLeavesWhereGatesAreForcedOpen) {
  Model model = small_chain("mass", 5);
  const at::Tensor x = random_tensor({6, 2, 9, 9}, 6);
  Context context;
  context.gates_forced_open = true;
  Meter meter;
  context.meter = &meter;
  model.root->forward(x, context);
  const Ints macs = dynamic_cast<ExitChain&>(*model.root).exit_macs(model.input_shape);
  EXPECT_LT(meter.macs(), 6 * macs.back());
  for (const auto& entry : meter.entries()) EXPECT_EQ(entry.path.find("_exit"), std::string::npos);
}

TEST(ExitChain, GradientsFlowThroughTheLogitsOfWhoeverLeft) {
  Model model = small_chain("mass", 8);
  model.root->to(at::kDouble);
  const at::Tensor x = random_tensor({5, 2, 9, 9}, 9).to(at::kDouble);
  const at::Tensor weights = random_tensor({5, 4}, 10).to(at::kDouble);
  const auto f = [&](const at::Tensor& at) { return testing::run(*model.root, at); };
  const at::Tensor one = x.narrow(0, 0, 1), w = weights.narrow(0, 0, 1);
  expect_near(autograd_gradient(f, one, w), numeric_gradient(f, one, w), 1e-5);
}

TEST(ExitChain, ReloadsFromAFile) {
  const Model model = small_chain("threshold", 5);
  expect_equal_and_reloadable(model, clone(model), "exit chain");
}

TEST(ExitChain, SaysWhatDoesNotFit) {
  expect_error(Code::config, "rule of exit_chain: 'often' is unknown", [] { ExitChain("often"); });
  expect_error(Code::usage, "an exit needs a child",
               [] { ExitChain().append_exit(head(2, 3), std::make_shared<ExitGate>()); });
  ExitChain open;
  open.append("block", std::make_shared<Identity>())
      .append_exit(head(2, 3), std::make_shared<ExitGate>());
  expect_error(Code::config, "expected a last head", [&] { open.check_slots(); });
  open.append("head", head(2, 4));
  expect_error(Code::shape, "block_exit: it gives 3, the last head 4", [&] {
    open.output_shape({2, 9, 9});
  });
  expect_error(Code::shape, "at least 2 classes", [] { ExitGate().cost({1}); });
}

#if SLUICE_HAS_ENGINE
TEST(ExitChain, RunsInTheEngineAndMetersTheSame) {
  for (const std::string rule : {"mass", "threshold"}) {
    Model model = small_chain(rule, 5);
    const at::Tensor x = random_tensor({40, 2, 9, 9}, 6);
    EXPECT_LE(engine_error(model, x), 1e-5) << rule;
    bundle::Builder builder;
    lower(model, builder);
    const std::vector<std::byte> bytes = builder.bytes();
    const engine::Network network(bundle::Bundle::parse(bytes, "test", {}));
    for (const int64_t batch : {1, 40}) {
      engine::Session session(network, {.batch = batch, .threads = 1});
      Meter in_engine, in_lab;
      for (int64_t first = 0; first < 40; first += batch) {
        const at::Tensor part = x.narrow(0, first, batch).contiguous();
        std::vector<float> found(static_cast<size_t>(batch * 4));
        session.run({part.data_ptr<float>(), static_cast<size_t>(part.numel())}, found,
                    {.meter = &in_engine});
      }
      Context context;
      context.meter = &in_lab;
      model.root->forward(x, context);
      if (session.chunk() == 0 || batch % session.chunk() == 0) {
        EXPECT_EQ(in_engine.macs(), in_lab.macs()) << rule << ", batch " << batch;
      }
      EXPECT_LT(in_engine.macs(), 40 * network.cost().macs);
    }
  }
}
#endif

}  // namespace exits_test
}  // namespace sluice::lab
