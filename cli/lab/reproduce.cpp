// sluice reproduce: one published system with its baseline and its negative control, judged against
// declared bars.
#include <CLI/CLI.hpp>

#include "cli/interrupt.h"
#include "cli/lab/lab_verb.h"
#include "cli/output.h"
#include "recipes/recipe.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/table.h"

namespace sluice::cli {
namespace reproduce_verb {

struct Options {
  std::string slug, scale = "small", device = "cpu", out, catalogue;
  int seeds = 0;
  bool list = false, require_met = false;
};

int list(const Globals& globals) {
  const std::vector<std::string> runnable = recipes::runnable();
  const auto has_code = [&](const std::string& slug) {
    return std::find(runnable.begin(), runnable.end(), slug) != runnable.end();
  };
  Table table({"id", "slug", "family", "state", "title"});
  Json rows = Json::array();
  for (const recipes::CatalogueEntry& entry : recipes::catalogue()) {
    const char* state = has_code(entry.slug) ? "runnable" : "planned";
    const bool cut = entry.title.size() > 72;
    table.row({entry.id, entry.slug, entry.family, state,
               cut ? entry.title.substr(0, entry.title.rfind(' ', 69)) + "..." : entry.title});
    rows.push_back({{"id", entry.id},
                    {"slug", entry.slug},
                    {"family", entry.family},
                    {"kind", entry.kind},
                    {"title", entry.title},
                    {"state", state}});
  }
  if (globals.json) {
    print_json({{"systems", rows}});
  } else {
    print(fmt::format("{}\n{} of {} systems have code.\n", table.text(), runnable.size(),
                      recipes::catalogue().size()));
  }
  return kSuccess;
}

void require_runnable(const std::string& slug) {
  const std::vector<std::string> runnable = recipes::runnable();
  if (std::find(runnable.begin(), runnable.end(), slug) != runnable.end()) {
    return;
  }
  std::vector<std::string> all;
  for (const recipes::CatalogueEntry& entry : recipes::catalogue()) {
    if (entry.slug == slug) {
      fail(Code::unsupported,
           "{} ({}) is in the catalogue but has no code yet; see: sluice reproduce --list", slug,
           entry.id);
    }
    all.push_back(entry.slug);
  }
  const std::string near = nearest_name(slug, all);
  fail(Code::usage, "unknown system '{}'.{} See: sluice reproduce --list", slug,
       near.empty() ? "" : fmt::format(" Did you mean '{}'?", near));
}

int reproduce(const Options& options, const Globals& globals) {
  if (options.list) {
    return list(globals);
  }
  if (!options.catalogue.empty()) {
    prepare_output(options.catalogue);
    write_text_file(options.catalogue, recipes::catalogue_markdown("."));
    if (globals.json) {
      print_json({{"written", options.catalogue}});
    } else {
      print(fmt::format("wrote {}\n", options.catalogue));
    }
    return kSuccess;
  }
  if (options.slug.empty()) {
    fail(Code::usage,
         "which system? For example consensus-subnetwork; see: sluice reproduce --list");
  }
  require_runnable(options.slug);
  recipes::RunOptions run;
  run.slug = options.slug;
  run.scale = options.scale;
  run.seeds = options.seeds;
  run.device = parse_device(options.device);
  run.work_directory = "runs/" + options.slug;
  run.command = globals.command;
  const std::string out = options.out.empty() ? run.work_directory : options.out;
  make_directories(run.work_directory);
  make_directories(out);
  clean_up_on_interrupt(run.work_directory);
  const std::string path = out + "/" + options.slug + ".json";
  prepare_output(path);

  recipes::Report report;
  const Json document = recipes::reproduce(run, report);
  recipes::write_report(document, report, out);
  if (globals.json) {
    print_json(document);
  } else {
    print(recipes::report_text(document) + "\nwrote " + path + "\n");
  }
  const bool met = document.value("verdict", "") == "met";
  return options.require_met && !met ? kFailure : kSuccess;
}

Action setup(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("SLUG", options->slug, "The system, as --list names it");
  app.add_option("--scale", options->scale, "tiny: seconds; small: minutes, the proof; full: GPU")
      ->check(CLI::IsMember({"tiny", "small", "full"}))
      ->type_name("SCALE")
      ->capture_default_str();
  app.add_option("--seeds", options->seeds, "Number of seeds; 0: as the scale says")
      ->check(CLI::Range(0, 1000))
      ->type_name("N");
  app.add_option("--device", options->device, "cpu, cuda or cuda:N")
      ->type_name("DEVICE")
      ->capture_default_str();
  app.add_option("--out", options->out, "Where report and pictures go; by default runs/SLUG")
      ->type_name("DIR");
  app.add_flag("--require-met", options->require_met, "Exit 1 when a bar is missed");
  app.add_flag("--list", options->list, "Show the catalogue");
  app.add_option("--catalogue", options->catalogue,
                 "Write the catalogue page from docs/results of this directory")
      ->type_name("FILE");
  return [options](const Globals& globals) {
    return with_libtorch(globals, [&] { return reproduce(*options, globals); });
  };
}

const bool registered =
    register_verb({"reproduce", "Run a published system with its baseline and control",
                   "sluice reproduce consensus-subnetwork --scale tiny\n"
                   "sluice reproduce lottery-ticket --seeds 3 --out docs/results\n"
                   "sluice reproduce --list",
                   setup});

}  // namespace reproduce_verb
}  // namespace sluice::cli
