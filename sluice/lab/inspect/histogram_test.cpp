#include "sluice/lab/inspect/histogram.h"

#include <cmath>

#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace histogram_test {

using namespace testing;  // NOLINT: test helpers

TEST(ScoreHistogram, QuantilesAreThoseOfTheSortedNumbers) {
  const at::Tensor scores = random_tensor({20000}, 2).abs() * 3;
  const auto [sorted, order] = at::sort(scores);
  ScoreHistogram histogram;
  histogram.add(scores.narrow(0, 0, 7000), "test");
  histogram.add(scores.narrow(0, 7000, 13000).to(at::kDouble), "test");
  EXPECT_EQ(histogram.count(), 20000);
  for (const double share : {0.25, 0.4, 0.5, 0.65, 0.99}) {
    const float expected = sorted[static_cast<int64_t>(share * 20000)].item<float>();
    const float found = histogram.quantile(share);
    EXPECT_NEAR(found, expected, 0.005 * expected) << share;
    EXPECT_NEAR(histogram.share_above(found), 1 - share, 1e-3);
  }
  EXPECT_EQ(histogram.quantile(0), sorted[0].item<float>());
  EXPECT_EQ(histogram.quantile(1), sorted[19999].item<float>());
}

TEST(ScoreHistogram, TakesTheWholeRangeAndRefusesTheRest) {
  ScoreHistogram histogram;
  histogram.add(torch::tensor({0.f, -0.f, 1e-42f, 1.f, 3e38f}), "test");
  EXPECT_EQ(histogram.quantile(0), 0);
  EXPECT_EQ(histogram.quantile(1), 3e38f);
  expect_error(Code::numeric, "layer: scores have to be finite", [&] {
    histogram.add(torch::tensor({1.f, NAN}), "layer");
  });
  expect_error(Code::numeric, "found -2", [&] { histogram.add(torch::tensor({-2.f}), "layer"); });
  expect_error(Code::config, "expected a share", [&] { histogram.quantile(1.5); });
  expect_error(Code::config, "expected a share", [&] { histogram.quantile(NAN); });
  expect_error(Code::usage, "no scores were counted", [] { ScoreHistogram().quantile(0.5); });
}

TEST(InputHistograms, CountScaledInputsOfSlots) {
  Model model = small_model("mlp", 1);
  const PassInput input = calibrated(model);
  const std::string path = "fc2";
  const auto plain = input_histograms(model, input, "test", {path}, {});
  EXPECT_EQ(plain.at(path).count(), 30 * 11);
  const auto scaled =
      input_histograms(model, input, "test", {path}, {{path, torch::full({11}, 4.f)}});
  EXPECT_NEAR(scaled.at(path).quantile(0.9), 4 * plain.at(path).quantile(0.9), 1e-4);
  expect_error(Code::usage, "pass test needs calibration data",
               [&] { input_histograms(model, PassInput{}, "test", {path}, {}); });
  expect_error(Code::usage, "nothing went into nowhere",
               [&] { input_histograms(model, input, "test", {"nowhere"}, {}); });
}

}  // namespace histogram_test
}  // namespace sluice::lab
