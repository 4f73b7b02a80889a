// The graph a bundle carries: what the engine runs. Static single assignment over named values;
// every value's shape is per sample (the batch is the leading dimension of everything and never
// written down).
//
// JSON form (docs/formats.md), stored in the safetensors metadata key "sluice.graph".
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "sluice/base/cost.h"
#include "sluice/base/shape.h"
#include "sluice/bundle/dtype.h"

namespace sluice::bundle {

struct RowSets;

/// Attributes of a node: small, typed, ordered by name.
using Attribute =
    std::variant<bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<double>>;
using Attributes = std::map<std::string, Attribute>;

/// The attribute's value, or the fallback when it is absent. Throw Error{shape} naming the
/// attribute when it has another type (an integer serves as a double).
int64_t attr_int(const Attributes& attrs, const std::string& name, int64_t fallback);
double attr_double(const Attributes& attrs, const std::string& name, double fallback);
bool attr_bool(const Attributes& attrs, const std::string& name, bool fallback);
std::string attr_string(const Attributes& attrs, const std::string& name,
                        const std::string& fallback);
/// A list of `count` integers; a single integer repeats. Throws Error{shape} for another length.
std::vector<int64_t> attr_ints(const Attributes& attrs, const std::string& name, size_t count,
                               int64_t fallback);

/// How a stored tensor is to be read.
struct TensorSpec {
  std::string name;          ///< key in the safetensors file
  std::string format;        ///< "f32", "bf16", "i4-32", ...: packed.h, docs/formats.md
  DType dtype = DType::f32;  ///< of the stored elements
  Shape shape;               ///< logical; stored_shape() of packed.h is how it lies in the file
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

/// How messages name a node of the file `what`.
std::string place_of(const Node& node, const std::string& what);

/// An input that is not given, but carried from run to run of a session: it is what the output was
/// in the run before, zeros in the first.
struct Carry {
  std::string input, output;
};

struct Graph {
  std::vector<Value> inputs;
  std::vector<std::string> outputs;
  std::vector<Node> nodes;  ///< in execution order
  std::map<std::string, TensorSpec> tensors;
  std::vector<Carry> carries{};
};

/// What a graph may hold at most; beyond it reading fails with Error{limit}.
struct GraphLimits {
  static constexpr size_t kJsonBytes = size_t{64} << 20;
  static constexpr size_t kNodes = 1000000;
  static constexpr size_t kTensors = size_t{1} << 20;
  static constexpr size_t kInputs = 64;     ///< of the graph
  static constexpr size_t kOutputs = 1024;  ///< of the graph
  static constexpr size_t kNodeInputs = 64;
  static constexpr size_t kAttributes = 64;        ///< per node
  static constexpr size_t kAttributeItems = 4096;  ///< per list
  static constexpr size_t kRank = 8;               ///< of a value
  static constexpr size_t kNameBytes = 1024;       ///< of a path, value or attribute name
  static constexpr int64_t kValueElements = int64_t{1} << 31;  ///< per sample
};

/// Result of checking a graph: the shape of every value and the cost of every node, in node order.
/// Parameters are logical elements, bytes are stored ones. Batch norm's running_mean and
/// running_var count as bytes, not as parameters.
struct GraphInfo {
  std::map<std::string, Shape> shapes;
  std::shared_ptr<const RowSets> rows;  ///< what compact_rows leaves of them, rows.h
  std::vector<Cost> node_costs;
  Cost total;  ///< shared tensors are counted once
};

/// Checks everything a hostile file could lie about: unknown ops, inputs that no earlier node made,
/// values made twice, missing or misshapen tensors, impossible attributes, overflowing products.
/// Throws Error naming `what`, the node, the field, expected and found.
GraphInfo check_graph(const Graph& graph, const std::string& what);

/// The parts of check_graph, for building a graph piece by piece. `check_node` returns the output's
/// shape and, when asked, the cost; it does not look whether path and output are new.
void check_value(const Value& value, const std::string& what);
void check_tensor_spec(const TensorSpec& spec, const std::string& what);
void check_carries(const Graph& graph, const std::map<std::string, Shape>& shapes,
                   const std::string& what);
Shape check_node(const Node& node, const std::map<std::string, Shape>& shapes,
                 const std::map<std::string, TensorSpec>& tensors, const std::string& what,
                 Cost* cost = nullptr);

/// Bytes of the tensor in the file. For specs that check_tensor_spec accepts.
int64_t stored_bytes(const TensorSpec& spec);
/// False for "running_mean" and "running_var": stored, but not trained.
bool is_parameter_role(std::string_view role);

/// Throws Error{numeric} for an attribute that is not finite.
std::string graph_to_json(const Graph& graph);
/// Reads the JSON form; what the fields mean together is check_graph's to judge.
Graph graph_from_json(std::string_view text, const std::string& what);

}  // namespace sluice::bundle
