#include "sluice/engine/kernel/elementwise.h"

#include <gmock/gmock.h>

#include <limits>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace elementwise_test {

using testing::for_each_target;
using testing::Guarded;
using testing::random_floats;

constexpr float kInf = std::numeric_limits<float>::infinity();

double expected(Activation kind, double x) {
  switch (kind) {
    case Activation::none:
      return x;
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::gelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::sigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::tanh:
      return std::tanh(x);
    case Activation::hard_swish:
      return x * std::clamp(x + 3, 0.0, 6.0) / 6;
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  return x;
}

constexpr Activation kKinds[] = {Activation::none,       Activation::relu,     Activation::gelu,
                                 Activation::silu,       Activation::sigmoid,  Activation::tanh,
                                 Activation::hard_swish, Activation::gelu_tanh};

TEST(Elementwise, ActivationsMatchTheirFormulasForEveryLength) {
  std::mt19937_64 random(1);
  for_each_target([&] {
    for (const Activation kind : kKinds) {
      for (size_t count = 0; count < 70; ++count) {
        const auto x = random_floats(random, count, -12, 12);
        Guarded y(count, count % 5);
        activate(kind, x.data(), y.data(), count);
        ASSERT_TRUE(y.intact());
        for (size_t i = 0; i < count; ++i) {
          const double want = expected(kind, x[i]);
          ASSERT_NEAR(y.data()[i], want, 1e-6 + 2e-6 * std::abs(want))
              << "kind " << int(kind) << " x " << x[i];
        }
      }
    }
  });
}

TEST(Elementwise, ActivationsSaturateAtExtremeValues) {
  const std::vector<float> x{-kInf,  -3e38f, -200, -89, -20,   -1e-30f, 0,
                             1e-30f, 20,     89,   200, 3e38f, kInf};
  for_each_target([&] {
    for (const Activation kind : {Activation::sigmoid, Activation::tanh, Activation::relu}) {
      std::vector<float> y(x.size());
      activate(kind, x.data(), y.data(), x.size());
      for (size_t i = 0; i < x.size(); ++i) {
        const double want = expected(kind, x[i]);
        if (std::isinf(want)) {
          EXPECT_EQ(y[i], want);
        } else {
          EXPECT_NEAR(y[i], want, 1e-6 + 1e-6 * std::abs(want))
              << "kind " << int(kind) << " x " << x[i];
        }
      }
    }
    for (const Activation kind :
         {Activation::gelu, Activation::gelu_tanh, Activation::silu, Activation::hard_swish}) {
      std::vector<float> y(x.size() - 2);
      activate(kind, x.data() + 1, y.data(), y.size());
      EXPECT_NEAR(y[1], 0, 1e-6);
      EXPECT_EQ(y[y.size() - 2], 200);
    }
  });
}

TEST(Elementwise, AddAndMultiplyHandleTailsAndWriteInPlace) {
  std::mt19937_64 random(2);
  for_each_target([&] {
    for (size_t count = 0; count < 70; ++count) {
      const auto a = random_floats(random, count), b = random_floats(random, count);
      Guarded sum(count, 3), product(count, 2);
      std::copy(a.begin(), a.end(), sum.data());
      add(sum.data(), b.data(), Activation::relu, sum.data(), count);
      multiply(a.data(), b.data(), product.data(), count);
      ASSERT_TRUE(sum.intact() && product.intact());
      for (size_t i = 0; i < count; ++i) {
        ASSERT_EQ(sum.data()[i], std::max(a[i] + b[i], 0.0f));
        ASSERT_EQ(product.data()[i], a[i] * b[i]);
      }
    }
  });
}

TEST(Elementwise, AddScaledAddsUpForEveryLength) {
  std::mt19937_64 random(6);
  for_each_target([&] {
    for (size_t count = 0; count < 70; ++count) {
      const auto x = random_floats(random, count), before = random_floats(random, count);
      Guarded y(count, count % 5);
      std::copy(before.begin(), before.end(), y.data());
      add_scaled(x.data(), -1.5f, y.data(), count);
      ASSERT_TRUE(y.intact());
      for (size_t i = 0; i < count; ++i)
        ASSERT_NEAR(y.data()[i], before[i] - 1.5 * double(x[i]), 1e-6);
    }
  });
}

TEST(Elementwise, ScaleWalksChannelsInBothMemoryOrders) {
  std::mt19937_64 random(3);
  for_each_target([&] {
    for (const size_t channels : {1, 3, 7, 16, 33}) {
      for (const size_t pixels : {1, 2, 5, 17, 49}) {
        const auto scale = random_floats(random, channels), shift = random_floats(random, channels);
        const auto x = random_floats(random, 2 * channels * pixels);
        Guarded plain(x.size()), last(x.size());
        scale_channels(x.data(), scale.data(), shift.data(), plain.data(), 2, channels, pixels);
        scale_channels(x.data(), scale.data(), nullptr, last.data(), 2 * pixels, channels, 1);
        ASSERT_TRUE(plain.intact() && last.intact());
        for (size_t i = 0; i < x.size(); ++i) {
          const size_t c = i / pixels % channels;
          ASSERT_NEAR(plain.data()[i], x[i] * scale[c] + shift[c], 1e-6);
          ASSERT_NEAR(last.data()[i], x[i] * scale[i % channels], 1e-6);
        }
      }
    }
  });
}

TEST(Elementwise, ThresholdIsStrictAndTakesNanForSmall) {
  const std::vector<float> x{-kInf, 0.49f, 0.5f, std::nextafter(0.5f, 1.0f), kInf, NAN, 7};
  for_each_target([&] {
    std::vector<float> y(x.size());
    threshold(x.data(), 0.5f, y.data(), x.size());
    EXPECT_THAT(y, ::testing::ElementsAre(0, 0, 0, 1, 1, 0, 1));
  });
}

TEST(Elementwise, UnknownActivationIsNamed) {
  try {
    activation_from_name("softplus");
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::unsupported);
    EXPECT_THAT(e.what(), ::testing::HasSubstr("softplus"));
  }
}

}  // namespace elementwise_test
}  // namespace sluice::engine
