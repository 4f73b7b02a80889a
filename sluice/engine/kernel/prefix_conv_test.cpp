#include "sluice/engine/kernel/prefix_conv.h"

#include <gmock/gmock.h>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace prefix_conv_test {

using testing::Guarded;
using testing::random_floats;

struct Layer {
  onednn::ConvShape shape;
  onednn::Tail tail;
  std::vector<PrefixSize> sizes;
  std::vector<float> x, other, weight, scale, bias;
};

size_t in_count(const Layer& l) {
  const auto& s = l.shape;
  return static_cast<size_t>(s.samples * s.in_channels * s.in_height * s.in_width);
}
size_t out_count(const Layer& l) {
  const auto& s = l.shape;
  return static_cast<size_t>(s.samples * s.out_channels * s.out_height * s.out_width);
}

Layer random_layer(std::mt19937_64& random) {
  const auto pick = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  Layer l;
  auto& s = l.shape;
  s.samples = pick(1, 2);
  const int64_t unit = pick(1, 6);
  s.in_channels = unit * pick(1, 5);
  s.out_channels = pick(1, 70);
  s.in_height = pick(3, 8);
  s.in_width = pick(3, 8);
  for (int i = 0; i < 2; ++i) {
    s.kernel[i] = pick(1, 3);
    s.stride[i] = pick(1, 2);
    s.padding[i] = pick(0, 1);
    const int64_t size = i == 0 ? s.in_height : s.in_width;
    (i == 0 ? s.out_height : s.out_width) =
        (size + 2 * s.padding[i] - s.kernel[i]) / s.stride[i] + 1;
  }
  const int64_t taps = s.kernel[0] * s.kernel[1];
  const int64_t count = pick(1, 4);
  for (int64_t k = 0; k < count; ++k)
    l.sizes.push_back({pick(1, s.out_channels), unit * pick(1, s.in_channels / unit)});
  l.x = random_floats(random, in_count(l));
  l.weight = random_floats(random, static_cast<size_t>(s.out_channels * s.in_channels * taps));
  const auto table = static_cast<size_t>(count * s.out_channels);
  if (random() % 2) l.scale = random_floats(random, table);
  if (random() % 2) l.bias = random_floats(random, table);
  const Activation kinds[] = {Activation::none, Activation::relu, Activation::sigmoid};
  l.tail.activation = kinds[random() % 3];
  if (random() % 2) {
    l.tail.add = onednn::Tail::Add::operand;
    l.other = random_floats(random, out_count(l));
  }
  return l;
}

double activated(Activation kind, double v) {
  if (kind == Activation::relu) return std::max(v, 0.0);
  if (kind == Activation::sigmoid) return 1 / (1 + std::exp(-v));
  return v;
}

std::vector<double> reference(const Layer& l, size_t index) {
  const auto& s = l.shape;
  const PrefixSize size = l.sizes[index];
  std::vector<double> y(out_count(l));
  size_t at = 0;
  for (int64_t n = 0; n < s.samples; ++n) {
    for (int64_t i = 0; i < s.out_height; ++i) {
      for (int64_t j = 0; j < s.out_width; ++j) {
        for (int64_t o = 0; o < s.out_channels; ++o, ++at) {
          double sum = 0;
          for (int64_t u = 0; u < s.kernel[0]; ++u) {
            for (int64_t v = 0; v < s.kernel[1]; ++v) {
              const int64_t row = i * s.stride[0] + u - s.padding[0],
                            column = j * s.stride[1] + v - s.padding[1];
              if (row < 0 || row >= s.in_height || column < 0 || column >= s.in_width) continue;
              for (int64_t c = 0; c < size.columns; ++c) {
                const auto w = ((o * s.in_channels + c) * s.kernel[0] + u) * s.kernel[1] + v;
                const auto p = ((n * s.in_height + row) * s.in_width + column) * s.in_channels + c;
                sum += double(l.weight[size_t(w)]) * l.x[size_t(p)];
              }
            }
          }
          const size_t table = index * size_t(s.out_channels) + size_t(o);
          if (!l.scale.empty()) sum *= l.scale[table];
          if (!l.bias.empty()) sum += l.bias[table];
          if (o >= size.rows) sum = 0;
          if (!l.other.empty()) sum += l.other[at];
          y[at] = activated(l.tail.activation, sum);
        }
      }
    }
  }
  return y;
}

std::vector<float> run(const Layer& l, const Kernel& kernel, const int64_t* size, Work* work) {
  Guarded x(l.x.size()), y(out_count(l)), other(l.other.size());
  std::copy(l.x.begin(), l.x.end(), x.data());
  std::copy(l.other.begin(), l.other.end(), other.data());
  std::fill(y.span().begin(), y.span().end(), NAN);
  Buffer scratch(kernel.scratch_bytes);
  float* inputs[] = {x.data(), other.data()};
  Binding binding;
  binding.inputs = inputs;
  binding.output = y.data();
  binding.scratch = scratch.data();
  binding.work = work;
  binding.size = size;
  kernel.bind(binding)();
  EXPECT_TRUE(y.intact() && x.intact() && other.intact());
  return {y.span().begin(), y.span().end()};
}

TEST(PrefixConv, EverySizeMatchesTheReference) {
  std::mt19937_64 random(1);
  testing::for_each_target([&] {
    for (int round = 0; round < 12; ++round) {
      const Layer l = random_layer(random);
      const int threads = 1 + round % 2;
      const Kernel kernel =
          make_prefix_conv(l.shape, l.tail, l.weight, l.scale, l.bias, l.sizes, threads, "test");
      for (int64_t size = -1; size < std::ssize(l.sizes); ++size) {
        const size_t index = size < 0 ? l.sizes.size() - 1 : static_cast<size_t>(size);
        Work work;
        const auto found = run(l, kernel, &size, &work);
        const auto expected = reference(l, index);
        for (size_t i = 0; i < found.size(); ++i)
          ASSERT_NEAR(found[i], expected[i], 2e-4 * (1 + std::abs(expected[i])))
              << "round " << round << " size " << size << " at " << i;
        const auto& s = l.shape;
        EXPECT_EQ(work.macs, s.samples * s.out_height * s.out_width * s.kernel[0] * s.kernel[1] *
                                 l.sizes[index].rows * l.sizes[index].columns);
      }
    }
  });
}

TEST(PrefixConv, WhatIsNoNumberStaysNoneWithoutRelu) {
  std::mt19937_64 random(3);
  testing::for_each_target([&] {
    Layer l;
    l.shape.in_channels = 1, l.shape.out_channels = 37;  // whole vectors and a tail
    l.sizes = {{37, 1}};
    l.weight = l.scale = random_floats(random, 37);
    l.x = {NAN};
    const Kernel kernel =
        make_prefix_conv(l.shape, l.tail, l.weight, l.scale, {}, l.sizes, 1, "test");
    const int64_t size = 0;
    for (const float v : run(l, kernel, &size, nullptr)) EXPECT_TRUE(std::isnan(v));
  });
}

TEST(PrefixConv, WhatASizeLeavesOutIsNotRead) {
  std::mt19937_64 random(2);
  Layer l = random_layer(random);
  l.shape = {};
  l.shape.in_channels = 8, l.shape.out_channels = 6;
  l.shape.in_height = l.shape.in_width = l.shape.out_height = l.shape.out_width = 5;
  l.tail = {};
  l.sizes = {{3, 4}, {6, 8}};
  l.scale = l.bias = l.other = {};
  l.weight = random_floats(random, 48);
  l.x = random_floats(random, 200);
  for (size_t i = 0; i < l.weight.size(); ++i)
    if (i / 8 >= 3 || i % 8 >= 4) l.weight[i] = NAN;
  for (size_t i = 0; i < l.x.size(); ++i)
    if (i % 8 >= 4) l.x[i] = NAN;
  const Kernel kernel = make_prefix_conv(l.shape, l.tail, l.weight, {}, {}, l.sizes, 1, "test");
  const int64_t size = 0;
  for (const float v : run(l, kernel, &size, nullptr)) EXPECT_TRUE(std::isfinite(v));
}

}  // namespace prefix_conv_test
}  // namespace sluice::engine
