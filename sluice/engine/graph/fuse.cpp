#include "sluice/engine/graph/fuse.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <span>

#include "sluice/bundle/conv2d.h"
#include "sluice/bundle/packed.h"
#include "sluice/engine/kernel/sparse.h"

namespace sluice::engine {
namespace {

using bundle::Bundle;
using bundle::Node;

std::span<const float> values_of(const Bundle& bundle, const Node& node, const std::string& role) {
  const auto found = node.tensors.find(role);
  if (found == node.tensors.end()) return {};
  return bundle.tensor(found->second).f32();
}

bool is_packed(const Bundle& bundle, const Node& node) {
  return bundle.graph().tensors.at(node.tensors.at("weight")).format != "f32" ||
         bundle::attr_string(node.attrs, "activations", "f32") != "f32";
}

/// The weight of a packed conv2d: its scales where its codes are multiplied, else its values.
void unpack_conv(const Bundle& bundle, const Node& node, Group& group) {
  const std::string& name = node.tensors.at("weight");
  const bundle::TensorSpec& spec = bundle.graph().tensors.at(name);
  const bundle::PackedMatrix matrix =
      bundle::view_packed(*bundle::format_from_name(spec.format), spec.shape[0], spec.shape[1],
                          bundle.tensor(name).bytes, "tensor '" + name + "'", /*trusted=*/true);
  if (bundle::attr_string(node.attrs, "activations", "f32") != "f32") {
    group.packed = true;
    group.scales.resize(static_cast<size_t>(matrix.rows));
    std::memcpy(group.scales.data(), matrix.scales, group.scales.size() * sizeof(float));
    return;
  }
  group.folded.resize(static_cast<size_t>(matrix.rows * matrix.columns));
  bundle::unpack(matrix, group.folded);
  group.weight = group.folded;
}

/// A copy of the weight that may be changed.
void own(Group& group) {
  if (!group.folded.empty()) return;
  group.folded.assign(group.weight.begin(), group.weight.end());
  group.weight = group.folded;
}

/// Multiplies the rows of the weight (and the bias) by factor[c], then adds shift[c] to the bias.
void fold(Group& group, std::span<const float> factor, std::span<const float> shift,
          size_t channels) {
  if (!group.packed) own(group);
  std::vector<float>& values = group.packed ? group.scales : group.folded;
  const size_t row = values.size() / channels;
  if (group.bias.empty() && !shift.empty()) group.bias.assign(channels, 0.0f);
  for (size_t c = 0; c < channels; ++c) {
    const float f = factor.size() == 1 ? factor[0] : factor[c];
    for (size_t i = 0; i < row; ++i) values[c * row + i] *= f;
    if (!group.bias.empty()) group.bias[c] = group.bias[c] * f + (shift.empty() ? 0.0f : shift[c]);
  }
}

class Grouper {
 public:
  Grouper(const Bundle& bundle, bool fuse)
      : bundle_(bundle), nodes_(bundle.graph().nodes), fuse_(fuse) {
    for (size_t i = 0; i < nodes_.size(); ++i) {
      for (const std::string& input : nodes_[i].inputs) consumers_[input].push_back(i);
    }
    outputs_.insert(bundle.graph().outputs.begin(), bundle.graph().outputs.end());
    claimed_.assign(nodes_.size(), false);
  }

  std::vector<Group> run() {
    std::vector<Group> groups;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (claimed_[i]) continue;
      groups.push_back(start(i));
      Group& group = groups.back();
      if ((nodes_[i].op == "linear" || pointwise(nodes_[i])) && !group.packed) {
        group.density = density_of(group.weight);
      }
    }
    // A group runs when its last node would have: the other addend is there by then.
    std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
      return (a.fused.empty() ? a.main : a.fused.back()) <
             (b.fused.empty() ? b.main : b.fused.back());
    });
    return groups;
  }

 private:
  /// A conv2d that sees one pixel at a time.
  bool pointwise(const Node& node) const {
    if (node.op != "conv2d") return false;
    const Shape weight =
        bundle::conv2d_weight_shape(node, bundle_.graph().tensors.at(node.tensors.at("weight")));
    return weight[2] == 1 && weight[3] == 1;
  }

  /// A conv2d some of whose outputs see padding alone. oneDNN 2.6 crashes where it computes them
  /// together with what follows.
  bool sees_padding_alone(const Node& node) const {
    if (node.op != "conv2d") return false;
    const Shape weight =
        bundle::conv2d_weight_shape(node, bundle_.graph().tensors.at(node.tensors.at("weight")));
    const auto padding = bundle::attr_ints(node.attrs, "padding", 2, 0),
               dilation = bundle::attr_ints(node.attrs, "dilation", 2, 1);
    for (size_t i = 0; i < 2; ++i)
      if (padding[i] > (weight[2 + i] - 1) * dilation[i]) return true;
    return false;
  }

  Group start(size_t index) {
    const Node& node = nodes_[index];
    Group group;
    group.main = index;
    group.inputs = node.inputs;
    group.output = node.output;
    const bool product = node.op == "conv2d" || node.op == "linear";
    if (product) {
      const auto bias = values_of(bundle_, node, "bias");
      group.bias.assign(bias.begin(), bias.end());
      const bool packed = is_packed(bundle_, node);
      if (packed && node.op == "conv2d") {
        unpack_conv(bundle_, node, group);
      } else if (packed) {
        group.packed = true;
      } else {
        group.weight = values_of(bundle_, node, "weight");
      }
    }
    if (!fuse_) return group;
    const bool folds = product && !(group.packed && group.scales.empty());
    if (product) {
      while (folds && fold_next(group)) {
      }
      if (sees_padding_alone(node)) return group;
      take_add(group);
    }
    const bool nested = node.op == "prefix_conv2d";  // its kernel adds and activates, too
    if (nested) take_add(group);
    if (product || nested || node.op == "gathered_conv2d" || node.op == "add") {
      take_activation(group);
      while (folds && fold_after_relu(group)) {
      }
      if (node.op == "conv2d") take_affine(group);
    }
    return group;
  }

  /// The only consumer of the group's output, or nullptr.
  const Node* next(const Group& group, size_t* index) const {
    if (outputs_.count(group.output)) return nullptr;
    const auto found = consumers_.find(group.output);
    if (found == consumers_.end() || found->second.size() != 1) return nullptr;
    *index = found->second[0];
    return claimed_[*index] ? nullptr : &nodes_[*index];
  }

  void claim(Group& group, size_t index) {
    claimed_[index] = true;
    group.fused.push_back(index);
    group.output = nodes_[index].output;
  }

  /// Whether dimension 0 of the group's output is the output channel of its weight.
  bool channels_lead(const Group& group) const {
    const Shape& shape = bundle_.info().shapes.at(group.output);
    return nodes_[group.main].op == "conv2d" || shape.size() == 1;
  }

  bool fold_next(Group& group) {
    size_t index = 0;
    const Node* node = next(group, &index);
    if (!node || !channels_lead(group)) return false;
    const size_t channels = static_cast<size_t>(bundle_.info().shapes.at(group.output)[0]);
    if (node->op == "batch_norm") {
      const ScaleShift factors = batch_norm_factors(bundle_, *node);
      fold(group, factors.scale, factors.shift, channels);
    } else if (node->op == "scale") {
      fold(group, values_of(bundle_, *node, "scale"), {}, channels);
    } else {
      return false;
    }
    claim(group, index);
    return true;
  }

  /// relu(x) * s = relu(x * s) for s >= 0: frozen gates behind the activation.
  bool fold_after_relu(Group& group) {
    size_t index = 0;
    const Node* node = next(group, &index);
    if (!node || node->op != "scale" || group.activation != Activation::relu || group.adds)
      return false;
    const auto factors = values_of(bundle_, *node, "scale");
    if (factors.size() != 1 && !channels_lead(group)) return false;
    if (std::any_of(factors.begin(), factors.end(), [](float f) { return !(f >= 0); }))
      return false;
    const size_t channels =
        factors.size() == 1 ? 1 : static_cast<size_t>(bundle_.info().shapes.at(group.output)[0]);
    if (channels == 1) {
      if (!group.packed) own(group);
      for (float& w : group.packed ? group.scales : group.folded) w *= factors[0];
      for (float& b : group.bias) b *= factors[0];
    } else {
      fold(group, factors, {}, channels);
    }
    claim(group, index);
    return true;
  }

  void take_add(Group& group) {
    size_t index = 0;
    const Node* node = next(group, &index);
    if (!node || node->op != "add") return;
    group.inputs.push_back(node->inputs[0] == group.output ? node->inputs[1] : node->inputs[0]);
    group.adds = true;
    claim(group, index);
  }

  void take_activation(Group& group) {
    size_t index = 0;
    const Node* node = next(group, &index);
    if (!node || node->op != "activation") return;
    group.activation = activation_from_name(bundle::attr_string(node->attrs, "kind", "relu"));
    claim(group, index);
  }

  void take_affine(Group& group) {
    size_t index = 0;
    const Node* node = next(group, &index);
    if (!node || node->op != "unary" || bundle::attr_string(node->attrs, "kind", "") != "linear")
      return;
    group.factor = static_cast<float>(bundle::attr_double(node->attrs, "alpha", 0));
    group.offset = static_cast<float>(bundle::attr_double(node->attrs, "beta", 0));
    claim(group, index);
  }

  const Bundle& bundle_;
  const std::vector<Node>& nodes_;
  const bool fuse_;
  std::map<std::string, std::vector<size_t>> consumers_;
  std::set<std::string> outputs_;
  std::vector<bool> claimed_;
};

}  // namespace

ScaleShift batch_norm_factors(const Bundle& bundle, const Node& node) {
  const auto mean = values_of(bundle, node, "running_mean"),
             variance = values_of(bundle, node, "running_var");
  const auto weight = values_of(bundle, node, "weight"), bias = values_of(bundle, node, "bias");
  const double eps = bundle::attr_double(node.attrs, "eps", 1e-5);
  ScaleShift result;
  for (size_t c = 0; c < mean.size(); ++c) {
    const double factor =
        (weight.empty() ? 1.0 : weight[c]) / std::sqrt(static_cast<double>(variance[c]) + eps);
    result.scale.push_back(static_cast<float>(factor));
    result.shift.push_back(static_cast<float>((bias.empty() ? 0.0 : bias[c]) - mean[c] * factor));
  }
  return result;
}

std::vector<Group> group_nodes(const Bundle& bundle, bool fuse) {
  return Grouper(bundle, fuse).run();
}

}  // namespace sluice::engine
