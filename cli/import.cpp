// sluice import: models in other formats become bundles.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "cli/import_onnx.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/verb.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"
#include "sluice/bundle/bundle.h"
#include "sluice/bundle/gguf/gguf.h"
#include "sluice/bundle/import/gguf.h"
#include "sluice/bundle/import/hf.h"

namespace sluice::cli {
namespace import_verb {

using Weights = bundle::ImportOptions::Weights;

const std::map<std::string, Weights> kTypes = {
    {"keep", Weights::keep},          {"f32", Weights::f32},
    {"bf16", Weights::bf16},          {"i8", Weights::i8},
    {"i8-32", Weights::i8_32},        {"i4-32", Weights::i4_32},
    {"i4-32-min", Weights::i4_32_min}};

struct Options {
  std::string source, output, dtype = "keep";
  bundle::ImportOptions import;
  std::string for_text;  ///< an option that was given and is none for ONNX
  OnnxChoice onnx;
};

std::string joined(const std::vector<std::string>& names, size_t most) {
  std::string text;
  for (size_t i = 0; i < names.size() && i < most; ++i) text += (i ? ", " : "") + names[i];
  if (names.size() > most) text += fmt::format(" and {} more", names.size() - most);
  return text;
}

/// By what is in it, whatever it is called.
bool begins_as_gguf(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char magic[4] = {};
  return std::filesystem::is_regular_file(path) && file.read(magic, sizeof magic) &&
         bundle::gguf::is_gguf(std::as_bytes(std::span(magic)));
}

int import(Options options, const Globals& globals) {
  if (options.source.ends_with(".onnx")) {
    if (!options.for_text.empty())
      fail(Code::usage, "{}: {} belongs to Hugging Face and GGUF models", options.source,
           options.for_text);
    clean_up_on_interrupt(options.output);
    options.onnx.activations = options.import.activations;
    return import_onnx_model(options.source, options.output, options.onnx, globals);
  }
  if (options.onnx.given())
    fail(Code::usage,
         "{}: --input, --value, --carry, --want, --task, --labels, --mean, --std, "
         "--weights and --bgr belong to ONNX files",
         options.source);
  options.import.weights = kTypes.at(options.dtype);
  std::optional<Progress> progress;
  options.import.progress = [&](int64_t done, int64_t total) {
    if (!progress) progress.emplace("import " + options.source, total, "tensors");
    progress->update(done);
  };
  clean_up_on_interrupt(options.output);
  const auto begun = std::chrono::steady_clock::now();
  const bundle::ImportResult result =
      begins_as_gguf(options.source)
          ? bundle::import_gguf(options.source, options.output, options.import)
          : bundle::import_hugging_face(options.source, options.output, options.import);
  if (progress) progress->finish();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  const bundle::Bundle model = bundle::Bundle::open(options.output);
  const Cost& cost = model.info().total;
  if (globals.json) {
    print_json({{"model", options.output},
                {"source", options.source},
                {"architecture", result.architecture},
                {"kind", result.kind},
                {"layers", result.layers},
                {"width", result.width},
                {"vocabulary", result.vocabulary},
                {"context", result.context},
                {"parameters", cost.params},
                {"file_bytes", model.file_bytes()},
                {"tokenizer", result.tokenizer},
                {"ignored", result.ignored},
                {"seconds", seconds}});
    return kSuccess;
  }
  Table table({"model", options.output});
  table.row({"architecture", fmt::format("{}, {} layers of width {}", result.architecture,
                                         result.layers, result.width)});
  table.row({"kind", result.kind});
  table.row({"parameters", format_count(cost.params)});
  table.row({"file", format_bytes(static_cast<int64_t>(model.file_bytes()))});
  if (result.kind == "classify") {
    const Shape& picture = model.graph().inputs[0].shape;
    table.row({"pictures",
               fmt::format("{} x {} pixels, {} channels", picture[1], picture[2], picture[0])});
    table.row({"classes", std::to_string(model.task().labels.size())});
  } else {
    table.row({"context", fmt::format("{} tokens", result.context)});
    table.row({"tokenizer", result.tokenizer ? "tokenizer.json, in the file" : "none: ids only"});
  }
  if (!result.ignored.empty()) table.row({"not needed", joined(result.ignored, 4)});
  print(table.text());
  return kSuccess;
}

Action setup(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("SRC", options->source,
                 "Folder of a Hugging Face model (config.json, safetensors, tokenizer.json), the "
                 "safetensors file in it, a GGUF file or an ONNX file")
      ->required();
  app.add_option("-o,--output", options->output, "Bundle to write")->required()->type_name("FILE");
  app.add_option("--dtype", options->dtype,
                 "Type of the matrices: keep (f16, Q4_K and Q6_K become f32), f32, bf16, i8, "
                 "i8-32, i4-32 or i4-32-min")
      ->check(CLI::IsMember({"keep", "f32", "bf16", "i8", "i8-32", "i4-32", "i4-32-min"}))
      ->type_name("TYPE")
      ->capture_default_str();
  app.add_option("--activations", options->import.activations,
                 "What layers with matrices in less than f32 round their inputs to: f32 (not at "
                 "all), bf16 or i8; i8 is the fastest. Convolutions do where it makes them faster")
      ->check(CLI::IsMember({"f32", "bf16", "i8"}))
      ->type_name("TYPE")
      ->capture_default_str();
  app.add_option("--context", options->import.context,
                 "Most tokens of a text; by default what the model can, a decoder at most 4096")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->type_name("N");
  app.add_option("--block", options->import.block, "Most tokens a decoder reads at once [128]")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->type_name("N");
  app.add_option("--cache-type", options->import.cache_type, "Type of a decoder's keys and values")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->type_name("TYPE")
      ->capture_default_str();
  app.add_option("--pooling", options->import.pooling,
                 "The vector of a text, where modules.json does not say: mean, first or last")
      ->check(CLI::IsMember({"mean", "first", "last"}))
      ->type_name("KIND");
  app.add_flag("--normalize", options->import.normalize, "Scale that vector to length 1");
  add_onnx_options(app, options->onnx);
  return [options, &app](const Globals& globals) {
    for (const char* name :
         {"--dtype", "--context", "--block", "--cache-type", "--pooling", "--normalize"})
      if (app.count(name) > 0) options->for_text = name;
    return import(*options, globals);
  };
}

const bool registered =
    register_verb({"import", "Make a bundle of a Hugging Face model, a GGUF or an ONNX file",
                   "sluice import all-MiniLM-L6-v2/ -o minilm.safetensors\n"
                   "sluice import all-MiniLM-L6-v2/ -o minilm-i8.safetensors --dtype i8 "
                   "--activations i8\n"
                   "sluice import Qwen3-0.6B/ -o qwen.safetensors --dtype bf16 --context 8192\n"
                   "sluice import model.gguf -o model.safetensors\n"
                   "sluice import net.onnx -o net.safetensors --input x=1x3x224x224",
                   setup});

}  // namespace import_verb
}  // namespace sluice::cli
