#include "sluice/lab/gate/selector.h"

#include <cmath>

#include "sluice/base/json.h"
#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace selector_test {

using namespace testing;  // NOLINT: test helpers

at::Tensor numbers(const at::Tensor& kept) { return kept.to(at::kFloat); }

TEST(Selector, KeepsByDefinition) {
  const at::Tensor x = torch::tensor({{1.f, -3.f, 3.f, 2.f, 0.f}});
  expect_near(numbers(select(x, {})), torch::ones({1, 5}));
  expect_near(numbers(select(x, Selector::top(2))), torch::tensor({{0.f, 1.f, 1.f, 0.f, 0.f}}));
  expect_near(numbers(select(x, Selector::top(1))), torch::tensor({{0.f, 1.f, 0.f, 0.f, 0.f}}));
  expect_near(numbers(select(x, Selector::top(0))), torch::zeros({1, 5}));
  expect_near(numbers(select(x, Selector::above(2))), torch::tensor({{0.f, 1.f, 1.f, 0.f, 0.f}}));
  Selector value = Selector::above(0.5f);
  value.magnitude = false;
  expect_near(numbers(select(x, value)), torch::tensor({{1.f, 0.f, 1.f, 1.f, 0.f}}));
  // 1 * 4, 3 * 1, 3 * 1, 2 * 0.1, 0 * 9
  const at::Tensor weight = torch::tensor({4.f, 1.f, 1.f, 0.1f, 9.f});
  expect_near(numbers(select(x, Selector::top(1), weight)),
              torch::tensor({{1.f, 0.f, 0.f, 0.f, 0.f}}));
}

TEST(Selector, StatisticalKeepsAboutTheShareOfNormalScores) {
  Selector some = Selector::share(0.1);
  some.magnitude = false;
  const at::Tensor share = numbers(select(random_tensor({4, 5000}, 3), some)).mean(-1);
  EXPECT_GT(share.min().item<float>(), 0.085);
  EXPECT_LT(share.max().item<float>(), 0.115);
}

TEST(Selector, StatisticalBoundIsTheEnginesAndHasAGradient) {
  Selector some = Selector::share(0.2);
  some.magnitude = false;
  const at::Tensor x = random_tensor({5, 300}, 3);
  EXPECT_TRUE(at::equal(x > statistical_bound(x, 0.2), select(x, some)));
  const at::Tensor wide = random_tensor({2, 9}, 4).to(at::kDouble);
  const at::Tensor weights = random_tensor({2, 1}, 5).to(at::kDouble);
  const auto f = [](const at::Tensor& scores) { return statistical_bound(scores, 0.2); };
  expect_near(autograd_gradient(f, wide, weights), numeric_gradient(f, wide, weights), 1e-6);
  EXPECT_TRUE(at::isfinite(autograd_gradient(f, torch::ones({2, 9}, at::kDouble), weights))
                  .all()
                  .item<bool>());
  expect_error(Code::config, "expected a share", [&] { statistical_bound(x, 1.0); });
}

// On the CPU the engine's code answers, elsewhere tensor operations do: one definition.
TEST(Selector, BothWaysAgree) {
  at::Tensor x = random_tensor({3, 7, 65}, 5);
  x[0][0][3] = NAN;
  x[1][2][4] = INFINITY;
  x[2].fill_(0.25);  // ties
  const at::Tensor weight = random_tensor({65}, 6).abs();
  for (const bool magnitude : {true, false}) {
    for (Selector each :
         {Selector{}, Selector::top(9), Selector::top(0), Selector::top(65), Selector::above(0.4f),
          Selector::above(-1), Selector::share(0.3), Selector::share(1)}) {
      each.magnitude = magnitude;
      for (const at::Tensor& factors : {at::Tensor(), weight}) {
        // -inf and NaN, which only the engine tells apart, do not meet here.
        const at::Tensor found = select(x, each, factors);
        const at::Tensor expected = detail::select_by_tensors(x, each, factors);
        EXPECT_TRUE(at::equal(found, expected)) << selector_json(each).dump();
      }
    }
  }
}

TEST(Selector, RoundTripsAndRefusesWhatItIsNot) {
  for (const Selector& each :
       {Selector{}, Selector::top(9), Selector::above(0.4f), Selector::share(0.3)}) {
    EXPECT_EQ(selector_json(read_selector(selector_json(each), "x")), selector_json(each));
  }
  const auto read = [](const Json& json) { return [=] { read_selector(json, "thing"); }; };
  expect_error(Code::config, "select of thing: missing", read(Json::object()));
  expect_error(Code::config, "expected all, topk, threshold or statistical, found 'best'",
               read({{"select", "best"}}));
  expect_error(Code::config, "k of thing", read({{"select", "topk"}, {"k", -1}}));
  expect_error(Code::config, "threshold of thing",
               read({{"select", "threshold"}, {"threshold", 1e300}}));
  expect_error(Code::config, "keep of thing", read({{"select", "statistical"}, {"keep", 0.0}}));
  expect_error(Code::shape, "5 scores a row, but weights 4", [] {
    select(torch::ones({2, 5}), Selector::top(1), torch::ones({4}));
  });
}

}  // namespace selector_test
}  // namespace sluice::lab
