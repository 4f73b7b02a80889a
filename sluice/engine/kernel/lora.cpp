#include "sluice/engine/kernel/lora.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/packed_accumulate.h"

namespace sluice::engine {
namespace {

constexpr int64_t kLoraTokens = kMaxDotBatch;
constexpr int64_t kFloatBytes = static_cast<int64_t>(sizeof(float));
// Smaller adapters are done before a second thread has woken up.
constexpr int64_t kParallelWeights = 1 << 17;

struct LoraPlaces {
  int64_t order = 0, start = 0, gathered = 0, code = 0, result = 0, dot = 0, sums = 0, end = 0;

  LoraPlaces(const Lora& l, int64_t rows, int threads) {
    const auto take = [&](int64_t items, int64_t size) {
      const int64_t at = end;
      end = checked_add(end, align_up(checked_mul(items, size, "adapter scratch")),
                        "adapter scratch");
      return at;
    };
    order = take(rows, kFloatBytes);
    start = take(static_cast<int64_t>(l.a.size()) + 2, kFloatBytes);
    gathered = take(kLoraTokens * l.a[0].columns, kFloatBytes);
    code = take(kLoraTokens * l.a[0].rows, kFloatBytes);
    result = take(kLoraTokens * l.b[0].columns, kFloatBytes);
    dot = take(dot_scratch_bytes(l.a[0].format, l.kind, l.a[0].columns, kLoraTokens), 1);
    sums = take(packed_accumulate_scratch(l.b[0], threads), 1);
  }
};

}  // namespace

int64_t lora_scratch(const Lora& lora, int64_t rows, int threads) {
  return LoraPlaces(lora, rows, threads).end;
}

void run_lora(const Lora& l, const float* x, const float* adapter, float* y, size_t rows,
              std::byte* scratch, int threads, Work* work) {
  const LoraPlaces at(l, static_cast<int64_t>(rows), threads);
  const size_t count = l.a.size(), in = static_cast<size_t>(l.a[0].columns),
               rank = static_cast<size_t>(l.a[0].rows), out = static_cast<size_t>(l.b[0].columns);
  for (size_t r = 0; r < rows; ++r) {
    const float id = adapter[r];
    if (!(id < static_cast<float>(count)) || (id >= 0 && id != std::floor(id)))
      fail(Code::shape, "row {}: adapter {}; expected a whole number from 0 to {}, or -1 for none",
           r, id, count - 1);
  }
  auto* order = reinterpret_cast<int32_t*>(scratch + at.order);
  auto* start = reinterpret_cast<int32_t*>(scratch + at.start);  // of adapter a at a + 1
  const auto floats = [&](int64_t place) { return reinterpret_cast<float*>(scratch + place); };
  std::fill_n(start, count + 2, 0);
  for (size_t r = 0; r < rows; ++r) {
    if (adapter[r] >= 0) ++start[static_cast<size_t>(adapter[r]) + 2];
  }
  for (size_t a = 0; a < count; ++a) start[a + 2] += start[a + 1];
  for (size_t r = 0; r < rows; ++r) {
    if (adapter[r] >= 0)
      order[start[static_cast<size_t>(adapter[r]) + 1]++] = static_cast<int32_t>(r);
  }
  const int team = l.a[0].rows * (l.a[0].columns + l.b[0].columns) < kParallelWeights ? 1 : threads;
  // Filling has moved every start to the next adapter's.
  for (size_t a = 0; a < count; ++a) {
    const size_t last = static_cast<size_t>(start[a + 1]);
    for (size_t first = static_cast<size_t>(start[a]); first < last; first += kLoraTokens) {
      const size_t tokens = std::min<size_t>(kLoraTokens, last - first);
      float *gathered = floats(at.gathered), *code = floats(at.code), *result = floats(at.result);
      for (size_t t = 0; t < tokens; ++t)
        std::memcpy(gathered + t * in, x + static_cast<size_t>(order[first + t]) * in,
                    in * sizeof(float));
      const DotInput input = prepare_dot(l.a[a], l.kind, gathered, l.a[a].columns,
                                         static_cast<int64_t>(tokens), scratch + at.dot);
      packed_dot(l.a[a], input, code, l.a[a].rows, team);
      if (!l.scale.empty()) scale_all(code, l.scale[a], code, tokens * rank);
      std::fill_n(result, tokens * out, 0.0f);
      packed_accumulate(l.b[a], {nullptr, rank}, {code, tokens, rank}, result, out,
                        scratch + at.sums, team);
      for (size_t t = 0; t < tokens; ++t) {
        float* to = y + static_cast<size_t>(order[first + t]) * out;
        add(to, result + t * out, Activation::none, to, out);
      }
      if (!work) continue;
      work->macs += static_cast<int64_t>(tokens * rank * (in + out));
      work->bytes += l.a[a].rows * (l.a[a].row_bytes() + l.b[a].row_bytes()) +
                     static_cast<int64_t>(tokens * (in + 2 * out)) * kFloatBytes;
    }
  }
}

}  // namespace sluice::engine
