// The graph a bundle carries: what the engine runs. Static single assignment over named values; every value's shape
// is per sample (the batch is the leading dimension of everything and never written down).
//
// JSON form (docs/formats.md), stored in the safetensors metadata key "sluice.graph".
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "sluice/base/cost.h"
#include "sluice/base/shape.h"
#include "sluice/bundle/dtype.h"

namespace sluice::bundle {

/// Attributes of a node: small, typed, ordered by name.
using Attribute = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<double>>;
using Attributes = std::map<std::string, Attribute>;

int64_t attr_int(const Attributes& attrs, const std::string& name, int64_t fallback);
double attr_double(const Attributes& attrs, const std::string& name, double fallback);
std::string attr_string(const Attributes& attrs, const std::string& name, const std::string& fallback);
/// A list of `count` integers; a single integer repeats. Throws Error{shape} for another length.
std::vector<int64_t> attr_ints(const Attributes& attrs, const std::string& name, size_t count, int64_t fallback);

/// How a stored tensor is to be read.
struct TensorSpec {
  std::string name;      ///< key in the safetensors file
  std::string format;    ///< "f32", "bf16", "i8-channel", ...: docs/formats.md
  DType dtype = DType::f32;
  Shape shape;
  std::optional<uint64_t> xxh64;  ///< checksum of the stored bytes
};

struct Value {
  std::string name;
  Shape shape;  ///< per sample
};

struct Node {
  std::string op;    ///< an entry of the operator table (ops.h)
  std::string path;  ///< dotted path of the brick it came from; unique in the graph
  std::vector<std::string> inputs;
  std::string output;
  Attributes attrs;
  std::map<std::string, std::string> tensors;  ///< role ("weight", "bias", ...) -> tensor name
};

struct Graph {
  std::vector<Value> inputs;
  std::vector<std::string> outputs;
  std::vector<Node> nodes;  ///< in execution order
  std::map<std::string, TensorSpec> tensors;
};

/// Result of checking a graph: the shape of every value and the cost of every node, in node order.
struct GraphInfo {
  std::map<std::string, Shape> shapes;
  std::vector<Cost> node_costs;
  Cost total;  ///< shared tensors are counted once
};

/// Checks everything a hostile file could lie about: unknown ops, inputs that no earlier node made, values made twice,
/// missing or misshapen tensors, impossible attributes, overflowing products. Throws Error naming `what`, the
/// node, the field, expected and found.
GraphInfo check_graph(const Graph& graph, const std::string& what);

std::string graph_to_json(const Graph& graph);
Graph graph_from_json(std::string_view text, const std::string& what);

}  // namespace sluice::bundle
