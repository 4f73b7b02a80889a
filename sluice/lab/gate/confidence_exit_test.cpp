#include "sluice/lab/gate/confidence_exit.h"

#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace confidence_exit_test {

using namespace testing;  // NOLINT: test helpers
using ::testing::ElementsAre;

DepthTable table(const std::vector<std::vector<double>>& confidence,
                 const std::vector<std::vector<int64_t>>& choice) {
  DepthTable result;
  std::vector<at::Tensor> a, b;
  for (const auto& row : confidence) a.push_back(torch::tensor(row, at::kDouble));
  for (const auto& row : choice) b.push_back(torch::tensor(row, at::kLong));
  result.confidence = at::stack(a);
  result.choice = at::stack(b);
  return result;
}

std::vector<int64_t> numbers(const at::Tensor& x) {
  return {x.data_ptr<int64_t>(), x.data_ptr<int64_t>() + x.numel()};
}

TEST(ConfidenceExit, LeavesAtTheFirstDepthThatIsSureEnough) {
  const DepthTable t = table({{0.9, 0.1, 0.5}, {0.5, 0.8, 0.5}, {0.5, 0.7, 0.1}, {0.8, 0.9, 0.9}},
                             {{1, 2, 3}, {4, 5, 6}, {7, 8, 9}, {10, 11, 12}});
  const at::Tensor depths = exit_depths(t, {0.8, 0.75});
  EXPECT_THAT(numbers(depths), ElementsAre(0, 1, 2, 0));  // reaching the threshold is enough
  EXPECT_THAT(numbers(exit_choices(t, depths)), ElementsAre(1, 5, 9, 10));
  expect_error(Code::shape, "3 thresholds for 3 depths", [&] { exit_depths(t, {1, 1, 1}); });
}

TEST(ConfidenceExit, IsCalibratedOnTheRowsThatAreStillInside) {
  // The first depth is right when it is at least 0.7 sure; the second always on what is left.
  const DepthTable t =
      table({{0.9, 0.9, 1}, {0.8, 0.9, 1}, {0.7, 0.2, 1}, {0.6, 0.5, 1}, {0.5, 0.6, 1}},
            {{1, 0, 1}, {1, 0, 1}, {1, 0, 1}, {0, 1, 1}, {0, 1, 1}});
  EXPECT_THAT(calibrate_exits(t, 0), ElementsAre(0.7, 0.5));
  // One error in four is allowed: the row of 0.6 leaves, too.
  EXPECT_THAT(calibrate_exits(t, 0.25), ElementsAre(0.6, 0.6));
  const DepthTable tie = table({{0.9, 1}, {0.9, 1}}, {{1, 1}, {0, 1}});
  EXPECT_THAT(calibrate_exits(tie, 0), ElementsAre(2.0));  // equals leave together or not at all
  expect_error(Code::config, "risk 1.5", [&] { calibrate_exits(t, 1.5); });
}

TEST(ConfidenceExit, TheShareOfOtherChoicesStaysBelowTheRisk) {
  const at::Tensor logits = random_tensor({400, 4, 6}, 3) * 2;
  const DepthTable t = depth_table(logits);
  expect_near(t.confidence, std::get<0>(at::softmax(logits, -1).max(-1)), 0);
  for (const double risk : {0.0, 0.3, 0.7}) {
    const at::Tensor depths = exit_depths(t, calibrate_exits(t, risk));
    const at::Tensor other = exit_choices(t, depths) != t.choice.select(1, 3);
    for (int64_t d = 0; d < 3; ++d) {
      const at::Tensor here = depths == d;
      const auto count = here.sum().item<int64_t>();
      if (count == 0) continue;
      EXPECT_LE((other & here).sum().item<double>() / double(count), risk + 1e-9) << d;
    }
  }
}

}  // namespace confidence_exit_test
}  // namespace sluice::lab
