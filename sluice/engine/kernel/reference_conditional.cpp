#include <algorithm>
#include <cmath>
#include <numeric>

#include "sluice/bundle/ops_sparse.h"
#include "sluice/engine/kernel/reference_call.h"
#include "sluice/engine/kernel/select.h"

namespace sluice::engine {
namespace {

using Vec = std::vector<double>;
using Call = ReferenceCall;

/// A tensor of any format, unpacked; `values` row by row.
struct Weights {
  Shape shape;
  std::vector<float> values;

  Weights(const Call& c, const std::string& role) {
    if (!c.has(role)) return;
    const std::string& name = c.node.tensors.at(role);
    const bundle::TensorSpec& spec = c.bundle.graph().tensors.at(name);
    shape = spec.shape;
    const auto bytes = c.bundle.tensor(name).bytes;
    const int64_t rows = shape.size() < 2 ? 1 : shape[shape.size() - 2], columns = shape.back();
    const size_t each = static_cast<size_t>(rows * columns);
    values.resize(static_cast<size_t>(numel(shape)));
    const size_t count = values.size() / each, size = bytes.size() / count;
    for (size_t i = 0; i < count; ++i)
      bundle::unpack(bundle::view_packed(*bundle::format_from_name(spec.format), rows, columns,
                                         bytes.subspan(i * size, size), name),
                     std::span(values).subspan(i * each, each));
  }
  bool empty() const { return values.empty(); }
  size_t size(size_t dimension) const { return static_cast<size_t>(shape[dimension]); }
  const float* row(size_t r) const { return values.data() + r * static_cast<size_t>(shape.back()); }
};

double dot(const float* w, const double* x, size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += static_cast<double>(w[i]) * x[i];
  return sum;
}

/// Which of the scores are kept; `bound` gets the threshold.
std::vector<bool> keep(const Call& c, const Vec& scores, double* bound) {
  const auto& attrs = c.node.attrs;
  const std::string kind = bundle::attr_string(attrs, "select", "all");
  const size_t n = scores.size();
  *bound = 0;
  if (kind == "all") return std::vector<bool>(n, true);
  std::vector<bool> kept(n, false);
  if (kind == "topk") {
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return std::isnan(scores[b]) ? !std::isnan(scores[a]) : scores[a] > scores[b];
    });
    const auto k = static_cast<size_t>(bundle::select_sizes(attrs).back().k);
    for (size_t i = 0; i < std::min(k, n); ++i) kept[order[i]] = true;
    return kept;
  }
  *bound = static_cast<float>(bundle::select_sizes(attrs).back().threshold);
  if (kind == "statistical") {
    const double share = bundle::select_sizes(attrs).back().keep;  // the whole network
    double sum = 0, count = 0, squares = 0;
    for (double s : scores) {
      if (!std::isfinite(s)) continue;
      sum += s;
      ++count;
    }
    const double mean = sum / count;
    for (double s : scores) squares += std::isfinite(s) ? (s - mean) * (s - mean) : 0;
    *bound = share >= 1 ? -INFINITY
                        : mean + std::sqrt(squares / std::max(count - 1, 1.0)) *
                                     normal_quantile(1 - share);
  }
  for (size_t i = 0; i < n; ++i) kept[i] = scores[i] > *bound;
  return kept;
}

Vec sparse_input_linear(const Call& c) {
  const Weights weight(c, "weight"), bias(c, "bias"), norm(c, "column_norm");
  const size_t in = weight.size(0), out = weight.size(1);
  const auto whole = static_cast<size_t>(bundle::attr_int(c.node.attrs, "dense_first", 0));
  Vec y;
  for (size_t first = 0; first < c.x().size(); first += in) {
    Vec scores(in);
    for (size_t i = 0; i < in; ++i)
      scores[i] = std::fabs(c.x()[first + i]) * (norm.empty() ? 1.0 : norm.values[i]);
    double bound;
    const auto kept = first / in < whole ? std::vector<bool>(in, true) : keep(c, scores, &bound);
    for (size_t o = 0; o < out; ++o) {
      double sum = bias.empty() ? 0.0 : bias.values[o];
      for (size_t i = 0; i < in; ++i)
        if (kept[i]) sum += static_cast<double>(weight.row(i)[o]) * c.x()[first + i];
      y.push_back(sum);
    }
  }
  return y;
}

Vec gathered_linear(const Call& c) {
  const Weights weight(c, "weight"), bias(c, "bias");
  const size_t out = weight.size(0), in = weight.size(1),
               units = static_cast<size_t>(c.shape(1).back());
  Vec y;
  for (size_t row = 0; row < c.x().size() / in; ++row) {
    for (size_t o = 0; o < out; ++o) {
      const bool open = (*c.inputs[1])[row * units + o / (out / units)] > 0;
      y.push_back(!open ? 0.0
                        : dot(weight.row(o), c.x().data() + row * in, in) +
                              (bias.empty() ? 0.0 : static_cast<double>(bias.values[o])));
    }
  }
  return y;
}

Vec sparse_ffn(const Call& c) {
  const Weights up(c, "up"), gate(c, "gate"), down(c, "down"), up_bias(c, "up_bias"),
      gate_bias(c, "gate_bias"), down_bias(c, "down_bias"), a(c, "predictor_a"),
      b(c, "predictor_b");
  const Activation kind =
      activation_from_name(bundle::attr_string(c.node.attrs, "activation", "relu"));
  const bool activated = bundle::attr_string(c.node.attrs, "scores", "first") == "activated",
             soft = bundle::attr_bool(c.node.attrs, "soft", false),
             magnitude = bundle::attr_string(c.node.attrs, "rank", "value") == "magnitude";
  const auto split = static_cast<size_t>(bundle::attr_int(c.node.attrs, "split", 0));
  const size_t neurons = up.size(0), in = split + up.size(1), out = down.size(1);
  Vec result;
  for (size_t row = 0; row * in < c.x().size(); ++row) {
    const double* x = c.x().data() + row * in;
    const Weights& lead = gate.empty() ? up : gate;
    const Weights& lead_bias = gate.empty() ? up_bias : gate_bias;
    Vec first(neurons), scores(neurons);
    for (size_t f = 0; f < neurons; ++f)
      first[f] =
          dot(lead.row(f), x, lead.size(1)) + (lead_bias.empty() ? 0.0 : lead_bias.values[f]);
    if (c.inputs.size() > 1) {
      std::copy_n(c.inputs[1]->begin() + static_cast<std::ptrdiff_t>(row * neurons), neurons,
                  scores.begin());
    } else if (!a.empty()) {
      Vec code(a.size(0));
      for (size_t r = 0; r < code.size(); ++r) code[r] = dot(a.row(r), x, in);
      for (size_t f = 0; f < neurons; ++f) scores[f] = dot(b.row(f), code.data(), code.size());
    } else {
      for (size_t f = 0; f < neurons; ++f)
        scores[f] = activated ? activate_one(kind, first[f]) : first[f];
    }
    if (magnitude)
      for (double& s : scores) s = std::fabs(s);
    double bound;
    const auto kept = keep(c, scores, &bound);
    Vec y(out);
    for (size_t o = 0; o < out; ++o) y[o] = down_bias.empty() ? 0.0 : down_bias.values[o];
    for (size_t f = 0; f < neurons; ++f) {
      if (!kept[f]) continue;
      double h = activate_one(kind, first[f] - (soft ? bound : 0.0));
      if (!gate.empty())
        h *= dot(up.row(f), x + split, in - split) + (up_bias.empty() ? 0.0 : up_bias.values[f]);
      for (size_t o = 0; o < out; ++o) y[o] += h * static_cast<double>(down.row(f)[o]);
    }
    result.insert(result.end(), y.begin(), y.end());
  }
  return result;
}

Vec softmax_of(Vec values) {
  const double top = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (double& v : values) sum += v = std::exp(v - top);
  for (double& v : values) v /= sum;
  return values;
}

Vec experts(const Call& c) {
  const Weights up(c, "up"), gate(c, "gate"), down(c, "down");
  const Activation kind =
      activation_from_name(bundle::attr_string(c.node.attrs, "activation", "silu"));
  const size_t count = up.size(0), hidden = up.size(1), in = up.size(2), out = down.size(2);
  const auto top_k = static_cast<size_t>(bundle::attr_int(c.node.attrs, "top_k", 1));
  const bool before = bundle::attr_string(c.node.attrs, "normalize", "after") == "before";
  Vec result;
  for (size_t row = 0; row * in < c.x().size(); ++row) {
    const Vec rounded = c.rounded(std::span(c.x()).subspan(row * in, in));
    const double* x = rounded.data();
    const Vec logits(c.inputs[1]->begin() + static_cast<std::ptrdiff_t>(row * count),
                     c.inputs[1]->begin() + static_cast<std::ptrdiff_t>((row + 1) * count));
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t i, size_t j) { return logits[i] > logits[j]; });
    order.resize(top_k);
    Vec weights;
    for (size_t e : order) weights.push_back(before ? softmax_of(logits)[e] : logits[e]);
    if (!before) weights = softmax_of(weights);
    Vec y(out);
    for (size_t i = 0; i < top_k; ++i) {
      for (size_t f = 0; f < hidden; ++f) {
        const size_t at = order[i] * hidden + f;
        double h = activate_one(kind, dot((gate.empty() ? up : gate).row(at), x, in));
        if (!gate.empty()) h *= dot(up.row(at), x, in);
        for (size_t o = 0; o < out; ++o)
          y[o] += weights[i] * h * static_cast<double>(down.row(at)[o]);
      }
    }
    result.insert(result.end(), y.begin(), y.end());
  }
  return result;
}

Vec lora_add(const Call& c) {
  const Weights a(c, "a"), b(c, "b"), scale(c, "scale");
  const size_t rank = a.size(1), in = a.size(2), out = b.size(2);
  Vec y = c.x();
  for (size_t row = 0; row < c.inputs[2]->size(); ++row) {
    const double id = (*c.inputs[2])[row];
    if (id < 0) continue;
    const auto adapter = static_cast<size_t>(id);
    for (size_t r = 0; r < rank; ++r) {
      const double code = dot(a.row(adapter * rank + r), c.inputs[1]->data() + row * in, in) *
                          (scale.empty() ? 1.0 : scale.values[adapter]);
      for (size_t o = 0; o < out; ++o)
        y[row * out + o] += code * static_cast<double>(b.row(adapter * rank + r)[o]);
    }
  }
  return y;
}

}  // namespace

std::vector<ReferenceEntry> conditional_references() {
  return {{"sparse_input_linear", sparse_input_linear},
          {"gathered_linear", gathered_linear},
          {"sparse_ffn", sparse_ffn},
          {"experts", experts},
          {"lora_add", lora_add}};
}

}  // namespace sluice::engine
