// Rewrites of a Net. Each finds one pattern at a node and puts another node in its place; nodes
// that nobody reads any more are dropped at the end.
#include <algorithm>
#include <cmath>

#include "sluice/bundle/import/onnx/net.h"

namespace sluice::bundle::onnx {
namespace {

bool near(double a, double b) { return std::abs(a - b) <= 1e-5 * std::max(1.0, std::abs(b)); }

class Rewriter {
 public:
  explicit Rewriter(Net& net) : net_(net) {}

  void run() {
    for (bool changed = true; changed;) {
      count_uses();
      changed = false;
      for (size_t i = 0; i < net_.nodes.size(); ++i) {
        const int n = static_cast<int>(i);
        if (uses_[i] == 0 && !net_.at(n).op.empty()) continue;
        if (join_affine(n) || gate(n) || gelu(n) || layer_norm(n) || into_layer(n)) {
          changed = true;
          count_uses();
        }
      }
    }
    drop_unused();
  }

 private:
  NetNode& node(int n) { return net_.nodes[static_cast<size_t>(n)]; }
  bool is(int n, const char* op, const char* kind = nullptr) {
    return node(n).op == op && (!kind || attr_string(node(n).attrs, "kind", "") == kind);
  }
  int in(int n, size_t i = 0) { return node(n).inputs[i]; }
  double number(int n, const char* name) { return attr_double(node(n).attrs, name, 0); }
  bool is_output(int n) {
    return std::find(net_.outputs.begin(), net_.outputs.end(), n) != net_.outputs.end();
  }
  bool once(int n) { return uses_[static_cast<size_t>(n)] == 1; }

  void count_uses() {
    uses_.assign(net_.nodes.size(), 0);
    std::vector<bool> needed(net_.nodes.size(), false);
    for (const int output : net_.outputs) {
      ++uses_[static_cast<size_t>(output)];
      needed[static_cast<size_t>(output)] = true;
    }
    for (size_t i = net_.nodes.size(); i-- > 0;) {
      if (!needed[i]) continue;
      for (const int input : net_.nodes[i].inputs) {
        ++uses_[static_cast<size_t>(input)];
        needed[static_cast<size_t>(input)] = true;
      }
    }
  }

  void become(int n, const std::string& op, std::vector<int> inputs, Attributes attrs,
              std::map<std::string, ConstantPtr> tensors = {}) {
    node(n).op = op;
    node(n).inputs = std::move(inputs);
    node(n).attrs = std::move(attrs);
    node(n).tensors = std::move(tensors);
  }

  void become_linear(int n, int x, double alpha, double beta) {
    Attributes attrs{{"kind", std::string("linear")}};
    if (alpha != 0) attrs["alpha"] = alpha;
    if (beta != 0) attrs["beta"] = beta;
    become(n, "unary", {x}, std::move(attrs));
  }

  /// Whether the reads of `n` can go to `x` instead; then they do.
  void forward(int n, int x) {
    for (NetNode& each : net_.nodes)
      for (int& input : each.inputs)
        if (input == n) input = x;
    for (int& output : net_.outputs)
      if (output == n) output = x;
  }

  /// a (b x + c) + d, and 1 x + 0.
  bool join_affine(int n) {
    if (!is(n, "unary", "linear")) return false;
    const double alpha = number(n, "alpha"), beta = number(n, "beta");
    const int x = in(n);
    // An output of its own must stay one: neither the graph's input nor another output's value.
    const bool tied = is_output(n) && (node(x).op.empty() || is_output(x));
    if (std::abs(alpha - 1) < 1e-7 && beta == 0 && !tied) {
      forward(n, x);
      return true;
    }
    if (!is(x, "unary", "linear") || !once(x)) return false;
    become_linear(n, in(x), alpha * number(x, "alpha"), alpha * number(x, "beta") + beta);
    return true;
  }

  /// x min(max(x + 3, 0), 6) and x hard_sigmoid(x) are hard_swish, x sigmoid(x) is silu.
  bool gate(int n) {
    if (!is(n, "mul") || node(in(n, 0)).shape != node(in(n, 1)).shape) return false;
    for (size_t side = 0; side < 2; ++side) {
      const int x = in(n, side), g = in(n, 1 - side);
      if (is(g, "activation", "sigmoid") && in(g) == x) {
        become(n, "activation", {x}, {{"kind", std::string("silu")}});
        return true;
      }
      if (is(g, "unary", "hard_sigmoid") && in(g) == x && near(number(g, "alpha"), 1.0 / 6) &&
          near(number(g, "beta"), 0.5)) {
        become(n, "activation", {x}, {{"kind", std::string("hard_swish")}});
        return true;
      }
      if (is(g, "unary", "clip") && number(g, "alpha") == 0 && number(g, "beta") == 6 &&
          is(in(g), "unary", "linear") && in(in(g)) == x && near(number(in(g), "alpha"), 1) &&
          near(number(in(g), "beta"), 3)) {
        // 6 hard_swish; the clip's node is free to hold the activation if nobody else reads it.
        if (!once(g)) return false;
        become(g, "activation", {x}, {{"kind", std::string("hard_swish")}});
        become_linear(n, g, 6, 0);
        return true;
      }
    }
    return false;
  }

  /// (x or x / 2) (1 + erf(x / sqrt 2))
  bool gelu(int n) {
    if (!is(n, "mul") || node(in(n, 0)).shape != node(in(n, 1)).shape) return false;
    for (size_t side = 0; side < 2; ++side) {
      const int p = in(n, side), q = in(n, 1 - side);
      if (!is(q, "unary", "linear") || !near(number(q, "alpha"), 1) || !near(number(q, "beta"), 1))
        continue;
      const int e = in(q);
      if (!is(e, "unary", "erf") || !is(in(e), "unary", "linear") || !once(e) || !once(q)) continue;
      const int inner = in(e), x = in(inner);
      if (!near(number(inner, "alpha"), std::sqrt(0.5)) || number(inner, "beta") != 0) continue;
      const bool half = is(p, "unary", "linear") && in(p) == x && near(number(p, "alpha"), 0.5) &&
                        number(p, "beta") == 0;
      if (!half && p != x) continue;
      become(e, "activation", {x}, {{"kind", std::string("gelu")}});
      become_linear(n, e, half ? 1 : 2, 0);
      return true;
    }
    return false;
  }

  bool last_mean(int n, int of) {
    if (!is(n, "reduce", "mean") || in(n) != of) return false;
    const auto* axes = std::get_if<std::vector<int64_t>>(&node(n).attrs.at("axes"));
    return axes && axes->size() == 1 && (*axes)[0] == std::ssize(node(of).shape) - 1;
  }

  /// (x - mean) / sqrt(mean of (x - mean)^2 + eps)
  bool layer_norm(int n) {
    if (!is(n, "binary", "div") || node(n).inputs.size() != 2) return false;
    const int centred = in(n, 0), root = in(n, 1);
    if (!is(centred, "binary", "sub") || node(centred).inputs.size() != 2 ||
        !is(root, "unary", "sqrt"))
      return false;
    const int x = in(centred, 0);
    if (!last_mean(in(centred, 1), x) || node(n).shape != node(x).shape) return false;
    const int shifted = in(root);
    if (!is(shifted, "unary", "linear") || !near(number(shifted, "alpha"), 1)) return false;
    const double eps = number(shifted, "beta");
    const int mean = in(shifted);
    if (eps < 0 || eps > 1 || !is(mean, "reduce", "mean") || !is(in(mean), "unary", "square") ||
        in(in(mean)) != centred || !last_mean(mean, in(mean)))
      return false;
    become(n, "layer_norm", {x}, {{"eps", eps}});
    return true;
  }

  /// The constant as one number per channel, dimension `axis` of the output; empty when it is not.
  std::vector<float> per_channel(int n, const Constant& other, size_t axis) {
    const Shape& out = node(n).shape;
    const size_t channels = static_cast<size_t>(out[axis]);
    if (other.shape.size() > out.size()) return {};
    for (size_t i = 0; i < other.shape.size(); ++i) {
      const size_t at = out.size() - other.shape.size() + i;
      if (other.shape[i] != 1 && at != axis) return {};
    }
    if (other.size() == 1) return std::vector<float>(channels, static_cast<float>(other.at(0)));
    if (other.size() != channels) return {};
    std::vector<float> values;
    for (size_t i = 0; i < channels; ++i) values.push_back(static_cast<float>(other.at(i)));
    return values;
  }

  /// Factors and offsets behind a layer go into it.
  bool into_layer(int n) {
    const bool scalar = is(n, "unary", "linear");
    const bool mul = is(n, "binary", "mul"), add = is(n, "binary", "add");
    if (!scalar && !mul && !add) return false;
    if (!scalar && !node(n).tensors.count("other")) return false;
    const int layer = in(n);
    const std::string& op = node(layer).op;
    const bool convolution = op == "conv2d" || op == "conv_transpose2d";
    const bool norm = op == "layer_norm";
    if (!once(layer) || node(layer).shape != node(n).shape) return false;
    if (!convolution && op != "linear" && !norm) return false;
    const size_t axis = convolution ? 0 : node(n).shape.size() - 1;
    const size_t channels = static_cast<size_t>(node(n).shape[axis]);
    std::vector<float> factor, offset;
    if (scalar) {
      factor.assign(channels, static_cast<float>(number(n, "alpha")));
      offset.assign(channels, static_cast<float>(number(n, "beta")));
    } else {
      const auto values = per_channel(n, *node(n).tensors.at("other"), axis);
      if (values.empty()) return false;
      factor = mul ? values : std::vector<float>(channels, 1.0f);
      offset = mul ? std::vector<float>(channels, 0.0f) : values;
    }
    std::map<std::string, ConstantPtr> tensors = node(layer).tensors;
    const auto fresh = [](const ConstantPtr& like, Shape shape, std::vector<float> values) {
      auto c = std::make_shared<Constant>();
      if (like) c->name = like->name;
      c->shape = std::move(shape);
      c->reals = std::move(values);
      return c;
    };
    const auto old_bias = tensors.count("bias") ? tensors["bias"] : nullptr;
    std::vector<float> bias(channels, 0.0f);
    bool any = old_bias != nullptr;
    for (size_t c = 0; c < channels; ++c) {
      bias[c] = (old_bias ? static_cast<float>(old_bias->at(c)) * factor[c] : 0.0f) + offset[c];
      any = any || bias[c] != 0;
    }
    const bool scales = std::any_of(factor.begin(), factor.end(), [](float f) { return f != 1; });
    // A bias that comes from the node behind keeps that one's name.
    const ConstantPtr behind = scalar ? nullptr : node(n).tensors.at("other");
    if (any)
      tensors["bias"] = fresh(old_bias ? old_bias
                              : add    ? behind
                                       : nullptr,
                              {static_cast<int64_t>(channels)}, bias);
    if (scales && norm) {
      const auto old = tensors.count("weight") ? tensors["weight"] : nullptr;
      std::vector<float> weight(channels);
      for (size_t c = 0; c < channels; ++c)
        weight[c] = factor[c] * (old ? static_cast<float>(old->at(c)) : 1.0f);
      tensors["weight"] = fresh(old   ? old
                                : mul ? behind
                                      : nullptr,
                                {static_cast<int64_t>(channels)}, weight);
    } else if (scales) {
      const ConstantPtr old = tensors["weight"];
      std::vector<float> weight = old->reals;
      if (op == "conv_transpose2d") {
        // [C, O/groups, kh, kw]
        const size_t taps = static_cast<size_t>(old->shape[2] * old->shape[3]),
                     outputs = static_cast<size_t>(old->shape[1]), groups = channels / outputs,
                     each = static_cast<size_t>(old->shape[0]) / groups;
        for (size_t i = 0; i < weight.size(); ++i)
          weight[i] *= factor[i / taps / outputs / each * outputs + i / taps % outputs];
      } else {
        const size_t row = weight.size() / channels;
        for (size_t i = 0; i < weight.size(); ++i) weight[i] *= factor[i / row];
      }
      tensors["weight"] = fresh(old, old->shape, std::move(weight));
    }
    for (const auto& [role, constant] : tensors)
      if (!std::all_of(constant->reals.begin(), constant->reals.end(),
                       [](float v) { return std::isfinite(v); }))
        return false;
    node(n).path = node(layer).path;
    become(n, std::string(op), node(layer).inputs, node(layer).attrs, std::move(tensors));
    return true;
  }

  void drop_unused() {
    count_uses();
    std::vector<int> number(net_.nodes.size(), -1);
    std::vector<NetNode> kept;
    for (size_t i = 0; i < net_.nodes.size(); ++i) {
      if (uses_[i] == 0 && !net_.nodes[i].op.empty()) continue;
      number[i] = static_cast<int>(kept.size());
      kept.push_back(std::move(net_.nodes[i]));
      for (int& input : kept.back().inputs) input = number[static_cast<size_t>(input)];
    }
    net_.nodes = std::move(kept);
    for (int& output : net_.outputs) output = number[static_cast<size_t>(output)];
  }

  Net& net_;
  std::vector<int> uses_;
};

}  // namespace

void simplify(Net& net) { Rewriter(net).run(); }

}  // namespace sluice::bundle::onnx
