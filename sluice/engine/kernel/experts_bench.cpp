// Whether a live expert's products should be oneDNN's, each made for its number of tokens, or those
// of our own panels (experts.cpp): the two products of all eight experts, and the whole layer
// beside the dense layers of its bar.
//   sluice_engine_bench --benchmark_filter='ExpertProducts|GroupedExperts'
//   --benchmark_enable_random_interleaving=true --benchmark_repetitions=5
//   (SLUICE_BENCH_AVX2=1: with these instructions alone)
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <string>

#include "sluice/engine/kernel/experts.h"
#include "sluice/engine/kernel/instruction_set.h"
#include "sluice/engine/kernel/onednn.h"
#include "sluice/engine/kernel/panel.h"
#include "sluice/engine/kernel/threads.h"

namespace sluice::engine {
namespace experts_bench {

constexpr size_t kExperts = 8, kTop = 2;
constexpr int64_t kHidden = 1024;

void limit_if_asked() {
  static const bool once = [] {
    if (std::getenv("SLUICE_BENCH_AVX2")) limit_to_avx2();
    return true;
  }();
  benchmark::DoNotOptimize(once);
}

std::vector<float> random_values(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> values(0, 0.05f);
  std::vector<float> result(static_cast<size_t>(count));
  for (float& v : result) v = values(random);
  return result;
}

/// One oneDNN product with memory of its own for x and y.
struct Bound {
  Buffer x, y, scratch;
  std::function<void()> run;
  Bound(int64_t rows, int64_t in, int64_t out, const onednn::Tail& tail,
        std::span<const float> weight, int threads, onednn::PackCache& cache,
        const std::string& key)
      : x(4 * rows * in), y(4 * rows * out) {
    const Kernel kernel = onednn::make_linear(rows, in, out, tail, weight, {}, threads, cache, key);
    scratch = Buffer(kernel.scratch_bytes);
    float* input = x.floats();
    Binding binding;
    binding.inputs = {&input, 1};
    binding.output = y.floats();
    binding.scratch = scratch.data();
    run = kernel.bind(binding);
  }
};

/// The products of eight experts with so many tokens each, one thread, no gathering.
void ExpertProducts(benchmark::State& state) {
  limit_if_asked();
  const ThreadScope scope(1);
  const int64_t tokens = state.range(0), width = state.range(1), stride = width + 16,
                hidden_stride = kHidden + 16;
  onednn::PackCache cache;
  std::vector<std::vector<float>> up, down;
  std::vector<Buffer> up_panels, down_panels;
  std::vector<std::unique_ptr<Bound>> bound;
  for (size_t e = 0; e < kExperts; ++e) {
    up.push_back(random_values(kHidden * width, 2 * e));
    down.push_back(random_values(kHidden * width, 2 * e + 1));
    up_panels.push_back(pack_panels(up[e], kHidden, width));
    down_panels.push_back(pack_panels(down[e], width, kHidden));
    bound.push_back(std::make_unique<Bound>(tokens, width, kHidden, onednn::Tail{}, up[e], 1, cache,
                                            "up" + std::to_string(e)));
    bound.push_back(std::make_unique<Bound>(tokens, kHidden, width, onednn::Tail{}, down[e], 1,
                                            cache, "down" + std::to_string(e)));
  }
  const std::vector<float> x = random_values(tokens * stride, 99);
  std::vector<float> hidden(static_cast<size_t>(tokens * hidden_stride)),
      y(static_cast<size_t>(tokens * width));
  std::vector<const float*> rows, hidden_rows;
  for (int64_t t = 0; t < tokens; ++t) {
    rows.push_back(x.data() + t * stride);
    hidden_rows.push_back(hidden.data() + t * hidden_stride);
  }
  const auto product = [&](const Buffer& weight, int64_t depth, int64_t outputs,
                           const std::vector<const float*>& from, float* to, int64_t to_stride,
                           const Buffer& next) {
    const PanelRun run{0, depth};
    PanelCall call;
    call.weight = weight.floats();
    call.panel_stride = depth * kPanel;
    call.outputs = outputs;
    call.runs = {&run, 1};
    call.x = from.data();
    call.pixels = tokens;
    call.out = to;
    call.out_stride = to_stride;
    call.next = next.floats();
    panel_products(call);
  };
  for (auto _ : state) {
    for (size_t e = 0; e < kExperts; ++e) {
      if (state.range(2) == 0) {
        product(up_panels[e], width, kHidden, rows, hidden.data(), hidden_stride, down_panels[e]);
        product(down_panels[e], kHidden, width, hidden_rows, y.data(), width,
                up_panels[(e + 1) % kExperts]);
      } else {
        bound[2 * e]->run();
        bound[2 * e + 1]->run();
      }
    }
    benchmark::ClobberMemory();
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(static_cast<double>(4 * tokens * width * kHidden) * kExperts * 1e-9,
                         benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(ExpertProducts)
    ->ArgNames({"tokens", "width", "onednn"})
    ->ArgsProduct({{8, 12, 16, 20, 32, 64, 112}, {256, 512}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

/// The cases of the bar: the layer, or two dense layers of all tokens.
void GroupedExperts(benchmark::State& state) {
  limit_if_asked();
  const int64_t rows = state.range(0), width = state.range(1);
  const int threads = static_cast<int>(state.range(2));
  const ThreadScope scope(threads);
  Experts experts;
  experts.top_k = kTop;
  experts.activation = Activation::relu;
  std::vector<std::vector<float>> weights;
  for (size_t i = 0; i < 2 * kExperts; ++i) {
    weights.push_back(random_values(kHidden * width, i));
    (i % 2 ? experts.down : experts.up)
        .push_back(bundle::view_packed(bundle::Format::f32, kHidden, width,
                                       std::as_bytes(std::span(weights[i])), "bench"));
  }
  make_expert_panels(experts);
  Buffer scratch(experts_scratch(experts, rows, threads));
  const std::vector<float> x = random_values(rows * width, 98),
                           logits = random_values(rows * static_cast<int64_t>(kExperts), 99);
  std::vector<float> y(x.size());
  onednn::PackCache cache;
  onednn::Tail relu;
  relu.activation = Activation::relu;
  std::vector<std::unique_ptr<Bound>> dense;
  for (size_t i = 0; i < kTop; ++i) {
    dense.push_back(std::make_unique<Bound>(rows, width, kHidden, relu, weights[2 * i], threads,
                                            cache, "up" + std::to_string(i)));
    dense.push_back(std::make_unique<Bound>(rows, kHidden, width, onednn::Tail{},
                                            weights[2 * i + 1], threads, cache,
                                            "down" + std::to_string(i)));
  }
  for (auto _ : state) {
    if (state.range(3) == 0) {
      run_experts(experts, x.data(), logits.data(), y.data(), static_cast<size_t>(rows),
                  scratch.data(), threads, nullptr);
    } else {
      for (const auto& each : dense) each->run();
    }
    benchmark::ClobberMemory();
  }
}
BENCHMARK(GroupedExperts)
    ->ArgNames({"rows", "width", "threads", "dense"})
    ->ArgsProduct({{64, 256}, {256, 512}, {1, 2}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace experts_bench
}  // namespace sluice::engine
