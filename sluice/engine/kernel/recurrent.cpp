#include "sluice/engine/kernel/recurrent.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {
namespace {

/// x W^T + b for all rows.
void project(const RecurrentWeights& w, size_t gates, const float* x, size_t rows, float* out) {
  const size_t width = gates * w.hidden;
  onednn::multiply_rows(x, w.weight.data(), static_cast<int64_t>(rows), static_cast<int64_t>(w.in),
                        static_cast<int64_t>(width), out, static_cast<int64_t>(width));
  if (w.bias.empty()) return;
  for (size_t r = 0; r < rows; ++r)
    add(out + r * width, w.bias.data(), Activation::none, out + r * width, width);
}

/// R h of `count` gates from `first`.
void recur(const RecurrentWeights& w, size_t first, size_t count, const float* h, float* out) {
  const int64_t hidden = static_cast<int64_t>(w.hidden),
                width = static_cast<int64_t>(count) * hidden;
  onednn::multiply_rows(h, w.recurrent.data() + first * w.hidden * w.hidden, 1, hidden, width, out,
                        width);
}

void load(const float* from, float* to, size_t count) {
  if (from) {
    std::memcpy(to, from, count * sizeof(float));
  } else {
    std::fill(to, to + count, 0.0f);
  }
}

}  // namespace

size_t recurrent_scratch(const RecurrentWeights& w, size_t gates, size_t rows) {
  return (rows + 1) * gates * w.hidden + 3 * w.hidden;
}

void lstm(const RecurrentWeights& w, const float* x, const float* h0, const float* c0, size_t rows,
          bool reverse, bool cells, float* out, float* scratch) {
  const size_t n = w.hidden, width = 4 * n, row_out = cells ? 2 * n : n;
  float *projected = scratch, *gates = projected + rows * width, *h = gates + width, *c = h + n,
        *t = c + n;
  project(w, 4, x, rows, projected);
  load(h0, h, n);
  load(c0, c, n);
  for (size_t step = 0; step < rows; ++step) {
    const size_t r = reverse ? rows - 1 - step : step;
    recur(w, 0, 4, h, gates);
    add(gates, projected + r * width, Activation::none, gates, width);
    activate(Activation::sigmoid, gates, gates, 2 * n);
    activate(Activation::tanh, gates + 2 * n, gates + 2 * n, n);
    activate(Activation::sigmoid, gates + 3 * n, gates + 3 * n, n);
    multiply(gates, gates + 2 * n, t, n);
    multiply(gates + n, c, c, n);
    add(c, t, Activation::none, c, n);
    activate(Activation::tanh, c, t, n);
    multiply(gates + 3 * n, t, h, n);
    std::memcpy(out + r * row_out, h, n * sizeof(float));
    if (cells) std::memcpy(out + r * row_out + n, c, n * sizeof(float));
  }
}

void gru(const RecurrentWeights& w, const float* x, const float* h0, size_t rows, bool reverse,
         bool reset_before, float* out, float* scratch) {
  const size_t n = w.hidden, width = 3 * n;
  float *projected = scratch, *gates = projected + rows * width, *h = gates + width;
  project(w, 3, x, rows, projected);
  load(h0, h, n);
  for (size_t step = 0; step < rows; ++step) {
    const size_t r = reverse ? rows - 1 - step : step;
    const float* input = projected + r * width;
    recur(w, 0, reset_before ? 2 : 3, h, gates);
    add(gates, input, Activation::sigmoid, gates, 2 * n);
    float *reset = gates, *update = gates + n, *fresh = gates + 2 * n;
    if (reset_before) {
      multiply(reset, h, reset, n);
      recur(w, 2, 1, reset, fresh);
    }
    if (!w.recurrent_bias.empty()) add(fresh, w.recurrent_bias.data(), Activation::none, fresh, n);
    if (!reset_before) multiply(reset, fresh, fresh, n);
    add(fresh, input + 2 * n, Activation::tanh, fresh, n);
    for (size_t i = 0; i < n; ++i) h[i] = (1 - update[i]) * fresh[i] + update[i] * h[i];
    std::memcpy(out + r * n, h, n * sizeof(float));
  }
}

}  // namespace sluice::engine
