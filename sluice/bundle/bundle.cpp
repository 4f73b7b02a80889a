#include "sluice/bundle/bundle.h"

#include <cmath>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/bundle/bundle_json.h"
#include "sluice/bundle/packed.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

constexpr size_t kModelBytes = size_t{16} << 20, kTaskBytes = size_t{16} << 20,
                 kProvenanceBytes = size_t{1} << 20;
constexpr int64_t kMaxTokenId = int64_t{1} << 24;  // what f32 counts exactly

const std::string* find(const SafetensorsFile& file, const char* key) {
  const auto it = file.metadata().find(key);
  return it == file.metadata().end() ? nullptr : &it->second;
}

int read_version(const SafetensorsFile& file) {
  const std::string* text = find(file, "sluice.version");
  if (!text)
    fail(Code::format, "{}: metadata 'sluice.version' is not there, though 'sluice.graph' is",
         file.path());
  const bool digits =
      !text->empty() && text->size() <= 9 && text->find_first_not_of("0123456789") == text->npos;
  const int version = digits ? std::stoi(*text) : 0;
  if (version < 1)
    fail(Code::format, "{}: metadata 'sluice.version': expected a number from 1, found '{}'",
         file.path(), printable(*text, 40));
  if (version > kFormatVersion)
    fail(Code::unsupported, "{}: bundle format {}; this Sluice reads up to {}. Use a newer one",
         file.path(), version, kFormatVersion);
  return version;
}

void match_tensors(const Graph& graph, const SafetensorsFile& file) {
  for (const auto& [name, spec] : graph.tensors) {
    const TensorView& stored = file.at(name);
    if (stored.dtype != spec.dtype)
      fail(Code::dtype, "{}: tensor '{}': the graph says {}, the file holds {}", file.path(),
           printable(name), dtype_name(spec.dtype), dtype_name(stored.dtype));
    const Shape expected = stored_shape(*format_from_name(spec.format), spec.shape);
    if (stored.shape != expected)
      fail(Code::shape, "{}: tensor '{}': the graph says {}{}, the file holds {}", file.path(),
           printable(name), to_string(spec.shape),
           expected == spec.shape
               ? ""
               : fmt::format(" in format {}, stored as {}", spec.format, to_string(expected)),
           to_string(stored.shape));
  }
}

}  // namespace

void check_task(const Task& task, const Graph& graph, const GraphInfo& info,
                const std::string& what) {
  for (const auto& [name, text] : {std::pair{"kind", &task.kind}, {"data", &task.data}})
    if (text->size() > GraphLimits::kNameBytes || !is_plain_text(*text))
      fail(Code::format, "{}: '{}' is longer than {} bytes or not plain text: '{}'", what, name,
           GraphLimits::kNameBytes, printable(*text));
  if (task.labels.size() > kMaxLabels)
    fail(Code::limit, "{}: {} labels; at most {} are allowed", what, task.labels.size(),
         kMaxLabels);
  for (const std::string& label : task.labels)
    if (label.size() > GraphLimits::kNameBytes || !is_plain_text(label))
      fail(Code::format, "{}: label '{}' is longer than {} bytes or not plain text", what,
           printable(label), GraphLimits::kNameBytes);
  if (!std::isfinite(task.mean))
    fail(Code::format, "{}: 'mean' is {}; expected a finite number", what, task.mean);
  if (!std::isfinite(task.std) || task.std <= 0)
    fail(Code::format, "{}: 'std' is {}; expected a finite number > 0", what, task.std);
  if (task.stop_tokens.size() > kMaxStopTokens)
    fail(Code::limit, "{}: {} stop tokens; at most {} are allowed", what, task.stop_tokens.size(),
         kMaxStopTokens);
  for (const int64_t id : task.stop_tokens)
    if (id < 0 || id > kMaxTokenId)
      fail(Code::format, "{}: stop token {}; expected 0 to {}", what, id, kMaxTokenId);
  if (task.tokenizer.size() > GraphLimits::kNameBytes || !is_plain_text(task.tokenizer))
    fail(Code::format, "{}: 'tokenizer' is longer than {} bytes or not plain text: '{}'", what,
         GraphLimits::kNameBytes, printable(task.tokenizer));
  if (graph.tensors.count(task.tokenizer))
    fail(Code::format, "{}: 'tokenizer' names '{}', a tensor of the graph", what,
         printable(task.tokenizer));
  if (task.labels.empty()) return;
  const Shape& output = info.shapes.at(graph.outputs[0]);
  const int64_t outputs = task.kind == "read" ? output.back() : numel(output, what);
  if (static_cast<int64_t>(task.labels.size()) != outputs)
    fail(Code::shape, "{}: {} labels for {} outputs of the graph; their numbers must agree", what,
         task.labels.size(), outputs);
}

std::string task_to_json(const Task& task) {
  Json json;
  json["kind"] = task.kind;
  const bool text = task.kind == "embed" || task.kind == "generate";
  if (!text || !task.data.empty()) json["data"] = task.data;
  if (!text || !task.labels.empty()) json["labels"] = task.labels;
  if (!text || task.mean != 0) json["mean"] = task.mean;
  if (!text || task.std != 1) json["std"] = task.std;
  if (!task.stop_tokens.empty()) json["stop_tokens"] = task.stop_tokens;
  if (!task.tokenizer.empty()) {
    json["tokenizer"]["tensor"] = task.tokenizer;
    if (task.tokenizer_xxh64)
      json["tokenizer"]["xxh64"] = fmt::format("{:016x}", *task.tokenizer_xxh64);
  }
  return json.dump();
}

void read_tokenizer(const Json& json, Task& task, const std::string& what) {
  if (!json.is_object())
    fail(Code::format, "{}: key 'tokenizer': expected an object, found {}", what, json.type_name());
  for (const auto& [key, value] : json.items()) {
    if (key != "tensor" && key != "xxh64")
      fail(Code::format, "{}: key 'tokenizer': unknown key '{}'; expected tensor and xxh64", what,
           printable(key));
    if (!value.is_string())
      fail(Code::format, "{}: key 'tokenizer.{}': expected text, found {}", what, key,
           value.type_name());
    const std::string text = value.get<std::string>();
    if (key == "tensor") {
      task.tokenizer = text;
      continue;
    }
    if (text.size() != 16 || text.find_first_not_of("0123456789abcdefABCDEF") != text.npos)
      fail(Code::format, "{}: key 'tokenizer.xxh64': expected 16 hexadecimal digits, found '{}'",
           what, printable(text, 40));
    task.tokenizer_xxh64 = std::stoull(text, nullptr, 16);
  }
  if (task.tokenizer.empty())
    fail(Code::format, "{}: key 'tokenizer.tensor' is empty or not there", what);
}

Task task_from_json(std::string_view text, const std::string& what) {
  const auto json = parse_document(text, what, kTaskBytes, 3);
  if (!json.is_object())
    fail(Code::format, "{}: expected an object, found {}", what, json.type_name());
  Task task;
  for (const auto& [key, value] : json.items()) {
    const auto wrong = [&, &key = key, &value = value](const char* expected) {
      fail(Code::format, "{}: key '{}': expected {}, found {}", what, key, expected,
           value.type_name());
    };
    if (key == "kind" || key == "data") {
      if (!value.is_string()) wrong("text");
      (key == "kind" ? task.kind : task.data) = value.get<std::string>();
    } else if (key == "mean" || key == "std") {
      if (!value.is_number()) wrong("a number");
      (key == "mean" ? task.mean : task.std) = value.get<double>();
    } else if (key == "stop_tokens") {
      if (!value.is_array()) wrong("a list of integers");
      if (value.size() > kMaxStopTokens)
        fail(Code::limit, "{}: {} stop tokens; at most {} are allowed", what, value.size(),
             kMaxStopTokens);
      for (const auto& id : value) {
        if (!id.is_number_integer()) wrong("a list of integers");
        task.stop_tokens.push_back(id.get<int64_t>());
      }
    } else if (key == "tokenizer") {
      read_tokenizer(value, task, what);
    } else if (key == "labels") {
      if (!value.is_array()) wrong("a list of texts");
      if (value.size() > kMaxLabels)
        fail(Code::limit, "{}: {} labels; at most {} are allowed", what, value.size(), kMaxLabels);
      for (const auto& label : value) {
        if (!label.is_string()) wrong("a list of texts");
        task.labels.push_back(label.get<std::string>());
      }
    } else {
      fail(
          Code::format,
          "{}: unknown key '{}'; expected kind, data, labels, mean, std, stop_tokens and tokenizer",
          what, printable(key));
    }
  }
  if (task.kind.empty()) fail(Code::format, "{}: key 'kind' is empty or not there", what);
  return task;
}

Json provenance_from_json(std::string_view text, const std::string& what) {
  Json json = parse_document(text, what, kProvenanceBytes, 16);
  if (!json.is_array())
    fail(Code::format, "{}: expected a list of steps, found {}", what, json.type_name());
  for (size_t i = 0; i < json.size(); ++i)
    if (!json[i].is_object() || !json[i].contains("step") || !json[i]["step"].is_string())
      fail(Code::format, "{}: step {} is not an object with the text 'step'", what, i);
  return json;
}

void check_model_json(std::string_view text, const std::string& what) {
  parse_document(text, what, kModelBytes, 64);
}

struct Bundle::State {
  SafetensorsFile file;
  int version = kFormatVersion;
  Graph graph;
  GraphInfo info;
  Task task;
  std::vector<SizeEntry> sizes;
  std::string model_json, provenance_json = "[]";
  std::string_view tokenizer;

  explicit State(SafetensorsFile opened) : file(std::move(opened)) {
    const std::string& path = file.path();
    if (!is_bundle(file))
      fail(Code::missing,
           "{}: metadata 'sluice.graph' is not there: an ordinary safetensors file, not a bundle. "
           "`sluice inspect` "
           "shows it",
           path);
    version = read_version(file);
    graph = graph_from_json(*find(file, "sluice.graph"), path + ": graph");
    info = check_graph(graph, path + ": graph");
    match_tensors(graph, file);
    if (const std::string* text = find(file, "sluice.task")) {
      task = task_from_json(*text, path + ": task");
      check_task(task, graph, info, path + ": task");
      if (!task.tokenizer.empty()) read_tokenizer_text();
    }
    if (const std::string* text = find(file, "sluice.sizes")) {
      sizes = sizes_from_json(*text, path + ": sizes");
      check_sizes(sizes, graph, info, path + ": sizes");
    }
    if (const std::string* text = find(file, "sluice.model")) {
      check_model_json(*text, path + ": model");
      model_json = *text;
    }
    if (const std::string* text = find(file, "sluice.provenance")) {
      provenance_from_json(*text, path + ": provenance");
      provenance_json = *text;
    }
  }

  void read_tokenizer_text() {
    const TensorView& stored = file.at(task.tokenizer);
    if (stored.dtype != DType::u8 || stored.shape.size() != 1)
      fail(Code::dtype, "{}: tensor '{}', the tokenizer: expected U8 of one dimension, found {} {}",
           file.path(), printable(task.tokenizer), dtype_name(stored.dtype),
           to_string(stored.shape));
    if (stored.bytes.size() > kMaxTokenizerBytes)
      fail(Code::limit, "{}: tensor '{}', the tokenizer: {} bytes; at most {} are read",
           file.path(), printable(task.tokenizer), stored.bytes.size(), kMaxTokenizerBytes);
    tokenizer = {reinterpret_cast<const char*>(stored.bytes.data()), stored.bytes.size()};
  }
};

Bundle Bundle::open(const std::string& path, const Options& options) {
  Bundle bundle;
  bundle.state_ = std::make_shared<const State>(SafetensorsFile::open(path, options.limits));
  if (options.verify_checksums) bundle.verify();
  return bundle;
}

Bundle Bundle::parse(std::span<const std::byte> bytes, const std::string& what,
                     const Options& options) {
  Bundle bundle;
  bundle.state_ =
      std::make_shared<const State>(SafetensorsFile::parse(bytes, what, options.limits));
  if (options.verify_checksums) bundle.verify();
  return bundle;
}

const std::string& Bundle::path() const { return state_->file.path(); }
const Graph& Bundle::graph() const { return state_->graph; }
const GraphInfo& Bundle::info() const { return state_->info; }
const SafetensorsFile& Bundle::file() const { return state_->file; }
const Task& Bundle::task() const { return state_->task; }
const std::vector<SizeEntry>& Bundle::sizes() const { return state_->sizes; }
std::string_view Bundle::tokenizer_json() const { return state_->tokenizer; }
const std::string& Bundle::model_json() const { return state_->model_json; }
const std::string& Bundle::provenance_json() const { return state_->provenance_json; }
int Bundle::version() const { return state_->version; }

int64_t Bundle::verify() const {
  int64_t checked = 0;
  for (const TensorView& stored : file().tensors()) {
    std::optional<uint64_t> expected;
    if (const auto it = graph().tensors.find(stored.name); it != graph().tensors.end())
      expected = it->second.xxh64;
    else if (stored.name == task().tokenizer)
      expected = task().tokenizer_xxh64;
    if (!expected) continue;
    const uint64_t found = xxhash64(stored.bytes);
    if (found != *expected)
      fail(Code::format,
           "{}: tensor '{}': checksum {:016x} expected, {:016x} found; the file is damaged, fetch "
           "it again",
           path(), printable(stored.name), *expected, found);
    ++checked;
  }
  return checked;
}

bool is_bundle(const SafetensorsFile& file) { return file.metadata().count("sluice.graph") != 0; }

}  // namespace sluice::bundle
