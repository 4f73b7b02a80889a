// sluice inspect: what is in a file.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <set>
#include <string>

#include "cli/model_data.h"
#include "cli/output.h"
#include "cli/verb.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/table.h"
#include "sluice/bundle/bundle.h"
#include "sluice/bundle/describe.h"
#include "sluice/bundle/size_choice.h"

namespace sluice::cli {
namespace inspect_verb {

struct Options {
  std::string file;
  int depth = -1;
  bool check = false, sizes = false;
};

/// What a nested network offers: one row per size, with the qualities that were measured.
int show_sizes(const bundle::Bundle& bundle, const Globals& globals) {
  const auto& sizes = bundle.sizes();
  if (sizes.empty()) {
    fail(Code::usage, "{}: it has no table of sizes: a network of one size", bundle.path());
  }
  const auto told = [&](const char* name) {
    return std::ranges::any_of(
        sizes, [&](const auto& entry) { return bundle::measured(entry, name).has_value(); });
  };
  const bool shares = told(bundle::kCostShare), expected = told(bundle::kCostRows),
             times = told(bundle::kSeconds);
  std::set<std::string> qualities;
  for (const bundle::SizeEntry& entry : sizes)
    for (const auto& [name, value] : entry.quality)
      if (name != bundle::kCostShare && name != bundle::kCostRows && name != bundle::kSeconds)
        qualities.insert(name);
  if (globals.json) {
    Json list = Json::array();
    for (const bundle::SizeEntry& entry : sizes) {
      Json quality = Json::object();
      for (const auto& [name, value] : entry.quality) quality[name] = value;
      Json row = {{"name", entry.name}, {"macs", entry.macs}, {"quality", quality}};
      row["cost"] = bundle::cost_share(sizes, list.size());
      list.push_back(std::move(row));
    }
    print_json({{"file", bundle.path()}, {"sizes", list}});
    return kSuccess;
  }
  std::vector<std::string> header{"size", shares ? "MACs at most" : "MACs", "x largest"};
  if (shares) header.push_back("measured");
  if (expected) header.push_back("of rows");
  if (times) header.push_back("time");
  header.insert(header.end(), qualities.begin(), qualities.end());
  Table table(header);
  double most = 1;
  for (const bundle::SizeEntry& entry : sizes)
    most = std::max(most, static_cast<double>(entry.macs));
  for (const bundle::SizeEntry& entry : sizes) {
    const auto macs = static_cast<double>(entry.macs);
    std::vector<std::string> row{entry.name, format_macs(macs), fmt::format("{:.2f}", macs / most)};
    const auto share = bundle::measured(entry, bundle::kCostShare);
    const auto seconds = bundle::measured(entry, bundle::kSeconds);
    if (shares) row.push_back(share ? fmt::format("{:.3f}", *share) : "");
    const auto rows = bundle::measured(entry, bundle::kCostRows);
    if (expected) row.push_back(rows ? fmt::format("{:.0f}", *rows) : share ? "exact" : "");
    if (times) row.push_back(seconds ? format_seconds(*seconds) : "");
    for (const std::string& name : qualities) {
      const auto found = entry.quality.find(name);
      row.push_back(found == entry.quality.end() ? "" : fmt::format("{:.4g}", found->second));
    }
    table.row(row);
  }
  print(table.text());
  return kSuccess;
}

int inspect(const Options& options, const Globals& globals) {
  const bundle::DescribeOptions describe{.depth = options.depth};
  if (options.sizes) return show_sizes(bundle::Bundle::open(options.file), globals);
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
  app.add_flag("--sizes", options->sizes,
               "Only the sizes that the network offers, with cost and measured quality");
  return [options](const Globals& globals) { return inspect(*options, globals); };
}

const bool registered =
    register_verb({"inspect", "Show bricks, shapes, parameters, MACs and history of a file",
                   "sluice inspect model.safetensors\n"
                   "sluice inspect model.safetensors --depth 1 --check\n"
                   "sluice inspect nested.safetensors --sizes",
                   setup});

}  // namespace inspect_verb
}  // namespace sluice::cli
