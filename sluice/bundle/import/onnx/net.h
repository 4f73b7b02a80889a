// The network between an ONNX graph and a bundle: nodes are operators of docs/formats.md, with
// their constants at hand, so that patterns can be found and weights changed before it is written.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"
#include "sluice/bundle/import/onnx/model.h"

namespace sluice::bundle::onnx {

struct NetNode {
  std::string op;  ///< "": an input of the graph
  std::string path;
  std::vector<int> inputs;  ///< nodes before this one
  Attributes attrs;
  std::map<std::string, ConstantPtr> tensors;
  Shape shape;  ///< of the output
};

struct Net {
  std::string what;  ///< the file, for messages
  std::vector<NetNode> nodes;
  std::vector<int> outputs;

  /// Checks the node as the graph's reader will. Throws Error naming file and path.
  int add(const std::string& op, const std::string& path, std::vector<int> inputs,
          Attributes attrs = {}, std::map<std::string, ConstantPtr> tensors = {});
  const NetNode& at(int node) const { return nodes[static_cast<size_t>(node)]; }
};

/// Joins what belongs together: constant factors and offsets with the layer before them, the parts
/// of hard_swish, silu, gelu and layer norms; drops what no output needs. Results stay equal to
/// rounding.
void simplify(Net& net);

/// Writes the nodes to a builder. `inputs`: values of the input nodes, made before.
/// Weights of linear layers are packed as `format`, with i8 those of convolutions, too, which it
/// makes smaller; `rounds`: their inputs are rounded to int8, where that pays. Returns the values
/// of the outputs.
std::vector<Value> write(const Net& net, const std::map<int, Value>& inputs, Builder& builder,
                         Format format = Format::f32, bool rounds = false);

}  // namespace sluice::bundle::onnx
