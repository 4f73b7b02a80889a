// sluice delta: a fine-tuning as a sparse difference, in a file of its own.
#include <CLI/CLI.hpp>
#include <filesystem>

#include "cli/lab/lab_verb.h"
#include "cli/output.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/table.h"
#include "sluice/lab/pass/delta.h"

namespace sluice::cli {
namespace delta_verb {

struct Options {
  std::string base, tuned, output, scope = "global", layers = "**";
  double density = 0.05;
};

int delta(const Options& options, const Globals& globals) {
  if (options.scope != "global" && options.scope != "layer")
    fail(Code::usage, "--scope {}: expected global or layer", options.scope);
  if (!(options.density >= 0 && options.density <= 1))
    fail(Code::usage, "--density {}: expected 0 (vectors only) to 1 (all that differs)",
         options.density);
  prepare_output(options.output);
  const lab::Model base = lab::load_model(options.base), tuned = lab::load_model(options.tuned);
  bundle::DeltaSummary summary;
  bundle::SparseDelta made;
  try {
    made = lab::make_delta(base, tuned,
                           {.density = options.density,
                            .by_layer = options.scope == "layer",
                            .pattern = options.layers},
                           &summary);
  } catch (const Error& error) {
    fail(error.code(), "{} and {}: {}", options.base, options.tuned, error.what());
  }
  const auto name = [](const std::string& path) {
    return std::filesystem::path(path).filename().string();
  };
  made.made = Json({{"base", name(options.base)},
                    {"tuned", name(options.tuned)},
                    {"density", options.density},
                    {"scope", options.scope},
                    {"layers", options.layers},
                    {"energy", summary.energy}})
                  .dump();
  bundle::write_delta(options.output, made);
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(options.output));
  if (globals.json) {
    Json tensors = Json::object();
    for (const auto& [path, tensor] : made.tensors)
      tensors[path] = {{"entries", tensor.index.size()}, {"of", numel(tensor.shape)}};
    print_json({{"output", options.output},
                {"base", options.base},
                {"tuned", options.tuned},
                {"digest", made.base},
                {"weights", summary.weights},
                {"changed", summary.changed},
                {"kept", summary.kept},
                {"vector_entries", summary.vectors},
                {"energy", summary.energy},
                {"bytes", bytes},
                {"tensors", tensors}});
    return kSuccess;
  }
  Table table({"tensor", "entries", "of"});
  for (const auto& [path, tensor] : made.tensors)
    table.row({path, format_count(std::ssize(tensor.index)), format_count(numel(tensor.shape))});
  print(fmt::format(
      "{}\n{} of {} changed weights kept ({} in all), {} entries of vectors; {:.1f} % of the "
      "squared difference\nwrote {}, {}\nnext: sluice transform {} -o tuned.safetensors --pass "
      "apply-delta:file={}\n",
      table.text(), format_count(summary.kept), format_count(summary.changed),
      format_count(summary.weights), format_count(summary.vectors), 100 * summary.energy,
      options.output, format_bytes(bytes), options.base, options.output));
  return kSuccess;
}

Action setup(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("BASE", options->base, "The network before fine-tuning")->required();
  app.add_option("TUNED", options->tuned, "The same after it")->required();
  app.add_option("-o,--output", options->output, "File to write")->required()->type_name("FILE");
  app.add_option("--density", options->density,
                 "Share of the weights that are kept: those that changed most. Biases, norms and "
                 "their statistics are kept whole")
      ->type_name("SHARE")
      ->capture_default_str();
  app.add_option("--scope", options->scope,
                 "'global': the largest of all tensors; 'layer': that share of each")
      ->type_name("SCOPE")
      ->capture_default_str();
  app.add_option("--layers", options->layers, "Tensors that may change; others stay the base's")
      ->type_name("PATTERN")
      ->capture_default_str();
  return [options](const Globals& globals) {
    return with_libtorch(globals, [&] { return delta(*options, globals); });
  };
}

const bool registered = register_verb(
    {"delta", "Keep a fine-tuning as a sparse difference to its base",
     "sluice delta base.safetensors tuned.safetensors -o task.safetensors --density 0.05\n"
     "sluice transform base.safetensors -o again.safetensors --pass "
     "apply-delta:file=task.safetensors",
     setup});

}  // namespace delta_verb
}  // namespace sluice::cli
