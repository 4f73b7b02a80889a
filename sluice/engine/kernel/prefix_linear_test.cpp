#include "sluice/engine/kernel/prefix_linear.h"

#include <gmock/gmock.h>

#include <cmath>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace prefix_linear_test {

using testing::Guarded;
using testing::random_floats;

struct Layer {
  int64_t rows, in, out;
  std::vector<float> x, weight, bias;
};

std::vector<float> run(const Layer& layer, const Kernel& kernel, const int64_t* size, Work* work) {
  Guarded x(layer.x.size()), y(size_t(layer.rows * layer.out));
  std::copy(layer.x.begin(), layer.x.end(), x.data());
  std::fill(y.span().begin(), y.span().end(), NAN);
  Buffer scratch(kernel.scratch_bytes);
  float* inputs[] = {x.data()};
  Binding binding;
  binding.inputs = inputs;
  binding.output = y.data();
  binding.scratch = scratch.data();
  binding.work = work;
  binding.size = size;
  kernel.bind(binding)();
  EXPECT_TRUE(y.intact() && x.intact());
  return {y.span().begin(), y.span().end()};
}

Layer random_layer(std::mt19937_64& random) {
  Layer layer;
  layer.rows = 1 + int64_t(random() % 130);
  layer.in = 1 + int64_t(random() % 200);
  layer.out = 1 + int64_t(random() % 200);
  layer.x = random_floats(random, size_t(layer.rows * layer.in));
  layer.weight = random_floats(random, size_t(layer.in * layer.out));
  if (random() % 2) layer.bias = random_floats(random, size_t(layer.out));
  return layer;
}

TEST(PrefixLinear, EverySizeMatchesTheReferenceAndLeavesTheRestZero) {
  std::mt19937_64 random(1);
  testing::for_each_target([&] {
    for (int round = 0; round < 12; ++round) {
      Layer layer = random_layer(random);
      if (round == 0) layer.in = 2300, layer.rows = 3;  // more than one block of the depth
      if (round == 0) {
        layer.x = random_floats(random, size_t(layer.rows * layer.in));
        layer.weight = random_floats(random, size_t(layer.in * layer.out));
      }
      std::vector<PrefixSize> sizes;
      for (int i = 0; i < 3; ++i) {
        sizes.push_back({1 + int64_t(random() % uint64_t(layer.out)),
                         1 + int64_t(random() % uint64_t(layer.in))});
      }
      sizes.push_back({layer.out, layer.in});
      // Columns and rows outside of the size must not be read, or their NaN would show.
      const Kernel kernel = make_prefix_linear(layer.rows, layer.in, layer.out, layer.weight,
                                               layer.bias, sizes, 1 + round % 2);
      for (int64_t choice = -1; choice < 4; ++choice) {
        const PrefixSize size = sizes[choice < 0 ? 3 : size_t(choice)];
        Layer masked = layer;
        for (int64_t r = 0; r < layer.rows; ++r) {
          for (int64_t i = size.columns; i < layer.in; ++i)
            masked.x[size_t(r * layer.in + i)] = NAN;
        }
        Work work;
        const auto found = run(masked, kernel, choice < 0 ? nullptr : &choice, &work);
        EXPECT_EQ(work.macs, layer.rows * size.rows * size.columns);
        for (int64_t r = 0; r < layer.rows; ++r) {
          for (int64_t o = 0; o < layer.out; ++o) {
            double want = 0;
            if (o < size.rows) {
              want = layer.bias.empty() ? 0 : layer.bias[size_t(o)];
              for (int64_t i = 0; i < size.columns; ++i)
                want += double(layer.weight[size_t(o * layer.in + i)]) *
                        layer.x[size_t(r * layer.in + i)];
            }
            ASSERT_NEAR(found[size_t(r * layer.out + o)], want, 2e-3)
                << size.rows << " x " << size.columns << ", row " << r << ", output " << o;
          }
        }
      }
    }
  });
}

TEST(PrefixLinear, NeitherThreadsNorTheNumberOfRowsChangeABit) {
  std::mt19937_64 random(2);
  Layer layer = random_layer(random);
  layer.rows = 37;
  layer.x = random_floats(random, size_t(layer.rows * layer.in));
  const std::vector<PrefixSize> sizes{{(layer.out + 1) / 2, layer.in}};
  const auto all =
      run(layer,
          make_prefix_linear(layer.rows, layer.in, layer.out, layer.weight, layer.bias, sizes, 3),
          nullptr, nullptr);
  for (const int64_t rows : {1, 2, 3, 16}) {
    Layer few = layer;
    few.rows = rows;
    few.x.resize(size_t(rows * layer.in));
    const auto some =
        run(few, make_prefix_linear(rows, layer.in, layer.out, layer.weight, layer.bias, sizes, 1),
            nullptr, nullptr);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin()));
  }
}

TEST(PrefixLinear, ComputesAndCountsTheRowsThatAreThere) {
  std::mt19937_64 random(3);
  Layer layer = random_layer(random);
  layer.rows = 24;
  layer.x = random_floats(random, size_t(layer.rows * layer.in));
  const Kernel kernel = make_prefix_linear(layer.rows, layer.in, layer.out, layer.weight,
                                           layer.bias, {{layer.out, layer.in}}, 1, /*each=*/3);
  const auto all = run(layer, kernel, nullptr, nullptr);
  for (const int64_t count : {0, 1, 5, 8}) {
    std::vector<float> y(size_t(layer.rows * layer.out), NAN);
    float* inputs[] = {layer.x.data()};
    LiveRows live;
    live.count = count;
    Work work;
    Binding binding;
    binding.inputs = inputs;
    binding.output = y.data();
    binding.rows = &live;
    binding.work = &work;
    kernel.bind(binding)();
    const auto there = std::ptrdiff_t(3 * count * layer.out);
    EXPECT_TRUE(std::equal(y.begin(), y.begin() + there, all.begin()));
    EXPECT_TRUE(std::all_of(y.begin() + there, y.end(), [](float v) { return std::isnan(v); }));
    EXPECT_EQ(work.macs, 3 * count * layer.out * layer.in);
  }
}

}  // namespace prefix_linear_test
}  // namespace sluice::engine
