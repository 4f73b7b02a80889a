#include "sluice/base/text_overlap.h"

#include <gtest/gtest.h>

#include <cmath>

namespace sluice {
namespace text_overlap_test {

using Ids = std::vector<int64_t>;

TEST(RougeL, IsTheLongestCommonSubsequence) {
  EXPECT_EQ(rouge_l(Ids{1, 2, 3}, Ids{1, 2, 3}), 1);
  EXPECT_EQ(rouge_l(Ids{1, 2, 3}, Ids{4, 5}), 0);
  // 1 3 5 of five and four tokens, in order but not side by side.
  EXPECT_NEAR(rouge_l(Ids{1, 2, 3, 4, 5}, Ids{1, 3, 9, 5}), 2.0 * 3 / 9, 1e-12);
  EXPECT_NEAR(rouge_l(Ids{3, 1}, Ids{1, 3}), 0.5, 1e-12);  // order counts
  EXPECT_EQ(rouge_l(Ids{}, Ids{1}), 0);
  EXPECT_EQ(rouge_l(Ids{}, Ids{}), 1);
}

TEST(Bleu, ClipsRepetitionsAndPunishesBrevity) {
  const std::vector<std::pair<Ids, Ids>> same = {{{1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}}};
  EXPECT_NEAR(bleu(same), 1, 1e-12);
  const std::vector<std::pair<Ids, Ids>> shorter = {{{1, 2, 3, 4}, {1, 2, 3, 4, 5}}};
  EXPECT_NEAR(bleu(shorter), std::exp(1 - 5.0 / 4), 1e-12);
  // 1: 5 of 7 (the second 1 is one too many), 2: 4 of 6, 3: 3 of 5, 4: 2 of 4.
  const std::vector<std::pair<Ids, Ids>> clipped = {{{1, 2, 3, 4, 5, 1, 7}, {1, 2, 3, 4, 5}}};
  EXPECT_NEAR(bleu(clipped), std::pow(5.0 / 7 * 4 / 6 * 3 / 5 * 2 / 4, 0.25), 1e-12);
  const std::vector<std::pair<Ids, Ids>> none = {{{1, 2, 3, 4}, {1, 2, 9, 9}}};
  EXPECT_EQ(bleu(none), 0);
}

}  // namespace text_overlap_test
}  // namespace sluice
