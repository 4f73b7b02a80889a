// Binary layers against oneDNN's f32 ones; binarizing the input is part of the time.
//   sluice_engine_bench --benchmark_filter='Xnor' --benchmark_enable_random_interleaving=true
//       --benchmark_repetitions=9 --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>

#include <cmath>
#include <random>

#include "sluice/engine/kernel/xnor.h"

namespace sluice::engine {
namespace {

onednn::ConvShape shape_of(const benchmark::State& state) {
  onednn::ConvShape s;
  s.in_channels = s.out_channels = state.range(0);
  s.in_height = s.in_width = s.out_height = s.out_width = state.range(1);
  for (int i = 0; i < 2; ++i) s.kernel[i] = state.range(2), s.padding[i] = state.range(2) / 2;
  return s;
}

void measure(benchmark::State& state, const Kernel& kernel, int64_t in, int64_t out, double macs) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> values;
  Buffer x(in * 4), y(out * 4), scratch(kernel.scratch_bytes);
  for (int64_t i = 0; i < in; ++i) x.floats()[i] = values(random);
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

std::vector<float> signs(int64_t count) {
  std::mt19937_64 random(1);
  std::vector<float> result(static_cast<size_t>(count));
  for (float& w : result) w = random() % 2 ? 0.1f : -0.1f;
  return result;
}

BinaryRows rows_of(const std::vector<float>& weight, int64_t row) {
  return [&weight, row](int64_t o, std::span<float> values) {
    std::copy_n(weight.begin() + o * row, row, values.begin());
  };
}

void XnorConv(benchmark::State& state, bool binary, bool plain) {
  const onednn::ConvShape s = shape_of(state);
  const int64_t row = s.in_channels * s.kernel[0] * s.kernel[1];
  const auto weight = signs(s.out_channels * row);
  const std::vector<float> bias(static_cast<size_t>(s.out_channels), 0.1f);
  onednn::PackCache cache;
  XnorOptions options;
  options.mean_scale = state.range(3);
  options.plain_vectors = plain;
  const int64_t pixels = s.in_height * s.in_width;
  const Kernel kernel =
      binary ? make_xnor_conv(s, rows_of(weight, row), bias, options, "bench")
             : *onednn::make_conv(s, Layout::channels_last, {}, weight, bias, 1, cache, "w", true);
  measure(state, kernel, s.in_channels * pixels, s.out_channels * pixels,
          double(s.out_channels * row * pixels));
}

void shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"channels", "size", "kernel", "mean"});
  for (const int64_t mean : {0, 1}) bench->Args({256, 14, 3, mean});
  bench->Args({64, 28, 3, 0})->Args({128, 28, 3, 0})->Args({512, 7, 3, 0})->Args({256, 14, 1, 0});
}
BENCHMARK_CAPTURE(XnorConv, Popcnt, true, false)->Apply(shapes);
BENCHMARK_CAPTURE(XnorConv, Bytes, true, true)->Apply(shapes);
BENCHMARK_CAPTURE(XnorConv, OneDnn, false, false)->Apply(shapes);

void XnorLinear(benchmark::State& state, bool binary) {
  const int64_t rows = state.range(0), size = state.range(1);
  const auto weight = signs(size * size);
  onednn::PackCache cache;
  const Kernel kernel =
      binary ? make_xnor_linear(rows, size, size, rows_of(weight, size), {}, {}, "bench")
             : onednn::make_linear(rows, size, size, {}, weight, {}, 1, cache, "w");
  measure(state, kernel, rows * size, rows * size, double(rows * size * size));
}
BENCHMARK_CAPTURE(XnorLinear, Popcnt, true)->ArgsProduct({{1, 8, 64}, {1024, 4096}});
BENCHMARK_CAPTURE(XnorLinear, OneDnn, false)->ArgsProduct({{1, 8, 64}, {1024}});

}  // namespace
}  // namespace sluice::engine
