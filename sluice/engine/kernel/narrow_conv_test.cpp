#include "sluice/engine/kernel/narrow_conv.h"

#include <gmock/gmock.h>

#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace narrow_conv_test {

using testing::Guarded;
using testing::random_floats;

/// Channels-last convolution in double precision.
std::vector<double> reference(const onednn::ConvShape& s, std::span<const float> x,
                              std::span<const float> weight, std::span<const float> bias) {
  std::vector<double> y;
  for (int64_t n = 0; n < s.samples; ++n) {
    for (int64_t i = 0; i < s.out_height; ++i) {
      for (int64_t j = 0; j < s.out_width; ++j) {
        for (int64_t o = 0; o < s.out_channels; ++o) {
          double sum = bias.empty() ? 0.0 : bias[size_t(o)];
          for (int64_t u = 0; u < s.kernel[0]; ++u) {
            for (int64_t v = 0; v < s.kernel[1]; ++v) {
              const int64_t row = i * s.stride[0] + u * s.dilation[0] - s.padding[0];
              const int64_t column = j * s.stride[1] + v * s.dilation[1] - s.padding[1];
              if (row < 0 || row >= s.in_height || column < 0 || column >= s.in_width) continue;
              for (int64_t c = 0; c < s.in_channels; ++c) {
                sum +=
                    double(x[size_t(
                        ((n * s.in_height + row) * s.in_width + column) * s.in_channels + c)]) *
                    weight[size_t(((o * s.in_channels + c) * s.kernel[0] + u) * s.kernel[1] + v)];
              }
            }
          }
          y.push_back(sum);
        }
      }
    }
  }
  return y;
}

onednn::ConvShape random_shape(std::mt19937_64& random, int64_t out_channels) {
  const auto pick = [&](int64_t low, int64_t high) {
    return low + int64_t(random() % uint64_t(high - low + 1));
  };
  onednn::ConvShape s;
  s.samples = pick(1, 3);
  s.in_channels = 16 * pick(1, 3);
  s.out_channels = out_channels;
  s.in_height = pick(5, 11);
  s.in_width = pick(5, 11);
  for (int i = 0; i < 2; ++i) {
    s.kernel[i] = pick(1, 3);
    s.stride[i] = pick(1, 3);
    s.dilation[i] = pick(1, 2);
    s.padding[i] = pick(0, 3);
  }
  s.out_height =
      (s.in_height + 2 * s.padding[0] - (s.kernel[0] - 1) * s.dilation[0] - 1) / s.stride[0] + 1;
  s.out_width =
      (s.in_width + 2 * s.padding[1] - (s.kernel[1] - 1) * s.dilation[1] - 1) / s.stride[1] + 1;
  return s;
}

TEST(NarrowConv, MatchesTheReferenceForEveryChannelCount) {
  onednn::ConvShape probe;
  probe.in_channels = 16;
  if (!narrow_conv_fits(probe)) GTEST_SKIP() << "needs 512-bit vectors";
  std::mt19937_64 random(1);
  for (int64_t out = 1; out <= 40; ++out) {
    const onednn::ConvShape s = random_shape(random, out);
    const int threads = 1 + int(out % 2);
    const auto x =
        random_floats(random, size_t(s.samples * s.in_channels * s.in_height * s.in_width));
    const auto weight =
        random_floats(random, size_t(s.out_channels * s.in_channels * s.kernel[0] * s.kernel[1]));
    const auto bias = out % 3 ? random_floats(random, size_t(out)) : std::vector<float>();
    const Activation kind = out % 5 == 0 ? Activation::tanh
                            : out % 2    ? Activation::relu
                                         : Activation::none;
    const Kernel kernel = make_narrow_conv(s, kind, weight, bias, threads);
    Guarded in(x.size()), y(size_t(s.samples * s.out_channels * s.out_height * s.out_width));
    std::copy(x.begin(), x.end(), in.data());
    std::vector<float> scratch(size_t(kernel.scratch_bytes) / sizeof(float), NAN);
    float* inputs[] = {in.data()};
    Binding binding;
    binding.inputs = inputs;
    binding.output = y.data();
    binding.scratch = reinterpret_cast<std::byte*>(scratch.data());
    kernel.bind(binding)();
    ASSERT_TRUE(y.intact() && in.intact());
    const auto want = reference(s, x, weight, bias);
    ASSERT_EQ(want.size(), y.span().size());
    for (size_t i = 0; i < want.size(); ++i) {
      const double expected = kind == Activation::relu   ? std::max(want[i], 0.0)
                              : kind == Activation::tanh ? std::tanh(want[i])
                                                         : want[i];
      ASSERT_NEAR(y.data()[i], expected, 1e-4 + 1e-5 * std::abs(expected))
          << out << " channels, element " << i;
    }
  }
}

TEST(NarrowConv, IsChosenWhereVectorsOfOutputsWouldStayHalfEmpty) {
  onednn::ConvShape s;
  s.in_channels = 16;
  s.kernel[0] = s.kernel[1] = 3;
  if (!narrow_conv_fits(s)) GTEST_SKIP() << "needs 512-bit vectors";
  s.out_channels = 7;
  EXPECT_TRUE(narrow_conv_pays(s));
  s.out_channels = 16;
  EXPECT_FALSE(narrow_conv_pays(s));
  s.out_channels = 7;
  s.in_channels = 13;
  EXPECT_FALSE(narrow_conv_fits(s));
}

}  // namespace narrow_conv_test
}  // namespace sluice::engine
