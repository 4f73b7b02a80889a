#include "sluice/engine/kernel/plane_pool.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace plane_pool_test {

onednn::ConvShape random_shape(std::mt19937_64& random) {
  const auto pick = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  onednn::ConvShape s;
  s.samples = pick(1, 3);
  s.in_channels = s.out_channels = pick(1, 9);
  s.in_height = pick(1, 13);
  s.in_width = pick(1, 13);
  for (int i = 0; i < 2; ++i) {
    const int64_t size = i == 0 ? s.in_height : s.in_width;
    s.stride[i] = pick(1, 3);
    do {
      s.kernel[i] = pick(1, 4);
      s.padding[i] = pick(0, s.kernel[i] - 1);
    } while (s.kernel[i] > size + 2 * s.padding[i]);
    (i == 0 ? s.out_height : s.out_width) =
        (size + 2 * s.padding[i] - s.kernel[i]) / s.stride[i] + 1;
  }
  return s;
}

double reference(const onednn::ConvShape& s, const float* x, int64_t i, int64_t j, bool maximum) {
  double sum = 0, top = -INFINITY, count = 0;
  for (int64_t u = 0; u < s.kernel[0]; ++u) {
    for (int64_t v = 0; v < s.kernel[1]; ++v) {
      const int64_t row = i * s.stride[0] + u - s.padding[0],
                    column = j * s.stride[1] + v - s.padding[1];
      if (row < 0 || row >= s.in_height || column < 0 || column >= s.in_width) continue;
      const double value = x[row * s.in_width + column];
      sum += value, top = std::max(top, value), ++count;
    }
  }
  return maximum ? top : sum / count;
}

TEST(PlanePool, IsThePoolOfEveryPlaneWhateverTheThreads) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    const onednn::ConvShape s = random_shape(random);
    const bool maximum = random() % 2 == 0;
    const int threads = 1 + static_cast<int>(random() % 3);
    const int64_t planes = s.samples * s.in_channels, in = s.in_height * s.in_width,
                  out = s.out_height * s.out_width;
    const Kernel kernel = make_plane_pool(s, maximum, threads);
    testing::Guarded x(static_cast<size_t>(planes * in)), y(static_cast<size_t>(planes * out));
    std::normal_distribution<float> values;
    for (float& each : x.span()) each = values(random);
    std::fill(y.span().begin(), y.span().end(), NAN);
    Buffer scratch(kernel.scratch_bytes);
    float* inputs[] = {x.data()};
    Binding binding;
    binding.inputs = inputs;
    binding.output = y.data();
    binding.scratch = scratch.data();
    kernel.bind(binding)();
    ASSERT_TRUE(x.intact() && y.intact());
    for (int64_t p = 0; p < planes; ++p) {
      for (int64_t k = 0; k < out; ++k) {
        ASSERT_NEAR(y.data()[p * out + k],
                    reference(s, x.data() + p * in, k / s.out_width, k % s.out_width, maximum),
                    1e-5)
            << "round " << round << ", plane " << p << ", place " << k;
      }
    }
  }
}

}  // namespace plane_pool_test
}  // namespace sluice::engine
