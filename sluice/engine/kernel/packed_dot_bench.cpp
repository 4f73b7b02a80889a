// One to eight rows times packed weights from memory, by each implementation that this processor
// has: portable (with AVX2 vectors at most), avx2, avx512-vnni.
//   sluice_engine_bench --benchmark_filter=PackedDot --benchmark_min_time=0.1
#include <benchmark/benchmark.h>
#include <hwy/targets.h>

#include <random>
#include <string>
#include <vector>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/cold_copies.h"
#include "sluice/engine/kernel/packed_dot_path.h"

namespace sluice::engine {
namespace packed_dot_bench {

using bundle::Format;

enum Path { kPortable, kAvx2, kVnni };
constexpr int64_t kColumns = ColdCopies::kColumns, kRows = ColdCopies::kRows;

void PackedDot(benchmark::State& state) {
  const int64_t which = state.range(0);
  const auto kind = static_cast<DotKind>(state.range(1));
  const auto format = static_cast<Format>(state.range(2));
  if ((which == kVnni && !dot_vnni_usable()) || (which == kAvx2 && !chosen_target_has_avx2()))
    return state.SkipWithError("not on this processor");
  const ColdCopies& copies = ColdCopies::of(format);
  if (which == kPortable && chosen_target_is_avx512()) hwy::GetChosenTarget().Update(HWY_AVX2);
  const DotPath& path = which == kPortable ? portable_dot()
                        : which == kAvx2   ? avx2_dot()
                                           : vnni_dot();
  const int64_t batch = state.range(3);
  const std::vector<float> x(kColumns, 0.5f);
  std::vector<float> y(static_cast<size_t>(kRows * batch));
  DotInput input;
  input.format = format;
  input.kind = kind;
  input.batch = batch;
  input.columns = kColumns;
  input.stride = path.stride(format, kind, kColumns);
  const Buffer scratch(input.stride * batch);
  input.data = scratch.data();
  size_t next = 0;
  for (auto _ : state) {
    const bundle::PackedMatrix& w = copies.matrices[next++ % copies.matrices.size()];
    for (int64_t b = 0; b < batch; ++b)
      path.prepare(w, kind, x.data(), scratch.data() + b * input.stride);
    path.run(w, input, {nullptr, 0, kRows}, y.data(), kRows);
    benchmark::ClobberMemory();
  }
  hwy::GetChosenTarget().DeInit();
  static constexpr const char* kNames[] = {"portable", "avx2", "avx512-vnni"};
  state.SetLabel(std::string(bundle::format_name(format)) + " " + kNames[which]);
  state.SetBytesProcessed(state.iterations() * kRows * copies.matrices[0].row_bytes());
}
BENCHMARK(PackedDot)
    ->ArgNames({"path", "activations", "format", "rows"})
    ->ArgsProduct({{kPortable, kAvx2, kVnni},
                   {int(DotKind::f32), int(DotKind::i8)},
                   benchmark::CreateDenseRange(0, 9, 1),
                   {1, 2, 4, 8}})
    ->Unit(benchmark::kMicrosecond);

/// One row times the rows of a list, of packed weights from memory.
void PackedDotRows(benchmark::State& state) {
  const auto format = static_cast<Format>(state.range(0));
  const ColdCopies& copies = ColdCopies::of(format);
  std::mt19937_64 random(1);
  std::vector<int32_t> rows;
  for (int32_t r = 0; r < kRows; ++r) {
    if (static_cast<int64_t>(random() % 100) < state.range(1)) rows.push_back(r);
  }
  const std::vector<float> x(kColumns, 0.5f);
  std::vector<float> y(rows.size());
  const Buffer scratch(dot_scratch_bytes(format, DotKind::i8, kColumns, 1));
  size_t next = 0;
  for (auto _ : state) {
    const bundle::PackedMatrix& w = copies.matrices[next++ % copies.matrices.size()];
    const DotInput input = prepare_dot(w, DotKind::i8, x.data(), kColumns, 1, scratch.data());
    packed_dot_rows(w, input, rows, y.data(), kRows);
    benchmark::ClobberMemory();
  }
  state.SetLabel(std::string(bundle::format_name(format)));
  state.SetBytesProcessed(state.iterations() * std::ssize(rows) * copies.matrices[0].row_bytes());
}
BENCHMARK(PackedDotRows)
    ->ArgNames({"format", "kept_percent"})
    ->ArgsProduct({{int(Format::f32), int(Format::i8), int(Format::i4_group)}, {10, 50, 100}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace packed_dot_bench
}  // namespace sluice::engine
