// Some rows of a matrix in memory, added up: what sparse inputs and the way down of a sparse FFN
// do.
//   sluice_engine_bench --benchmark_filter=PackedAccumulate --benchmark_min_time=0.1
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/packed_accumulate.h"
#include "sluice/engine/kernel/packed_accumulate_integers.h"

namespace sluice::engine {
namespace packed_accumulate_bench {

using bundle::Format;

constexpr int64_t kColumns = 4096, kRows = 4096, kCold = int64_t{512} << 20,
                  kHuge = int64_t{2} << 20;

/// Copies of one random matrix that do not fit a cache together.
struct Copies {
  Format format;
  std::unique_ptr<std::byte, void (*)(void*)> memory;
  std::vector<bundle::PackedMatrix> matrices;

  explicit Copies(Format format_)
      : format(format_),
        memory(static_cast<std::byte*>(std::aligned_alloc(kHuge, kCold)), std::free) {
#ifdef MADV_HUGEPAGE
    ::madvise(memory.get(), kCold, MADV_HUGEPAGE);
#endif
    std::mt19937_64 random(1);
    std::uniform_real_distribution<float> uniform(-2, 2);
    std::vector<float> values(kRows * kColumns);
    for (float& v : values) v = uniform(random);
    const std::vector<std::byte> packed = bundle::pack(format, values, kRows, kColumns);
    const int64_t each = (static_cast<int64_t>(packed.size()) + 63) / 64 * 64;
    for (int64_t at = 0; at + each <= kCold; at += each) {
      std::memcpy(memory.get() + at, packed.data(), packed.size());
      matrices.push_back(bundle::view_packed(format, kRows, kColumns,
                                             {memory.get() + at, packed.size()}, "w", true));
    }
  }
};

/// What is added up, and how often it has been.
struct Case {
  const Copies& copies;
  std::vector<int32_t> rows;
  std::vector<float> factors, y;
  size_t next = 0;

  Case(Format format, int64_t percent, size_t tokens)
      : copies(copies_of(format)), rows(kRows), y(tokens * kColumns) {
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

 private:
  static const Copies& copies_of(Format format) {
    static std::optional<Copies> latest;  // packing takes longer than measuring
    if (!latest || latest->format != format) {
      latest.reset();
      latest.emplace(format);
    }
    return *latest;
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

}  // namespace packed_accumulate_bench
}  // namespace sluice::engine
