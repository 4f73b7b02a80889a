#include "sluice/lab/pass/least_squares.h"

#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace least_squares_test {

using namespace testing;  // NOLINT: test helpers

at::Tensor rows(std::vector<int64_t> sizes, uint64_t seed) {
  return random_tensor(sizes, seed).to(at::kDouble);
}

TEST(LeastSquares, FindsTheMapThatMadeTheRows) {
  const at::Tensor x = rows({4, 10, 3}, 1) + 100, w = rows({5, 3}, 2), b = rows({5}, 3);
  LeastSquares fit(3, 5);
  fit.add(x.narrow(0, 0, 1), at::linear(x.narrow(0, 0, 1), w, b));  // in parts, as data streams
  fit.add(x.narrow(0, 1, 3), at::linear(x.narrow(0, 1, 3), w, b));
  EXPECT_EQ(fit.rows(), 40);
  const LinearFit found = fit.solve(0);
  expect_near(found.weight, w, 1e-9);
  expect_near(found.bias, b, 1e-7);
  EXPECT_NEAR(found.residual, 0, 1e-12);
}

TEST(LeastSquares, IsThePseudoInverseWhereNothingIsExact) {
  const at::Tensor x = rows({50, 4}, 1) * 3 - 7, y = rows({50, 2}, 2) + 5;
  LeastSquares fit(4, 2);
  fit.add(x, y);
  const LinearFit found = fit.solve(0);
  const at::Tensor with_one = at::cat({x, at::ones({50, 1}, x.options())}, 1);
  const at::Tensor expected = at::matmul(at::linalg_pinv(with_one), y).t();
  expect_near(found.weight, expected.narrow(1, 0, 4), 1e-9);
  expect_near(found.bias, expected.select(1, 4), 1e-8);
  const at::Tensor left = at::linear(x, found.weight, found.bias) - y;
  EXPECT_NEAR(found.residual, (left.square().sum() / (y - y.mean(0)).square().sum()).item<double>(),
              1e-9);
}

TEST(LeastSquares, CopesWithColumnsThatAreAlikeConstantOrTooMany) {
  const at::Tensor x = rows({20, 2}, 1);
  const at::Tensor wide = at::cat(
      {x, x.narrow(1, 0, 1), at::full({20, 1}, 3.0, x.options()), rows({20, 40}, 2) * 0}, 1);
  LeastSquares fit(44, 1);
  fit.add(wide, 2 * x.narrow(1, 0, 1) + 10);
  const LinearFit found = fit.solve(1e-6);
  EXPECT_LT(found.residual, 1e-4);
  expect_near(found.weight[0][0], found.weight[0][2], 1e-6);  // what is alike shares evenly
  LeastSquares constant(2, 1);
  constant.add(at::ones({5, 2}), at::full({5, 1}, 4.0));
  expect_near(constant.solve().weight, at::zeros({1, 2}), 0);
  expect_near(constant.solve().bias, at::full({1}, 4.0), 1e-12);
  EXPECT_EQ(constant.solve().residual, 0);
}

TEST(LeastSquares, TheRidgeDoesNotShrinkTheBias) {
  const at::Tensor x = rows({100, 2}, 1);
  LeastSquares fit(2, 1);
  fit.add(x, at::full({100, 1}, 50.0) + x.narrow(1, 0, 1));
  const LinearFit found = fit.solve(1e6);
  EXPECT_LT(found.weight.abs().max().item<double>(), 1e-5);
  EXPECT_NEAR(found.bias.item<double>(), 50 + x.select(1, 0).mean().item<double>(), 1e-4);
  EXPECT_GT(found.residual, 0.9);
}

TEST(LeastSquares, RefusesRowsThatDoNotFit) {
  LeastSquares fit(2, 1);
  expect_error(Code::usage, "no rows", [&] { fit.solve(); });
  expect_error(Code::shape, "found 3 x 2 and 4 x 1", [&] {
    fit.add(at::zeros({3, 2}), at::zeros({4, 1}));
  });
  expect_error(Code::shape, "expected rows [.., 2]", [&] {
    fit.add(at::zeros({3, 3}), at::zeros({3, 1}));
  });
  expect_error(Code::numeric, "not finite", [&] {
    fit.add(at::full({3, 2}, std::numeric_limits<float>::infinity()), at::zeros({3, 1}));
  });
  expect_error(Code::usage, "0 inputs", [] { LeastSquares(0, 1); });
}

}  // namespace least_squares_test
}  // namespace sluice::lab
