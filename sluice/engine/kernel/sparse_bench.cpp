// Linear layers of LeNet-300-100 size: dense against compressed sparse rows over the kept fraction
// of the weights. The crossing of the two is the bound in sparse_pays().
//   sluice_engine_bench --benchmark_filter='Linear(Dense|Sparse)'
//   --benchmark_enable_random_interleaving=true
#include <benchmark/benchmark.h>

#include <random>

#include "sluice/engine/kernel/onednn.h"
#include "sluice/engine/kernel/sparse.h"

namespace sluice::engine {
namespace {

constexpr int64_t kIn = 784, kOut = 300;

std::vector<float> weights(double density) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> values;
  std::bernoulli_distribution keep(density);
  std::vector<float> result(kIn * kOut);
  for (float& w : result) w = keep(random) ? values(random) : 0.0f;
  return result;
}

void report(benchmark::State& state, double macs) {
  state.counters["GFLOP/s"] =
      benchmark::Counter(2e-9 * macs, benchmark::Counter::kIsIterationInvariantRate);
}

void LinearDense(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const auto weight = weights(1.0);
  const std::vector<float> bias(kOut, 0.1f);
  onednn::PackCache cache;
  onednn::Tail tail;
  tail.activation = Activation::relu;
  const Kernel kernel = onednn::make_linear(rows, kIn, kOut, tail, weight, bias, 1, cache, "w");
  Buffer x(rows * kIn * 4), y(rows * kOut * 4), scratch(kernel.scratch_bytes);
  float* inputs[] = {x.floats()};
  Binding binding;
  binding.inputs = inputs;
  binding.output = y.floats();
  binding.scratch = scratch.data();
  const auto call = kernel.bind(binding);
  for (auto _ : state) call();
  state.SetLabel(kernel.name);
  report(state, double(rows) * kIn * kOut);
}
BENCHMARK(LinearDense)->ArgName("rows")->Arg(1)->Arg(2)->Arg(4)->Arg(8)->Arg(16)->Arg(64);

void LinearSparse(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const double density = double(state.range(1)) / 100;
  const SparseWeights weight = compress(weights(density), kOut, kIn);
  const std::vector<float> bias(kOut, 0.1f), x(static_cast<size_t>(rows * kIn), 0.5f);
  std::vector<float> y(static_cast<size_t>(rows * kOut));
  std::vector<float> scratch(sparse_scratch(weight, static_cast<size_t>(rows)));
  for (auto _ : state) {
    linear_sparse(x.data(), weight, bias.data(), Activation::relu, y.data(),
                  static_cast<size_t>(rows), scratch.data());
    benchmark::ClobberMemory();
  }
  report(state, double(rows) * double(weight.nonzero()));
}
BENCHMARK(LinearSparse)
    ->ArgNames({"rows", "kept_percent"})
    ->ArgsProduct({{1, 2, 4, 8, 16, 64}, {2, 4, 8, 12, 15, 20, 30, 40, 60, 100}});

}  // namespace
}  // namespace sluice::engine
