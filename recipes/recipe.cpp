// Running a recipe and assembling its report.
#include "recipes/recipe.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <optional>

#include "recipes/registry.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/origin.h"
#include "sluice/base/plot_script.h"
#include "sluice/base/progress.h"
#include "sluice/base/temp_directory.h"

namespace sluice::recipes {
namespace {

void check_roles(const Report& report) {
  if (report.arms.empty()) fail(Code::internal, "the recipe reported no arms");
  for (const auto& arm : report.arms)
    if (arm.metrics.empty()) fail(Code::internal, "arm '{}' has no metrics", arm.name);
}

}  // namespace

Arm& Report::arm(const std::string& name, const std::string& role) {
  if (role != "system" && role != "baseline" && role != "control")
    fail(Code::internal, "arm '{}': role '{}': system, baseline or control", name, role);
  for (auto& arm : arms) {
    if (arm.name != name) continue;
    if (arm.role != role) fail(Code::internal, "arm '{}' is a {}, not a {}", name, arm.role, role);
    return arm;
  }
  return arms.emplace_back(Arm{name, role, {}});
}

const Arm* Report::find(const std::string& name) const {
  for (const auto& arm : arms)
    if (arm.name == name) return &arm;
  return nullptr;
}

void Report::add(const std::string& arm_name, const std::string& role, const std::string& metric,
                 double value) {
  arm(arm_name, role).metrics[metric].push_back(value);
}

Json reproduce(const RunOptions& given, Report& report) {
  RunOptions options = given;
  if (const auto* entry = find_in_catalogue(options.slug))
    options.slug = entry->slug;  // "S012" works too
  const auto function = recipe_function(options.slug);
  const auto* entry = find_in_catalogue(options.slug);
  if (entry == nullptr)
    fail(Code::internal, "recipe '{}' is not in recipes/catalogue.toml", options.slug);
  const auto declared = declared_settings(options.slug);
  const auto settings = scale_settings(declared, options.slug, options.scale);
  const int64_t count = options.seeds > 0
                            ? options.seeds
                            : json_get<int64_t>(settings, "seeds", options.slug + "/recipe.toml");
  if (count < 1 || count > 100) fail(Code::usage, "seeds {}: between 1 and 100", count);
  std::optional<TempDirectory> own;
  if (options.work_directory.empty()) {
    options.work_directory = own.emplace(options.slug).path();
  } else {
    make_directories(options.work_directory);
  }

  std::vector<uint64_t> seeds;
  for (int64_t seed = 1; seed <= count; ++seed) seeds.push_back(static_cast<uint64_t>(seed));
  RecipeRun run{options, settings, seeds, report};
  const auto start = std::chrono::steady_clock::now();
  function(run);
  report.limits["run_seconds"] =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  check_roles(report);

  Json arms = Json::array();
  for (const auto& arm : report.arms) {
    Json metrics = Json::object();
    for (const auto& [name, samples] : arm.metrics)
      metrics[name] = summarize(samples, arm.name + " " + name);
    arms.push_back({{"name", arm.name}, {"role", arm.role}, {"metrics", metrics}});
  }
  Json figures = Json::array();
  for (const auto& figure : report.figures)
    figures.push_back(options.slug + "-" + figure.name + ".svg");
  auto judged = judge(report, declared, options.scale);
  if (judged["bars"].empty())
    report.notes.push_back("no bar is judged at this scale: it checks the wiring only");
  return {{"slug", entry->slug},
          {"id", entry->id},
          {"family", entry->family},
          {"scale", options.scale},
          {"date", today()},
          {"commit", build_commit()},
          {"command", options.command.empty() ? fmt::format("sluice reproduce {} --scale {}",
                                                            options.slug, options.scale)
                                              : options.command},
          {"machine", machine_json(at::get_num_threads(),
                                   options.device.is_cpu() ? "" : options.device.str())},
          {"data", report.data},
          {"seeds", seeds},
          {"arms", arms},
          {"bars", judged["bars"]},
          {"controls", judged["controls"]},
          {"limits", report.limits},
          {"figures", figures},
          {"notes", report.notes},
          {"verdict", judged["verdict"]}};
}

std::vector<std::string> write_report(const Json& report, const Report& collected,
                                      const std::string& directory) {
  make_directories(directory);
  const auto slug = json_get<std::string>(report, "slug", "report");
  std::vector<std::string> paths{directory + "/" + slug + ".json"};
  write_text_file(paths[0], report.dump(2) + "\n");
  std::string undrawn;
  for (const auto& figure : collected.figures) {
    const std::string stem = fmt::format("{}/{}-{}", directory, slug, figure.name);
    std::string path = stem + ".svg", text;
    try {
      text = render_svg(figure.figure);
    } catch (const Error& error) {
      if (error.code() != Code::missing) throw;
      path = stem + ".gnuplot";
      text = gnuplot_script(figure.figure);
      undrawn = fmt::format("{}; to draw later: gnuplot {} > {}.svg", error.what(), path, stem);
    }
    write_text_file(path, text);
    paths.push_back(path);
  }
  if (!undrawn.empty()) log_line("no pictures: " + undrawn);
  return paths;
}

}  // namespace sluice::recipes
