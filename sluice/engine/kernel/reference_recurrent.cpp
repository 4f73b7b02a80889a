#include <cmath>

#include "sluice/engine/kernel/reference_call.h"

namespace sluice::engine {
namespace {

using Call = ReferenceCall;
using Vec = std::vector<double>;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// Row `gate` of the tensor times x.
double dot(const Call& c, const char* role, size_t row, const double* x, size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += double(c.tensor(role)[row * count + i]) * x[i];
  return sum;
}

double offset(const Call& c, const char* role, size_t row) {
  return c.has(role) ? c.tensor(role)[row] : 0.0;
}

Vec recurrent(const Call& c) {
  const bool is_lstm = c.node.op == "lstm";
  const bool reverse = bundle::attr_bool(c.node.attrs, "reverse", false),
             cells = bundle::attr_bool(c.node.attrs, "cells", false);
  const size_t rows = static_cast<size_t>(c.shape()[0]), in = static_cast<size_t>(c.shape()[1]),
               n = static_cast<size_t>(c.tensor_shape("recurrent")[1]);
  Vec h(n, 0.0), cell(n, 0.0), y(c.out_count());
  if (c.inputs.size() > 1) h = *c.inputs[1];
  if (c.inputs.size() > 2) cell = *c.inputs[2];
  for (size_t step = 0; step < rows; ++step) {
    const size_t r = reverse ? rows - 1 - step : step;
    const double* x = c.x().data() + r * in;
    const auto gate = [&](size_t k) { return dot(c, "weight", k, x, in) + offset(c, "bias", k); };
    Vec next(n), reset(n);
    const bool before = bundle::attr_bool(c.node.attrs, "reset_before", false);
    for (size_t i = 0; !is_lstm && i < n; ++i)
      reset[i] = h[i] * sigmoid(gate(i) + dot(c, "recurrent", i, h.data(), n));
    for (size_t i = 0; i < n; ++i) {
      const auto full = [&](size_t g) {
        return gate(g * n + i) + dot(c, "recurrent", g * n + i, h.data(), n);
      };
      if (is_lstm) {
        cell[i] = sigmoid(full(1)) * cell[i] + sigmoid(full(0)) * std::tanh(full(2));
        next[i] = sigmoid(full(3)) * std::tanh(cell[i]);
      } else {
        const double z = sigmoid(full(1));
        const double inner = dot(c, "recurrent", 2 * n + i, before ? reset.data() : h.data(), n) +
                             offset(c, "recurrent_bias", i);
        const double fresh =
            std::tanh(gate(2 * n + i) + (before ? inner : sigmoid(full(0)) * inner));
        next[i] = (1 - z) * fresh + z * h[i];
      }
    }
    h = next;
    const size_t width = cells ? 2 * n : n;
    for (size_t i = 0; i < n; ++i) {
      y[r * width + i] = h[i];
      if (cells) y[r * width + n + i] = cell[i];
    }
  }
  return y;
}

}  // namespace

std::vector<ReferenceEntry> recurrent_references() {
  return {{"lstm", recurrent}, {"gru", recurrent}};
}

}  // namespace sluice::engine
