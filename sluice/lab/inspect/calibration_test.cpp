#include "sluice/lab/inspect/calibration.h"

#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace calibration_test {

using namespace testing;  // NOLINT: test helpers

TEST(Calibration, BinsHaveEqualCounts) {
  const at::Tensor confidence = at::tensor({0.9, 0.1, 0.5, 0.7, 0.3});
  const at::Tensor correct = at::tensor({1, 0, 1, 0, 1});
  const auto bins = reliability(confidence, correct, 2);
  ASSERT_EQ(bins.size(), 2u);
  EXPECT_EQ(bins[0].count, 2);
  EXPECT_NEAR(bins[0].confidence, 0.2, 1e-12);
  EXPECT_NEAR(bins[0].accuracy, 0.5, 1e-12);
  EXPECT_EQ(bins[1].count, 3);
  EXPECT_NEAR(bins[1].confidence, 0.7, 1e-12);
  EXPECT_NEAR(bins[1].accuracy, 2.0 / 3, 1e-12);
  EXPECT_NEAR(calibration_error(confidence, correct, 2), 0.4 * 0.3 + 0.6 * (0.7 - 2.0 / 3), 1e-12);
  EXPECT_EQ(reliability(confidence, correct, 15).size(), 5u);
  EXPECT_TRUE(reliability(at::empty({0}), at::empty({0})).empty());
}

TEST(Calibration, HonestAnswersHaveNoErrorAndBoastfulOnesDo) {
  const at::Tensor p = at::rand({20000}, at::make_generator<at::CPUGeneratorImpl>(3));
  const at::Tensor right = at::rand({20000}, at::make_generator<at::CPUGeneratorImpl>(4)) < p;
  EXPECT_LE(calibration_error(p, right), 0.02);
  EXPECT_GE(calibration_error(p.sqrt(), right), 0.1);
}

TEST(Calibration, BrierScoreOfKnownAnswers) {
  const at::Tensor labels = at::tensor({0, 2}).to(at::kLong);
  EXPECT_NEAR(brier_score(at::tensor({1.0, 0.0, 0.0, 0.0, 0.0, 1.0}).view({2, 3}), labels), 0,
              1e-12);
  EXPECT_NEAR(brier_score(at::tensor({0.0, 1.0, 0.0, 0.5, 0.0, 0.5}).view({2, 3}), labels),
              (2 + 0.5) / 2, 1e-12);
}

TEST(Calibration, SaysWhatDoesNotFit) {
  const at::Tensor two = at::tensor({0.5, 0.5});
  expect_error(Code::shape, "expected [N] twice", [&] { reliability(two, at::ones({3})); });
  expect_error(Code::numeric, "outside of 0 to 1", [&] { reliability(two + 1, two); });
  expect_error(Code::config, "at least 1 bin", [&] { reliability(two, two, 0); });
  expect_error(Code::shape, "expected [N, C] and [N]", [&] { brier_score(two, two); });
}

}  // namespace calibration_test
}  // namespace sluice::lab
