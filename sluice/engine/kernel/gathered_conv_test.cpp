#include "sluice/engine/kernel/gathered_conv.h"

#include <gmock/gmock.h>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace gathered_conv_test {

using testing::Guarded;
using testing::random_floats;

struct Case {
  onednn::ConvShape shape;
  std::vector<float> x, weight, bias, out_mask, in_mask;  // in_mask empty: none
  int threads = 1;
  Activation activation = Activation::none;
};

double activated(double x, Activation kind) {
  return kind == Activation::relu      ? std::max(x, 0.0)
         : kind == Activation::sigmoid ? 1 / (1 + std::exp(-x))
                                       : x;
}

std::vector<double> reference(const Case& c, Work* work) {
  const onednn::ConvShape& s = c.shape;
  std::vector<double> y;
  *work = {};
  for (int64_t n = 0; n < s.samples; ++n) {
    const float* out_mask = c.out_mask.data() + n * s.out_channels;
    const float* in_mask = c.in_mask.empty() ? nullptr : c.in_mask.data() + n * s.in_channels;
    for (int64_t o = 0; o < s.out_channels; ++o) {
      for (int64_t i = 0; i < s.out_height; ++i) {
        for (int64_t j = 0; j < s.out_width; ++j) {
          if (!(out_mask[o] > 0)) {
            y.push_back(activated(0, c.activation));
            continue;
          }
          double sum = c.bias.empty() ? 0.0 : c.bias[size_t(o)];
          for (int64_t k = 0; k < s.in_channels; ++k) {
            if (in_mask && !(in_mask[k] > 0)) continue;
            work->macs += s.kernel[0] * s.kernel[1];
            for (int64_t u = 0; u < s.kernel[0]; ++u) {
              for (int64_t v = 0; v < s.kernel[1]; ++v) {
                const int64_t row = i * s.stride[0] + u * s.dilation[0] - s.padding[0];
                const int64_t column = j * s.stride[1] + v * s.dilation[1] - s.padding[1];
                if (row < 0 || row >= s.in_height || column < 0 || column >= s.in_width) continue;
                sum +=
                    double(c.x[size_t(((n * s.in_channels + k) * s.in_height + row) * s.in_width +
                                      column)]) *
                    c.weight[size_t(((o * s.in_channels + k) * s.kernel[0] + u) * s.kernel[1] + v)];
              }
            }
          }
          y.push_back(activated(sum, c.activation));
        }
      }
    }
  }
  return y;
}

std::vector<float> run(const Case& c, Work* work) {
  const Kernel kernel = make_gathered_conv(c.shape, c.activation, c.weight, c.bias,
                                           !c.in_mask.empty(), c.threads, "test");
  Guarded x(c.x.size()), out_mask(c.out_mask.size()), in_mask(c.in_mask.size()),
      y(size_t(c.shape.samples * c.shape.out_channels * c.shape.out_height * c.shape.out_width));
  std::copy(c.x.begin(), c.x.end(), x.data());
  std::copy(c.out_mask.begin(), c.out_mask.end(), out_mask.data());
  std::copy(c.in_mask.begin(), c.in_mask.end(), in_mask.data());
  std::fill(y.span().begin(), y.span().end(), NAN);
  Buffer scratch(kernel.scratch_bytes);
  std::fill_n(scratch.floats(), kernel.scratch_bytes / 4, NAN);
  float* inputs[] = {x.data(), out_mask.data(), in_mask.data()};
  Binding binding;
  binding.inputs = inputs;
  binding.output = y.data();
  binding.scratch = scratch.data();
  *work = {};
  binding.work = work;
  kernel.bind(binding)();
  EXPECT_TRUE(y.intact() && x.intact());
  return {y.span().begin(), y.span().end()};
}

std::vector<float> random_mask(std::mt19937_64& random, int64_t samples, int64_t channels) {
  std::vector<float> mask(size_t(samples * channels));
  const float off[] = {0.0f, -1.0f, NAN, -0.0f};
  for (int64_t n = 0; n < samples; ++n) {
    // None, all, the ones of the sample before, or some.
    const uint64_t kind = random() % 5, share = random() % 100;
    for (int64_t c = 0; c < channels; ++c) {
      float& m = mask[size_t(n * channels + c)];
      const bool keep = kind == 0 ? false : kind == 1 ? true : random() % 100 < share;
      m = kind == 2 && n > 0 ? mask[size_t((n - 1) * channels + c)]
          : keep             ? 0.5f
                             : off[random() % 4];
    }
  }
  return mask;
}

Case random_case(std::mt19937_64& random) {
  const auto pick = [&](int64_t low, int64_t high) {
    return low + int64_t(random() % uint64_t(high - low + 1));
  };
  Case c;
  onednn::ConvShape& s = c.shape;
  s.samples = pick(1, 4);
  s.in_channels = pick(1, 45);
  s.out_channels = pick(1, 70);
  s.in_height = pick(3, 14);
  s.in_width = pick(3, 14);
  for (int i = 0; i < 2; ++i) {
    const int64_t size = i == 0 ? s.in_height : s.in_width;
    s.stride[i] = pick(1, 3);
    s.dilation[i] = pick(1, 2);
    s.padding[i] = random() % 2 ? pick(0, 3) : 0;
    do {
      s.kernel[i] = pick(1, 4);
    } while ((s.kernel[i] - 1) * s.dilation[i] + 1 > size + 2 * s.padding[i]);
    (i == 0 ? s.out_height : s.out_width) =
        (size + 2 * s.padding[i] - (s.kernel[i] - 1) * s.dilation[i] - 1) / s.stride[i] + 1;
  }
  c.x = random_floats(random, size_t(s.samples * s.in_channels * s.in_height * s.in_width));
  c.weight =
      random_floats(random, size_t(s.out_channels * s.in_channels * s.kernel[0] * s.kernel[1]));
  if (random() % 2) c.bias = random_floats(random, size_t(s.out_channels));
  c.out_mask = random_mask(random, s.samples, s.out_channels);
  if (random() % 3) c.in_mask = random_mask(random, s.samples, s.in_channels);
  c.threads = int(pick(1, 3));
  c.activation = std::array{Activation::none, Activation::relu, Activation::sigmoid}[random() % 3];
  return c;
}

TEST(GatheredConv, MatchesTheReferenceForAnyMasksAndCountsWhatItDid) {
  std::mt19937_64 random(1);
  testing::for_each_target([&] {
    for (int round = 0; round < 40; ++round) {
      const Case c = random_case(random);
      Work work, want_work;
      const auto want = reference(c, &want_work);
      const auto found = run(c, &work);
      ASSERT_EQ(found.size(), want.size());
      for (size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(found[i], want[i], 2e-4) << "round " << round << ", element " << i;
      EXPECT_EQ(work.macs, want_work.macs);
      EXPECT_GT(work.bytes, 0);
    }
  });
}

TEST(GatheredConv, NeverTouchesSkippedInputChannels) {
  std::mt19937_64 random(2);
  Case c = random_case(random);
  const int64_t channels = c.shape.in_channels;
  c.in_mask = random_mask(random, c.shape.samples, channels);
  const int64_t pixels = c.shape.in_height * c.shape.in_width;
  for (int64_t n = 0; n < c.shape.samples; ++n) {
    for (int64_t k = 0; k < channels; ++k) {
      if (c.in_mask[size_t(n * channels + k)] > 0) continue;
      std::fill_n(c.x.begin() + (n * channels + k) * pixels, pixels, NAN);
    }
  }
  Work work;
  EXPECT_THAT(run(c, &work), ::testing::Each(::testing::Not(::testing::IsNan())));
}

TEST(GatheredConv, ThreadsDoNotChangeABit) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 10; ++round) {
    Case c = random_case(random);
    c.shape.in_height = c.shape.in_width = 17;
    for (int i = 0; i < 2; ++i) {
      (i == 0 ? c.shape.out_height : c.shape.out_width) =
          (17 + 2 * c.shape.padding[i] - (c.shape.kernel[i] - 1) * c.shape.dilation[i] - 1) /
              c.shape.stride[i] +
          1;
    }
    c.x = random_floats(random, size_t(c.shape.samples * c.shape.in_channels * 17 * 17));
    Work one, three;
    c.threads = 1;
    const auto want = run(c, &one);
    c.threads = 3;
    EXPECT_EQ(run(c, &three), want);
    EXPECT_EQ(one.macs, three.macs);
  }
}

TEST(GatheredConv, RefusesAPictureThatDoesNotFit) {
  onednn::ConvShape s;
  s.padding[0] = s.padding[1] = s.stride[0] = s.stride[1] = 1 << 20;
  s.out_height = s.out_width = 3;
  const std::vector<float> weight{1};
  try {
    make_gathered_conv(s, Activation::none, weight, {}, false, 1, "layer");
    FAIL() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::limit);
    EXPECT_THAT(e.what(), ::testing::HasSubstr("layer: 1 planes of"));
  }
}

}  // namespace gathered_conv_test
}  // namespace sluice::engine
