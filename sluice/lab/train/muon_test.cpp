#include "sluice/lab/train/muon.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include "sluice/base/test_error.h"

namespace sluice::lab {
namespace muon_test {

TEST(Muon, OrthogonalizeKeepsDirectionsAndEvensSizes) {
  for (const auto& shape : {std::pair(12, 20), std::pair(20, 12), std::pair(16, 16)}) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
    const auto m = torch::randn({shape.first, shape.second}, generator);
    const auto [u, s, v] = torch::linalg_svd(m, false, c10::nullopt);
    const auto made = orthogonalize(m);
    // In the basis of the singular vectors the result is diagonal, with entries near 1.
    const auto inside = u.t().matmul(made).matmul(v.t());
    const auto diagonal = inside.diag();
    EXPECT_LT((inside - diagonal.diag()).abs().max().item<double>(), 1e-3);
    EXPECT_GT(diagonal.min().item<double>(), 0.5);
    EXPECT_LT(diagonal.max().item<double>(), 1.3);
  }
}

TEST(Muon, IsForHiddenMatricesOnly) {
  const auto matrix = torch::zeros({3, 4});
  EXPECT_TRUE(is_hidden_matrix("blocks.0.attn.q.weight", matrix));
  EXPECT_TRUE(is_hidden_matrix("fc1.weight", matrix));
  EXPECT_FALSE(is_hidden_matrix("embed.weight", matrix));
  EXPECT_FALSE(is_hidden_matrix("head.weight", matrix));
  EXPECT_FALSE(is_hidden_matrix("fc.weight", matrix));
  EXPECT_FALSE(is_hidden_matrix("blocks.0.attn_norm.weight", torch::zeros({4})));
}

TEST(Muon, MovesEveryDirectionAlikeAndDecays) {
  auto weight = torch::ones({4, 4});
  Muon muon({{"w", weight}}, {.rate = 0.1, .momentum = 0.9, .weight_decay = 0.5});
  weight.mutable_grad() = torch::diag(torch::tensor({100.f, 1.f, 10.f, -5.f}));
  muon.step();
  // w = 1 (1 - 0.1 * 0.5) - 0.1 * 0.2 * sqrt(4) * (about sign of the gradient)
  const auto step = (weight - 0.95) / -0.04;
  EXPECT_LT((step - torch::diag(step.diag())).abs().max().item<double>(), 1e-4);
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(step[i][i].item<double>(), 0.95, 0.4);
  EXPECT_NEAR(step[3][3].item<double>(), -0.95, 0.4);
}

}  // namespace muon_test
}  // namespace sluice::lab
