// sluice export: bundles become files that other programs read.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "cli/export_onnx.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/verb.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"
#include "sluice/bundle/export/export.h"

namespace sluice::cli {
namespace export_verb {

using Weights = bundle::ExportOptions::Weights;

struct Options {
  std::string model, output, format, dtype = "keep";
};

const std::map<std::string, Weights> kTypes = {{"keep", Weights::keep}, {"f32", Weights::f32},
                                               {"f16", Weights::f16},   {"bf16", Weights::bf16},
                                               {"q8_0", Weights::q8_0}, {"q4_0", Weights::q4_0}};

int run_export(const Options& options, const Globals& globals) {
  if (options.format == "onnx") {
    if (options.dtype != "keep" && options.dtype != "f32")
      fail(Code::usage, "--dtype {}: an ONNX file holds f32", options.dtype);
    return export_onnx_model(options.model, options.output, globals);
  }
  bundle::ExportOptions choices;
  choices.weights = kTypes.at(options.dtype);
  std::optional<Progress> progress;
  choices.progress = [&](int64_t done, int64_t total) {
    if (!progress) progress.emplace("export " + options.output, total, "layers");
    progress->update(done);
  };
  const bundle::Bundle model = bundle::Bundle::open(options.model);
  clean_up_on_interrupt(options.output);
  const bool folder = options.format == "hf";
  const bundle::ExportResult result =
      folder ? bundle::export_hugging_face(model, options.output, choices)
             : bundle::export_gguf(model, options.output, choices);
  if (progress) progress->finish();
  const auto bytes = static_cast<int64_t>(
      std::filesystem::file_size(folder ? options.output + "/model.safetensors" : options.output));
  if (globals.json) {
    print_json({{"model", options.model},
                {"output", options.output},
                {"format", options.format},
                {"architecture", result.architecture},
                {"tensors", result.tensors},
                {"tokenizer", result.tokenizer},
                {"file_bytes", bytes},
                {"notes", result.notes}});
    return kSuccess;
  }
  Table table({"export", options.output});
  table.row({"architecture", result.architecture});
  table.row({"tensors", fmt::format("{}", result.tensors)});
  table.row({"file", format_bytes(bytes)});
  table.row({"tokenizer", result.tokenizer ? "in the file" : "none: ids only"});
  for (const std::string& note : result.notes) table.row({"note", note});
  print(table.text());
  return kSuccess;
}

Action setup(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("MODEL", options->model, "Bundle")->required();
  app.add_option("-o,--output", options->output, "File (gguf, onnx) or folder (hf) to write")
      ->required()
      ->type_name("PATH");
  app.add_option(
         "--format", options->format,
         "gguf: a file for llama.cpp; hf: a folder for transformers: Llama-type decoders, with "
         "their tokenizer. onnx: a file for other runtimes, of static graphs")
      ->required()
      ->check(CLI::IsMember({"gguf", "hf", "onnx"}))
      ->type_name("FORMAT");
  app.add_option("--dtype", options->dtype,
                 "Type of the matrices: keep, f32, f16, bf16, and for gguf q8_0 or q4_0")
      ->check(CLI::IsMember({"keep", "f32", "f16", "bf16", "q8_0", "q4_0"}))
      ->type_name("TYPE")
      ->capture_default_str();
  return [options](const Globals& globals) { return run_export(*options, globals); };
}

const bool registered =
    register_verb({"export", "Write a bundle as a file of another program",
                   "sluice export model.safetensors -o model.gguf --format gguf --dtype q8_0\n"
                   "sluice export net.safetensors -o net.onnx --format onnx",
                   setup});

}  // namespace export_verb
}  // namespace sluice::cli
