#include <algorithm>
#include <cmath>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/bundle/bundle.h"
#include "sluice/bundle/bundle_json.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

void require_finite(const TensorView& tensor) {
  if (tensor.dtype != DType::f32) return;
  const std::span<const float> values = tensor.f32();
  for (size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      fail(Code::numeric, "tensor '{}': element {} is {}; a bundle holds finite numbers only",
           printable(tensor.name), i, values[i]);
}

}  // namespace

Value Builder::input(const std::string& name, Shape shape) {
  Value value{name, std::move(shape)};
  check_value(value, "input");
  if (shapes_.count(name)) fail(Code::usage, "input '{}': the name is taken; choose another", name);
  shapes_.emplace(name, value.shape);
  graph_.inputs.push_back(value);
  return value;
}

void Builder::tensor(const std::string& name, DType dtype, Shape shape,
                     std::span<const std::byte> bytes, const std::string& format) {
  store(name, dtype, std::move(shape), bytes, format, true);
}

void Builder::tensor_view(const std::string& name, DType dtype, Shape shape,
                          std::span<const std::byte> bytes, const std::string& format) {
  store(name, dtype, std::move(shape), bytes, format, false);
}

void Builder::store(const std::string& name, DType dtype, Shape shape,
                    std::span<const std::byte> bytes, const std::string& format, bool copy) {
  TensorSpec spec{name, format, dtype, std::move(shape), std::nullopt};
  check_tensor_spec(spec, "bundle");
  json_quote(name, "tensor");
  if (name.empty() || name == "__metadata__")
    fail(Code::usage, "tensor '{}': not a possible name; choose another", name);
  const int64_t expected = stored_bytes(spec);
  if (static_cast<int64_t>(bytes.size()) != expected)
    fail(Code::shape, "tensor '{}': {} of {} takes {} bytes, {} were given", printable(name),
         to_string(spec.shape), format == "f32" ? dtype_name(dtype) : format, expected,
         bytes.size());
  if (const auto it = stored_.find(name); it != stored_.end()) {
    const Stored& stored = it->second;
    const bool same = stored.dtype == dtype && graph_.tensors.at(name).shape == spec.shape &&
                      graph_.tensors.at(name).format == format &&
                      std::ranges::equal(bytes, stored.data());
    if (!same)
      fail(Code::usage,
           "tensor '{}' was added before with another shape or other values; choose another name",
           printable(name));
    return;
  }
  spec.xxh64 = xxhash64(bytes);
  Stored stored{dtype, stored_shape(*format_from_name(format), spec.shape), {}, bytes, copy};
  if (copy) stored.bytes.assign(bytes.begin(), bytes.end());
  stored_.emplace(name, std::move(stored));
  graph_.tensors.emplace(name, std::move(spec));
  order_.push_back(name);
}

void Builder::tensor(const std::string& name, Shape shape, std::span<const float> values) {
  tensor(name, DType::f32, std::move(shape), std::as_bytes(values));
}

void Builder::tensor(const std::string& name, Format format, Shape shape,
                     std::span<const std::byte> bytes) {
  // Bytes in a buffer of any alignment: what the check of the columns of mixed cannot read in
  // place.
  std::vector<std::byte> aligned;
  if (format == Format::mixed && reinterpret_cast<uintptr_t>(bytes.data()) % 4 != 0) {
    aligned.assign(bytes.begin(), bytes.end());
    bytes = aligned;
  }
  if (format != Format::f32) {
    const int64_t total = stored_bytes(format, shape);
    const Shape one{shape[shape.size() - 2], shape.back()};
    const int64_t each = stored_bytes(format, one);
    if (static_cast<int64_t>(bytes.size()) != total)
      fail(Code::shape, "tensor '{}': {} in format {} takes {} bytes, {} were given",
           printable(name), to_string(shape), format_name(format), total, bytes.size());
    for (int64_t at = 0; at < total; at += each)
      view_packed(format, one[0], one[1],
                  bytes.subspan(static_cast<size_t>(at), static_cast<size_t>(each)),
                  "tensor '" + printable(name) + "'");
  }
  tensor(name, stored_dtype(format), std::move(shape), bytes, std::string(format_name(format)));
}

Value Builder::node(const std::string& op, const std::string& path,
                    const std::vector<Value>& inputs, Attributes attrs,
                    std::map<std::string, std::string> tensors) {
  Node node{op,
            path,
            {},
            "v" + std::to_string(graph_.nodes.size()),
            std::move(attrs),
            std::move(tensors)};
  for (const Value& value : inputs) {
    const auto it = shapes_.find(value.name);
    if (it != shapes_.end() && it->second != value.shape)
      fail(Code::usage,
           "node '{}': input '{}' has shape {}, not {}; pass the value that input() or node() "
           "returned",
           printable(path), printable(value.name), to_string(it->second), to_string(value.shape));
    node.inputs.push_back(value.name);
  }
  if (paths_.count(path))
    fail(Code::usage, "node '{}': the path is taken; paths must differ", printable(path));
  if (shapes_.count(node.output))
    fail(Code::usage, "node '{}': the input '{}' has the name of a node's output; rename it",
         printable(path), node.output);
  Value output{node.output, check_node(node, shapes_, graph_.tensors, "bundle")};
  graph_to_json({{}, {}, {node}, {}});  // refuses attributes that JSON cannot hold
  add_rows(node, shapes_, graph_.tensors, "bundle", rows_);
  paths_.insert(path);
  shapes_.emplace(output.name, output.shape);
  graph_.nodes.push_back(std::move(node));
  return output;
}

std::span<const std::byte> Builder::stored(const std::string& name) const {
  const auto it = stored_.find(name);
  if (it == stored_.end()) fail(Code::missing, "tensor '{}' was not added", printable(name));
  return it->second.data();
}

void Builder::rename(const std::function<std::string(const std::string&)>& path,
                     const std::function<std::string(const std::string&)>& tensor) {
  const auto taken = [](const char* kind, const std::string& name) {
    fail(Code::usage, "two {}s would be named '{}'", kind, printable(name));
  };
  std::map<std::string, TensorSpec> specs;
  std::map<std::string, std::string> names;
  for (auto& [old, spec] : graph_.tensors) {
    TensorSpec renamed = spec;
    renamed.name = names[old] = tensor(old);
    if (!specs.emplace(renamed.name, renamed).second) taken("tensor", renamed.name);
  }
  std::set<std::string> paths;
  for (const Node& node : graph_.nodes)
    if (!paths.insert(path(node.path)).second) taken("node", path(node.path));
  std::map<std::string, Stored> stored;
  for (auto& [old, each] : stored_) stored.emplace(names.at(old), std::move(each));
  for (std::string& name : order_) name = names.at(name);
  for (Node& node : graph_.nodes) {
    node.path = path(node.path);
    for (auto& [role, name] : node.tensors) name = names.at(name);
  }
  graph_.tensors = std::move(specs);
  stored_ = std::move(stored);
  paths_ = std::move(paths);
}

void Builder::output(const Value& value) {
  if (!shapes_.count(value.name))
    fail(Code::usage, "output '{}' is no value of this graph; pass what node() returned",
         printable(value.name));
  for (const Value& input : graph_.inputs)
    if (input.name == value.name)
      fail(Code::usage, "output '{}' is an input; an output is made by a node",
           printable(value.name));
  for (const std::string& name : graph_.outputs)
    if (name == value.name) fail(Code::usage, "output '{}' was added before", name);
  require_all_rows(value.name, "bundle", rows_);
  graph_.outputs.push_back(value.name);
}

void Builder::carry(const std::string& input, const Value& output) {
  graph_.carries.push_back({input, output.name});
  try {
    check_carries(graph_, shapes_, "bundle");
  } catch (...) {
    graph_.carries.pop_back();
    throw;
  }
}

void Builder::check_finished() const {
  if (graph_.outputs.empty()) fail(Code::state, "bundle: no output; call output() before writing");
  const GraphInfo info = check_graph(graph_, "bundle");
  if (!task_.kind.empty()) check_task(full_task(), graph_, info, "bundle: task");
  if (!sizes_.empty()) check_sizes(sizes_, graph_, info, "bundle: sizes");
  if (!task_.tokenizer.empty() && tokenizer_.empty())
    fail(Code::state, "bundle: the task names the tokenizer '{}'; give its text to set_tokenizer()",
         printable(task_.tokenizer));
  if (tokenizer_.empty()) return check_texts();
  if (task_.kind.empty()) fail(Code::state, "bundle: a tokenizer without a task; call set_task()");
  if (stored_.count(kTokenizerTensor))
    fail(Code::usage, "bundle: a tensor is called '{}', the name of the tokenizer; rename it",
         kTokenizerTensor);
  check_texts();
}

Task Builder::full_task() const {
  Task task = task_;
  if (!tokenizer_.empty()) {
    task.tokenizer = kTokenizerTensor;
    task.tokenizer_xxh64 = xxhash64(std::as_bytes(std::span(tokenizer_)));
  }
  return task;
}

void Builder::check_texts() const {
  if (!model_json_.empty()) check_model_json(model_json_, "bundle: model");
  provenance_from_json(provenance_json_, "bundle: provenance");
}

std::vector<TensorView> Builder::views() const {
  std::vector<TensorView> views;
  views.reserve(stored_.size());
  for (const std::string& name : order_) {
    const Stored& stored = stored_.at(name);
    views.push_back({name, stored.dtype, stored.shape, stored.data()});
    require_finite(views.back());
  }
  if (!tokenizer_.empty())
    views.push_back({kTokenizerTensor,
                     DType::u8,
                     {static_cast<int64_t>(tokenizer_.size())},
                     std::as_bytes(std::span(tokenizer_))});
  return views;
}

std::map<std::string, std::string> Builder::metadata() const {
  std::map<std::string, std::string> metadata;
  metadata["sluice.version"] = std::to_string(kFormatVersion);
  metadata["sluice.graph"] = graph_to_json(graph_);
  if (!model_json_.empty()) metadata["sluice.model"] = model_json_;
  if (!task_.kind.empty()) metadata["sluice.task"] = task_to_json(full_task());
  if (!sizes_.empty()) metadata["sluice.sizes"] = sizes_to_json(sizes_);
  if (provenance_json_ != "[]") metadata["sluice.provenance"] = provenance_json_;
  return metadata;
}

void Builder::write(const std::string& path) const {
  check_finished();
  write_safetensors(path, views(), metadata());
}

std::vector<std::byte> Builder::bytes() const {
  check_finished();
  return safetensors_bytes(views(), metadata());
}

}  // namespace sluice::bundle
