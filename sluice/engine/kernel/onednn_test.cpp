// What oneDNN does not promise: that a row's result depends neither on the other rows nor on the
// number of threads, and that all that may follow a product is computed.
#include "sluice/engine/kernel/onednn.h"

#include <gtest/gtest.h>

#include "sluice/engine/kernel/test_targets.h"
#include "sluice/engine/kernel/threads.h"

namespace sluice::engine {
namespace onednn_test {

using testing::random_floats;

std::vector<float> run(const Kernel& kernel, std::vector<std::vector<float>> inputs, int64_t count,
                       int threads) {
  const ThreadScope scope(threads);
  std::vector<float> y(static_cast<size_t>(count));
  Buffer scratch(kernel.scratch_bytes);
  std::vector<float*> pointers;
  for (auto& x : inputs) pointers.push_back(x.data());
  if (kernel.must_share) std::copy(inputs[1].begin(), inputs[1].end(), y.begin());
  Binding binding;
  binding.inputs = pointers;
  binding.output = y.data();
  binding.scratch = scratch.data();
  kernel.bind(binding)();
  return y;
}

TEST(OnednnLinear, NeitherThreadsNorOtherRowsChangeABit) {
  if (!onednn::product_usable(onednn::ProductType::bf16))
    GTEST_SKIP() << "without AVX-512 oneDNN adds up in parts that depend on both";
  std::mt19937_64 random(4);
  for (const auto [in, out] : {std::pair<int64_t, int64_t>{4096, 10}, {4096, 300}, {1000, 100}}) {
    const auto weight = random_floats(random, size_t(in * out));
    const auto x = random_floats(random, size_t(70 * in));
    onednn::PackCache cache;
    const auto all =
        run(onednn::make_linear(70, in, out, {}, weight, {}, 1, cache, "w"), {x}, 70 * out, 1);
    for (const int64_t rows : {1, 16, 70}) {
      for (const int threads : {1, 2, 3}) {
        const auto some =
            run(onednn::make_linear(rows, in, out, {}, weight, {}, threads, cache, "w"), {x},
                rows * out, threads);
        for (size_t i = 0; i < some.size(); ++i)
          ASSERT_EQ(some[i], all[i]) << in << " x " << out << ", " << rows << " rows";
      }
    }
  }
}

TEST(OnednnLinear, EveryTailMatchesTheSums) {
  std::mt19937_64 random(5);
  for (const auto [rows, in, out] :
       {std::array<int64_t, 3>{1, 7, 5}, {3, 64, 100}, {17, 130, 33}, {70, 33, 128}}) {
    const auto x = random_floats(random, size_t(rows * in)),
               weight = random_floats(random, size_t(in * out)),
               bias = random_floats(random, size_t(out)),
               other = random_floats(random, size_t(rows * out));
    for (const bool biased : {false, true}) {
      for (const auto add :
           {onednn::Tail::Add::none, onednn::Tail::Add::accumulate, onednn::Tail::Add::operand}) {
        onednn::Tail tail;
        tail.add = add;
        tail.activation = Activation::relu;
        tail.factor = 0.5f;
        tail.offset = 0.25f;
        onednn::PackCache cache;
        const Kernel kernel = onednn::make_linear(
            rows, in, out, tail, weight,
            biased ? std::span<const float>(bias) : std::span<const float>(), 1, cache, "w");
        const auto y = run(kernel, {x, other}, rows * out, 1);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t o = 0; o < out; ++o) {
            double sum = biased ? bias[size_t(o)] : 0;
            for (int64_t i = 0; i < in; ++i)
              sum += double(x[size_t(r * in + i)]) * weight[size_t(o * in + i)];
            if (add != onednn::Tail::Add::none) sum += other[size_t(r * out + o)];
            ASSERT_NEAR(y[size_t(r * out + o)], std::max(sum, 0.0) * 0.5 + 0.25, 1e-3);
          }
        }
      }
    }
  }
}

}  // namespace onednn_test
}  // namespace sluice::engine
