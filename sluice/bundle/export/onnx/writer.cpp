#include "sluice/bundle/export/onnx/writer.h"

#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/bundle/export/onnx.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace onnx {
namespace {

/// The graph's only input [T], if nobody but tables and positions reads it: ids of tokens.
std::string ids_of(const Graph& graph) {
  if (graph.inputs.size() != 1 || graph.inputs[0].shape.size() != 1) return "";
  const std::string& input = graph.inputs[0].name;
  bool table = false;
  for (const Node& node : graph.nodes) {
    for (const std::string& each : node.inputs)
      if (each == input && node.op != "embedding" && node.op != "positions") return "";
    table = table || (node.op == "embedding" && node.inputs[0] == input);
  }
  const bool output =
      std::find(graph.outputs.begin(), graph.outputs.end(), input) != graph.outputs.end();
  return table && !output ? input : "";
}

bool reads_rows_apart(const Node& node) {
  constexpr std::string_view kOps[] = {"embedding", "positions",    "linear",     "layer_norm",
                                       "rms_norm",  "l2_normalize", "activation", "softmax"};
  return std::find(std::begin(kOps), std::end(kOps), node.op) != std::end(kOps);
}

/// Values [T, ..] of a graph over `ids` [T] that computes the same for any T; empty where some node
/// needs to know T when it is written.
std::set<std::string> open_rows(const Graph& graph, const std::string& ids) {
  if (ids.empty()) return {};
  std::set<std::string> open{ids};
  for (const Node& node : graph.nodes) {
    size_t rows = 0;
    for (const std::string& input : node.inputs) rows += open.count(input);
    if (rows == 0 || node.op == "pool_rows") continue;
    const bool full = node.op == "attention" && attr_string(node.attrs, "mask", "causal") == "full";
    if (rows != node.inputs.size() || !(reads_rows_apart(node) || node.op == "add" || full))
      return {};
    open.insert(node.output);
  }
  return open;
}

}  // namespace

Writer::Writer(const Bundle& model)
    : model_(model), ids_(ids_of(model.graph())), open_rows_(open_rows(model.graph(), ids_)) {}

void Writer::begin(const Node& node) { current_ = &node; }

void Writer::refuse(const std::string& reason) const {
  fail(Code::unsupported, "{}: node '{}' ({}): {}; it cannot be written as ONNX", model_.path(),
       printable(current_->path), current_->op, reason);
}

std::string Writer::fresh(const std::string& wish) {
  std::string name = wish;
  while (!taken_.insert(name).second || model_.info().shapes.count(name))
    name = fmt::format("{}.{}", wish, made_++);
  return name;
}

std::vector<std::string> Writer::node_of(const std::string& op,
                                         const std::vector<std::string>& inputs, size_t outputs,
                                         const std::vector<Attribute>& attributes) {
  std::vector<std::string> names;
  for (size_t i = 0; i < outputs; ++i) names.push_back(fresh(current_->path + "." + op));
  body_.message(1, node_message(op, names[0], inputs, names, attributes));
  ++nodes_;
  return names;
}

std::string Writer::node(const std::string& op, const std::vector<std::string>& inputs,
                         const std::vector<Attribute>& attributes, const std::string& output) {
  if (output.empty()) return node_of(op, inputs, 1, attributes)[0];
  body_.message(1, node_message(op, current_->path, inputs, {output}, attributes));
  ++nodes_;
  return output;
}

std::string Writer::reals(const Shape& dims, const std::vector<float>& values,
                          const std::string& name) {
  const std::string mine = name.empty() ? fresh(current_->path + ".constant") : name;
  if (names_.insert(mine).second) initializers_.message(5, tensor_message(mine, dims, values));
  return mine;
}

std::string Writer::integers(const std::vector<int64_t>& values) {
  const std::string mine = fresh(current_->path + ".constant");
  names_.insert(mine);
  initializers_.message(5, tensor_message(mine, {std::ssize(values)}, values));
  return mine;
}

std::string Writer::integer(int64_t value) {
  const std::string mine = fresh(current_->path + ".constant");
  names_.insert(mine);
  initializers_.message(5, tensor_message(mine, {}, std::span<const int64_t>(&value, 1)));
  return mine;
}

std::string Writer::reshaped(const std::string& value, const Shape& shape,
                             const std::string& output) {
  std::vector<int64_t> sizes{0};
  sizes.insert(sizes.end(), shape.begin(), shape.end());
  return node("Reshape", {value, integers(sizes)}, {}, output);
}

std::vector<float> Writer::tensor(const std::string& role) const {
  const std::string& name = current_->tensors.at(role);
  const TensorSpec& spec = model_.graph().tensors.at(name);
  if (spec.format != "f32")
    refuse(
        fmt::format("tensor '{}' is packed as {}, which ONNX does not know; run `sluice "
                    "transform --pass dequantize` first",
                    printable(name), spec.format));
  const auto values = model_.tensor(name).f32();
  return {values.begin(), values.end()};
}

std::string Writer::stored(const std::string& role) {
  const std::string& name = current_->tensors.at(role);
  return reals(model_.graph().tensors.at(name).shape, tensor(role), name);
}

Shape Writer::batched(const std::string& value) const {
  Shape result = shape(value);
  if (open_rows_.count(value)) result[0] = kOpenRows;
  result.insert(result.begin(), kOpenBatch);
  return result;
}

Message Writer::graph(const std::vector<std::string>& outputs) const {
  Message graph = body_;
  // Protocol buffers may be joined: the initializers are fields of the same message.
  std::string text = graph.text() + initializers_.text();
  Message rest;
  rest.bytes(2, "sluice");
  for (const Value& input : model_.graph().inputs)
    rest.message(11, value_message(input.name, batched(input.name),
                                   is_ids(input.name) ? ElementType::i64 : ElementType::f32));
  for (const std::string& output : outputs)
    rest.message(12, value_message(output, batched(output)));
  Message whole;
  whole.append(text + rest.text());
  return whole;
}

}  // namespace onnx

std::string onnx_bytes(const Bundle& model, OnnxExport* result) {
  onnx::Writer writer(model);
  std::vector<onnx::ExportEntry> entries = onnx::layer_exports();
  for (const onnx::ExportEntry& entry : onnx::array_exports()) entries.push_back(entry);
  for (const Node& node : model.graph().nodes) {
    writer.begin(node);
    const auto found = std::find_if(entries.begin(), entries.end(),
                                    [&](const auto& entry) { return entry.op == node.op; });
    if (found == entries.end()) writer.refuse("ONNX has no operator that computes this");
    found->run(writer);
  }
  const std::string bytes =
      onnx::model_message(writer.graph(model.graph().outputs), 17, "sluice").text();
  if (bytes.size() >= size_t{1} << 31)
    fail(Code::limit, "{}: {} bytes; an ONNX file holds less than 2 GiB", model.path(),
         bytes.size());
  if (result) *result = {17, writer.nodes(), writer.tensors()};
  return bytes;
}

OnnxExport export_onnx(const Bundle& model, const std::string& path) {
  OnnxExport result;
  const std::string bytes = onnx_bytes(model, &result);
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
  return result;
}

}  // namespace sluice::bundle
