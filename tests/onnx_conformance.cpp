// Runs the node tests of ONNX (Debian: libonnx-testdata) whose operators the importer reads,
// through import and engine, and compares the results with the expected ones.
//
//   onnx_conformance                 the table of docs/onnx-operators.md on stdout
//   onnx_conformance --check FILE    compares it with the file
//   onnx_conformance --case NAME     one case, with what went wrong
//   onnx_conformance --export FOLDER writes what was imported as ONNX again, with inputs and
//   results,
//                                    for bench/peers/exported_onnx.py
//
// Exit 0: all results equal; 1: some differ, or the file does; 77: the test data is not installed.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/bundle/export/onnx.h"
#include "sluice/bundle/import/onnx.h"
#include "sluice/bundle/import/onnx/lowering.h"
#include "sluice/engine/graph/network.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;
using bundle::onnx::ConstantPtr;
using bundle::onnx::GraphSource;
using bundle::onnx::ModelSource;

constexpr char kData[] = "/usr/share/libonnx-testdata/data/node";

void collect(const GraphSource& graph, std::set<std::string>& operators) {
  for (const auto& node : graph.nodes) {
    operators.insert(node.domain.empty() ? node.op : node.domain + "." + node.op);
    for (const auto& [name, attribute] : node.attributes)
      if (attribute.graph) collect(*attribute.graph, operators);
  }
}

ConstantPtr read_tensor(const fs::path& path) {
  const MappedFile file = MappedFile::open(path.string());
  const bundle::onnx::WireFile wire{path.string(), file.bytes()};
  return bundle::onnx::load_tensor(bundle::onnx::parse_tensor(wire), path.string(), "");
}

std::vector<ConstantPtr> read_tensors(const fs::path& folder, const std::string& kind) {
  std::vector<ConstantPtr> tensors;
  for (int i = 0;; ++i) {
    const fs::path path = folder / fmt::format("{}_{}.pb", kind, i);
    if (!fs::exists(path)) return tensors;
    tensors.push_back(read_tensor(path));
  }
}

std::vector<float> floats(const bundle::onnx::Constant& constant) {
  std::vector<float> values;
  for (size_t i = 0; i < constant.size(); ++i) values.push_back(static_cast<float>(constant.at(i)));
  return values;
}

/// Empty when all elements agree.
std::string difference(const std::vector<float>& found, const bundle::onnx::Constant& expected,
                       bool half) {
  if (found.size() != expected.size())
    return fmt::format("{} elements, expected {}", found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    const double e = expected.at(i), f = found[i];
    if (std::isnan(e) && std::isnan(f)) continue;
    const bool large = std::isinf(e) && std::abs(f) >= 3e38 && (f > 0) == (e > 0);
    const double most = expected.integer ? 0.0 : 1e-5 + (half ? 1e-3 : 1e-4) * std::abs(e);
    if (!large && !(std::abs(f - e) <= most))
      return fmt::format("element {}: {}, expected {}", i, f, e);
  }
  return "";
}

enum class Fixed : uint8_t { none, integers, all_but_first };

struct Outcome {
  bool passed = false, refused = false;
  std::string reason;
};

/// What the importer made, as ONNX again: model.onnx, the numbers that went in and came out, and
/// which they are in case.json. A refusal stands there instead of a model.
void write_case(const fs::path& folder, const bundle::Bundle& parsed,
                const engine::Network& network, const std::vector<std::vector<float>>& in,
                const std::vector<std::vector<float>>& out) {
  fs::create_directories(folder);
  Json json;
  try {
    write_text_file((folder / "model.onnx").string(), bundle::onnx_bytes(parsed));
  } catch (const Error& error) {
    json["refused"] = error.what();
  }
  const auto write = [&](const char* kind, const std::vector<bundle::Value>& values,
                         const std::vector<std::vector<float>>& numbers) {
    json[kind] = Json::array();
    for (size_t i = 0; i < values.size(); ++i) {
      const std::string file = fmt::format("{}{}.f32", kind, i);
      write_text_file((folder / file).string(),
                      std::string_view(reinterpret_cast<const char*>(numbers[i].data()),
                                       numbers[i].size() * sizeof(float)));
      json[kind].push_back({{"name", values[i].name}, {"shape", values[i].shape}, {"file", file}});
    }
  };
  write("inputs", network.inputs(), in);
  write("outputs", network.outputs(), out);
  write_text_file((folder / "case.json").string(), json.dump(1));
}

/// Runs what the importer made and compares the outputs. `exported`: where what passes is written
/// as ONNX; empty: nowhere.
Outcome run_imported(std::span<const std::byte> bytes, const fs::path& exported,
                     const ModelSource& model, const bundle::OnnxResult& result,
                     const std::vector<const bundle::onnx::Constant*>& given,
                     const std::vector<ConstantPtr>& expected) {
  const bundle::Bundle parsed = bundle::Bundle::parse(bytes, "model", {});
  const engine::Network network(parsed);
  engine::Session session(network, {.batch = 1, .threads = 1});
  std::vector<std::vector<float>> in, out;
  for (const auto* value : given) in.push_back(floats(*value));
  for (const auto& output : network.outputs())
    out.emplace_back(static_cast<size_t>(numel(output.shape)));
  const std::vector<std::span<const float>> in_spans(in.begin(), in.end());
  const std::vector<std::span<float>> out_spans(out.begin(), out.end());
  session.run(in_spans, out_spans, 1);
  if (expected.empty() || expected.size() > out.size())
    return {false, false, fmt::format("{} outputs, expected {}", out.size(), expected.size())};
  for (size_t i = 0; i < expected.size(); ++i) {
    if (result.output_shapes[i] != expected[i]->shape)
      return {false, false,
              fmt::format("output {}: shape {}, expected {}", i, to_string(result.output_shapes[i]),
                          to_string(expected[i]->shape))};
    const bool half =
        i < model.graph.outputs.size() && model.graph.outputs[i].type == bundle::onnx::Type::f16;
    const std::string wrong = difference(out[i], *expected[i], half);
    if (!wrong.empty()) return {false, false, fmt::format("output {}: {}", i, wrong)};
  }
  if (!exported.empty()) write_case(exported, parsed, network, in, out);
  return {true, false, ""};
}

Outcome run_case(const ModelSource& model, const std::vector<ConstantPtr>& inputs,
                 const std::vector<ConstantPtr>& expected, Fixed fixed, const fs::path& exported) {
  bundle::OnnxOptions options;
  std::vector<const bundle::onnx::Constant*> given;
  std::set<std::string> initialized;
  for (const auto& tensor : model.graph.initializers) initialized.insert(tensor->name);
  size_t next = 0;
  for (const auto& input : model.graph.inputs) {
    if (initialized.count(input.name) || next >= inputs.size()) continue;
    const ConstantPtr& value = inputs[next++];
    const bool constant = (fixed == Fixed::integers && input.type == bundle::onnx::Type::i64) ||
                          (fixed == Fixed::all_but_first && !given.empty());
    if (constant) {
      options.constants[input.name] = value;
    } else {
      options.inputs[input.name] = value->shape;
      given.push_back(value.get());
    }
  }
  bundle::OnnxResult result;
  std::vector<std::byte> bytes;
  try {
    bundle::Builder builder;
    result = bundle::build_onnx(model, options, builder);
    bytes = builder.bytes();
  } catch (const Error& error) {
    return {false, true, error.what()};
  }
  // What the importer took has to run: from here on nothing is a refusal.
  try {
    return run_imported(bytes, exported, model, result, given, expected);
  } catch (const Error& error) {
    return {false, false, error.what()};
  }
}

/// Inputs are inputs where that is possible; otherwise integers, then all but the first, are
/// constants of the model, as weights, shapes and axes are in real ones.
Outcome run_case(const fs::path& folder, const ModelSource& model, const fs::path& exported) {
  Outcome outcome;
  try {
    const auto inputs = read_tensors(folder / "test_data_set_0", "input"),
               expected = read_tensors(folder / "test_data_set_0", "output");
    for (const Fixed fixed : {Fixed::none, Fixed::integers, Fixed::all_but_first}) {
      outcome = run_case(model, inputs, expected, fixed, exported);
      if (!outcome.refused) return outcome;
    }
  } catch (const Error& error) {
    return {false, true, error.what()};
  }
  return outcome;
}

/// The reason without file and node.
std::string short_reason(const std::string& reason) {
  const size_t at = reason.rfind("): ");
  std::string text = at == std::string::npos ? reason : reason.substr(at + 3);
  for (const std::string_view file : {".pb: ", ".onnx: "})
    if (const size_t path = text.find(file); path != std::string::npos)
      text = text.substr(path + file.size());
  if (const size_t name = text.find("tensor '"); name != std::string::npos) {
    const size_t end = text.find("': ", name);
    if (end != std::string::npos) text = text.substr(end + 3);
  }
  std::replace(text.begin(), text.end(), '|', '/');
  return text;
}

struct Row {
  int passed = 0, failed = 0;
  std::map<std::string, int> refused;  ///< reason -> cases
};

std::string table(const std::map<std::string, Row>& rows, int passed, int refused) {
  std::string text =
      "# ONNX operators\n\n"
      "What `sluice import model.onnx` reads, of operator sets 9 to 17. The table is what "
      "`build/engine-only/bin/onnx_conformance`\nprints: the node tests of ONNX (Debian's "
      "libonnx-testdata) through import and engine, compared with the expected outputs\nto "
      "1e-4 (float16: 1e-3, the engine computes in f32). Where an operator needs it, all inputs "
      "but the first are constants, as they are in "
      "exported models.\n\nRefused are variants that the importer names and does not run; it never "
      "computes something else instead. `Loop`, `Scan`,\nsequences, strings and operators of other "
      "domains are not read. `If` is read where its condition is known.\n\n";
  text += fmt::format("{} cases pass, {} are refused.\n\n", passed, refused);
  text += "| operator | cases passed | refused |\n| --- | --- | --- |\n";
  for (const auto& [op, row] : rows) {
    std::string reasons;
    for (const auto& [reason, count] : row.refused)
      reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", count, reason);
    text += fmt::format("| `{}` | {} | {} |\n", op, row.passed, reasons);
  }
  return text;
}

int run(const std::vector<std::string>& arguments) {
  if (!fs::is_directory(kData)) {
    fmt::print(stderr, "{}: not there; install libonnx-testdata (scripts/deps.sh test)\n", kData);
    return 77;
  }
  const auto option = [&](const char* name) {
    return arguments.size() == 2 && arguments[0] == name ? arguments[1] : "";
  };
  const std::string only = option("--case"), exported = option("--export");
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(kData)) folders.push_back(entry.path());
  std::sort(folders.begin(), folders.end());
  std::map<std::string, Row> rows;
  int passed = 0, failed = 0, refused = 0;
  for (const fs::path& folder : folders) {
    const std::string name = folder.filename().string();
    if (!only.empty() && name != only) continue;
    ModelSource model;
    try {
      model = bundle::onnx::open_model((folder / "model.onnx").string());
    } catch (const Error& error) {
      if (!only.empty()) fmt::print("{}: {}\n", name, error.what());
      continue;  // another operator set, or functions
    }
    std::set<std::string> operators;
    collect(model.graph, operators);
    const bool claimed = std::all_of(operators.begin(), operators.end(), [](const auto& op) {
      return bundle::onnx::find_onnx_operator(op) != nullptr;
    });
    if (!claimed) continue;
    const Outcome outcome =
        run_case(folder, model, exported.empty() ? fs::path() : fs::path(exported) / name);
    if (!only.empty())
      fmt::print("{}: {} {}\n", name,
                 outcome.passed    ? "passed"
                 : outcome.refused ? "refused"
                                   : "FAILED",
                 outcome.reason);
    // A case is counted for the operator that it tests.
    std::string subject = *operators.begin();
    for (const std::string& op : operators)
      if (op != "Constant" && op != "Cast") subject = op;
    if (operators.count("If")) subject = "If";
    Row& row = rows[subject];
    if (outcome.passed) {
      ++row.passed;
      ++passed;
    } else if (outcome.refused) {
      ++row.refused[short_reason(outcome.reason)];
      ++refused;
    } else {
      ++row.failed;
      ++failed;
      fmt::print(stderr, "{}: {}\n", name, outcome.reason);
    }
  }
  if (!only.empty() && passed + failed + refused == 0) {
    fmt::print(stderr, "{}: no such case, or of another operator set\n", only);
    return 1;
  }
  const std::string text = table(rows, passed, refused);
  if (arguments.size() == 2 && arguments[0] == "--check") {
    const bool same = read_text_file(arguments[1]) == text;
    fmt::print(stderr, "{} passed, {} failed, {} refused; {}\n", passed, failed, refused,
               same ? "as the file says" : "the file says otherwise: write it again");
    return failed == 0 && same ? 0 : 1;
  }
  if (!exported.empty()) {
    fmt::print("{} cases written to {}\n", passed, exported);
  } else if (only.empty()) {
    fmt::print("{}", text);
  }
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) {
  try {
    return sluice::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    fmt::print(stderr, "onnx_conformance: {}\n", error.what());
    return 1;
  }
}
