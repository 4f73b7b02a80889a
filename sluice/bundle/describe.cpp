#include "sluice/bundle/describe.h"

#include <fmt/format.h>

#include "sluice/base/json.h"
#include "sluice/base/table.h"
#include "sluice/bundle/bundle_json.h"
#include "sluice/bundle/describe_tree.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

constexpr size_t kShownSteps = 50, kShownFields = 16, kShownLabels = 12, kShownMetadata = 20;

// JSON texts must be UTF-8; a file's name need not be.
std::string file_name(const SafetensorsFile& file) { return printable(file.path(), 4096); }

std::string percent(int64_t part, int64_t whole) {
  if (whole == 0) return "";
  const double value = 100.0 * static_cast<double>(part) / static_cast<double>(whole);
  return part == 0 ? "0 %" : part == whole ? "100 %" : fmt::format("{:.1f} %", value);
}

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : ", ") + printable(word, 40);
  return out;
}

// A heading with aligned continuation lines.
void line(std::string& out, std::string_view name, std::string_view text) {
  out += fmt::format("{:<12}{}\n", name, text);
}

std::string scalar_text(const Json& value) {
  if (value.is_string()) return printable(value.get_ref<const std::string&>(), 80);
  if (value.is_number_float()) return fmt::format("{:.4g}", value.get<double>());
  if (value.is_object()) return fmt::format("{} fields", value.size());
  if (!value.is_array()) return value.dump();
  if (value.size() > 8) return fmt::format("{} values", value.size());
  std::string out;
  for (const Json& item : value) {
    if (item.is_structured()) return fmt::format("{} values", value.size());
    out += (out.empty() ? "" : ", ") + scalar_text(item);
  }
  return "[" + out + "]";
}

// "train: epochs 12, test.accuracy 0.9213"; objects are opened one level.
std::string step_text(const Json& step) {
  std::vector<std::string> fields;
  for (const auto& [key, value] : step.items()) {
    if (key == "step") continue;
    if (value.is_object() && !value.empty()) {
      for (const auto& [inner, v] : value.items())
        fields.push_back(printable(key, 40) + "." + printable(inner, 40) + " " + scalar_text(v));
    } else {
      fields.push_back(printable(key, 40) + " " + scalar_text(value));
    }
    if (fields.size() > kShownFields) break;
  }
  std::string out = printable(step["step"].get_ref<const std::string&>(), 60);
  for (size_t i = 0; i < fields.size() && i < kShownFields; ++i)
    out += (i == 0 ? ": " : ", ") + fields[i];
  return fields.size() > kShownFields ? out + ", ..." : out;
}

void task_lines(std::string& out, const Task& task) {
  if (task.kind.empty()) return;
  line(out, "task", task.kind + (task.data.empty() ? "" : " " + task.data));
  if (task.labels.empty()) return;
  std::string labels = fmt::format("{}: ", task.labels.size());
  for (size_t i = 0; i < task.labels.size() && i < kShownLabels; ++i)
    labels += (i ? ", " : "") + printable(task.labels[i], 40);
  line(out, "classes", labels + (task.labels.size() > kShownLabels ? ", ..." : ""));
}

void provenance_lines(std::string& out, const Json& steps) {
  for (size_t i = 0; i < steps.size() && i < kShownSteps; ++i)
    line(out, i == 0 ? "made by" : "", fmt::format("{}. {}", i + 1, step_text(steps[i])));
  if (steps.size() > kShownSteps)
    line(out, "", fmt::format("... and {} more", steps.size() - kShownSteps));
}

std::string count_leaves(const Row& row, bool nodes) {
  return fmt::format("{} {}{}", row.leaves, nodes ? "node" : "tensor", row.leaves == 1 ? "" : "s");
}

struct Columns {
  bool nodes;  // else tensors
  bool sparsity;
};

std::vector<std::string> cells(const Row& row, const std::string& name, bool collapsed,
                               const Columns& columns) {
  std::string kind = row.kind;
  if (kind.empty() && collapsed) kind = count_leaves(row, columns.nodes);
  std::vector<std::string> out = {name, printable(kind, 60)};
  const bool has_shape = columns.nodes ? !row.shape.empty() : row.children.empty();
  out.push_back(has_shape ? to_string(row.shape) : "");
  if (columns.nodes) {
    out.push_back(joined(row.formats));
    out.push_back(row.params ? format_count(row.params) : "");
    out.push_back(row.bytes ? format_bytes(row.bytes) : "");
    out.push_back(row.macs ? format_count(row.macs) : "");
  } else {
    out.push_back(format_count(row.params));
    out.push_back(format_bytes(row.bytes));
  }
  if (columns.sparsity) out.push_back(percent(row.zeros, row.params));
  return out;
}

void tree_rows(Table& table, const Row& row, const std::string& indent, int depth,
               const Columns& columns) {
  for (size_t i = 0; i < row.children.size(); ++i) {
    const Row& child = row.children[i];
    const bool last = i + 1 == row.children.size();
    const bool collapsed = depth == 1 && !child.children.empty();
    table.row(cells(child, indent + (last ? "└─ " : "├─ ") + printable(child.name, 80), collapsed,
                    columns));
    if (!collapsed) tree_rows(table, child, indent + (last ? "   " : "│  "), depth - 1, columns);
  }
}

std::string tree_text(const Row& root, std::vector<std::string> header, const Columns& columns,
                      int depth) {
  if (columns.sparsity) header.push_back("zeros");
  Table table(std::move(header));
  Row total = root;
  total.children.clear();
  total.kind = count_leaves(root, columns.nodes);
  std::vector<std::string> top = cells(total, "total", false, columns);
  if (!columns.nodes) top[2] = "";
  table.row(std::move(top));
  if (depth != 0) tree_rows(table, root, "", depth, columns);
  return table.text();
}

Json tree_json(const Row& row, int depth, const Columns& columns) {
  Json list = Json::array();
  if (depth == 0) return list;
  for (const Row& child : row.children) {
    Json json;
    json["name"] = child.name;
    json["path"] = child.path;
    if (columns.nodes) {
      if (!child.op.empty()) {
        json["op"] = child.op;
        json["kind"] = child.kind;
      }
      json["output"] = child.shape;
      json["formats"] = child.formats;
    } else if (!child.kind.empty()) {
      json["dtype"] = child.kind;
      json["shape"] = child.shape;
    }
    json["params"] = child.params;
    if (columns.nodes) json["macs"] = child.macs;
    json["bytes"] = child.bytes;
    if (columns.sparsity) json["zeros"] = child.zeros;
    for (const RowTensor& tensor : child.tensors)
      json["tensors"].push_back({{"role", tensor.role},
                                 {"name", tensor.name},
                                 {"format", tensor.format},
                                 {"shape", tensor.shape},
                                 {"bytes", tensor.bytes}});
    if (!child.children.empty()) {
      json[columns.nodes ? "nodes" : "tensors"] = child.leaves;
      json["children"] = tree_json(child, depth - 1, columns);
    }
    list.push_back(std::move(json));
  }
  return list;
}

Json total_json(const Row& root, const Columns& columns) {
  Json total;
  total[columns.nodes ? "nodes" : "tensors"] = root.leaves;
  total["params"] = root.params;
  if (columns.nodes) total["macs"] = root.macs;
  total["bytes"] = root.bytes;
  if (columns.sparsity) total["zeros"] = root.zeros;
  return total;
}

}  // namespace

std::string describe_text(const Bundle& bundle, const DescribeOptions& options) {
  const Columns columns{.nodes = true, .sparsity = options.sparsity};
  const Task& task = bundle.task();
  std::string out;
  line(out, "file", file_name(bundle.file()));
  line(out, "size",
       fmt::format("{}, bundle format {}", format_bytes(static_cast<int64_t>(bundle.file_bytes())),
                   bundle.version()));
  task_lines(out, task);
  const Graph& graph = bundle.graph();
  for (size_t i = 0; i < graph.inputs.size(); ++i) {
    const Value& input = graph.inputs[i];
    std::string text = fmt::format("{} {}", input.name, to_string(input.shape));
    if (i == 0 && !task.kind.empty() && (task.mean != 0 || task.std != 1))
      text += fmt::format(", (pixel / 255 - {:.4g}) / {:.4g}", task.mean, task.std);
    line(out, i == 0 ? "input" : "", text);
  }
  for (size_t i = 0; i < graph.outputs.size(); ++i)
    line(out, i == 0 ? "output" : "",
         fmt::format("{} {}", graph.outputs[i],
                     to_string(bundle.info().shapes.at(graph.outputs[i]))));
  provenance_lines(out,
                   provenance_from_json(bundle.provenance_json(), bundle.path() + ": provenance"));
  const Row root = describe_tree(bundle, options.sparsity);
  return out + "\n" +
         tree_text(root, {"brick", "kind", "output", "format", "parameters", "size", "MACs"},
                   columns, options.depth);
}

Json describe_json(const Bundle& bundle, const DescribeOptions& options) {
  const Columns columns{.nodes = true, .sparsity = options.sparsity};
  const Row root = describe_tree(bundle, options.sparsity);
  Json json;
  json["file"] = file_name(bundle.file());
  json["kind"] = "bundle";
  json["file_bytes"] = bundle.file_bytes();
  json["format_version"] = bundle.version();
  if (!bundle.task().kind.empty()) json["task"] = parse_json(task_to_json(bundle.task()), "task");
  for (const char* key : {"inputs", "outputs"}) json[key] = Json::array();
  for (const Value& input : bundle.graph().inputs)
    json["inputs"].push_back({{"name", input.name}, {"shape", input.shape}});
  for (const std::string& output : bundle.graph().outputs)
    json["outputs"].push_back({{"name", output}, {"shape", bundle.info().shapes.at(output)}});
  json["provenance"] =
      provenance_from_json(bundle.provenance_json(), bundle.path() + ": provenance");
  json["total"] = total_json(root, columns);
  json["tree"] = tree_json(root, options.depth, columns);
  return json;
}

std::string describe_text(const SafetensorsFile& file, const DescribeOptions& options) {
  const Columns columns{.nodes = false, .sparsity = options.sparsity};
  std::string out;
  line(out, "file", file_name(file));
  line(out, "size",
       fmt::format("{}, safetensors without a graph",
                   format_bytes(static_cast<int64_t>(file.file_bytes()))));
  size_t shown = 0;
  for (const auto& [key, value] : file.metadata()) {
    if (shown == kShownMetadata) {
      line(out, "", fmt::format("... and {} more", file.metadata().size() - shown));
      break;
    }
    line(out, shown++ == 0 ? "metadata" : "", printable(key, 60) + " = " + printable(value, 80));
  }
  const Row root = describe_tree(file, options.sparsity);
  return out + "\n" +
         tree_text(root, {"tensor", "type", "shape", "parameters", "size"}, columns, options.depth);
}

Json describe_json(const SafetensorsFile& file, const DescribeOptions& options) {
  const Columns columns{.nodes = false, .sparsity = options.sparsity};
  const Row root = describe_tree(file, options.sparsity);
  Json json;
  json["file"] = file_name(file);
  json["kind"] = "safetensors";
  json["file_bytes"] = file.file_bytes();
  json["metadata"] = file.metadata();
  json["total"] = total_json(root, columns);
  json["tree"] = tree_json(root, options.depth, columns);
  return json;
}

}  // namespace sluice::bundle
