// Which path takes many rows (gemm.cpp): panels or unpacked strips and oneDNN for float
// activations, AMX tiles or oneDNN's integer product for int8.
//   sluice_engine_bench --benchmark_filter=ManyRows
//   --benchmark_enable_random_interleaving=true --benchmark_repetitions=5
#include <benchmark/benchmark.h>

#include <random>
#include <string>

#include "sluice/engine/kernel/gemm.h"
#include "sluice/engine/kernel/packed_tiles.h"
#include "sluice/engine/kernel/threads.h"

namespace sluice::engine {
namespace gemm_bench {

using bundle::Format;

constexpr int64_t kSize = 4096;

void ManyRows(benchmark::State& state) {
  const Format format = static_cast<Format>(state.range(0));
  const int64_t rows = state.range(1);
  const int threads = static_cast<int>(state.range(2));
  const GemmPath path = static_cast<GemmPath>(state.range(3));
  const ThreadScope scope(threads);
  PackedLinear layer;
  layer.kind = format == Format::i8 ? DotKind::i8 : DotKind::f32;
  layer.threads = threads;
  std::mt19937_64 random(1);
  std::uniform_real_distribution<float> values(-1, 1);
  std::vector<float> weight(static_cast<size_t>(kSize * kSize)),
      x(static_cast<size_t>(rows * kSize)), y(x.size());
  for (float& v : weight) v = values(random);
  for (float& v : x) v = values(random);
  const std::vector<std::byte> bytes = bundle::pack(format, weight, kSize, kSize);
  layer.weight = bundle::view_packed(format, kSize, kSize, bytes, "bench");
  if ((path == GemmPath::tiles && !tiles_usable()) ||
      (path == GemmPath::integers && !onednn::product_usable(onednn::ProductType::i8)))
    return state.SkipWithError("not on this processor");
  onednn::PackCache cache;
  const Kernel kernel = make_packed_linear(layer, rows, 1, cache, "w", path);
  Buffer scratch(kernel.scratch_bytes);
  float* inputs[] = {x.data()};
  Binding binding;
  binding.inputs = inputs;
  binding.output = y.data();
  binding.scratch = scratch.data();
  const auto call = kernel.bind(binding);
  for (auto _ : state) {
    call();
    benchmark::ClobberMemory();
  }
  state.SetLabel(std::string(bundle::format_name(format)) + " " + kernel.name);
}
BENCHMARK(ManyRows)
    ->ArgNames({"format", "rows", "threads", "path"})
    ->ArgsProduct({{static_cast<int64_t>(Format::f32), static_cast<int64_t>(Format::bf16)},
                   {64, 128, 512},
                   {1, 2},
                   {static_cast<int64_t>(GemmPath::panels),
                    static_cast<int64_t>(GemmPath::unpacked)}})
    // Floats and packed weights: whose rows are unpacked from how many on?
    ->ArgsProduct({{static_cast<int64_t>(Format::f32), static_cast<int64_t>(Format::i8_group),
                    static_cast<int64_t>(Format::i4_group), static_cast<int64_t>(Format::ternary),
                    static_cast<int64_t>(Format::binary), static_cast<int64_t>(Format::binary2)},
                   {16, 32, 64, 128, 256},
                   {1},
                   {static_cast<int64_t>(GemmPath::dot), static_cast<int64_t>(GemmPath::unpacked)}})
    ->ArgsProduct({{static_cast<int64_t>(Format::i8)},
                   {64, 512},
                   {1, 2},
                   {static_cast<int64_t>(GemmPath::tiles),
                    static_cast<int64_t>(GemmPath::integers)}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace gemm_bench
}  // namespace sluice::engine
