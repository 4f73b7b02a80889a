// Convolution of a share of the channels against oneDNN's of all of them.
//   sluice_engine_bench --benchmark_filter='Gathered' --benchmark_enable_random_interleaving=true
//       --benchmark_repetitions=9 --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>

#include <random>

#include "sluice/engine/kernel/gathered_conv.h"

namespace sluice::engine {
namespace {

std::vector<float> random_floats(int64_t count) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> values;
  std::vector<float> result(static_cast<size_t>(count));
  for (float& v : result) v = values(random);
  return result;
}

/// `percent` of the numbers are 1, the others 0; another choice on each call.
void choose(std::mt19937_64& random, int64_t percent, float* mask, int64_t count) {
  std::fill(mask, mask + count, 0.0f);
  std::fill(mask, mask + count * percent / 100, 1.0f);
  std::shuffle(mask, mask + count, random);
}

void measure(benchmark::State& state, bool gathered) {
  onednn::ConvShape s;
  s.in_channels = s.out_channels = state.range(0);
  s.in_height = s.in_width = s.out_height = s.out_width = state.range(1);
  for (int i = 0; i < 2; ++i) s.kernel[i] = state.range(2), s.padding[i] = state.range(2) / 2;
  const int64_t channels = s.in_channels, pixels = s.in_height * s.in_width;
  const auto weight = random_floats(channels * channels * s.kernel[0] * s.kernel[1]),
             x = random_floats(channels * pixels);
  onednn::PackCache cache;
  const Kernel kernel =
      gathered ? make_gathered_conv(s, Activation::none, weight, {}, true, 1, "bench")
               : *onednn::make_conv(s, Layout::channels_last, {}, weight, {}, 1, cache, "w", true);
  Buffer in(channels * pixels * 4), out(channels * pixels * 4), scratch(kernel.scratch_bytes),
      masks(2 * channels * 4);
  std::copy(x.begin(), x.end(), in.floats());
  std::mt19937_64 random(1);
  float* inputs[] = {in.floats(), masks.floats(), masks.floats() + channels};
  Work work;
  Binding binding;
  binding.inputs = inputs;
  binding.output = out.floats();
  binding.scratch = scratch.data();
  binding.work = &work;
  choose(random, state.range(3), inputs[1], channels);
  choose(random, state.range(4), inputs[2], channels);
  const auto call = kernel.bind(binding);
  for (auto _ : state) call();
  state.SetLabel(kernel.name);
}

void shapes(benchmark::internal::Benchmark* bench, const std::vector<int64_t>& shares) {
  bench->ArgNames({"channels", "size", "kernel", "out_percent", "in_percent"});
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{256, 14, 3}, {64, 28, 3}, {512, 7, 3}, {256, 14, 1}}) {
    for (const int64_t share : shares) bench->Args({shape[0], shape[1], shape[2], share, share});
    if (shares.size() > 1) bench->Args({shape[0], shape[1], shape[2], 50, 100});
  }
}

void GatheredConv(benchmark::State& state) { measure(state, true); }
void GatheredConvDense(benchmark::State& state) { measure(state, false); }
BENCHMARK(GatheredConv)->Apply([](auto* bench) { shapes(bench, {100, 75, 50, 35, 25, 10}); });
BENCHMARK(GatheredConvDense)->Apply([](auto* bench) { shapes(bench, {100}); });

}  // namespace
}  // namespace sluice::engine
