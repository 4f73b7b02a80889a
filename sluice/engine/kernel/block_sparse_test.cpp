#include "sluice/engine/kernel/block_sparse.h"

#include <gmock/gmock.h>

#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace block_sparse_test {

using testing::Guarded;
using testing::random_floats;

/// Blocks of height x width are kept with that probability.
std::vector<float> blocks(std::mt19937_64& random, int64_t out, int64_t in, int64_t height,
                          int64_t width, double density) {
  auto weight = random_floats(random, size_t(out * in));
  std::bernoulli_distribution keep(density);
  for (int64_t o = 0; o < out; o += height) {
    for (int64_t i = 0; i < in; i += width) {
      if (keep(random)) continue;
      for (int64_t a = o; a < std::min(out, o + height); ++a)
        for (int64_t b = i; b < std::min(in, i + width); ++b) weight[size_t(a * in + b)] = 0;
    }
  }
  return weight;
}

TEST(BlockSparse, MatchesTheReferenceForAnySizeAndDensity) {
  std::mt19937_64 random(1);
  testing::for_each_target([&] {
    for (int round = 0; round < 40; ++round) {
      const int64_t out = 1 + int64_t(random() % 70), in = 1 + int64_t(random() % 90),
                    rows = 1 + int64_t(random() % 40);
      const BlockShape shape = round % 2 ? BlockShape::tall : BlockShape::wide;
      const double density = std::array{0.0, 0.1, 0.5, 1.0}[random() % 4];
      const auto weight = blocks(random, out, in, round % 2 ? 16 : 1, round % 2 ? 1 : 16, density);
      const auto x = random_floats(random, size_t(rows * in)),
                 bias = random_floats(random, size_t(out));
      const BlockWeights packed = compress_blocks(weight, out, in, shape);
      Guarded in_x(x.size()), y(size_t(rows * out));
      std::copy(x.begin(), x.end(), in_x.data());
      const bool with_bias = random() % 2;
      linear_blocks(in_x.data(), packed, with_bias ? bias.data() : nullptr,
                    round % 3 ? Activation::none : Activation::relu, y.data(), size_t(rows),
                    1 + round % 3);
      ASSERT_TRUE(y.intact());
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t o = 0; o < out; ++o) {
          double want = with_bias ? bias[size_t(o)] : 0;
          for (int64_t i = 0; i < in; ++i)
            want += double(weight[size_t(o * in + i)]) * x[size_t(r * in + i)];
          if (round % 3 == 0) want = std::max(want, 0.0);
          ASSERT_NEAR(y.data()[r * out + o], want, 2e-4) << rows << " x " << in << " -> " << out;
        }
      }
    }
  });
}

TEST(BlockSparse, KeepsOnlyBlocksWithWeightsAndCountsThem) {
  std::vector<float> weight(20 * 33, 0.0f);
  weight[17 * 33 + 32] = 1;  // the last row's block of outputs, the last column
  weight[3 * 33 + 5] = weight[4 * 33 + 5] = 2;
  EXPECT_EQ(compress_blocks(weight, 20, 33, BlockShape::tall).blocks(), 2);
  EXPECT_EQ(compress_blocks(weight, 20, 33, BlockShape::wide).blocks(), 3);
  EXPECT_DOUBLE_EQ(block_density(weight, 20, 33, BlockShape::tall), 2.0 / 66);
  EXPECT_DOUBLE_EQ(block_density(weight, 20, 33, BlockShape::wide), 3.0 / 60);
}

TEST(BlockSparse, ThreadsDoNotChangeABitAndNanStaysInItsRow) {
  std::mt19937_64 random(3);
  const int64_t out = 100, in = 60, rows = 17;
  for (const BlockShape shape : {BlockShape::tall, BlockShape::wide}) {
    const auto weight = blocks(random, out, in, 16, 16, 0.5);
    auto x = random_floats(random, rows * in);
    x[5 * in] = NAN;
    const BlockWeights packed = compress_blocks(weight, out, in, shape);
    std::vector<float> one(rows * out), three(rows * out);
    linear_blocks(x.data(), packed, nullptr, Activation::none, one.data(), rows, 1);
    linear_blocks(x.data(), packed, nullptr, Activation::none, three.data(), rows, 3);
    for (int64_t i = 0; i < rows * out; ++i) {
      if (i / out == 5) continue;
      ASSERT_EQ(one[size_t(i)], three[size_t(i)]);
      ASSERT_FALSE(std::isnan(one[size_t(i)]));
    }
  }
}

TEST(BlockSparse, TheChoiceFollowsHowTheZerosLie) {
  std::mt19937_64 random(4);
  const auto choose = [&](int64_t height, int64_t width, double density, int64_t rows) {
    return choose_sparse(blocks(random, 320, 320, height, width, density), 320, 320, rows);
  };
  for (const int64_t rows : {1, 4, 16, 100}) {
    EXPECT_EQ(choose(1, 1, 1.0, rows), SparseChoice::dense);
    EXPECT_EQ(choose(1, 1, 0.6, rows), SparseChoice::dense);
    // Single weights, far apart; few rows gain more from whole vectors of mostly zeros.
    EXPECT_EQ(choose(1, 1, 0.02, rows), rows == 4 ? SparseChoice::tall : SparseChoice::rows);
    EXPECT_EQ(choose(16, 1, 0.3, rows), SparseChoice::tall);
    EXPECT_EQ(choose(16, 16, 0.3, rows), SparseChoice::tall);
  }
  EXPECT_EQ(choose(1, 16, 0.3, 1), SparseChoice::wide);
  EXPECT_EQ(choose(1, 16, 0.3, 100), SparseChoice::dense);
}

}  // namespace block_sparse_test
}  // namespace sluice::engine
