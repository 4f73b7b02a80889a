#include "sluice/engine/kernel/gathered_linear.h"

#include <algorithm>

#include "sluice/engine/kernel/buffer.h"

namespace sluice::engine {
namespace {

int64_t gathered_lists(const GatheredLinear& layer) {
  return ActiveRows::scratch_bytes(static_cast<int64_t>(kMaxTokens), layer.weight.rows);
}
int64_t gathered_sums(const GatheredLinear& layer) {
  return align_up(static_cast<int64_t>(kMaxTokens * sizeof(float)) * layer.weight.rows);
}

}  // namespace

int64_t gathered_linear_scratch(const GatheredLinear& layer) {
  return gathered_lists(layer) + gathered_sums(layer) +
         ActiveInput::scratch_bytes(layer.weight.format, layer.kind, layer.weight.columns,
                                    static_cast<int64_t>(kMaxTokens));
}

void run_gathered_linear(const GatheredLinear& layer, const float* x, const float* mask, float* y,
                         size_t rows, std::byte* scratch, int threads, Work* work) {
  const size_t in = static_cast<size_t>(layer.weight.columns),
               out = static_cast<size_t>(layer.weight.rows),
               units = static_cast<size_t>(layer.units), each = out / units;
  ActiveRows active;
  active.bind(scratch, kMaxTokens, out);
  float* sums = reinterpret_cast<float*>(scratch + gathered_lists(layer));
  std::byte* rest = scratch + gathered_lists(layer) + gathered_sums(layer);
  for (size_t row = 0; row < rows; row += kMaxTokens) {
    active.tokens = std::min(kMaxTokens, rows - row);
    for (size_t t = 0; t < active.tokens; ++t) {
      const float* open = mask + (row + t) * units;
      int32_t* list = active.index + t * out;
      size_t count = 0;
      for (size_t u = 0; u < units; ++u) {
        if (!(open[u] > 0)) continue;
        for (size_t i = 0; i < each; ++i) list[count++] = static_cast<int32_t>(u * each + i);
      }
      active.count[t] = count;
    }
    active.settle(layer.weight.format);
    const ActiveInput input = prepare_active(layer.weight, layer.kind, x + row * in,
                                             static_cast<int64_t>(in), active, rest);
    dot_active(layer.weight, input, active, sums, threads);
    count_active(layer.weight, active, work);
    for (size_t t = 0; t < active.tokens; ++t) {
      float* to = y + (row + t) * out;
      std::fill_n(to, out, 0.0f);
      const int32_t* list = active.list(t);
      for (size_t j = 0; j < active.length(t); ++j) {
        if (!active.asked(t, j)) continue;
        const auto o = static_cast<size_t>(list[j]);
        to[o] = sums[t * out + j] + (layer.bias ? layer.bias[o] : 0.0f);
      }
    }
    if (work)
      work->bytes += static_cast<int64_t>(active.tokens * (in + out + units) * sizeof(float));
  }
}

}  // namespace sluice::engine
