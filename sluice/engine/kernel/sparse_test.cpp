#include "sluice/engine/kernel/sparse.h"

#include <gmock/gmock.h>

#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace sparse_test {

using testing::for_each_target;
using testing::Guarded;
using testing::random_floats;

std::vector<float> random_weights(std::mt19937_64& random, size_t count, double density) {
  auto weight = random_floats(random, count);
  std::bernoulli_distribution keep(density);
  for (float& w : weight) w = keep(random) ? w : 0.0f;
  return weight;
}

TEST(Sparse, MatchesTheDenseProductForEveryBatchAndDensity) {
  std::mt19937_64 random(1);
  for_each_target([&] {
    for (const double density : {0.0, 0.03, 0.3, 1.0}) {
      for (const size_t rows : {1, 2, 3, 15, 16, 17, 40}) {
        const size_t in = 1 + random() % 90, out = 1 + random() % 40;
        const auto weight = random_weights(random, in * out, density);
        const auto x = random_floats(random, rows * in), bias = random_floats(random, out);
        const SparseWeights sparse = compress(weight, int64_t(out), int64_t(in));
        std::vector<float> scratch(sparse_scratch(sparse, rows), NAN);
        Guarded y(rows * out);
        linear_sparse(x.data(), sparse, bias.data(), Activation::relu, y.data(), rows,
                      scratch.data());
        ASSERT_TRUE(y.intact());
        for (size_t r = 0; r < rows; ++r) {
          for (size_t o = 0; o < out; ++o) {
            double want = bias[o];
            for (size_t i = 0; i < in; ++i) want += double(weight[o * in + i]) * x[r * in + i];
            ASSERT_NEAR(y.data()[r * out + o], std::max(want, 0.0), 1e-4)
                << rows << " rows, density " << density;
          }
        }
      }
    }
  });
}

TEST(Sparse, KeepsExactlyTheNonZeros) {
  const std::vector<float> weight{0, 2, 0, 0, 0, 0, 3, 0, -4};
  const SparseWeights sparse = compress(weight, 3, 3);
  EXPECT_EQ(sparse.nonzero(), 3);
  EXPECT_THAT(sparse.start, ::testing::ElementsAre(0, 1, 1, 3));
  EXPECT_DOUBLE_EQ(density_of(weight), 1.0 / 3);
  EXPECT_DOUBLE_EQ(sparse.density(), 1.0 / 3);
}

TEST(Sparse, DenseWeightsStayDense) {
  for (const int64_t rows : {1, 8, 64}) {
    EXPECT_TRUE(sparse_pays(0.04, rows));
    EXPECT_FALSE(sparse_pays(0.5, rows));
  }
}

}  // namespace sparse_test
}  // namespace sluice::engine
