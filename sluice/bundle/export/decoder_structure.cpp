#include "sluice/bundle/export/decoder_structure.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <set>

#include "sluice/base/error.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

constexpr char kShape[] =
    "a decoder of RMSNorm, rotary causal attention and a gated feed-forward in every layer";

class Finder {
 public:
  explicit Finder(const Bundle& bundle) : bundle_(bundle), graph_(bundle.graph()) {
    for (const Node& node : graph_.nodes) made_[node.output] = &node;
  }

  DecoderStructure find() {
    if (graph_.inputs.size() != 1 || graph_.outputs.size() != 1)
      fail(Code::unsupported,
           "{}: {} inputs and {} outputs; expected token ids and logits, as {} "
           "has",
           bundle_.path(), graph_.inputs.size(), graph_.outputs.size(), kShape);
    const Node& head = expect(graph_.outputs[0], "linear", "the head");
    found_.head = linear(head);
    const Node& last = expect(head.inputs[0], "rms_norm", "the last norm");
    found_.final_norm = norm(last, 1);
    std::string x = last.inputs[0];
    while (made_.count(x) && made_.at(x)->op == "add") x = layer(x);
    std::ranges::reverse(found_.layers);
    const Node& words = expect(x, "embedding", "the embedding of the tokens");
    if (words.inputs[0] != graph_.inputs[0].name) refuse(words, "its ids are not the input");
    found_.words = words.tensors.at("weight");
    const Shape& table = graph_.tensors.at(found_.words).shape;
    found_.vocabulary = table[0];
    found_.width = table[1];
    found_.tied = found_.head.weight == found_.words;
    if (found_.layers.empty()) refuse(last, "there are no layers before it");
    for (const Node& node : graph_.nodes)
      if (!used_.count(&node)) refuse(node, "nothing that it makes reaches the logits");
    return std::move(found_);
  }

 private:
  [[noreturn]] void refuse(const Node& node, const std::string& why) const {
    fail(Code::unsupported, "{}: node '{}' ({}) has no place in {}: {}", bundle_.path(),
         printable(node.path), node.op, kShape, why);
  }

  const Node* maker(const std::string& value) const {
    const auto it = made_.find(value);
    return it == made_.end() ? nullptr : it->second;
  }

  /// The node that makes the value, which must be of this operator.
  const Node& expect(const std::string& value, const char* op, const char* role) {
    const Node* node = maker(value);
    if (!node)
      fail(Code::unsupported, "{}: the input '{}' stands where {} should be", bundle_.path(),
           printable(value), role);
    if (node->op != op) refuse(*node, fmt::format("{} was expected to be {}", role, op));
    used_.insert(node);
    return *node;
  }

  /// One value for all layers.
  template <class T>
  void same(T& all, const T& here, const Node& node, const char* what) {
    if (&all == &here) return;
    if (found_.layers.empty()) {
      all = here;
    } else if (all != here) {
      refuse(node, fmt::format("its {} is {}, that of later layers {}; one number serves all", what,
                               here, all));
    }
  }

  LinearTensors linear(const Node& node) const {
    LinearTensors result{node.path, node.tensors.at("weight"), ""};
    if (const auto it = node.tensors.find("bias"); it != node.tensors.end())
      result.bias = it->second;
    return result;
  }

  /// The weight; `heads` is how many parts are normed by themselves.
  std::string norm(const Node& node, int64_t heads) {
    const auto weight = node.tensors.find("weight");
    if (weight == node.tensors.end()) refuse(node, "it has no weight");
    if (attr_int(node.attrs, "heads", 1) != heads)
      refuse(node, fmt::format("it norms {} parts, expected {}", attr_int(node.attrs, "heads", 1),
                               heads));
    const double eps = attr_double(node.attrs, "eps", 1e-5);
    if (!eps_known_) {
      found_.eps = eps;
      eps_known_ = true;
    } else if (found_.eps != eps) {
      refuse(node, fmt::format("its eps is {}, that of later norms {}; one number serves all", eps,
                               found_.eps));
    }
    return weight->second;
  }

  /// Of a + b: the one whose maker is of the operator, and the other.
  std::pair<const Node*, std::string> split(const Node& node, const char* op) {
    for (size_t i = 0; i < 2; ++i) {
      const Node* part = maker(node.inputs[i]);
      if (part && part->op == op) {
        used_.insert(part);
        return {part, node.inputs[1 - i]};
      }
    }
    refuse(node, fmt::format("one of its inputs should be {}", op));
  }

  void require_input(const Node& node, const std::string& value, const char* what) {
    if (node.inputs[0] != value) refuse(node, fmt::format("its input is not {}", what));
  }

  /// Undoes one layer whose result is `x`; returns its input.
  std::string layer(const std::string& x) {
    DecoderLayer layer;
    const Node& outer = expect(x, "add", "the sum behind the feed-forward");
    const auto [down, middle] = split(outer, "linear");
    layer.down = linear(*down);
    const std::string z = feed_forward(*down, layer);
    const Node& middle_norm = expect(z, "rms_norm", "the norm before the feed-forward");
    require_input(middle_norm, middle, "the residual");
    layer.middle_norm = norm(middle_norm, 1);
    const Node& inner = expect(middle, "add", "the sum behind attention");
    const auto [out, residual] = split(inner, "linear");
    layer.out = linear(*out);
    const Node& attention = expect(out->inputs[0], "attention", "what the projection takes");
    const std::string h = attend(attention, layer);
    const Node& first = expect(h, "rms_norm", "the norm before attention");
    require_input(first, residual, "the residual");
    layer.input_norm = norm(first, 1);
    found_.layers.push_back(std::move(layer));
    return residual;
  }

  std::string feed_forward(const Node& down, DecoderLayer& layer) {
    const Node& product = expect(down.inputs[0], "mul", "what the second projection takes");
    const auto [activation, other] = split(product, "activation");
    const Node& gate = expect(activation->inputs[0], "linear", "the gate's projection");
    const Node& up = expect(other, "linear", "the first projection");
    layer.gate = linear(gate);
    layer.up = linear(up);
    require_input(up, gate.inputs[0], "that of the gate");
    same(found_.activation, attr_string(activation->attrs, "kind", ""), *activation, "kind");
    same(found_.inner, graph_.tensors.at(layer.up.weight).shape[0], up, "width");
    if (graph_.tensors.at(layer.gate.weight).shape != graph_.tensors.at(layer.up.weight).shape)
      refuse(gate, "its shape is not that of the other projection");
    return gate.inputs[0];
  }

  std::string attend(const Node& node, DecoderLayer& layer) {
    layer.path = node.path;
    const int64_t heads = attr_int(node.attrs, "heads", 0),
                  kv_heads = attr_int(node.attrs, "kv_heads", heads);
    const int64_t width = bundle_.info().shapes.at(node.inputs[0])[1] / heads;
    if (bundle_.info().shapes.at(node.inputs[2])[1] / kv_heads != width)
      refuse(node, "heads of values are of another width than those of queries");
    same(found_.heads, heads, node, "number of heads");
    same(found_.kv_heads, kv_heads, node, "number of key heads");
    same(found_.head_width, width, node, "width of a head");
    same(found_.attention_scale,
         attr_double(node.attrs, "scale", 1 / std::sqrt(static_cast<double>(width))), node,
         "scale");
    if (attr_string(node.attrs, "mask", "causal") != "causal") refuse(node, "its mask is full");
    layer.window = attr_int(node.attrs, "window", 0);
    found_.context = std::max(found_.context, attr_int(node.attrs, "cache", 0));
    const std::string q = turned(node.inputs[0], heads, layer.q, layer.q_norm),
                      k = turned(node.inputs[1], kv_heads, layer.k, layer.k_norm);
    const Node& v = expect(node.inputs[2], "linear", "the projection of values");
    layer.v = linear(v);
    if (q != k || v.inputs[0] != q)
      refuse(node, "queries, keys and values are made of different inputs");
    return q;
  }

  /// Queries or keys; returns what they are made of.
  std::string turned(const std::string& value, int64_t heads, LinearTensors& projection,
                     std::string& head_norm) {
    const Node& rope = expect(value, "rope", "what attention takes");
    if (rope.inputs.size() != 1) refuse(rope, "its positions are not those of the sequence");
    const int64_t columns = bundle_.info().shapes.at(value)[1];
    if (attr_int(rope.attrs, "start", 0) != 0)
      refuse(rope, "it leaves the first columns of heads alone");
    if (attr_int(rope.attrs, "heads", 1) != heads) refuse(rope, "its heads are not attention's");
    const auto factors = rope.tensors.find("factors");
    const bool first = !rope_known_;
    rope_known_ = true;
    const auto once = [&](auto& all, const auto& here, const char* what) {
      if (first) {
        all = here;
      } else if (all != here) {
        refuse(rope,
               fmt::format("its {} is {}, that of others {}; one serves all", what, here, all));
      }
    };
    once(found_.rope_base, attr_double(rope.attrs, "base", 10000), "base");
    once(found_.rope_scale, attr_double(rope.attrs, "scale", 1), "scale");
    once(found_.rope_dims, attr_int(rope.attrs, "dims", columns / heads), "number of dims");
    once(found_.rope_interleaved, attr_string(rope.attrs, "layout", "half") == "interleaved",
         "layout");
    once(found_.rope_factors, factors == rope.tensors.end() ? std::string() : factors->second,
         "tensor of factors");
    std::string from = rope.inputs[0];
    if (const Node* before = maker(from); before && before->op == "rms_norm") {
      used_.insert(before);
      head_norm = norm(*before, heads);
      from = before->inputs[0];
    }
    const Node& node = expect(from, "linear", "the projection of queries or keys");
    projection = linear(node);
    return node.inputs[0];
  }

  const Bundle& bundle_;
  const Graph& graph_;
  std::map<std::string, const Node*> made_;
  std::set<const Node*> used_;
  DecoderStructure found_;
  bool eps_known_ = false, rope_known_ = false;
};

}  // namespace

bool DecoderStructure::any_bias() const {
  return std::ranges::any_of(layers, [](const DecoderLayer& layer) {
    for (const LinearTensors* part :
         {&layer.q, &layer.k, &layer.v, &layer.out, &layer.gate, &layer.up, &layer.down})
      if (!part->bias.empty()) return true;
    return false;
  });
}

DecoderStructure find_decoder(const Bundle& bundle) { return Finder(bundle).find(); }

}  // namespace sluice::bundle
