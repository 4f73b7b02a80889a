#include "sluice/bundle/import/onnx/net.h"

#include <algorithm>
#include <optional>
#include <set>

#include "sluice/base/error.h"
#include "sluice/bundle/conv2d.h"
#include "sluice/bundle/packed.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::onnx {
namespace {

/// A dotted path of a name with slashes and colons.
std::string to_path(const std::string& name) {
  std::string path;
  for (const char c : name) {
    const bool separates = c == '/' || c == ':' || c == '.';
    if (!separates) {
      path += c;
    } else if (!path.empty() && path.back() != '.') {
      path += '.';
    }
  }
  while (!path.empty() && path.back() == '.') path.pop_back();
  if (path.size() > 200) path = path.substr(path.size() - 200);
  while (!path.empty() && (path[0] == '.' || (path[0] & 0xC0) == 0x80)) path.erase(0, 1);
  return path.empty() ? "node" : path;
}

std::string unique(std::string name, std::set<std::string>& taken) {
  const std::string base = name;
  for (int i = 1; !taken.insert(name).second; ++i) name = fmt::format("{}_{}", base, i);
  return name;
}

}  // namespace

int Net::add(const std::string& op, const std::string& path, std::vector<int> inputs,
             Attributes attrs, std::map<std::string, ConstantPtr> tensors) {
  if (nodes.size() >= GraphLimits::kNodes)
    fail(Code::limit, "{}: more than {} nodes", what, GraphLimits::kNodes);
  Node node{op, "node", {}, "", attrs, {}};
  std::map<std::string, Shape> shapes;
  std::map<std::string, TensorSpec> specs;
  for (const int input : inputs) {
    const std::string name = std::to_string(input);
    node.inputs.push_back(name);
    shapes[name] = at(input).shape;
  }
  for (const auto& [role, constant] : tensors) {
    node.tensors[role] = role;
    specs[role] = {role, "f32", DType::f32, constant->shape, std::nullopt};
  }
  node.output = "out";
  Shape shape;
  try {
    shape = check_node(node, shapes, specs, "graph");
  } catch (const Error& error) {
    throw Error(error.code(),
                fmt::format("{}: node '{}': {}", what, printable(path, 80), error.what()));
  }
  nodes.push_back(
      {op, path, std::move(inputs), std::move(attrs), std::move(tensors), std::move(shape)});
  return static_cast<int>(nodes.size()) - 1;
}

namespace {

/// A layer whose weight is packed: as what matrix, and the attributes of its node.
struct PackedLayer {
  Shape matrix;
  Attributes attrs;
};

/// Nothing for a node whose weight stays as it is.
std::optional<PackedLayer> packed_layer(const NetNode& node, Format format, bool rounds) {
  const bool linear = node.op == "linear", convolution = node.op == "conv2d";
  if (format == Format::f32 || (!linear && !(convolution && format == Format::i8))) return {};
  const Shape& shape = node.tensors.at("weight")->shape;
  PackedLayer layer{shape, node.attrs};
  if (convolution) {
    const int64_t numbers = numel(shape);
    layer.matrix = {shape[0], numbers / shape[0]};
    if (stored_bytes(format, layer.matrix) >= static_cast<int64_t>(sizeof(float)) * numbers)
      return {};
    layer.attrs["kernel"] = std::vector<int64_t>{shape[2], shape[3]};
    rounds = rounds && rounding_pays(shape, attr_int(node.attrs, "groups", 1));
  }
  if (rounds) layer.attrs["activations"] = std::string("i8");
  return layer;
}

}  // namespace

std::vector<Value> write(const Net& net, const std::map<int, Value>& inputs, Builder& builder,
                         Format format, bool rounds) {
  std::set<std::string> paths, names;
  std::map<std::pair<const Constant*, Format>, std::string> stored;
  std::map<int, Value> values = inputs;
  for (int i = 0; i < static_cast<int>(net.nodes.size()); ++i) {
    const NetNode& node = net.at(i);
    if (node.op.empty()) continue;
    const std::string path = unique(to_path(node.path), paths);
    std::map<std::string, std::string> tensors;
    const std::optional<PackedLayer> packed = packed_layer(node, format, rounds);
    for (const auto& [role, constant] : node.tensors) {
      const Format as = packed && role == "weight" ? format : Format::f32;
      std::string& name = stored[{constant.get(), as}];
      if (name.empty()) {
        name = unique(constant->name.empty() ? path + "." + role : to_path(constant->name), names);
        std::vector<float> reals = constant->reals;
        if (constant->integer) reals.assign(constant->integers.begin(), constant->integers.end());
        if (as == Format::f32) {
          builder.tensor(name, constant->shape, reals);
        } else {
          const Shape& matrix = packed->matrix;
          builder.tensor(name, as, matrix, pack(as, reals, matrix[0], matrix[1]));
        }
      }
      tensors[role] = name;
    }
    std::vector<Value> operands;
    for (const int input : node.inputs) operands.push_back(values.at(input));
    values[i] = builder.node(node.op, path, operands, packed ? packed->attrs : node.attrs,
                             std::move(tensors));
  }
  std::vector<Value> outputs;
  for (const int output : net.outputs) outputs.push_back(values.at(output));
  return outputs;
}

}  // namespace sluice::bundle::onnx
