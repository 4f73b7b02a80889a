// Each sample is a sequence from its beginning: no cache, no carried state.
#include <algorithm>
#include <cmath>
#include <limits>

#include "sluice/base/normal_quantile.h"
#include "sluice/engine/kernel/reference_call.h"

namespace sluice::engine {
namespace {

using Vec = std::vector<double>;
using Call = ReferenceCall;

struct Heads {
  size_t count, width;  // of a matrix of heads side by side
  size_t at(size_t row, size_t head, size_t i) const { return (row * count + head) * width + i; }
};

Vec rope(const Call& c) {
  const Heads heads{static_cast<size_t>(bundle::attr_int(c.node.attrs, "heads", 1)),
                    static_cast<size_t>(c.shape()[1] / bundle::attr_int(c.node.attrs, "heads", 1))};
  const size_t dims = static_cast<size_t>(bundle::attr_int(
      c.node.attrs, "dims",
      static_cast<int64_t>(heads.width) - bundle::attr_int(c.node.attrs, "start", 0)));
  const auto start = static_cast<size_t>(bundle::attr_int(c.node.attrs, "start", 0));
  const double base = bundle::attr_double(c.node.attrs, "base", 10000),
               scale = bundle::attr_double(c.node.attrs, "scale", 1);
  const bool interleaved = bundle::attr_string(c.node.attrs, "layout", "half") == "interleaved";
  Vec y = c.x();
  for (size_t row = 0; row < y.size() / (heads.count * heads.width); ++row) {
    const double position = c.inputs.size() > 1 ? (*c.inputs[1])[row] : static_cast<double>(row);
    for (size_t h = 0; h < heads.count; ++h) {
      for (size_t i = 0; i < dims / 2; ++i) {
        const double angle =
            position / scale *
            std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(dims)) /
            (c.has("factors") ? c.tensor("factors")[i] : 1.0);
        const size_t a = heads.at(row, h, start + (interleaved ? 2 * i : i)),
                     b = heads.at(row, h, start + (interleaved ? 2 * i + 1 : i + dims / 2));
        y[a] = c.x()[a] * std::cos(angle) - c.x()[b] * std::sin(angle);
        y[b] = c.x()[b] * std::cos(angle) + c.x()[a] * std::sin(angle);
      }
    }
  }
  return y;
}

Vec attention(const Call& c) {
  const auto& attrs = c.node.attrs;
  const size_t count = static_cast<size_t>(bundle::attr_int(attrs, "heads", 1)),
               kv = static_cast<size_t>(
                   bundle::attr_int(attrs, "kv_heads", static_cast<int64_t>(count)));
  const Heads q{count, static_cast<size_t>(c.shape(0)[1]) / count}, k{kv, q.width},
      v{kv, static_cast<size_t>(c.shape(2)[1]) / kv}, out{count, v.width};
  const bool causal = bundle::attr_string(attrs, "mask", "causal") == "causal";
  const size_t window = static_cast<size_t>(bundle::attr_int(attrs, "window", 0));
  const double scale =
      bundle::attr_double(attrs, "scale", 1 / std::sqrt(static_cast<double>(q.width)));
  const size_t rows = c.x().size() / (q.count * q.width),
               keys = c.inputs[1]->size() / (k.count * k.width);
  std::vector<size_t> at(rows);  // the key of each query's own row
  for (size_t row = 0; row < rows; ++row) at[row] = row;
  const bool gated = bundle::attr_bool(attrs, "gated", false);
  for (size_t key = 0, row = 0; c.inputs.size() > 3 && !gated && key < keys; ++key)
    if ((*c.inputs[3])[key] > 0) at[row++] = key;
  Vec y(rows * count * v.width);
  for (size_t row = 0; row < rows; ++row) {
    const size_t end = causal ? at[row] + 1 : keys,
                 begin = window > 0 && end > window ? end - window : 0;
    for (size_t h = 0; h < count; ++h) {
      const size_t from = h / (count / kv);
      if (gated && !((*c.inputs[3])[row * kv + from] > 0)) continue;
      Vec weights;
      double top = -std::numeric_limits<double>::infinity(), sum = 0;
      for (size_t j = begin; j < end; ++j) {
        double score = 0;
        for (size_t i = 0; i < q.width; ++i)
          score += c.x()[q.at(row, h, i)] * (*c.inputs[1])[k.at(j, from, i)];
        weights.push_back(score * scale);
        top = std::max(top, weights.back());
      }
      for (double& w : weights) sum += w = std::exp(w - top);
      for (size_t j = begin; j < end; ++j)
        for (size_t i = 0; i < v.width; ++i)
          y[out.at(row, h, i)] += weights[j - begin] / sum * (*c.inputs[2])[v.at(j, from, i)];
    }
  }
  return y;
}

Vec spark_attention(const Call& c) {
  const auto& attrs = c.node.attrs;
  const auto count = static_cast<size_t>(bundle::attr_int(attrs, "heads", 1)),
             split = static_cast<size_t>(bundle::attr_int(attrs, "split", 1)),
             tokens = static_cast<size_t>(bundle::attr_int(attrs, "tokens", 1));
  const Heads q{count, static_cast<size_t>(c.shape(0)[1]) / count},
      v{count, static_cast<size_t>(c.shape(2)[1]) / count};
  Vec y(c.inputs[2]->size());
  const auto product = [&](size_t row, size_t j, size_t h, size_t first, size_t end) {
    double sum = 0;
    for (size_t i = first; i < end; ++i)
      sum += c.x()[q.at(row, h, i)] * (*c.inputs[1])[q.at(j, h, i)];
    return sum / std::sqrt(static_cast<double>(end - first));
  };
  for (size_t row = 0; row < c.x().size() / (count * q.width); ++row) {
    for (size_t h = 0; h < count; ++h) {
      Vec scores;
      double mean = 0, variance = 0, bound = -std::numeric_limits<double>::infinity();
      const auto n = static_cast<double>(row + 1);
      for (size_t j = 0; j <= row; ++j) scores.push_back(product(row, j, h, 0, split));
      for (const double a : scores) mean += a / n;
      for (const double a : scores) variance += (a - mean) * (a - mean) / std::max(1.0, n - 1);
      if (row + 1 > tokens)
        bound = mean + std::sqrt(variance) * normal_quantile(1 - static_cast<double>(tokens) / n);
      double top = -std::numeric_limits<double>::infinity(), sum = 0;
      for (const double a : scores) top = a >= bound ? std::max(top, a) : top;
      for (const double a : scores) sum += a >= bound ? std::exp(a - top) : 0;
      for (size_t j = 0; j <= row; ++j) {
        if (!(scores[j] >= bound)) continue;
        const double weight = std::exp(scores[j] - top) / sum *
                              std::log1p(std::exp(product(row, j, h, split, q.width)));
        for (size_t i = 0; i < v.width; ++i)
          y[v.at(row, h, i)] += weight * (*c.inputs[2])[v.at(j, h, i)];
      }
    }
  }
  return y;
}

Vec linear_attention(const Call& c) {
  const size_t count = static_cast<size_t>(bundle::attr_int(c.node.attrs, "heads", 1));
  const Heads q{count, static_cast<size_t>(c.shape(0)[1]) / count},
      v{count, static_cast<size_t>(c.shape(2)[1]) / count};
  const double scale = bundle::attr_double(c.node.attrs, "scale", 1);
  const bool decays = c.inputs.size() > 3;
  const bool channel = decays && c.shape(3)[1] == c.shape(0)[1];
  Vec y(c.inputs[2]->size());
  for (size_t h = 0; h < count; ++h) {
    Vec state(q.width * v.width);
    for (size_t row = 0; row < c.x().size() / (count * q.width); ++row) {
      for (size_t i = 0; i < q.width; ++i) {
        const double decay =
            !decays ? 1 : (*c.inputs[3])[channel ? q.at(row, h, i) : row * count + h];
        for (size_t j = 0; j < v.width; ++j) {
          double& s = state[i * v.width + j];
          s = decay * s + (*c.inputs[1])[q.at(row, h, i)] * (*c.inputs[2])[v.at(row, h, j)];
          y[v.at(row, h, j)] += scale * c.x()[q.at(row, h, i)] * s;
        }
      }
    }
  }
  return y;
}

}  // namespace

std::vector<ReferenceEntry> attention_references() {
  return {{"rope", rope},
          {"attention", attention},
          {"spark_attention", spark_attention},
          {"linear_attention", linear_attention}};
}

}  // namespace sluice::engine
