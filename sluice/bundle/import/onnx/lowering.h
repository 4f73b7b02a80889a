// From ONNX operators to nodes of a Net. Every ONNX operator is written with the few functions
// here, which compute constants at once and add nodes for the rest; so all that hangs on shapes
// and weights alone is gone when the graph is built.
//
// ONNX carries the batch as a dimension of its values, the graph of a bundle does not. A value of
// ONNX shape [1, ..] is one of shape [..] here: the elements are the same, in the same order, and
// `reshape` (which costs nothing) stands where an operator looks at the batch's dimension.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/bundle/import/onnx/fold.h"
#include "sluice/bundle/import/onnx/net.h"

namespace sluice::bundle::onnx {

/// A value of the ONNX graph.
struct Val {
  Shape shape;  ///< in ONNX, with the batch
  bool integer = false;
  ConstantPtr constant;  ///< set where it is known
  int node = -1;         ///< otherwise: who makes it, in some shape of as many elements
};

class Lowering {
 public:
  Lowering(Net& net, int64_t opset, int64_t folded_limit)
      : net_(net), opset_(opset), left_(folded_limit) {}

  Net& net() { return net_; }
  int64_t opset() const { return opset_; }
  /// Path of the nodes that are added from now on.
  void set_path(std::string path) { path_ = std::move(path); }
  const std::string& path() const { return path_; }

  // Values.
  Val number(double value) const {
    return known(make_constant({}, std::vector<float>{static_cast<float>(value)}));
  }
  Val known(ConstantPtr constant) const;
  /// The node's output, which has the elements of `shape`.
  Val made(int node, Shape shape) const;
  /// The value as an output of a node of this shape; a constant becomes a node.
  int as(const Val& value, const Shape& shape);
  /// The shape in the graph: without a leading 1.
  static Shape stripped(const Shape& shape);
  int plain(const Val& value) { return as(value, stripped(value.shape)); }
  int add(const std::string& op, std::vector<int> inputs, Attributes attrs = {},
          std::map<std::string, ConstantPtr> tensors = {});

  // Operators; axes count from 0, shapes are ONNX's.
  Val reshape(const Val& x, Shape shape);
  Val transpose(const Val& x, const std::vector<int64_t>& perm);
  Val concat(const std::vector<Val>& parts, size_t axis);
  Val gather(const Val& x, size_t axis, const std::vector<int64_t>& indices);
  Val slice(const Val& x, size_t axis, int64_t start, int64_t size);
  Val pad(const Val& x, const std::vector<int64_t>& before, const std::vector<int64_t>& after,
          double value);
  Val binary(Binary kind, const Val& a, const Val& b);
  Val unary(Unary kind, const Val& x, double alpha = 0, double beta = 0);
  Val activation(const std::string& kind, const Val& x);
  Val where(const Val& condition, const Val& a, const Val& b);
  Val reduce(Reduce kind, const Val& x, const std::vector<int64_t>& axes, bool keep);
  Val matmul(const Val& a, const Val& b);
  /// Over one dimension.
  Val softmax(const Val& x, size_t axis);
  /// x [.., I] times a constant weight [O, I], plus bias [O].
  Val linear(const Val& x, ConstantPtr weight, ConstantPtr bias);

  /// Elements that may still be computed here; throws Error{limit} when they are used up.
  void spend(const Shape& shape);

 private:
  Val affine(Binary kind, const Val& x, double value, bool reversed);
  std::optional<Val> with_constant(Binary kind, const Val& x, const Val& constant, bool reversed);
  /// As `f` on inputs and output without the batch where `axes` lets it be.
  bool can_strip(const std::vector<const Val*>& values, const std::vector<size_t>& axes) const;

  Net& net_;
  const int64_t opset_;
  int64_t left_;
  std::string path_;
  std::map<std::pair<int, Shape>, int> views_;
};

/// One node of the ONNX graph with what its inputs are.
struct Call {
  Lowering& to;
  const NodeSource& node;
  std::vector<const Val*> inputs;  ///< nullptr where left out
  const std::string& what;
  /// Runs a graph of an attribute; its outputs.
  std::function<std::vector<Val>(const GraphSource&)> run;
  std::function<ConstantPtr(const TensorSource&)> load;

  [[noreturn]] void refuse(Code code, const std::string& problem) const;
  bool has(size_t i) const { return i < inputs.size() && inputs[i]; }
  const Val& in(size_t i) const;
  /// Input `i` known when the graph is built; Error{unsupported} when it is not.
  const Constant& known(size_t i, const char* name) const;
  std::vector<int64_t> integers(size_t i, const char* name) const;
  double number(size_t i, const char* name) const;

  const AttributeSource* find(const char* name, AttributeSource::Kind kind) const;
  int64_t attr(const char* name, int64_t fallback) const;
  double attr(const char* name, double fallback) const;
  std::string attr(const char* name, const char* fallback) const;
  std::vector<int64_t> attr_list(const char* name, std::vector<int64_t> fallback) const;
  /// -rank..rank-1 -> 0..rank-1
  size_t axis(int64_t value, size_t rank) const;
  std::vector<int64_t> axes(const std::vector<int64_t>& values, size_t rank) const;  ///< ascending
};

struct OperatorEntry {
  std::string_view name;
  std::vector<Val> (*lower)(const Call& call);
};
// One source file each.
std::vector<OperatorEntry> elementwise_operators();
std::vector<OperatorEntry> shape_operators();
std::vector<OperatorEntry> layer_operators();
std::vector<OperatorEntry> window_operators();
std::vector<OperatorEntry> sequence_operators();
/// nullptr for an operator that is not read.
const OperatorEntry* find_onnx_operator(std::string_view name);

}  // namespace sluice::bundle::onnx
