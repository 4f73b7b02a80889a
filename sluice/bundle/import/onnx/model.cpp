#include "sluice/bundle/import/onnx/model.h"

#include <algorithm>
#include <filesystem>

#include "sluice/base/error.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::onnx {
namespace {

/// Counts over all graphs of a file.
struct Counts {
  size_t nodes = 0;
};

GraphSource read_graph(Wire wire, Counts& counts, size_t depth);

void read_location(Wire wire, TensorSource& tensor) {
  std::string key, value;
  while (wire.next()) {
    if (wire.number() == 1) key = wire.text("key");
    if (wire.number() == 2) value = wire.text("value");
  }
  tensor.location[key] = value;
}

TensorSource read_tensor(Wire wire, size_t offset) {
  TensorSource tensor;
  tensor.offset = offset;
  while (wire.next()) {
    switch (wire.number()) {
      case 1:
        wire.integers(tensor.dims, "dims");
        if (tensor.dims.size() > Limits::kRank)
          wire.refuse(
              fmt::format("{} dimensions; at most {} are read", tensor.dims.size(), Limits::kRank));
        break;
      case 2:
        tensor.type = static_cast<Type>(wire.integer("data_type"));
        break;
      case 3:
        wire.refuse("a tensor in segments, which no current ONNX has");
      case 4:
        wire.reals(tensor.floats, "float_data");
        break;
      case 5:
        wire.integers(tensor.ints, "int32_data");
        break;
      case 7:
        wire.integers(tensor.ints, "int64_data");
        break;
      case 8:
        tensor.name = wire.text("name");
        break;
      case 9:
        tensor.raw = wire.bytes("raw_data");
        break;
      case 10:
        wire.doubles(tensor.doubles, "double_data");
        break;
      case 11:
        wire.integers(tensor.ints, "uint64_data");
        break;
      case 13:
        read_location(wire.inner("external_data", "external data"), tensor);
        break;
      case 14:
        tensor.external = wire.integer("data_location") == 1;
        break;
      default:
        break;
    }
  }
  return tensor;
}

AttributeSource::Kind kind_of(int64_t type) {
  using Kind = AttributeSource::Kind;
  constexpr Kind kinds[] = {Kind::none,  Kind::real,  Kind::integer,  Kind::text, Kind::tensor,
                            Kind::graph, Kind::reals, Kind::integers, Kind::texts};
  return type >= 0 && type < std::ssize(kinds) ? kinds[type] : Kind::other;
}

AttributeSource read_attribute(Wire wire, Counts& counts, size_t depth, std::string& name) {
  AttributeSource attribute;
  using Kind = AttributeSource::Kind;
  Kind seen = Kind::none;
  while (wire.next()) {
    switch (wire.number()) {
      case 1:
        name = wire.text("name");
        break;
      case 2:
        attribute.real = wire.real("f");
        seen = Kind::real;
        break;
      case 3:
        attribute.integer = wire.integer("i");
        seen = Kind::integer;
        break;
      case 4:
        attribute.text = wire.text("s");
        seen = Kind::text;
        break;
      case 5:
        attribute.tensor = std::make_shared<const TensorSource>(
            read_tensor(wire.inner("t", "tensor of an attribute"), wire.offset()));
        seen = Kind::tensor;
        break;
      case 6:
        attribute.graph = std::make_shared<const GraphSource>(
            read_graph(wire.inner("g", "graph of an attribute"), counts, depth + 1));
        seen = Kind::graph;
        break;
      case 7:
        wire.reals(attribute.reals, "floats");
        seen = Kind::reals;
        break;
      case 8:
        wire.integers(attribute.integers, "ints");
        seen = Kind::integers;
        break;
      case 9:
        seen = Kind::texts;
        break;
      case 20:
        attribute.kind = kind_of(wire.integer("type"));
        break;
      case 21:
        wire.refuse("a reference to a function's attribute outside of a function");
      default:
        break;
    }
  }
  if (attribute.kind == Kind::none) attribute.kind = seen;
  const bool absent = (attribute.kind == Kind::tensor && !attribute.tensor) ||
                      (attribute.kind == Kind::graph && !attribute.graph);
  if (absent)
    wire.refuse(fmt::format("attribute '{}' has no value of its type", printable(name, 60)));
  return attribute;
}

NodeSource read_node(Wire wire, Counts& counts, size_t depth) {
  NodeSource node;
  const auto limited = [&](size_t count, const char* what) {
    if (count >= Limits::kOperands)
      wire.refuse(fmt::format("more than {} {}", Limits::kOperands, what));
  };
  while (wire.next()) {
    switch (wire.number()) {
      case 1:
        limited(node.inputs.size(), "inputs");
        node.inputs.push_back(wire.text("input"));
        break;
      case 2:
        limited(node.outputs.size(), "outputs");
        node.outputs.push_back(wire.text("output"));
        break;
      case 3:
        node.name = wire.text("name");
        break;
      case 4:
        node.op = wire.text("op_type");
        break;
      case 5: {
        limited(node.attributes.size(), "attributes");
        std::string name;
        AttributeSource attribute =
            read_attribute(wire.inner("attribute", "attribute"), counts, depth, name);
        if (!node.attributes.emplace(name, std::move(attribute)).second)
          wire.refuse(fmt::format("attribute '{}' appears twice", printable(name, 60)));
        break;
      }
      case 7:
        node.domain = wire.text("domain");
        break;
      default:
        break;
    }
  }
  return node;
}

void read_dimension(Wire wire, ValueSource& value) {
  int64_t size = -1;
  std::string name;
  while (wire.next()) {
    if (wire.number() == 1) size = wire.integer("dim_value");
    if (wire.number() == 2) name = wire.text("dim_param");
  }
  if (value.dims.size() >= Limits::kRank)
    wire.refuse(fmt::format("a value of more than {} dimensions", Limits::kRank));
  value.dims.push_back(name.empty() ? size : -1);
  value.names.push_back(name);
}

ValueSource read_value(Wire wire) {
  ValueSource value;
  while (wire.next()) {
    if (wire.number() == 1) value.name = wire.text("name");
    if (wire.number() != 2) continue;
    Wire type = wire.inner("type", "type of a value");
    while (type.next()) {
      if (type.number() != 1) {
        value.tensor = value.tensor && type.number() == 6;  // 6: the denotation
        continue;
      }
      Wire tensor = type.inner("tensor_type", "type of a tensor");
      while (tensor.next()) {
        if (tensor.number() == 1) value.type = static_cast<Type>(tensor.integer("elem_type"));
        if (tensor.number() != 2) continue;
        value.ranked = true;
        Wire shape = tensor.inner("shape", "shape of a value");
        while (shape.next())
          if (shape.number() == 1) read_dimension(shape.inner("dim", "dimension"), value);
      }
    }
  }
  return value;
}

GraphSource read_graph(Wire wire, Counts& counts, size_t depth) {
  if (depth > Limits::kDepth)
    wire.refuse(fmt::format("graphs within graphs, more than {} deep", Limits::kDepth));
  GraphSource graph;
  while (wire.next()) {
    switch (wire.number()) {
      case 1:
        if (++counts.nodes > Limits::kNodes)
          wire.refuse(fmt::format("more than {} nodes", Limits::kNodes));
        graph.nodes.push_back(read_node(wire.inner("node", "node"), counts, depth));
        break;
      case 2:
        graph.name = wire.text("name");
        break;
      case 5:
        graph.initializers.push_back(std::make_shared<const TensorSource>(
            read_tensor(wire.inner("initializer", "initializer"), wire.offset())));
        break;
      case 11:
        graph.inputs.push_back(read_value(wire.inner("input", "input")));
        break;
      case 12:
        graph.outputs.push_back(read_value(wire.inner("output", "output")));
        break;
      case 15:
        wire.refuse("a sparse initializer, which Sluice does not read");
      default:
        break;
    }
  }
  return graph;
}

}  // namespace

ModelSource parse_model(std::span<const std::byte> bytes, const std::string& what,
                        const std::string& folder) {
  if (std::ssize(bytes) > Limits::kFileBytes)
    fail(Code::limit, "{}: {} bytes; an ONNX file has at most {}", what, bytes.size(),
         Limits::kFileBytes);
  if (bytes.empty()) fail(Code::format, "{}: empty; expected an ONNX model", what);
  ModelSource model;
  model.file = std::make_shared<const WireFile>(WireFile{what, bytes});
  model.folder = folder;
  Wire wire(*model.file, bytes, "model");
  Counts counts;
  bool has_graph = false;
  while (wire.next()) {
    switch (wire.number()) {
      case 2:
        model.producer = wire.text("producer_name");
        break;
      case 7:
        if (has_graph) wire.refuse("a second graph");
        model.graph = read_graph(wire.inner("graph", "graph"), counts, 0);
        has_graph = true;
        break;
      case 8: {
        Wire opset = wire.inner("opset_import", "operator set");
        std::string domain;
        int64_t version = 0;
        while (opset.next()) {
          if (opset.number() == 1) domain = opset.text("domain");
          if (opset.number() == 2) version = opset.integer("version");
        }
        if (domain.empty() || domain == "ai.onnx") model.opset = version;
        break;
      }
      case 25:
        wire.refuse("functions of its own, which Sluice does not read");
      default:
        break;
    }
  }
  if (!has_graph) fail(Code::format, "{}: no graph in it; expected an ONNX model", what);
  if (model.opset < Limits::kOldestOpset || model.opset > Limits::kNewestOpset)
    fail(Code::unsupported,
         "{}: operator set {}; versions {} to {} are read. Export the model again with one of them",
         what, model.opset, Limits::kOldestOpset, Limits::kNewestOpset);
  return model;
}

ModelSource open_model(const std::string& path) {
  auto mapped = std::make_shared<const MappedFile>(MappedFile::open(path));
  std::string folder = std::filesystem::path(path).parent_path().string();
  ModelSource model = parse_model(mapped->bytes(), path, folder.empty() ? "." : folder);
  model.mapped = std::move(mapped);
  return model;
}

TensorSource parse_tensor(const WireFile& file) {
  return read_tensor(Wire(file, file.bytes, "tensor"), 0);
}

}  // namespace sluice::bundle::onnx
