#include "sluice/bundle/graph.h"

#include <algorithm>
#include <set>

#include "sluice/base/error.h"
#include "sluice/base/path_pattern.h"
#include "sluice/bundle/ops.h"
#include "sluice/bundle/packed.h"
#include "sluice/bundle/rows.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
std::string place_of(const Node& node, const std::string& what) {
  return what + ": node '" + printable(node.path) + "' (" + printable(node.op, 40) + ")";
}

namespace {

constexpr std::string_view kTypeNames[] = {"a boolean", "an integer",         "a number",
                                           "text",      "a list of integers", "a list of numbers"};

[[noreturn]] void wrong_type(const std::string& name, std::string_view expected,
                             const Attribute& found) {
  fail(Code::shape, "attribute '{}': expected {}, found {}", printable(name), expected,
       kTypeNames[found.index()]);
}

void check_name(const std::string& name, std::string_view kind, const std::string& what) {
  if (name.empty()) fail(Code::format, "{}: {} is empty", what, kind);
  if (name.size() > GraphLimits::kNameBytes)
    fail(Code::limit, "{}: {} '{}' has {} bytes; at most {} are allowed", what, kind,
         printable(name), name.size(), GraphLimits::kNameBytes);
  if (!is_plain_text(name))
    fail(Code::format, "{}: {} '{}' has control characters or is not UTF-8", what, kind,
         printable(name));
}

// The part of a path's rules that is_plain_text does not cover: every segment names something.
void check_path(const std::string& path, const std::string& what) {
  check_name(path, "a node's path", what);
  if (path.front() == '.' || path.back() == '.' || path.find("..") != path.npos)
    fail(Code::format, "{}: node path '{}' has an empty segment", what, path);
}

void check_count(size_t count, size_t limit, std::string_view kind, const std::string& what) {
  if (count > limit)
    fail(Code::limit, "{}: {} {}; at most {} are allowed", what, count, kind, limit);
}

std::string join(std::span<const std::string_view> names) {
  std::string out;
  for (std::string_view name : names) out += (out.empty() ? "" : ", ") + std::string(name);
  return out.empty() ? "none" : out;
}

bool contains(const std::vector<std::string_view>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The node's tensors by role, each known to the operator and to the graph.
std::map<std::string, TensorSpec> collect_tensors(const Node& node, const Operator& op,
                                                  const std::map<std::string, TensorSpec>& tensors,
                                                  const std::string& place) {
  std::map<std::string, TensorSpec> found;
  for (const auto& [role, name] : node.tensors) {
    if (!contains(op.required_tensors, role) && !contains(op.optional_tensors, role)) {
      std::vector<std::string_view> known = op.required_tensors;
      known.insert(known.end(), op.optional_tensors.begin(), op.optional_tensors.end());
      fail(Code::format, "{}: unknown tensor role '{}'; expected {}", place, printable(role),
           join(known));
    }
    const auto it = tensors.find(name);
    if (it == tensors.end())
      fail(Code::missing, "{}: {} is tensor '{}', which the graph does not list", place, role,
           printable(name));
    found.emplace(role, it->second);
  }
  for (std::string_view role : op.required_tensors)
    if (!found.count(std::string(role)))
      fail(Code::missing, "{}: tensor '{}' is not there", place, role);
  for (const auto& [role, spec] : found)
    if (spec.format != "f32" && !contains(op.packed_tensors, role))
      fail(Code::unsupported, "{}: {} '{}' has format '{}'; this operator takes f32 there", place,
           role, printable(spec.name), printable(spec.format, 40));
  return found;
}

}  // namespace

int64_t attr_int(const Attributes& attrs, const std::string& name, int64_t fallback) {
  const auto it = attrs.find(name);
  if (it == attrs.end()) return fallback;
  if (const auto* value = std::get_if<int64_t>(&it->second)) return *value;
  wrong_type(name, "an integer", it->second);
}

double attr_double(const Attributes& attrs, const std::string& name, double fallback) {
  const auto it = attrs.find(name);
  if (it == attrs.end()) return fallback;
  if (const auto* value = std::get_if<double>(&it->second)) return *value;
  if (const auto* value = std::get_if<int64_t>(&it->second)) return static_cast<double>(*value);
  wrong_type(name, "a number", it->second);
}

bool attr_bool(const Attributes& attrs, const std::string& name, bool fallback) {
  const auto it = attrs.find(name);
  if (it == attrs.end()) return fallback;
  if (const auto* value = std::get_if<bool>(&it->second)) return *value;
  wrong_type(name, "a boolean", it->second);
}

std::string attr_string(const Attributes& attrs, const std::string& name,
                        const std::string& fallback) {
  const auto it = attrs.find(name);
  if (it == attrs.end()) return fallback;
  if (const auto* value = std::get_if<std::string>(&it->second)) return *value;
  wrong_type(name, "text", it->second);
}

std::vector<int64_t> attr_ints(const Attributes& attrs, const std::string& name, size_t count,
                               int64_t fallback) {
  const auto it = attrs.find(name);
  if (it == attrs.end()) return std::vector<int64_t>(count, fallback);
  if (const auto* value = std::get_if<int64_t>(&it->second))
    return std::vector<int64_t>(count, *value);
  const auto* list = std::get_if<std::vector<int64_t>>(&it->second);
  if (!list) wrong_type(name, "a list of integers", it->second);
  if (list->size() != count)
    fail(Code::shape, "attribute '{}': expected {} integers, found {}", printable(name), count,
         list->size());
  return *list;
}

bool is_parameter_role(std::string_view role) {
  return role != "running_mean" && role != "running_var";
}

void check_value(const Value& value, const std::string& what) {
  check_name(value.name, "a value's name", what);
  if (value.shape.empty() || value.shape.size() > GraphLimits::kRank)
    fail(Code::shape, "{}: value '{}': {} dimensions; expected 1 to {}", what, value.name,
         value.shape.size(), GraphLimits::kRank);
  int64_t elements = 1;
  for (int64_t size : value.shape) {
    if (size < 1)
      fail(Code::shape, "{}: value '{}': shape {}; dimensions must be >= 1", what, value.name,
           to_string(value.shape));
    if (__builtin_mul_overflow(elements, size, &elements) || elements > GraphLimits::kValueElements)
      fail(Code::limit, "{}: value '{}': shape {} has more than {} elements", what, value.name,
           to_string(value.shape), GraphLimits::kValueElements);
  }
}

void check_tensor_spec(const TensorSpec& spec, const std::string& what) {
  const auto format = format_from_name(spec.format);
  if (!format) {
    std::string known;
    for (Format f : all_formats()) known.append(known.empty() ? "" : ", ").append(format_name(f));
    fail(Code::unsupported,
         "{}: tensor '{}' has format '{}'; this version reads {}. A newer Sluice may read it", what,
         printable(spec.name), printable(spec.format, 40), known);
  }
  if (spec.dtype != stored_dtype(*format))
    fail(Code::dtype, "{}: tensor '{}' of format {}: expected dtype {}, found {}", what,
         printable(spec.name), spec.format, dtype_name(stored_dtype(*format)),
         dtype_name(spec.dtype));
  if (spec.shape.size() > GraphLimits::kRank)
    fail(Code::limit, "{}: tensor '{}' has {} dimensions; at most {} are allowed", what,
         printable(spec.name), spec.shape.size(), GraphLimits::kRank);
  int64_t bytes = dtype_size(spec.dtype);
  for (int64_t size : spec.shape) {
    if (size < 0)
      fail(Code::shape, "{}: tensor '{}': shape {} has a negative dimension", what,
           printable(spec.name), to_string(spec.shape));
    if (__builtin_mul_overflow(bytes, size, &bytes))
      fail(Code::limit, "{}: tensor '{}': shape {} does not fit 63 bits of bytes", what,
           printable(spec.name), to_string(spec.shape));
  }
  try {
    stored_bytes(spec);
  } catch (const Error& error) {
    fail(error.code(), "{}: tensor '{}': {}", what, printable(spec.name), error.what());
  }
}

int64_t stored_bytes(const TensorSpec& spec) {
  return stored_bytes(format_from_name(spec.format).value_or(Format::f32), spec.shape);
}

Shape check_node(const Node& node, const std::map<std::string, Shape>& shapes,
                 const std::map<std::string, TensorSpec>& tensors, const std::string& what,
                 Cost* cost) {
  check_path(node.path, what);
  const std::string place = place_of(node, what);
  const Operator* op = find_operator(node.op);
  if (!op) {
    std::vector<std::string> names;
    for (const Operator& o : all_operators()) names.emplace_back(o.name);
    const std::string near = node.op.size() <= 64 ? nearest_name(node.op, names) : "";
    fail(Code::unsupported, "{}: unknown operator{}; it may come from a newer Sluice", place,
         near.empty() ? "" : ", did you mean '" + near + "'?");
  }
  if (node.inputs.size() < op->min_inputs || node.inputs.size() > op->max_inputs)
    fail(Code::shape, "{}: expected {} input{}, found {}", place,
         op->min_inputs == op->max_inputs ? std::to_string(op->min_inputs)
                                          : fmt::format("{} to {}", op->min_inputs, op->max_inputs),
         op->max_inputs == 1 ? "" : "s", node.inputs.size());
  std::vector<Shape> inputs;
  for (const std::string& name : node.inputs) {
    const auto it = shapes.find(name);
    if (it == shapes.end())
      fail(Code::missing, "{}: input '{}' is made by no earlier node", place, printable(name));
    inputs.push_back(it->second);
  }
  for (const auto& [name, value] : node.attrs)
    if (!contains(op->attributes, name))
      fail(Code::format, "{}: unknown attribute '{}'; expected {}", place, printable(name),
           join(op->attributes));
  const auto by_role = collect_tensors(node, *op, tensors, place);
  try {
    const OpInput input{node, inputs, by_role};
    Shape shape = op->shape(input);
    check_value({node.output, shape}, place);
    if (cost) {
      *cost = {};
      cost->macs = op->macs(input, shape);
      std::map<std::string, bool> counted;  // tensor name -> in a parameter's role
      for (const auto& [role, spec] : by_role) counted[spec.name] |= is_parameter_role(role);
      for (const auto& [name, parameter] : counted) {
        const TensorSpec& spec = tensors.at(name);
        const int64_t elements = numel(spec.shape, "tensor '" + printable(name) + "'");
        if (parameter) cost->params = checked_add(cost->params, elements, "parameters");
        cost->weight_bytes = checked_add(cost->weight_bytes, stored_bytes(spec), "bytes");
      }
    }
    return shape;
  } catch (const Error& error) {
    const std::string message = error.what();
    throw Error(error.code(), message.starts_with(place) ? message : place + ": " + message);
  }
}

void check_carries(const Graph& graph, const std::map<std::string, Shape>& shapes,
                   const std::string& what) {
  std::set<std::string_view> inputs, outputs;
  for (const Carry& carry : graph.carries) {
    const auto is_input = [&](const Value& value) { return value.name == carry.input; };
    if (std::none_of(graph.inputs.begin(), graph.inputs.end(), is_input))
      fail(Code::missing, "{}: carry: no input is called '{}'", what, printable(carry.input));
    if (std::find(graph.outputs.begin(), graph.outputs.end(), carry.output) == graph.outputs.end())
      fail(Code::missing, "{}: carry: no output is called '{}'", what, printable(carry.output));
    if (shapes.at(carry.input) != shapes.at(carry.output))
      fail(Code::shape, "{}: carry: output '{}' is {}, input '{}' is {}", what,
           printable(carry.output), to_string(shapes.at(carry.output)), printable(carry.input),
           to_string(shapes.at(carry.input)));
    if (!inputs.insert(carry.input).second || !outputs.insert(carry.output).second)
      fail(Code::format, "{}: carry: '{}' or '{}' is carried twice", what, printable(carry.input),
           printable(carry.output));
  }
  if (graph.carries.size() >= graph.inputs.size() || graph.carries.size() >= graph.outputs.size()) {
    if (!graph.carries.empty())
      fail(Code::format, "{}: carry: every input or output is carried; one of each must be left",
           what);
  }
}

GraphInfo check_graph(const Graph& graph, const std::string& what) {
  check_count(graph.nodes.size(), GraphLimits::kNodes, "nodes", what);
  check_count(graph.tensors.size(), GraphLimits::kTensors, "tensors", what);
  check_count(graph.inputs.size(), GraphLimits::kInputs, "inputs", what);
  check_count(graph.outputs.size(), GraphLimits::kOutputs, "outputs", what);
  if (graph.inputs.empty()) fail(Code::format, "{}: the graph has no input", what);
  if (graph.outputs.empty()) fail(Code::format, "{}: the graph has no output", what);

  GraphInfo info;
  for (const auto& [name, spec] : graph.tensors) {
    if (name != spec.name)
      fail(Code::format, "{}: tensor '{}' is listed as '{}'", what, printable(spec.name),
           printable(name));
    check_tensor_spec(spec, what);
  }
  for (const Value& input : graph.inputs) {
    check_value(input, what);
    if (!info.shapes.emplace(input.name, input.shape).second)
      fail(Code::format, "{}: two inputs are called '{}'", what, input.name);
  }
  auto rows = std::make_shared<RowSets>();
  std::set<std::string_view> paths, made;
  std::map<std::string_view, bool> used;  // tensor name -> in a parameter's role
  info.node_costs.reserve(graph.nodes.size());
  for (const Node& node : graph.nodes) {
    Cost cost;
    Shape shape = check_node(node, info.shapes, graph.tensors, what, &cost);
    if (!paths.insert(node.path).second)
      fail(Code::format, "{}: two nodes have the path '{}'", what, node.path);
    if (!info.shapes.emplace(node.output, std::move(shape)).second)
      fail(Code::format, "{}: output '{}' was made before", place_of(node, what), node.output);
    add_rows(node, info.shapes, graph.tensors, what, *rows);
    made.insert(node.output);
    for (const auto& [role, name] : node.tensors) used[name] |= is_parameter_role(role);
    info.total.macs = checked_add(info.total.macs, cost.macs, what + ": MACs");
    info.node_costs.push_back(cost);
  }
  std::set<std::string_view> outputs;
  for (const std::string& output : graph.outputs) {
    if (!made.count(output))
      fail(Code::missing, "{}: output '{}' is made by no node", what, printable(output));
    if (!outputs.insert(output).second)
      fail(Code::format, "{}: output '{}' is listed twice", what, output);
    require_all_rows(output, what, *rows);
  }
  check_carries(graph, info.shapes, what);
  info.rows = std::move(rows);
  for (const auto& [name, parameter] : used) {
    const TensorSpec& spec = graph.tensors.at(std::string(name));
    const int64_t elements = numel(spec.shape, what + ": tensor");
    if (parameter)
      info.total.params = checked_add(info.total.params, elements, what + ": parameters");
    info.total.weight_bytes =
        checked_add(info.total.weight_bytes, stored_bytes(spec), what + ": bytes");
  }
  return info;
}

}  // namespace sluice::bundle
