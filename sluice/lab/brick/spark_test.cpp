#include "sluice/lab/brick/spark.h"

#include <cmath>

#include "sluice/lab/gate/selector.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace spark_test {

using namespace testing;  // NOLINT: test helpers

std::shared_ptr<SparkFfn> ffn(int64_t width, int64_t split, int64_t neurons, double keep) {
  auto brick = std::make_shared<SparkFfn>(SparkFfnOptions{width, split, neurons, keep, "gelu"});
  const at::NoGradGuard no_grad;
  brick->gate.copy_(random_tensor(brick->gate.sizes(), 1));
  brick->up.copy_(random_tensor(brick->up.sizes(), 2) * 0.5);
  brick->down.copy_(random_tensor(brick->down.sizes(), 3) * 0.3);
  brick->eval();
  return brick;
}

TEST(SparkFfn, ComputesTheFormula) {
  const auto brick = ffn(6, 2, 20, 0.25);
  const at::Tensor x = random_tensor({3, 5, 6}, 4);
  const at::Tensor g = at::matmul(x.narrow(-1, 0, 2), brick->gate.t());
  const at::Tensor theta = g.mean(-1, true) + g.std(-1, true, true) * 0.6744897501960817;
  const at::Tensor h =
      at::gelu(at::relu(g - theta)) * at::matmul(x.narrow(-1, 2, 4), brick->up.t());
  expect_near(run(*brick, x), at::matmul(h, brick->down), 1e-5);
}

TEST(SparkFfn, MeterCountsAwakeNeuronsAndAboutTheShareIsAwake) {
  const auto brick = ffn(32, 16, 400, 0.08);
  Meter meter;
  Context context;
  context.meter = &meter;
  const at::NoGradGuard no_grad;
  brick->forward(random_tensor({4, 25, 32}, 4), context);
  const double awake = (double(meter.macs()) - 100.0 * 400 * 16) / (100.0 * 400 * (16 + 32));
  EXPECT_NEAR(awake, 0.08, 0.02);
  EXPECT_EQ(brick->cost({25, 32}).macs, 25 * 2 * 400 * 32);
}

TEST(SparkFfn, GradientsAreThoseOfTheFunction) {
  const auto brick = ffn(6, 2, 12, 0.3);
  brick->to(at::kDouble);
  const at::Tensor x = random_tensor({4, 6}, 8).to(at::kDouble);
  const at::Tensor weights = random_tensor({4, 6}, 9).to(at::kDouble);
  const auto f = [&](const at::Tensor& input) { return run(*brick, input); };
  expect_near(autograd_gradient(f, x, weights), numeric_gradient(f, x, weights), 1e-5);
}

TEST(SparkFfn, ReloadsAndAgreesWithTheEngine) {
  const TempDirectory folder;
  auto root = std::make_shared<Sequential>();
  root->append("ffn", ffn(24, 12, 200, 0.1));
  Model model;
  model.root = root;
  model.input_shape = {7, 24};
  const at::Tensor x = random_tensor({3, 7, 24}, 5);
  save_bundle(model, folder / "m.safetensors");
  Model loaded = load_model(folder / "m.safetensors");
  EXPECT_TRUE(at::equal(run(loaded, x), run(model, x)));
  bundle::Builder builder;
  lower(model, builder);
  EXPECT_EQ(bundle::check_graph(builder.graph(), "test").total.params, model.cost().params);
#if SLUICE_HAS_ENGINE
  EXPECT_LE(engine_error(model, x), 1e-5);
#endif
}

std::shared_ptr<SparkAttention> attention(int64_t tokens) {
  auto brick = std::dynamic_pointer_cast<SparkAttention>(
      make_spark_attention(SparkAttentionOptions{8, 4, tokens, 10000}, 12, 3));
  const at::NoGradGuard no_grad;
  uint64_t seed = 20;
  for (const char* name : {"q", "k", "v", "o"}) {
    auto& layer = brick->slot(name).as<Linear>();
    layer.weight.copy_(random_tensor(layer.weight.sizes(), ++seed) * 0.4);
  }
  brick->eval();
  return brick;
}

TEST(SparkAttention, SeesNothingAhead) {
  const auto brick = attention(4);
  const at::Tensor x = random_tensor({2, 16, 12}, 3);
  at::Tensor changed = x.clone();
  changed.narrow(1, 9, 7).copy_(random_tensor({2, 7, 12}, 4));
  expect_near(run(*brick, changed).narrow(1, 0, 9), run(*brick, x).narrow(1, 0, 9), 1e-5);
  EXPECT_GT(relative_error(run(*brick, changed).narrow(1, 9, 7), run(*brick, x).narrow(1, 9, 7)),
            0.1);
}

TEST(SparkAttention, ShortPrefixesAreSeenWhole) {
  const at::Tensor x = random_tensor({2, 12, 12}, 3);
  const at::Tensor all = run(*attention(12), x), some = run(*attention(4), x);
  expect_near(some.narrow(1, 0, 4), all.narrow(1, 0, 4), 1e-5);
  EXPECT_GT(relative_error(some, all), 1e-3);
  const auto macs = [&](int64_t tokens) {
    Meter meter;
    Context context;
    context.meter = &meter;
    const at::NoGradGuard no_grad;
    attention(tokens)->forward(x, context);
    return meter.macs();
  };
  EXPECT_EQ(macs(12), attention(12)->cost({12, 12}).macs * 2);
  EXPECT_LT(macs(4), macs(12));
}

TEST(SparkAttention, GradientsAreThoseOfTheFunctionAndItReloads) {
  const auto brick = attention(3);
  brick->to(at::kDouble);
  const at::Tensor x = random_tensor({1, 7, 12}, 8).to(at::kDouble);
  const at::Tensor weights = random_tensor({1, 7, 12}, 9).to(at::kDouble);
  const auto f = [&](const at::Tensor& input) { return run(*brick, input); };
  expect_near(autograd_gradient(f, x, weights), numeric_gradient(f, x, weights), 1e-5);
  const BrickPtr copy = clone(*brick);
  EXPECT_TRUE(at::equal(run(*copy, x), run(*brick, x)));
}

#if SLUICE_HAS_ENGINE

// A decoder with Spark attention, in runs of any length through the engine's cache: what the lab
// computes over the whole text, and what it metered.
TEST(SparkAttention, TheEngineReadsATextStepByStepAsTheLabDoes) {
  Model model = make_model("decoder",
                           {{"vocab", 23},
                            {"layers", 2},
                            {"width", 12},
                            {"heads", 3},
                            {"ffn", 10},
                            {"context", 40},
                            {"block", 9},
                            {"init_std", 0.3}},
                           4);
  const at::NoGradGuard no_grad;
  uint64_t seed = 50;
  for (const SlotRef& ref : walk(*model.root, "blocks.*.attn")) {
    const BrickPtr brick = make_spark_attention({8, 4, 6, 10000, 40}, 12, 3);
    for (const char* name : {"q", "k", "v", "o"}) {
      auto& layer = brick->slot(name).as<Linear>();
      layer.weight.copy_(random_tensor(layer.weight.sizes(), ++seed) * 0.4);
    }
    ref.slot->exchange(brick);
  }
  model.root->eval();
  const TempDirectory folder;
  save_bundle(model, folder / "m.safetensors");
  Model loaded = load_model(folder / "m.safetensors");
  const auto network = engine::Network::open(folder / "m.safetensors");
  constexpr int64_t kBatch = 2, kTokens = 33;
  const at::Tensor ids =
      (random_tensor({kBatch, kTokens}, 12).abs() * 1000).to(at::kLong).remainder(23);
  Context context;
  Meter lab_meter, meter;
  context.meter = &lab_meter;
  const at::Tensor expected = loaded.forward(ids, context);
  EXPECT_LT(lab_meter.macs(), kBatch * model.root->cost({kTokens}).macs);
  engine::Session session(network, {.batch = kBatch, .threads = 2, .sequences = true});
  EXPECT_EQ(session.capacity(), 40);
  int64_t done = 0;
  for (const int64_t count : {9, 1, 1, 7, 1, 9, 5}) {
    const at::Tensor part = ids.narrow(1, done, count).to(at::kFloat).contiguous();
    std::vector<float> found(static_cast<size_t>(kBatch * count * 23));
    session.run_tokens({part.data_ptr<float>(), static_cast<size_t>(part.numel())}, found,
                       std::vector<int64_t>(kBatch, count), {.meter = &meter});
    expect_near(at::from_blob(found.data(), {kBatch, count, 23}, at::kFloat),
                expected.narrow(1, done, count), 2e-5);
    done += count;
  }
  EXPECT_EQ(done, kTokens);
  EXPECT_EQ(meter.macs(), lab_meter.macs());
  // Back behind tokens that were refused, and on.
  session.rewind(0, 30);
  session.rewind(1, 30);
  const at::Tensor again = ids.narrow(1, 30, 3).to(at::kFloat).contiguous();
  std::vector<float> found(static_cast<size_t>(kBatch * 3 * 23));
  session.run_tokens({again.data_ptr<float>(), static_cast<size_t>(again.numel())}, found,
                     std::vector<int64_t>(kBatch, 3));
  expect_near(at::from_blob(found.data(), {kBatch, 3, 23}, at::kFloat), expected.narrow(1, 30, 3),
              2e-5);
}

#endif

TEST(Spark, RefusesWhatMakesNoSense) {
  const auto make = [](SparkFfnOptions options) { return [=] { SparkFfn brick(options); }; };
  expect_error(Code::config, "split of spark_ffn", make({8, 8, 10, 0.1, "gelu"}));
  expect_error(Code::config, "keep of spark_ffn", make({8, 4, 10, 0.0, "gelu"}));
  expect_error(Code::config, "sigmoid is not 0 at 0", make({8, 4, 10, 0.1, "sigmoid"}));
  expect_error(Code::config, "two even parts", [] {
    SparkAttention brick(SparkAttentionOptions{8, 3, 4, 10000});
  });
  expect_error(Code::config, "tokens of spark_attention", [] {
    SparkAttention brick(SparkAttentionOptions{8, 4, 0, 10000});
  });
}

}  // namespace spark_test
}  // namespace sluice::lab
