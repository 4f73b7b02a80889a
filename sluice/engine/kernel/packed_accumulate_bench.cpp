// Some rows of a matrix in memory, added up: what sparse inputs and the way down of a sparse FFN
// do.
//   sluice_engine_bench --benchmark_filter="PackedAccumulate|ScatteredRows"
//   --benchmark_min_time=0.1
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <string>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/cold_copies.h"
#include "sluice/engine/kernel/packed_accumulate.h"
#include "sluice/engine/kernel/packed_accumulate_integers.h"

namespace sluice::engine {
namespace packed_accumulate_bench {

using bundle::Format;

constexpr int64_t kColumns = ColdCopies::kColumns, kRows = ColdCopies::kRows;

/// What is added up, and how often it has been.
struct Case {
  const ColdCopies& copies;
  std::vector<int32_t> rows;
  std::vector<float> factors, y;
  size_t next = 0;

  Case(Format format, int64_t percent, size_t tokens)
      : copies(ColdCopies::of(format)), rows(kRows), y(tokens * kColumns) {
    const auto count = static_cast<size_t>(kRows * percent / 100);
    std::mt19937_64 random(1);
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), random);
    rows.resize(count);
    std::sort(rows.begin(), rows.end());
    factors.resize(tokens * count);
    for (float& f : factors) f = std::normal_distribution<float>()(random);
  }
  const bundle::PackedMatrix& matrix() { return copies.matrices[next++ % copies.matrices.size()]; }
  RowList list() const { return {rows.data(), rows.size()}; }
  RowFactors all_factors() const { return {factors.data(), y.size() / kColumns, rows.size()}; }
  void report(benchmark::State& state) const {
    state.SetLabel(std::string(bundle::format_name(copies.format)));
    state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(rows.size()) *
                            copies.matrices[0].row_bytes());
  }
};

void PackedAccumulate(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(2));
  Case c(static_cast<Format>(state.range(0)), state.range(1), 1);
  const Buffer scratch(packed_accumulate_scratch(c.matrix(), threads));
  for (auto _ : state) {
    packed_accumulate(c.matrix(), c.list(), c.all_factors(), c.y.data(), kColumns, scratch.data(),
                      threads);
    benchmark::ClobberMemory();
  }
  c.report(state);
}
BENCHMARK(PackedAccumulate)
    ->ArgNames({"format", "kept_percent", "threads"})
    ->ArgsProduct({{static_cast<int64_t>(Format::f32), static_cast<int64_t>(Format::i8),
                    static_cast<int64_t>(Format::i8_group), static_cast<int64_t>(Format::i4_group),
                    static_cast<int64_t>(Format::i4_group_min)},
                   {10, 35, 80},
                   {1, 2}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

/// Several tokens that share the rows: integers read them once for each token, from a cache after
/// the first, and floats once for all.
void PackedAccumulateTokens(benchmark::State& state) {
  const auto tokens = static_cast<size_t>(state.range(1));
  Case c(static_cast<Format>(state.range(0)), 35, tokens);
  for (auto _ : state) {
    if (state.range(2) != 0) {
      accumulate_integers(c.matrix(), c.list(), c.all_factors(), c.y.data(), kColumns, 0, kColumns);
    } else {
      accumulate_floats(c.matrix(), c.list(), c.all_factors(), c.y.data(), kColumns, 0, kColumns);
    }
    benchmark::ClobberMemory();
  }
  c.report(state);
}
BENCHMARK(PackedAccumulateTokens)
    ->ArgNames({"format", "tokens", "integers"})
    ->ArgsProduct({{static_cast<int64_t>(Format::i8), static_cast<int64_t>(Format::i8_group),
                    static_cast<int64_t>(Format::i4_group)},
                   {1, 2, 4, 8},
                   {0, 1}})
    ->Unit(benchmark::kMicrosecond);

/// Reads some rows of a matrix in memory and computes nothing, kTogether side by side, with
/// requests 16 lines ahead or without: what memory gives to a list of rows, which start at a page
/// or `offset` bytes behind one. Few instructions a line, so that many lines are under way at once.
template <size_t kTogether, bool kAsks>
void ScatteredRows(benchmark::State& state) {
  constexpr size_t kAhead = 16, kLine = 64, kMost = 16;
  const auto bytes = static_cast<size_t>(state.range(0)),
             percent = static_cast<size_t>(state.range(1)),
             offset = static_cast<size_t>(state.range(2));
  const ColdCopies& copies = ColdCopies::of(Format::i8);
  const size_t lines = bytes / kLine, matrix = bytes * kRows,
               matrices = static_cast<size_t>(ColdCopies::kCold) / matrix - 1;
  std::vector<size_t> rows(static_cast<size_t>(kRows));
  std::iota(rows.begin(), rows.end(), size_t{0});
  if (percent < 100) std::shuffle(rows.begin(), rows.end(), std::mt19937_64(1));
  rows.resize(rows.size() * percent / 100 / kMost * kMost);
  std::sort(rows.begin(), rows.end());
  size_t next = 0;
  for (auto _ : state) {
    const std::byte* const start = copies.memory.get() + next++ % matrices * matrix + offset;
    uint64_t sum = 0;
    for (size_t j = 0; j < rows.size(); j += kTogether) {
      const std::byte *now[kTogether], *then[kTogether];
      for (size_t r = 0; r < kTogether; ++r) {
        now[r] = start + rows[j + r] * bytes;
        then[r] = j + kTogether < rows.size() ? start + rows[j + kTogether + r] * bytes : now[r];
      }
      const auto read = [&](size_t l, const std::byte* const(&ask)[kTogether], size_t at) {
#pragma GCC unroll 16
        for (size_t r = 0; r < kTogether; ++r) {
          if (kAsks) __builtin_prefetch(ask[r] + at, 0, 2);
          uint64_t word;
          std::memcpy(&word, now[r] + l * kLine, sizeof word);
          sum += word;
        }
      };
      const size_t here = lines - kAhead;
      for (size_t l = 0; l < here; ++l) read(l, now, (l + kAhead) * kLine);
      for (size_t l = here; l < lines; ++l) read(l, then, (l - here) * kLine);
    }
    benchmark::DoNotOptimize(sum);
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(rows.size() * bytes));
}
void scattered_cases(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"bytes", "kept_percent", "offset"})
      ->ArgsProduct({{4096, 2048}, {35, 100}, {0, 1088}})
      ->Unit(benchmark::kMicrosecond);
}
BENCHMARK_TEMPLATE(ScatteredRows, 4, false)->Apply(scattered_cases);
BENCHMARK_TEMPLATE(ScatteredRows, 4, true)->Apply(scattered_cases);
BENCHMARK_TEMPLATE(ScatteredRows, 16, false)->Apply(scattered_cases);
BENCHMARK_TEMPLATE(ScatteredRows, 16, true)->Apply(scattered_cases);

}  // namespace packed_accumulate_bench
}  // namespace sluice::engine
