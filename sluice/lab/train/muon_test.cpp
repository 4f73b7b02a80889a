#include "sluice/lab/train/muon.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "sluice/base/test_error.h"
#include "sluice/lab/train/distributed.h"

namespace sluice::lab {
namespace {

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

TEST(Launch, ReadsTorchrunAndMpirunAndNamesWhatMakesNoSense) {
  const auto with = [](std::vector<std::pair<const char*, const char*>> variables, auto use) {
    for (const auto& [name, value] : variables) ::setenv(name, value, 1);
    use();
    for (const auto& [name, value] : variables) ::unsetenv(name);
  };
  EXPECT_EQ(launch_from_environment().size, 1);
  with({{"RANK", "1"},
        {"WORLD_SIZE", "4"},
        {"LOCAL_RANK", "1"},
        {"MASTER_ADDR", "host"},
        {"MASTER_PORT", "1234"}},
       [] {
         const Launch launch = launch_from_environment();
         EXPECT_EQ(launch.rank, 1);
         EXPECT_EQ(launch.size, 4);
         EXPECT_EQ(launch.local_rank, 1);
         EXPECT_EQ(launch.address, "host");
         EXPECT_EQ(launch.port, 1234);
       });
  with({{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "2"}}, [] {
    EXPECT_EQ(launch_from_environment().size, 2);
    EXPECT_EQ(launch_from_environment().address, "127.0.0.1");
  });
  with({{"RANK", "4"}, {"WORLD_SIZE", "4"}}, [] {
    EXPECT_ERROR(launch_from_environment(), Code::config,
                 "RANK='4': expected a number from 0 to 3");
  });
  with({{"RANK", "x"}, {"WORLD_SIZE", "2"}},
       [] { EXPECT_ERROR(launch_from_environment(), Code::config, "RANK='x'"); });
}

}  // namespace
}  // namespace sluice::lab
