#include "sluice/engine/kernel/reduce.h"

#include <gmock/gmock.h>

#include <limits>

#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace reduce_test {

using testing::for_each_target;
using testing::Guarded;
using testing::random_floats;

TEST(Reduce, AveragesAgreeInBothMemoryOrders) {
  std::mt19937_64 random(1);
  for_each_target([&] {
    for (const size_t channels : {1, 2, 7, 16, 37}) {
      for (const size_t pixels : {1, 2, 9, 49, 200}) {
        const auto x = random_floats(random, 3 * channels * pixels);
        std::vector<float> turned(x.size());
        transpose(x.data(), turned.data(), 3, channels, pixels);
        Guarded plain(3 * channels), last(3 * channels, 2);
        average_plain(x.data(), plain.data(), 3, channels, pixels);
        average_channels_last(turned.data(), last.data(), 3, channels, pixels);
        ASSERT_TRUE(plain.intact() && last.intact());
        for (size_t i = 0; i < 3 * channels; ++i) {
          double sum = 0;
          for (size_t p = 0; p < pixels; ++p) sum += x[i * pixels + p];
          ASSERT_NEAR(plain.data()[i], sum / double(pixels), 1e-6);
          ASSERT_NEAR(last.data()[i], sum / double(pixels), 1e-6);
        }
      }
    }
  });
}

TEST(Reduce, SoftmaxSumsToOneAndSurvivesLargeNumbers) {
  std::mt19937_64 random(2);
  for_each_target([&] {
    for (size_t width = 1; width < 50; ++width) {
      auto x = random_floats(random, 2 * width, -8, 8);
      for (size_t i = width; i < 2 * width; ++i) x[i] += 1e4f;  // exp would overflow
      Guarded y(2 * width);
      softmax(x.data(), y.data(), 2, width);
      ASSERT_TRUE(y.intact());
      for (size_t r = 0; r < 2; ++r) {
        double sum = 0;
        for (size_t i = 0; i < width; ++i)
          sum += std::exp(double(x[r * width + i]) - (r ? 1e4 : 0));
        for (size_t i = 0; i < width; ++i) {
          const double want = std::exp(double(x[r * width + i]) - (r ? 1e4 : 0)) / sum;
          ASSERT_NEAR(y.data()[r * width + i], want, 1e-6 + 1e-5 * want);
        }
      }
    }
  });
}

TEST(Reduce, PredictionScoresAreThoseOfTheSoftmax) {
  std::mt19937_64 random(4);
  for_each_target([&] {
    for (size_t width = 2; width < 70; ++width) {
      auto x = random_floats(random, 3 * width, -6, 6);
      for (size_t i = width; i < 2 * width; ++i) x[i] += 1e4f;  // exp would overflow
      std::fill(x.begin() + static_cast<std::ptrdiff_t>(2 * width), x.end(), -3.0f);
      x[2 * width + width / 2] = 200;  // certain
      for (const Sureness kind : {Sureness::confidence, Sureness::entropy, Sureness::margin}) {
        Guarded y(3);
        prediction_score(x.data(), kind, y.data(), 3, width);
        ASSERT_TRUE(y.intact());
        for (size_t r = 0; r < 3; ++r) {
          std::vector<double> p(x.begin() + static_cast<std::ptrdiff_t>(r * width),
                                x.begin() + static_cast<std::ptrdiff_t>((r + 1) * width));
          const double top = *std::max_element(p.begin(), p.end());
          double sum = 0, entropy = 0;
          for (double& each : p) sum += each = std::exp(each - top);
          for (double& each : p) entropy += (each /= sum) > 0 ? each * std::log(each) : 0;
          std::sort(p.rbegin(), p.rend());
          const double want = kind == Sureness::confidence ? p[0]
                              : kind == Sureness::entropy  ? entropy
                                                           : p[0] - p[1];
          ASSERT_NEAR(y.data()[r], want, 2e-6 + 1e-5 * std::abs(want)) << width << " " << r;
        }
      }
    }
  });
}

TEST(Reduce, PredictionScoresOfWhatIsNoNumberAreNaNWhereverItStands) {
  for_each_target([&] {
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      for (size_t at = 0; at < 37; ++at) {
        std::vector<float> x(37, 0.5f);
        x[at] = bad;
        float y = 0;
        prediction_score(x.data(), Sureness::confidence, &y, 1, x.size());
        ASSERT_TRUE(std::isnan(y)) << bad << " at " << at;
      }
    }
    // A class that is ruled out is no such thing.
    std::vector<float> x = {1, -std::numeric_limits<float>::infinity(), 1};
    float y = 0;
    prediction_score(x.data(), Sureness::confidence, &y, 1, x.size());
    EXPECT_NEAR(y, 0.5, 1e-6);
    prediction_score(x.data(), Sureness::margin, &y, 1, x.size());
    EXPECT_NEAR(y, 0, 1e-6);
  });
}

TEST(Reduce, LayerNormMatchesItsFormulaAndKeepsAConstantRowFinite) {
  std::mt19937_64 random(3);
  for_each_target([&] {
    for (size_t width = 1; width < 50; ++width) {
      auto x = random_floats(random, 2 * width, -3, 5);
      std::fill(x.begin() + static_cast<std::ptrdiff_t>(width), x.end(), 4.0f);
      const auto weight = random_floats(random, width), bias = random_floats(random, width);
      Guarded y(2 * width);
      layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, y.data(), 2, width);
      ASSERT_TRUE(y.intact());
      double mean = 0, variance = 0;
      for (size_t i = 0; i < width; ++i) mean += x[i] / double(width);
      for (size_t i = 0; i < width; ++i) variance += (x[i] - mean) * (x[i] - mean) / double(width);
      for (size_t i = 0; i < width; ++i) {
        ASSERT_NEAR(y.data()[i], (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i],
                    1e-5);
        ASSERT_NEAR(y.data()[width + i], bias[i], 1e-5);
      }
    }
  });
}

TEST(Reduce, TransposeMovesEveryElementForEveryRemainder) {
  for_each_target([&] {
    for (size_t rows = 1; rows < 22; ++rows) {
      for (size_t columns = 1; columns < 22; ++columns) {
        std::vector<float> x(2 * rows * columns);
        for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
        Guarded y(x.size(), rows % 4);
        transpose(x.data(), y.data(), 2, rows, columns);
        ASSERT_TRUE(y.intact());
        for (size_t s = 0; s < 2; ++s) {
          for (size_t r = 0; r < rows; ++r) {
            for (size_t c = 0; c < columns; ++c) {
              ASSERT_EQ(y.data()[s * rows * columns + c * rows + r],
                        x[s * rows * columns + r * columns + c]);
            }
          }
        }
      }
    }
  });
}

}  // namespace reduce_test
}  // namespace sluice::engine
