#include "cli/import_onnx.h"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <map>
#include <set>

#include "cli/output.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/table.h"
#include "sluice/bundle/import/onnx.h"

namespace sluice::cli {
namespace {

/// "name=rest"
std::pair<std::string, std::string> split(const std::string& text, const char* option) {
  const size_t at = text.rfind('=');
  if (at == std::string::npos || at == 0 || at + 1 == text.size())
    fail(Code::usage, "{} {}: expected NAME=SOMETHING", option, text);
  return {text.substr(0, at), text.substr(at + 1)};
}

Shape parse_shape(const std::string& text) {
  Shape shape;
  size_t at = 0;
  for (;;) {
    int64_t size = 0;
    const char* end = text.data() + text.size();
    const auto [next, error] = std::from_chars(text.data() + at, end, size);
    if (error != std::errc() || size < 1)
      fail(Code::usage, "--input {}: expected sizes of at least 1, as in 1x3x48x320", text);
    shape.push_back(size);
    if (next == end) return shape;
    if (*next != 'x') fail(Code::usage, "--input {}: expected sizes as in 1x3x48x320", text);
    at = static_cast<size_t>(next - text.data()) + 1;
  }
}

/// One label a line.
std::vector<std::string> read_labels(const std::string& path) {
  const std::string text = read_text_file(path, size_t{8} << 20);
  std::vector<std::string> labels;
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find('\n', at);
    if (end == std::string::npos) end = text.size();
    std::string line = text.substr(at, end - at);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    labels.push_back(line);
    at = end + 1;
  }
  if (labels.empty()) fail(Code::format, "{}: no labels in it", path);
  return labels;
}

/// A reader's classes: nothing, the characters of the file, and a space where there is one more.
std::vector<std::string> reading_labels(std::vector<std::string> labels, size_t classes,
                                        const std::string& path) {
  if (labels.size() == classes) return labels;
  labels.insert(labels.begin(), "");
  if (labels.size() + 1 == classes) labels.push_back(" ");
  if (labels.size() != classes)
    fail(Code::shape,
         "{}: {} labels for {} classes; expected as many, or one or two fewer (a "
         "blank in front, a space behind)",
         path, labels.size() - 1, classes);
  return labels;
}

std::string names(const std::vector<bundle::Value>& values) {
  std::string text;
  for (const bundle::Value& value : values)
    text += fmt::format("{}{} ({})", text.empty() ? "" : ", ", value.name, to_string(value.shape));
  return text;
}

Json to_json(const std::vector<bundle::Value>& values) {
  Json list = Json::array();
  for (const bundle::Value& value : values)
    list.push_back({{"name", value.name}, {"shape", value.shape}});
  return list;
}

}  // namespace

bool OnnxChoice::given() const {
  return !inputs.empty() || !values.empty() || !carries.empty() || !outputs.empty() ||
         !task.empty() || !labels.empty() || mean || std || bgr || weights != "f32";
}

void add_onnx_options(CLI::App& app, OnnxChoice& choice) {
  const auto list = [&](const char* name, std::vector<std::string>& to, const char* help,
                        const char* type) {
    app.add_option(name, to, help)->allow_extra_args(false)->type_name(type)->group("ONNX");
  };
  list("--input", choice.inputs,
       "Sizes of an input, the batch of 1 first; where the file leaves them open. Repeatable",
       "NAME=1x3x48x320");
  list("--value", choice.values, "An input that is always this number; repeatable", "NAME=NUMBER");
  list("--carry", choice.carries,
       "An input that is what this output was in the run before, zeros at first; repeatable",
       "INPUT=OUTPUT");
  list("--want", choice.outputs, "An output that is wanted; by default all. Repeatable", "NAME");
  app.add_option("--task", choice.task, "What the model is for: classify or read (lines of text)")
      ->check(CLI::IsMember({"classify", "read"}))
      ->type_name("KIND")
      ->group("ONNX");
  app.add_option("--labels", choice.labels, "File with the names of the classes, one a line")
      ->type_name("FILE")
      ->group("ONNX");
  app.add_option("--mean", choice.mean, "Of the pixels, which become (pixel / 255 - mean) / std")
      ->type_name("X")
      ->group("ONNX");
  app.add_option("--std", choice.std, "Of the pixels")->type_name("X")->group("ONNX");
  app.add_option("--weights", choice.weights,
                 "How the weights of linear layers are stored, with i8 those of convolutions, too: "
                 "f32, bf16, i8, i8-32 or i4-32")
      ->check(CLI::IsMember({"f32", "bf16", "i8", "i8-32", "i4-32"}))
      ->type_name("FORMAT")
      ->capture_default_str()
      ->group("ONNX");
  app.add_flag("--bgr", choice.bgr, "The model takes its channels as blue, green, red")
      ->group("ONNX");
}

int import_onnx_model(const std::string& source, const std::string& output,
                      const OnnxChoice& choice, const Globals& globals) {
  bundle::OnnxOptions options;
  for (const std::string& text : choice.inputs) {
    const auto [name, sizes] = split(text, "--input");
    options.inputs[name] = parse_shape(sizes);
  }
  for (const std::string& text : choice.values) {
    const auto [name, number] = split(text, "--value");
    double value = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    if (error != std::errc() || end != number.data() + number.size())
      fail(Code::usage, "--value {}: expected a number", text);
    options.values[name] = value;
  }
  for (const std::string& text : choice.carries) {
    const auto [input, result] = split(text, "--carry");
    options.carries[input] = result;
  }
  options.outputs = choice.outputs;
  options.bgr = choice.bgr;
  options.weights = *bundle::format_from_name(choice.weights);
  options.round_activations = choice.activations == "i8";
  if (choice.activations == "bf16")
    fail(Code::usage, "--activations bf16: layers of ONNX files take f32 or i8");
  if (options.round_activations && options.weights == bundle::Format::f32)
    fail(Code::usage, "--activations i8 rounds the inputs of packed layers; give --weights, too");
  if (choice.task.empty() && (!choice.labels.empty() || choice.mean || choice.std))
    fail(Code::usage, "--labels, --mean and --std say what a --task means; give one");
  bundle::Task& task = options.task;
  task.kind = choice.task;
  task.mean = choice.mean.value_or(0);
  task.std = choice.std.value_or(1);
  if (!choice.labels.empty()) {
    task.labels = read_labels(choice.labels);
    options.finish_task = [&choice](bundle::Task& mine, const Shape& result) {
      if (mine.kind == "read")
        mine.labels = reading_labels(std::move(mine.labels), static_cast<size_t>(result.back()),
                                     choice.labels);
    };
  }
  const auto begun = std::chrono::steady_clock::now();
  const bundle::OnnxResult result = bundle::import_onnx(source, output, options);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  const bundle::Bundle model = bundle::Bundle::open(output);
  const Cost& cost = model.info().total;
  std::map<std::string, int> operators;
  for (const bundle::Node& node : model.graph().nodes) ++operators[node.op];
  if (globals.json) {
    print_json({{"model", output},
                {"source", source},
                {"opset", result.opset},
                {"producer", result.producer},
                {"inputs", to_json(result.inputs)},
                {"outputs", to_json(result.outputs)},
                {"nodes_read", result.read_nodes},
                {"operators", operators},
                {"parameters", cost.params},
                {"macs", cost.macs},
                {"file_bytes", model.file_bytes()},
                {"seconds", seconds}});
    return kSuccess;
  }
  std::string kinds;
  for (const auto& [op, count] : operators)
    kinds += fmt::format("{}{} {}", kinds.empty() ? "" : ", ", count, op);
  Table table({"model", output});
  table.row({"from", fmt::format("ONNX, operator set {}{}", result.opset,
                                 result.producer.empty() ? "" : " by " + result.producer)});
  table.row({"inputs", names(result.inputs)});
  table.row({"outputs", names(result.outputs)});
  table.row({"nodes", fmt::format("{}, read {}", model.graph().nodes.size(), result.read_nodes)});
  table.row({"operators", kinds});
  table.row({"parameters", format_count(cost.params)});
  table.row({"MACs", format_count(cost.macs)});
  table.row({"file", format_bytes(static_cast<int64_t>(model.file_bytes()))});
  print(table.text());
  return kSuccess;
}

}  // namespace sluice::cli
