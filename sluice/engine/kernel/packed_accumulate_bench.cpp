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

void PackedAccumulate(benchmark::State& state) {
  const auto format = static_cast<Format>(state.range(0));
  const auto count = static_cast<size_t>(kRows * state.range(1) / 100);
  const int threads = static_cast<int>(state.range(2));
  static std::optional<Copies> copies;  // packing takes longer than measuring
  if (!copies || copies->format != format) {
    copies.reset();
    copies.emplace(format);
  }
  std::mt19937_64 random(1);
  std::vector<int32_t> rows(kRows);
  std::iota(rows.begin(), rows.end(), 0);
  std::shuffle(rows.begin(), rows.end(), random);
  std::sort(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(count));
  std::vector<float> factors(count), y(kColumns);
  for (float& f : factors) f = std::normal_distribution<float>()(random);
  const Buffer scratch(packed_accumulate_scratch(copies->matrices[0], threads));
  size_t next = 0;
  if (getenv("FEW"))
    for (int32_t& r : rows) r = r % atoi(getenv("FEW"));
  if (getenv("FEW")) std::sort(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(count));
  const size_t copies_n = getenv("FEW") ? 1 : copies->matrices.size();
  for (auto _ : state) {
    packed_accumulate(copies->matrices[next++ % copies_n], {rows.data(), count},
                      {factors.data(), 1, count}, y.data(), kColumns, scratch.data(), threads);
    benchmark::ClobberMemory();
  }
  state.SetLabel(std::string(bundle::format_name(format)));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(count) *
                          copies->matrices[0].row_bytes());
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

}  // namespace packed_accumulate_bench
}  // namespace sluice::engine
