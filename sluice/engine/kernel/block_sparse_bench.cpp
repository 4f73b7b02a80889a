// Block-sparse linear layers against oneDNN's dense ones over the kept share of the blocks; their
// crossing is the bound in choose_sparse().
//   sluice_engine_bench --benchmark_filter='Blocks' --benchmark_enable_random_interleaving=true
//       --benchmark_repetitions=9 --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>

#include <random>

#include "sluice/engine/kernel/block_sparse.h"
#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {
namespace {

std::vector<float> weights(int64_t out, int64_t in, int64_t percent, BlockShape shape) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> values;
  const int64_t height = shape == BlockShape::tall ? kBlock : 1,
                width = shape == BlockShape::tall ? 1 : kBlock;
  std::vector<float> result(static_cast<size_t>(out * in));
  for (int64_t o = 0; o < out; o += height) {
    for (int64_t i = 0; i < in; i += width) {
      if (static_cast<int64_t>(random() % 100) >= percent) continue;
      for (int64_t a = o; a < o + height && a < out; ++a)
        for (int64_t b = i; b < i + width && b < in; ++b)
          result[static_cast<size_t>(a * in + b)] = values(random);
    }
  }
  return result;
}

void Blocks(benchmark::State& state, BlockShape shape) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  const BlockWeights w = compress_blocks(weights(out, in, state.range(3), shape), out, in, shape);
  std::vector<float> x(static_cast<size_t>(rows * in), 0.5f), y(static_cast<size_t>(rows * out));
  for (auto _ : state) {
    linear_blocks(x.data(), w, nullptr, Activation::none, y.data(), static_cast<size_t>(rows), 1);
    benchmark::ClobberMemory();
  }
}

void BlocksDense(benchmark::State& state) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  onednn::PackCache cache;
  const Kernel kernel = onednn::make_linear(
      rows, in, out, {}, weights(out, in, 100, BlockShape::tall), {}, 1, cache, "w");
  Buffer x(rows * in * 4), y(rows * out * 4), scratch(kernel.scratch_bytes);
  float* inputs[] = {x.floats()};
  Binding binding;
  binding.inputs = inputs;
  binding.output = y.floats();
  binding.scratch = scratch.data();
  const auto call = kernel.bind(binding);
  for (auto _ : state) call();
}

void shares(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"rows", "in", "out", "percent"});
  for (const int64_t rows : {1, 2, 4, 8, 16, 64})
    for (const int64_t percent : {10, 30, 50, 70, 90}) bench->Args({rows, 512, 512, percent});
}
BENCHMARK_CAPTURE(Blocks, Tall, BlockShape::tall)->Apply(shares);
BENCHMARK_CAPTURE(Blocks, Wide, BlockShape::wide)->Apply(shares);
BENCHMARK(BlocksDense)
    ->ArgNames({"rows", "in", "out"})
    ->ArgsProduct({{1, 2, 4, 8, 16, 64}, {512}, {512}});

}  // namespace
}  // namespace sluice::engine
