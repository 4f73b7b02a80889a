// Where the choices between two ways of computing the same come from: own lists against the union
// of eight tokens (shared_from in active_rows.cpp), few-token kernels against panels for a group of
// one expert (kPanelsFrom in experts.cpp).
//   sluice_engine_bench --benchmark_filter='ActiveFfn|OneExpert'
//   --benchmark_enable_random_interleaving=true --benchmark_repetitions=5
#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>

#include "sluice/engine/kernel/active_rows.h"
#include "sluice/engine/kernel/experts.h"

namespace sluice::engine {
namespace {

using bundle::Format;

constexpr int64_t kIn = 1024, kNeurons = 4096, kTokens = 8;
constexpr size_t kCopies = 6;  // more than the caches hold, for f32

std::vector<std::byte> packed(Format format, int64_t rows, int64_t columns, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> values;
  std::vector<float> weight(static_cast<size_t>(rows * columns));
  for (float& w : weight) w = values(random);
  return bundle::pack(format, weight, rows, columns);
}

/// Eight tokens that each keep `percent` of the neurons, independently: the two products of an FFN.
void ActiveFfn(benchmark::State& state) {
  const Format format = static_cast<Format>(state.range(0));
  const double percent = static_cast<double>(state.range(1));
  const bool shared = state.range(2) != 0;
  const DotKind kind = format == Format::f32 ? DotKind::f32 : DotKind::i8;
  std::vector<std::vector<std::byte>> bytes;
  std::vector<bundle::PackedMatrix> matrices;
  for (size_t i = 0; i < 2 * kCopies; ++i) {
    bytes.push_back(i < 2 ? packed(format, kNeurons, kIn, i) : bytes[i % 2]);
    matrices.push_back(bundle::view_packed(format, kNeurons, kIn, bytes.back(), "bench"));
  }
  ActiveRows rows;
  Buffer lists(ActiveRows::scratch_bytes(kTokens, kNeurons)),
      input(ActiveInput::scratch_bytes(format, kind, kIn, kTokens));
  rows.bind(lists.data(), kTokens, kNeurons);
  rows.tokens = kTokens;
  std::mt19937_64 random(1);
  std::bernoulli_distribution keep(percent / 100);
  for (size_t t = 0; t < kTokens; ++t) {
    for (int32_t f = 0; f < kNeurons; ++f)
      if (keep(random)) rows.index[t * kNeurons + rows.count[t]++] = f;
  }
  rows.settle(format);
  double asked = 0;
  for (size_t t = 0; t < kTokens; ++t) asked += static_cast<double>(rows.count[t]);
  state.counters["asked of union"] =
      asked / static_cast<double>(rows.merged_count) / static_cast<double>(kTokens);
  rows.shared = shared;
  std::vector<float> x(kTokens * kIn, 0.5f), y(kTokens * kIn), hidden(kTokens * kNeurons);
  size_t copy = 0;
  for (auto _ : state) {
    const bundle::PackedMatrix &up = matrices[2 * copy], &down = matrices[2 * copy + 1];
    copy = (copy + 1) % kCopies;
    const ActiveInput prepared = prepare_active(up, kind, x.data(), kIn, rows, input.data());
    dot_active(up, prepared, rows, hidden.data(), 1);
    accumulate_active(down, rows, hidden.data(), y.data(), kIn, nullptr, 1);
    benchmark::ClobberMemory();
  }
  state.SetLabel(std::string(bundle::format_name(format)));
}
BENCHMARK(ActiveFfn)
    ->ArgNames({"format", "kept_percent", "union"})
    ->ArgsProduct({{static_cast<int64_t>(Format::f32), static_cast<int64_t>(Format::i8),
                    static_cast<int64_t>(Format::i4_group)},
                   {5, 15, 30, 40, 50, 70},
                   {0, 1}})
    ->Unit(benchmark::kMicrosecond);

/// One expert, all tokens.
void OneExpert(benchmark::State& state) {
  const size_t tokens = static_cast<size_t>(state.range(0));
  constexpr int64_t kWidth = 512, kHidden = 1024;
  Experts experts;
  const auto up = packed(Format::f32, kHidden, kWidth, 1),
             down = packed(Format::f32, kHidden, kWidth, 2);
  experts.up.push_back(bundle::view_packed(Format::f32, kHidden, kWidth, up, "up"));
  experts.down.push_back(bundle::view_packed(Format::f32, kHidden, kWidth, down, "down"));
  if (state.range(1)) make_expert_panels(experts);
  Buffer scratch(experts_scratch(experts, state.range(0), 1));
  const std::vector<float> x(tokens * kWidth, 0.5f), logits(tokens);
  std::vector<float> y(tokens * kWidth);
  for (auto _ : state) {
    run_experts(experts, x.data(), logits.data(), y.data(), tokens, scratch.data(), 1, nullptr);
    benchmark::ClobberMemory();
  }
}
BENCHMARK(OneExpert)
    ->ArgNames({"tokens", "panels"})
    ->ArgsProduct({{1, 2, 3, 4, 5, 6, 8, 12, 16, 32}, {0, 1}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace sluice::engine
