// A leading share of a linear layer against oneDNN's whole one.
//   sluice_engine_bench --benchmark_filter='Prefix' --benchmark_enable_random_interleaving=true
//       --benchmark_repetitions=9 --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>

#include <random>

#include "sluice/engine/kernel/onednn.h"
#include "sluice/engine/kernel/prefix_linear.h"

namespace sluice::engine {
namespace {

void measure(benchmark::State& state, const Kernel& kernel, int64_t rows, int64_t in, int64_t out,
             double macs) {
  Buffer x(rows * in * 4), y(rows * out * 4), scratch(kernel.scratch_bytes);
  std::fill_n(x.floats(), rows * in, 0.5f);
  float* inputs[] = {x.floats()};
  Binding binding;
  binding.inputs = inputs;
  binding.output = y.floats();
  binding.scratch = scratch.data();
  const auto call = kernel.bind(binding);
  for (auto _ : state) call();
  state.SetLabel(kernel.name);
  state.counters["GMAC/s"] =
      benchmark::Counter(1e-9 * macs, benchmark::Counter::kIsIterationInvariantRate);
}

std::vector<float> weights(int64_t count) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> values;
  std::vector<float> result(static_cast<size_t>(count));
  for (float& v : result) v = values(random);
  return result;
}

void Prefix(benchmark::State& state) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2),
                share = state.range(3), kept = out * share / 100;
  measure(state, make_prefix_linear(rows, in, out, weights(in * out), {}, {{kept, in}}, 1), rows,
          in, out, double(rows * in * kept));
}

void PrefixDense(benchmark::State& state) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  onednn::PackCache cache;
  measure(state, onednn::make_linear(rows, in, out, {}, weights(in * out), {}, 1, cache, "w"), rows,
          in, out, double(rows * in * out));
}

BENCHMARK(Prefix)
    ->ArgNames({"rows", "in", "out", "percent"})
    ->ArgsProduct({{1, 4, 16, 64, 256}, {512}, {2048}, {25, 50, 100}})
    ->ArgsProduct({{1, 64}, {2048}, {8192}, {25, 100}});
BENCHMARK(PrefixDense)
    ->ArgNames({"rows", "in", "out"})
    ->ArgsProduct({{1, 4, 16, 64, 256}, {512}, {2048}})
    ->ArgsProduct({{1, 64}, {2048}, {8192}});

}  // namespace
}  // namespace sluice::engine
