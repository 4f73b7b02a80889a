#include "sluice/engine/kernel/sparse_input.h"

#include <algorithm>
#include <cstring>

#include "sluice/engine/kernel/buffer.h"

namespace sluice::engine {
namespace {

int64_t list_bytes(const SparseInput& s) {
  return ActiveRows::scratch_bytes(static_cast<int64_t>(kMaxTokens), s.weight.rows);
}
int64_t factor_bytes(const SparseInput& s) {
  return align_up(static_cast<int64_t>(kMaxTokens * sizeof(float)) * s.weight.rows);
}

}  // namespace

int64_t sparse_input_scratch(const SparseInput& s, int threads) {
  return list_bytes(s) + factor_bytes(s) + packed_accumulate_scratch(s.weight, threads);
}

void run_sparse_input(const SparseInput& s, const float* x, float* y, size_t rows,
                      std::byte* scratch, int threads, Work* work, const uint8_t* dense) {
  const size_t in = static_cast<size_t>(s.weight.rows), out = static_cast<size_t>(s.weight.columns);
  const Selector everything;
  ActiveRows active;
  active.bind(scratch, kMaxTokens, in);
  float* factor = reinterpret_cast<float*>(scratch + list_bytes(s));
  std::byte* rest = scratch + list_bytes(s) + factor_bytes(s);
  for (size_t row = 0; row < rows; row += kMaxTokens, x += kMaxTokens * in, y += kMaxTokens * out) {
    active.tokens = std::min(kMaxTokens, rows - row);
    for (size_t t = 0; t < active.tokens; ++t) {
      const Selector& select = dense && dense[row + t] ? everything : s.select;
      active.count[t] =
          select({x + t * in, in, Rank::magnitude, s.column_norm}, active.index + t * in);
      if (s.bias) {
        std::memcpy(y + t * out, s.bias, out * sizeof(float));
      } else {
        std::fill_n(y + t * out, out, 0.0f);
      }
    }
    active.settle(s.weight.format);
    for (size_t t = 0; t < active.tokens; ++t) {
      const int32_t* list = active.list(t);
      float* to = factor + t * in;
      for (size_t j = 0; j < active.length(t); ++j)
        to[j] = active.asked(t, j) ? x[t * in + static_cast<size_t>(list[j])] : 0.0f;
    }
    accumulate_active(s.weight, active, factor, y, out, rest, threads);
    count_active(s.weight, active, work);
    if (work) work->bytes += static_cast<int64_t>(active.tokens * (in + out) * sizeof(float));
  }
}

}  // namespace sluice::engine
