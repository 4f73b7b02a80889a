#include "sluice/lab/train/fast_blas.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <limits>

#include "sluice/base/machine.h"

namespace sluice::lab {
namespace fast_blas_test {

using Sgemm = void (*)(const char*, const char*, const int*, const int*, const int*, const float*,
                       const float*, const int*, const float*, const int*, const float*, float*,
                       const int*);

/// What a shared library of this process gets for `sgemm_`.
Sgemm visible_sgemm() { return reinterpret_cast<Sgemm>(dlsym(RTLD_DEFAULT, "sgemm_")); }

/// Calls through the symbol as BLAS would be called, column-major, and compares with double
/// arithmetic.
void check(char ta, char tb, int m, int n, int k, float alpha, float beta, int pad) {
  SCOPED_TRACE(
      fmt::format("{}{} {}x{}x{} alpha {} beta {} pad {}", ta, tb, m, n, k, alpha, beta, pad));
  const bool na = ta == 'n' || ta == 'N', nb = tb == 'n' || tb == 'N';
  const int lda = std::max(1, na ? m : k) + pad, ldb = std::max(1, nb ? k : n) + pad,
            ldc = std::max(1, m) + pad;
  auto fill = [seed = 1u](size_t count) mutable {
    std::vector<float> values(count);
    for (auto& v : values)
      v = float(int((seed = seed * 1664525u + 1013904223u) >> 20) % 17 - 8) / 8;
    return values;
  };
  const auto a = fill(size_t(lda) * size_t(std::max(1, na ? k : m)));
  const auto b = fill(size_t(ldb) * size_t(std::max(1, nb ? n : k)));
  auto c = fill(size_t(ldc) * size_t(std::max(1, n)));
  const auto before = c;
  visible_sgemm()(&ta, &tb, &m, &n, &k, &alpha, a.data(), &lda, b.data(), &ldb, &beta, c.data(),
                  &ldc);
  for (int j = 0; j < n; ++j) {
    for (int i = 0; i < ldc; ++i) {
      const size_t at = size_t(j) * size_t(ldc) + size_t(i);
      double expected = before[at];
      if (i < m) {
        double sum = 0;
        for (int l = 0; l < k; ++l)
          sum += double(a[size_t(na ? l * lda + i : i * lda + l)]) *
                 double(b[size_t(nb ? j * ldb + l : l * ldb + j)]);
        expected = alpha * sum + (beta == 0 ? 0.0 : double(beta) * before[at]);
      }
      ASSERT_NEAR(c[at], expected, 1e-4 * (1 + std::abs(expected))) << "at " << i << ", " << j;
    }
  }
}

TEST(FastBlas, MatchesDoubleArithmeticForEveryFlagSizeAndLeadingDimension) {
  use_fast_blas();
  ASSERT_NE(visible_sgemm(), nullptr);
  const int sizes[][3] = {{1, 1, 1},    {3, 5, 7}, {17, 1, 33}, {1, 19, 4},
                          {64, 48, 31}, {0, 4, 3}, {4, 0, 3},   {5, 6, 0}};
  for (const char ta : {'n', 't', 'c', 'N', 'T'})
    for (const char tb : {'n', 't', 'C'})
      for (const auto& s : sizes)
        for (const auto& [alpha, beta] :
             {std::pair{1.f, 0.f}, {-0.5f, 1.f}, {2.f, 0.25f}, {0.f, 0.5f}})
          for (const int pad : {0, 3}) check(ta, tb, s[0], s[1], s[2], alpha, beta, pad);
}

TEST(FastBlas, ZeroBetaOverwritesNanAndZeroAlphaReadsNoOperand) {
  use_fast_blas();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int two = 2, none = 0;
  const float one = 1, zero = 0;
  const std::array<float, 4> a{1, 2, 3, 4}, bad{nan, nan, nan, nan};
  std::array<float, 4> c{nan, nan, nan, nan};
  visible_sgemm()("n", "n", &two, &two, &two, &one, a.data(), &two, a.data(), &two, &zero, c.data(),
                  &two);
  EXPECT_EQ(c, (std::array<float, 4>{7, 10, 15, 22}));
  c.fill(nan);
  visible_sgemm()("n", "n", &two, &two, &none, &one, a.data(), &two, a.data(), &two, &zero,
                  c.data(), &two);
  EXPECT_EQ(c, (std::array<float, 4>{}));
  c.fill(3);
  visible_sgemm()("n", "n", &two, &two, &two, &zero, bad.data(), &two, bad.data(), &two, &one,
                  c.data(), &two);
  EXPECT_EQ(c, (std::array<float, 4>{3, 3, 3, 3}));
}

TEST(FastBlas, LibTorchMultipliesThroughIt) {
  use_fast_blas();
  if (!fast_blas_built() || at::hasMKL()) GTEST_SKIP() << "this LibTorch brings its own sgemm";
  const int64_t before = fast_blas_calls();
  const auto a = torch::randn({37, 53}), b = torch::randn({53, 29});
  const auto product = torch::mm(a, b);
  EXPECT_GT(fast_blas_calls(), before);
  EXPECT_TRUE(torch::allclose(product.to(torch::kDouble),
                              torch::mm(a.to(torch::kDouble), b.to(torch::kDouble)), 1e-4, 1e-4));
}

TEST(FastBlas, LibTorchProductsAreRightForViewsAndTransposes) {
  use_fast_blas();
  torch::manual_seed(3);
  const auto big = torch::randn({70, 90});
  auto same = [](const at::Tensor& a, const at::Tensor& b) {
    const auto exact = torch::mm(a.to(torch::kDouble), b.to(torch::kDouble));
    EXPECT_TRUE(torch::allclose(torch::mm(a, b).to(torch::kDouble), exact, 1e-4, 1e-4))
        << a.sizes() << b.sizes();
  };
  const auto odd = big.narrow(0, 1, 33).narrow(1, 3, 41);          // row stride 90
  const auto strided = big.slice(0, 0, 70, 2).slice(1, 0, 90, 3);  // both strides > 1
  same(odd, big.narrow(0, 5, 41));
  same(odd.t(), big.narrow(0, 9, 33));
  same(odd, odd.t());
  same(strided.t(), strided);
  same(odd.narrow(0, 0, 1), odd.t());
  const auto batch = torch::randn({3, 5, 7});
  EXPECT_TRUE(torch::allclose(torch::bmm(batch, batch.transpose(1, 2))[1],
                              torch::mm(batch[1], batch[1].t()), 1e-4, 1e-5));
  const auto x = torch::randn({6, 41}, torch::requires_grad());
  torch::mm(x, odd.t()).sum().backward();
  EXPECT_TRUE(torch::allclose(x.grad()[0], odd.sum(0), 1e-4, 1e-4));
}

TEST(FastBlas, UsesAllCores) {
  use_fast_blas();
  EXPECT_EQ(at::get_num_threads(), describe_machine().cores);
}

}  // namespace fast_blas_test
}  // namespace sluice::lab
