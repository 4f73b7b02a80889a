#include "sluice/lab/train/alternate.h"

#include "sluice/lab/brick/layers.h"
#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace alternate_test {

using namespace testing;  // NOLINT: test helpers

struct Pair {
  std::shared_ptr<Linear> a = std::make_shared<Linear>(4, 3), b = std::make_shared<Linear>(3, 2);
  at::Tensor x = random_tensor({8, 4}, 1), y = random_tensor({8, 2}, 2);
  at::Tensor loss() const {
    const at::Tensor h = at::linear(x, a->weight, a->bias);
    return at::mse_loss(at::linear(h, b->weight, b->bias), y);
  }
  std::vector<Turn> turns(const std::string& optimizer = "sgd") const {
    OptimizerOptions options;
    options.kind = optimizer;
    return {{"a",
             {{"a.weight", a->weight}, {"a.bias", a->bias}},
             options,
             [this](int64_t) { return loss(); }},
            {"b", {{"b.weight", b->weight}, {"b.bias", b->bias}}, options, [this](int64_t) {
               return loss();
             }}};
  }
};

TEST(AlternatingTrainer, OneSetLearnsWhileTheOtherStays) {
  const Pair pair;
  AlternatingTrainer trainer(pair.turns("adam"), 3);
  double first = 0, last = 0;
  for (int64_t step = 0; step < 60; ++step) {
    const bool first_turn = step / 3 % 2 == 0;
    EXPECT_EQ(trainer.turn_at(step), first_turn ? 0u : 1u);
    const at::Tensor a = pair.a->weight.detach().clone(), b = pair.b->weight.detach().clone();
    last = trainer.run_step(step, 0.02);
    if (step == 0) first = last;
    EXPECT_EQ(at::equal(pair.a->weight, a), !first_turn) << step;
    EXPECT_EQ(at::equal(pair.b->weight, b), first_turn) << step;
    EXPECT_TRUE(pair.a->weight.requires_grad());
    EXPECT_TRUE(pair.b->weight.requires_grad());
  }
  EXPECT_LT(last, 0.5 * first);
}

TEST(AlternatingTrainer, IsTwoOptimizersOfTheirOwn) {
  // The same steps by hand.
  const Pair pair;
  Pair other;
  other.a = std::dynamic_pointer_cast<Linear>(clone(*pair.a));
  other.b = std::dynamic_pointer_cast<Linear>(clone(*pair.b));
  AlternatingTrainer trainer(pair.turns(), 1);
  const std::vector<Turn> turns = other.turns();
  std::vector<std::unique_ptr<Optimizer>> optimizers;
  for (const Turn& turn : turns)
    optimizers.push_back(build_optimizer(turn.optimizer, turn.parameters));
  for (int64_t step = 0; step < 10; ++step) {
    trainer.run_step(step, 0.05);
    const auto index = static_cast<size_t>(step % 2);
    for (const Turn& turn : turns)
      for (const auto& [name, p] : turn.parameters) at::Tensor(p).mutable_grad() = at::Tensor();
    other.loss().backward();
    optimizers[index]->set_rate(0.05);
    optimizers[index]->step();
  }
  EXPECT_TRUE(at::equal(pair.a->weight, other.a->weight));
  EXPECT_TRUE(at::equal(pair.b->weight, other.b->weight));
}

TEST(AlternatingTrainer, SaysWhatIsWrong) {
  const Pair pair;
  expect_error(Code::config, "1 turns", [&] { AlternatingTrainer({pair.turns()[0]}, 1); });
  expect_error(Code::config, "period of 1 step or more",
               [&] { AlternatingTrainer(pair.turns(), 0); });
  expect_error(Code::config, "learns in another turn", [&] {
    AlternatingTrainer({pair.turns()[0], pair.turns()[0]}, 1);
  });
  std::vector<Turn> turns = pair.turns();
  turns[1].loss = nullptr;
  expect_error(Code::config, "turn 'b' has no loss", [&] { AlternatingTrainer(turns, 1); });
  turns = pair.turns();
  turns[1].parameters.clear();
  expect_error(Code::config, "turn 'b' has no parameters", [&] { AlternatingTrainer(turns, 1); });
  turns = pair.turns();
  turns[0].loss = [&](int64_t) { return pair.loss() * NAN; };
  AlternatingTrainer trainer(turns, 1);
  const at::Tensor before = pair.a->weight.detach().clone();
  expect_error(Code::numeric, "step 0 of turn 'a'", [&] { trainer.run_step(0, 0.1); });
  EXPECT_TRUE(at::equal(pair.a->weight, before));
  EXPECT_TRUE(pair.b->weight.requires_grad());
}

}  // namespace alternate_test
}  // namespace sluice::lab
