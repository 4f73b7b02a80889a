#include "sluice/bundle/import/onnx/net.h"

#include <algorithm>
#include <set>

#include "sluice/base/error.h"
#include "sluice/bundle/ops.h"
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

std::vector<Value> write(const Net& net, const std::map<int, Value>& inputs, Builder& builder,
                         Format format) {
  std::set<std::string> paths, names;
  std::map<std::pair<const Constant*, Format>, std::string> stored;
  std::map<int, Value> values = inputs;
  for (int i = 0; i < static_cast<int>(net.nodes.size()); ++i) {
    const NetNode& node = net.at(i);
    if (node.op.empty()) continue;
    const std::string path = unique(to_path(node.path), paths);
    std::map<std::string, std::string> tensors;
    for (const auto& [role, constant] : node.tensors) {
      const Format as = node.op == "linear" && role == "weight" ? format : Format::f32;
      std::string& name = stored[{constant.get(), as}];
      if (name.empty()) {
        name = unique(constant->name.empty() ? path + "." + role : to_path(constant->name), names);
        std::vector<float> reals = constant->reals;
        if (constant->integer) reals.assign(constant->integers.begin(), constant->integers.end());
        if (as == Format::f32) {
          builder.tensor(name, constant->shape, reals);
        } else {
          const Shape& shape = constant->shape;
          builder.tensor(name, as, shape, pack(as, reals, shape[0], shape[1]));
        }
      }
      tensors[role] = name;
    }
    std::vector<Value> operands;
    for (const int input : node.inputs) operands.push_back(values.at(input));
    values[i] = builder.node(node.op, path, operands, node.attrs, std::move(tensors));
  }
  std::vector<Value> outputs;
  for (const int output : net.outputs) outputs.push_back(values.at(output));
  return outputs;
}

}  // namespace sluice::bundle::onnx
