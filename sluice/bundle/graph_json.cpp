// The JSON form of a graph; docs/formats.md describes it.
#include <charconv>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/bundle/graph.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

constexpr int64_t kGraphVersion = 1;

std::string write_shape(const Shape& shape) { return Json(shape).dump(); }

std::string write_attribute(const std::string& name, const Attribute& value) {
  const auto finite = [&](double number) {
    if (!std::isfinite(number))
      fail(Code::numeric, "attribute '{}': JSON cannot hold {}", printable(name), number);
  };
  if (const auto* number = std::get_if<double>(&value)) finite(*number);
  if (const auto* numbers = std::get_if<std::vector<double>>(&value))
    for (double number : *numbers) finite(number);
  if (const auto* text = std::get_if<std::string>(&value))
    return json_quote(*text, "attribute '" + name + "'");
  return std::visit([](const auto& v) { return Json(v).dump(); }, value);
}

// Reading: every function knows the place it reads for its messages.

[[noreturn]] void expected(const std::string& place, std::string_view wanted, const Json& found) {
  fail(Code::format, "{}: expected {}, found {}", place, wanted, printable(found.type_name()));
}

void require_keys(const Json& object, const std::string& place,
                  std::initializer_list<const char*> required,
                  std::initializer_list<const char*> optional) {
  if (!object.is_object()) expected(place, "an object", object);
  for (const auto& [key, value] : object.items()) {
    bool known = false;
    for (const auto& names : {required, optional})
      for (const char* name : names) known |= key == name;
    if (!known)
      fail(Code::format, "{}: unknown key '{}'; a newer Sluice may know it", place, printable(key));
  }
  for (const char* name : required)
    if (!object.contains(name)) fail(Code::format, "{}: key '{}' is not there", place, name);
}

const std::string& read_text(const Json& value, const std::string& place) {
  if (!value.is_string()) expected(place, "text", value);
  return value.get_ref<const std::string&>();
}

const Json& read_list(const Json& value, const std::string& place, size_t limit) {
  if (!value.is_array()) expected(place, "a list", value);
  if (value.size() > limit)
    fail(Code::limit, "{}: {} entries; at most {} are allowed", place, value.size(), limit);
  return value;
}

int64_t read_int(const Json& value, const std::string& place) {
  if (!value.is_number_integer() ||
      (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX))
    fail(Code::format, "{}: expected an integer of 64 bits, found {}", place,
         printable(value.dump(), 40));
  return value.get<int64_t>();
}

Shape read_shape(const Json& value, const std::string& place) {
  Shape shape;
  for (const Json& size : read_list(value, place, GraphLimits::kRank)) {
    shape.push_back(read_int(size, place));
    if (shape.back() < 0) fail(Code::format, "{}: dimension {} is negative", place, shape.back());
  }
  return shape;
}

std::vector<std::string> read_names(const Json& value, const std::string& place, size_t limit) {
  std::vector<std::string> names;
  for (const Json& name : read_list(value, place, limit)) names.push_back(read_text(name, place));
  return names;
}

Attribute read_attribute(const Json& value, const std::string& place) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_float()) return value.get<double>();
  if (value.is_number()) return read_int(value, place);
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) expected(place, "a number, text, boolean or a list of numbers", value);
  bool integers = true;
  for (const Json& item : read_list(value, place, GraphLimits::kAttributeItems)) {
    if (!item.is_number()) expected(place, "a list of numbers", item);
    integers &= item.is_number_integer();
  }
  if (!integers) return value.get<std::vector<double>>();
  std::vector<int64_t> list;
  for (const Json& item : value) list.push_back(read_int(item, place));
  return list;
}

Node read_node(const Json& object, const std::string& where) {
  require_keys(object, where, {"op", "path", "in", "out"}, {"attrs", "tensors"});
  Node node;
  node.op = read_text(object["op"], where + ", key 'op'");
  node.path = read_text(object["path"], where + ", key 'path'");
  const std::string place = where + " '" + printable(node.path) + "'";
  node.inputs = read_names(object["in"], place + ", key 'in'", GraphLimits::kNodeInputs);
  node.output = read_text(object["out"], place + ", key 'out'");
  if (object.contains("attrs")) {
    const Json& attrs = object["attrs"];
    if (!attrs.is_object()) expected(place + ", key 'attrs'", "an object", attrs);
    if (attrs.size() > GraphLimits::kAttributes)
      fail(Code::limit, "{}: {} attributes; at most {} are allowed", place, attrs.size(),
           GraphLimits::kAttributes);
    for (const auto& [name, value] : attrs.items())
      node.attrs.emplace(name,
                         read_attribute(value, place + ", attribute '" + printable(name) + "'"));
  }
  if (object.contains("tensors")) {
    const Json& tensors = object["tensors"];
    if (!tensors.is_object()) expected(place + ", key 'tensors'", "an object", tensors);
    for (const auto& [role, name] : tensors.items())
      node.tensors.emplace(role,
                           read_text(name, place + ", tensor role '" + printable(role) + "'"));
  }
  return node;
}

TensorSpec read_tensor(const std::string& name, const Json& object, const std::string& what) {
  const std::string place = what + ": tensor '" + printable(name) + "'";
  require_keys(object, place, {"format", "dtype", "shape"}, {"xxh64"});
  TensorSpec spec;
  spec.name = name;
  spec.format = read_text(object["format"], place + ", key 'format'");
  const std::string& dtype = read_text(object["dtype"], place + ", key 'dtype'");
  const auto known = dtype_from_name(dtype);
  if (!known)
    fail(Code::format, "{}, key 'dtype': unknown element type '{}'", place, printable(dtype, 40));
  spec.dtype = *known;
  spec.shape = read_shape(object["shape"], place + ", key 'shape'");
  if (object.contains("xxh64")) {
    const std::string& text = read_text(object["xxh64"], place + ", key 'xxh64'");
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    if (text.size() != 16 || error != std::errc() || end != text.data() + text.size())
      fail(Code::format, "{}, key 'xxh64': expected 16 hexadecimal digits, found '{}'", place,
           printable(text, 40));
    spec.xxh64 = value;
  }
  return spec;
}

}  // namespace

std::string graph_to_json(const Graph& graph) {
  const auto quote = [](const std::string& text) { return json_quote(text, "graph"); };
  std::string out = fmt::format("{{\"version\":{},\"inputs\":[", kGraphVersion);
  const char* separator = "";
  for (const Value& input : graph.inputs) {
    out += separator + ("{\"name\":" + quote(input.name)) +
           ",\"shape\":" + write_shape(input.shape) + "}";
    separator = ",";
  }
  out += "],\"outputs\":" + Json(graph.outputs).dump();
  separator = ",\"carries\":[";
  for (const Carry& carry : graph.carries) {
    out += separator + ("{\"input\":" + quote(carry.input)) + ",\"output\":" + quote(carry.output) +
           "}";
    separator = ",";
  }
  out += graph.carries.empty() ? ",\"nodes\":[" : "],\"nodes\":[";
  separator = "";
  for (const Node& node : graph.nodes) {
    out +=
        separator + ("{\"op\":" + quote(node.op)) + ",\"path\":" + quote(node.path) + ",\"in\":[";
    separator = "";
    for (const std::string& input : node.inputs) {
      out += separator + quote(input);
      separator = ",";
    }
    out += "],\"out\":" + quote(node.output);
    if (!node.attrs.empty()) {
      separator = ",\"attrs\":{";
      for (const auto& [name, value] : node.attrs) {
        out += separator + quote(name) + ":" + write_attribute(name, value);
        separator = ",";
      }
      out += "}";
    }
    if (!node.tensors.empty()) {
      separator = ",\"tensors\":{";
      for (const auto& [role, name] : node.tensors) {
        out += separator + quote(role) + ":" + quote(name);
        separator = ",";
      }
      out += "}";
    }
    out += "}";
    separator = ",";
  }
  out += "],\"tensors\":{";
  separator = "";
  for (const auto& [name, spec] : graph.tensors) {
    out += separator + quote(name) + ":{\"format\":" + quote(spec.format) +
           fmt::format(",\"dtype\":\"{}\",\"shape\":{}", dtype_name(spec.dtype),
                       write_shape(spec.shape));
    if (spec.xxh64) out += fmt::format(",\"xxh64\":\"{:016x}\"", *spec.xxh64);
    out += "}";
    separator = ",";
  }
  return out + "}}";
}

Graph graph_from_json(std::string_view text, const std::string& what) {
  const auto json = parse_document(text, what, GraphLimits::kJsonBytes, 6);
  if (!json.is_object()) expected(what, "an object", json);
  if (!json.contains("version")) fail(Code::format, "{}: key 'version' is not there", what);
  const int64_t version = read_int(json["version"], what + ", key 'version'");
  if (version > kGraphVersion)
    fail(Code::unsupported, "{}: graph version {}; this Sluice reads up to {}. Use a newer one",
         what, version, kGraphVersion);
  if (version < 1) fail(Code::format, "{}: graph version {}; versions start at 1", what, version);
  require_keys(json, what, {"version", "inputs", "outputs", "nodes", "tensors"}, {"carries"});

  Graph graph;
  for (const Json& input :
       read_list(json["inputs"], what + ", key 'inputs'", GraphLimits::kInputs)) {
    const std::string place = fmt::format("{}: input {}", what, graph.inputs.size());
    require_keys(input, place, {"name", "shape"}, {});
    graph.inputs.push_back(
        {read_text(input["name"], place), read_shape(input["shape"], place + ", key 'shape'")});
  }
  graph.outputs = read_names(json["outputs"], what + ", key 'outputs'", GraphLimits::kOutputs);
  if (json.contains("carries")) {
    for (const Json& carry :
         read_list(json["carries"], what + ", key 'carries'", GraphLimits::kInputs)) {
      const std::string place = fmt::format("{}: carry {}", what, graph.carries.size());
      require_keys(carry, place, {"input", "output"}, {});
      graph.carries.push_back(
          {read_text(carry["input"], place), read_text(carry["output"], place)});
    }
  }
  const Json& nodes = read_list(json["nodes"], what + ", key 'nodes'", GraphLimits::kNodes);
  graph.nodes.reserve(nodes.size());
  for (const Json& node : nodes)
    graph.nodes.push_back(read_node(node, fmt::format("{}: node {}", what, graph.nodes.size())));
  if (!json["tensors"].is_object())
    expected(what + ", key 'tensors'", "an object", json["tensors"]);
  for (const auto& [name, tensor] : json["tensors"].items())
    graph.tensors.emplace(name, read_tensor(name, tensor, what));
  return graph;
}

}  // namespace sluice::bundle
