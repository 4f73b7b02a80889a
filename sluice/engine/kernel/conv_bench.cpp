// Convolutions and pools of residual networks, dense and sliced: oneDNN in three memory orders
// against our kernel for narrow outputs. docs/decisions/conv-layout.md has the table.
//   sluice_engine_bench --benchmark_filter='Conv|Pool' --benchmark_enable_random_interleaving=true
//       --benchmark_repetitions=9 --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>

#include <random>

#include "sluice/engine/kernel/narrow_conv.h"
#include "sluice/engine/kernel/onednn.h"
#include "sluice/engine/kernel/plane_pool.h"

namespace sluice::engine {
namespace {

onednn::ConvShape shape_of(const benchmark::State& state) {
  onednn::ConvShape s;
  s.samples = state.range(0);
  s.in_channels = state.range(1);
  s.out_channels = state.range(2);
  s.in_height = s.in_width = state.range(3);
  for (int i = 0; i < 2; ++i) {
    s.kernel[i] = 3;
    s.padding[i] = 1;
    s.stride[i] = state.range(4);
  }
  s.out_height = s.out_width = (s.in_height - 1) / s.stride[0] + 1;
  return s;
}

std::vector<float> random_floats(int64_t count) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> values;
  std::vector<float> result(static_cast<size_t>(count));
  for (float& v : result) v = values(random);
  return result;
}

void measure(benchmark::State& state, const onednn::ConvShape& s, const Kernel& kernel,
             int64_t in_channels, int64_t macs) {
  const auto x = random_floats(s.samples * in_channels * s.in_height * s.in_width);
  Buffer in(static_cast<int64_t>(x.size() * sizeof(float)));
  std::copy(x.begin(), x.end(), in.floats());
  Buffer out(s.samples * ((s.out_channels + 15) / 16 * 16) * s.out_height * s.out_width * 4);
  Buffer scratch(kernel.scratch_bytes);
  float* inputs[] = {in.floats()};
  Binding binding;
  binding.inputs = inputs;
  binding.output = out.floats();
  binding.scratch = scratch.data();
  const auto call = kernel.bind(binding);
  for (auto _ : state) call();
  state.SetLabel(kernel.name);
  if (macs > 0) {
    state.counters["GFLOP/s"] =
        benchmark::Counter(2e-9 * double(macs), benchmark::Counter::kIsIterationInvariantRate);
  }
  state.counters["GB/s"] = benchmark::Counter(1e-9 * double(in.bytes() + out.bytes()),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

int64_t macs_of(const onednn::ConvShape& s) {
  return s.samples * s.in_channels * s.out_channels * 9 * s.out_height * s.out_width;
}

void conv_onednn(benchmark::State& state, Layout layout) {
  const onednn::ConvShape s = shape_of(state);
  const auto weight = random_floats(s.in_channels * s.out_channels * 9),
             bias = random_floats(s.out_channels);
  onednn::PackCache cache;
  onednn::Tail tail;
  tail.activation = Activation::relu;
  const auto kernel = onednn::make_conv(s, layout, tail, weight, bias, 1, cache, "w", true);
  measure(state, s, *kernel, s.in_channels, macs_of(s));
}

void ConvChannelsLast(benchmark::State& state) { conv_onednn(state, Layout::channels_last); }
void ConvPlain(benchmark::State& state) { conv_onednn(state, Layout::plain); }

void ConvNarrow(benchmark::State& state) {
  const onednn::ConvShape s = shape_of(state);
  if (!narrow_conv_fits(s)) return state.SkipWithError("does not fit here");
  const auto weight = random_floats(s.in_channels * s.out_channels * 9),
             bias = random_floats(s.out_channels);
  measure(state, s, make_narrow_conv(s, Activation::relu, weight, bias, 1), s.in_channels,
          macs_of(s));
}

void Pool(benchmark::State& state) {
  onednn::ConvShape s = shape_of(state);
  s.out_channels = s.in_channels;
  const bool last = state.range(5) != 0;
  measure(state, s, last ? onednn::make_pool(s, true, 1) : make_plane_pool(s, true, 1),
          s.in_channels, 0);
}

const std::vector<std::string> kNames{"samples", "in", "out", "size", "stride"};

void trunk(benchmark::internal::Benchmark* bench) {
  bench->ArgNames(kNames);
  for (const int64_t n : {1, 8}) {
    for (const int64_t out : {3, 7, 11, 13, 16}) bench->Args({n, 16, out, 28, 1});
    for (const int64_t out : {11, 19, 23, 32}) bench->Args({n, 32, out, 14, 1});
    for (const int64_t out : {23, 31, 37, 53, 64}) bench->Args({n, 64, out, 7, 1});
    bench->Args({n, 16, 13, 28, 2});
  }
}

void sliced_input(benchmark::internal::Benchmark* bench) {
  bench->ArgNames(kNames);
  for (const int64_t n : {1, 8}) {
    for (const int64_t in : {3, 7, 11}) bench->Args({n, in, 16, 28, 1});
    for (const int64_t in : {13, 19}) bench->Args({n, in, 32, 14, 1});
    for (const int64_t in : {23, 37}) bench->Args({n, in, 64, 7, 1});
  }
}

BENCHMARK(ConvChannelsLast)->Apply(trunk)->Apply(sliced_input);
BENCHMARK(ConvNarrow)->Apply(trunk);
BENCHMARK(ConvPlain)
    ->ArgNames(kNames)
    ->Args({1, 16, 16, 28, 1})
    ->Args({1, 16, 7, 28, 1})
    ->Args({1, 32, 32, 14, 1});
BENCHMARK(Pool)
    ->ArgNames({"samples", "in", "out", "size", "stride", "channels_last"})
    ->Args({8, 16, 16, 28, 2, 1})
    ->Args({8, 16, 16, 28, 2, 0})
    ->Args({8, 13, 13, 28, 2, 1});

}  // namespace
}  // namespace sluice::engine
