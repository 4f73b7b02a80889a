// sluice inspect: what is in a file.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "cli/output.h"
#include "cli/verb.h"
#include "sluice/base/json.h"
#include "sluice/bundle/bundle.h"
#include "sluice/bundle/describe.h"

namespace sluice::cli {
namespace {

struct Options {
  std::string file;
  int depth = -1;
  bool check = false;
};

int inspect(const Options& options, const Globals& globals) {
  const bundle::DescribeOptions describe{.depth = options.depth};
  const bundle::SafetensorsFile file = bundle::SafetensorsFile::open(options.file);
  if (!bundle::is_bundle(file)) {
    if (globals.json) {
      Json document = bundle::describe_json(file, describe);
      if (options.check) {
        document["check"] = {{"verified", 0}, {"tensors", file.tensors().size()}};
      }
      print_json(document);
      return kSuccess;
    }
    print(bundle::describe_text(file, describe));
    if (options.check) {
      print(
          "check: not a Sluice bundle, so there are no checksums; header and offsets are sound\n");
    }
    return kSuccess;
  }
  const bundle::Bundle bundle = bundle::Bundle::open(options.file);
  const int64_t verified = options.check ? bundle.verify() : 0;
  const size_t tensors = bundle.graph().tensors.size() + (bundle.task().tokenizer.empty() ? 0 : 1);
  if (globals.json) {
    Json document = bundle::describe_json(bundle, describe);
    if (options.check) {
      document["check"] = {{"verified", verified}, {"tensors", tensors}};
    }
    print_json(document);
    return kSuccess;
  }
  print(bundle::describe_text(bundle, describe));
  if (options.check) {
    print(fmt::format("check: {} of {} tensors have a checksum, all of them match\n", verified,
                      tensors));
  }
  return kSuccess;
}

Action setup(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("FILE", options->file, "A bundle, or any safetensors file")->required();
  app.add_option("--depth", options->depth, "Levels of the tree; all by default")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  app.add_flag("--check", options->check, "Compare every tensor with its checksum");
  return [options](const Globals& globals) { return inspect(*options, globals); };
}

const bool registered =
    register_verb({"inspect", "Show bricks, shapes, parameters, MACs and history of a file",
                   "sluice inspect model.safetensors\n"
                   "sluice inspect model.safetensors --depth 1 --check",
                   setup});

}  // namespace
}  // namespace sluice::cli
