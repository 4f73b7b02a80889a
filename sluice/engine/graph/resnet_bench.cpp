// The promise of slicing: a residual network with half the inner channels against the dense one.
// `time` is one run of the whole batch; MACs in the counters. Compare medians of interleaved
// repetitions:
//   sluice_engine_bench --benchmark_filter=Resnet --benchmark_enable_random_interleaving=true
//   --benchmark_repetitions=9
#include <benchmark/benchmark.h>

#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"

namespace sluice::engine {
namespace {

void resnet(benchmark::State& state, bool sliced) {
  testing::ResnetShape shape;
  shape.width = state.range(0);
  shape.stem_stride = state.range(1);
  if (sliced) shape.inner = testing::half_odd;
  const testing::Model model = testing::make_resnet(shape);
  const Network network(model.bundle);
  const int64_t batch = state.range(2);
  Session session(network, {.batch = batch, .threads = static_cast<int>(state.range(3))});
  const std::vector<float> input(static_cast<size_t>(batch * numel(network.input_shape())), 0.5f);
  std::vector<float> output(static_cast<size_t>(batch * numel(network.output_shape())));
  for (auto _ : state) session.run(input, output);
  state.counters["MMAC"] = static_cast<double>(network.cost().macs) * 1e-6;
  state.counters["GFLOP/s"] =
      benchmark::Counter(2e-9 * static_cast<double>(network.cost().macs * batch),
                         benchmark::Counter::kIsIterationInvariantRate);
}

void ResnetDense(benchmark::State& state) { resnet(state, false); }
void ResnetSliced(benchmark::State& state) { resnet(state, true); }

void sizes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"width", "stem", "batch", "threads"})
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
  bench->ArgsProduct({{16, 32}, {1, 2}, {1, 64}, {1, 2}});
}
BENCHMARK(ResnetDense)->Apply(sizes);
BENCHMARK(ResnetSliced)->Apply(sizes);

}  // namespace
}  // namespace sluice::engine
