#include "sluice/engine/kernel/xnor.h"

#include <gmock/gmock.h>

#include <limits>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace xnor_test {

using testing::Guarded;
using testing::random_floats;

struct Case {
  onednn::ConvShape shape;
  std::vector<float> x, weight, bias;  // x channels last, weight [O][C][kh][kw] as +-s[o]
  XnorOptions options;

  int64_t row() const { return shape.in_channels * shape.kernel[0] * shape.kernel[1]; }
  BinaryRows rows() const {
    return [this](int64_t o, std::span<float> values) {
      std::copy_n(weight.begin() + o * row(), row(), values.begin());
    };
  }
};

double sign(double x) { return x >= 0 ? 1 : -1; }

std::vector<double> reference(const Case& c) {
  const onednn::ConvShape& s = c.shape;
  const int64_t each = s.in_height * s.in_width * s.in_channels;
  std::vector<double> y;
  for (int64_t n = 0; n < s.samples; ++n) {
    double scale = c.options.scale;
    if (c.options.mean_scale) {
      double sum = 0;
      for (int64_t i = 0; i < each; ++i) sum += std::abs(c.x[size_t(n * each + i)]);
      scale *= sum / double(each);
    }
    for (int64_t i = 0; i < s.out_height; ++i) {
      for (int64_t j = 0; j < s.out_width; ++j) {
        for (int64_t o = 0; o < s.out_channels; ++o) {
          double sum = 0;
          for (int64_t u = 0; u < s.kernel[0]; ++u) {
            for (int64_t v = 0; v < s.kernel[1]; ++v) {
              const int64_t row = i * s.stride[0] + u * s.dilation[0] - s.padding[0];
              const int64_t column = j * s.stride[1] + v * s.dilation[1] - s.padding[1];
              if (row < 0 || row >= s.in_height || column < 0 || column >= s.in_width) continue;
              for (int64_t k = 0; k < s.in_channels; ++k) {
                sum +=
                    sign(c.x[size_t(n * each + (row * s.in_width + column) * s.in_channels + k)]) *
                    c.weight[size_t(o * c.row() + (k * s.kernel[0] + u) * s.kernel[1] + v)];
              }
            }
          }
          double result = sum * scale + (c.bias.empty() ? 0.0 : c.bias[size_t(o)]);
          if (c.options.activation == Activation::relu) result = std::max(result, 0.0);
          if (c.options.activation == Activation::tanh) result = std::tanh(result);
          y.push_back(result);
        }
      }
    }
  }
  return y;
}

std::vector<float> run(const Kernel& kernel, const std::vector<float>& x, size_t count) {
  Guarded in(x.size()), y(count);
  std::copy(x.begin(), x.end(), in.data());
  std::vector<std::byte> scratch(size_t(kernel.scratch_bytes) + 64, std::byte{0xff});
  void* at = scratch.data();
  size_t space = scratch.size();
  float* inputs[] = {in.data()};
  Binding binding;
  binding.inputs = inputs;
  binding.output = y.data();
  binding.scratch =
      static_cast<std::byte*>(std::align(64, size_t(kernel.scratch_bytes), at, space));
  const auto call = kernel.bind(binding);
  call();
  EXPECT_TRUE(y.intact() && in.intact());
  return {y.data(), y.data() + count};
}

Case random_case(std::mt19937_64& random, int64_t channels, int64_t out) {
  const auto pick = [&](int64_t low, int64_t high) {
    return low + int64_t(random() % uint64_t(high - low + 1));
  };
  Case c;
  onednn::ConvShape& s = c.shape;
  s.samples = pick(1, 3);
  s.in_channels = channels;
  s.out_channels = out;
  s.in_height = pick(3, 9);
  s.in_width = pick(3, 9);
  for (int i = 0; i < 2; ++i) {
    const int64_t size = i == 0 ? s.in_height : s.in_width;
    s.stride[i] = pick(1, 3);
    s.dilation[i] = pick(1, 3);
    s.padding[i] = pick(0, 4);
    do {
      s.kernel[i] = pick(1, 5);
    } while ((s.kernel[i] - 1) * s.dilation[i] + 1 > size + 2 * s.padding[i]);
    const int64_t made =
        (size + 2 * s.padding[i] - (s.kernel[i] - 1) * s.dilation[i] - 1) / s.stride[i] + 1;
    (i == 0 ? s.out_height : s.out_width) = made;
  }
  c.x = random_floats(random, size_t(s.samples * s.in_height * s.in_width * channels));
  for (float& x : c.x) {
    if (random() % 16 == 0) x = random() % 2 ? 0.0f : -0.0f;
  }
  c.weight = random_floats(random, size_t(out * c.row()), -1, 1);
  const auto scale = random_floats(random, size_t(out), 0.1f, 2);
  for (size_t i = 0; i < c.weight.size(); ++i) {
    const float magnitude = out > 3 && i / size_t(c.row()) == 2 ? 0.0f : scale[i / size_t(c.row())];
    c.weight[i] = std::copysign(magnitude, c.weight[i]);
  }
  if (pick(0, 1)) c.bias = random_floats(random, size_t(out));
  c.options.mean_scale = pick(0, 1);
  c.options.scale = pick(0, 1) ? 1.0f : 0.37f;
  c.options.threads = int(pick(1, 3));
  c.options.activation =
      std::array{Activation::none, Activation::relu, Activation::tanh}[size_t(pick(0, 2))];
  return c;
}

void expect_near(const std::vector<float>& found, const std::vector<double>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i)
    ASSERT_NEAR(found[i], expected[i], 1e-4 + 1e-5 * std::abs(expected[i])) << "element " << i;
}

TEST(Xnor, ConvolutionMatchesTheReferenceForOddShapesAndEveryPadding) {
  std::mt19937_64 random(1);
  for (const bool plain : {false, true}) {
    testing::for_each_target([&] {
      for (const int64_t channels : {1, 3, 16, 17, 63, 64, 65, 100, 128, 130, 200}) {
        Case c = random_case(random, channels, 1 + int64_t(random() % 40));
        c.options.plain_vectors = plain;
        const auto expected = reference(c);
        const Kernel kernel = make_xnor_conv(c.shape, c.rows(), c.bias, c.options, "test");
        SCOPED_TRACE(::testing::Message() << channels << " channels, " << kernel.name);
        expect_near(run(kernel, c.x, expected.size()), expected);
      }
    });
  }
}

TEST(Xnor, LinearScalesEveryRowByItself) {
  std::mt19937_64 random(2);
  testing::for_each_target([&] {
    for (const int64_t in : {1, 64, 77, 300, 2500}) {
      const int64_t rows = 1 + int64_t(random() % 70), out = 1 + int64_t(random() % 50);
      Case c;  // a row is a sample of one pixel
      c.shape.samples = rows;
      c.shape.in_channels = in;
      c.shape.out_channels = out;
      c.x = random_floats(random, size_t(rows * in));
      c.weight = random_floats(random, size_t(out * in));
      for (float& w : c.weight) w = std::copysign(0.25f, w);
      c.options.mean_scale = true;
      c.options.threads = 2;
      const auto expected = reference(c);
      const Kernel kernel = make_xnor_linear(rows, in, out, c.rows(), c.bias, c.options, "test");
      SCOPED_TRACE(in);
      expect_near(run(kernel, c.x, expected.size()), expected);
    }
  });
}

TEST(Xnor, CountsNanAsMinusOneAndInfinityByItsSign) {
  const float inf = std::numeric_limits<float>::infinity();
  Case c;
  c.shape.in_channels = 70;
  c.shape.out_channels = 1;
  c.weight.assign(70, 1.0f);
  c.x.assign(70, 1.0f);
  c.x[3] = NAN, c.x[66] = NAN, c.x[67] = inf, c.x[69] = -inf;
  testing::for_each_target([&] {
    for (const bool plain : {false, true}) {
      c.options.plain_vectors = plain;
      c.options.mean_scale = false;
      const auto kernel = make_xnor_conv(c.shape, c.rows(), {}, c.options, "test");
      EXPECT_EQ(run(kernel, c.x, 1)[0], 70 - 2 * 3);
      c.options.mean_scale = true;
      const auto scaled = make_xnor_conv(c.shape, c.rows(), {}, c.options, "test");
      EXPECT_TRUE(std::isnan(run(scaled, c.x, 1)[0]));
    }
  });
}

TEST(Xnor, SumsAreExactBeyondAByteAndAWord) {
  // All signs differ: the largest count, over more words than the byte counters hold.
  Case c;
  c.shape.in_channels = 64 * 70 + 5;
  c.shape.out_channels = 17;
  c.x.assign(size_t(c.shape.in_channels), -1.0f);
  c.weight.assign(size_t(c.shape.in_channels * 17), 1.0f);
  testing::for_each_target([&] {
    for (const bool plain : {false, true}) {
      c.options.plain_vectors = plain;
      const auto kernel = make_xnor_conv(c.shape, c.rows(), {}, c.options, "test");
      EXPECT_THAT(run(kernel, c.x, 17), ::testing::Each(-float(c.shape.in_channels)));
    }
  });
}

TEST(Xnor, ThreadsDoNotChangeABit) {
  std::mt19937_64 random(4);
  for (int i = 0; i < 5; ++i) {
    Case c = random_case(random, 90, 33);
    c.options.mean_scale = true;
    const size_t count = reference(c).size();
    c.options.threads = 1;
    const auto one = run(make_xnor_conv(c.shape, c.rows(), c.bias, c.options, "test"), c.x, count);
    c.options.threads = 3;
    EXPECT_EQ(run(make_xnor_conv(c.shape, c.rows(), c.bias, c.options, "test"), c.x, count), one);
  }
}

Code code_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    return e.code();
  }
  return Code::internal;
}

TEST(Xnor, RefusesRowsThatAreNotBinaryAndPicturesThatDoNotFit) {
  Case c;
  c.shape.in_channels = 3;
  c.weight = {1, -1, 0.5f};
  EXPECT_EQ(code_of([&] { make_xnor_conv(c.shape, c.rows(), {}, {}, "test"); }), Code::format);
  c.weight = {1, NAN, 1};
  EXPECT_EQ(code_of([&] { make_xnor_conv(c.shape, c.rows(), {}, {}, "test"); }), Code::format);
  c.weight = {1, 1, 1};
  c.shape.padding[0] = c.shape.padding[1] = c.shape.stride[0] = c.shape.stride[1] = 1 << 20;
  c.shape.out_height = c.shape.out_width = 3;
  EXPECT_EQ(code_of([&] { make_xnor_conv(c.shape, c.rows(), {}, {}, "test"); }), Code::limit);
}

}  // namespace xnor_test
}  // namespace sluice::engine
