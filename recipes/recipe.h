// A recipe: one published system, runnable. It measures system, baseline and negative control in
// one run and returns a report; bars are data in its recipe.toml, verdicts are computed, never
// written.
//
//   recipes/<family>/<slug>/recipe.cpp   `static const bool registered = register_recipe("<slug>",
//   run);`, in a
//                                        namespace of its own (recipes are compiled several to a
//                                        file)
//   recipes/<family>/<slug>/recipe.toml  [defaults] and [scale.tiny|small|full] sizes and
//   schedules, [[bar]] bars,
//                                        [[control]] controls
//   recipes/<family>/<slug>/README.md    what, paper, command, result, limits
#pragma once
#include <c10/core/Device.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "sluice/base/json_fwd.h"
#include "sluice/base/plot.h"

namespace sluice::recipes {

/// One row of the catalogue of 129 systems (recipes/catalogue.toml, embedded).
struct CatalogueEntry {
  std::string id, slug, family, kind, title;
};
const std::vector<CatalogueEntry>& catalogue();

/// Samples of one metric over seeds.
using Samples = std::vector<double>;

struct Arm {
  std::string name, role;  ///< role: "system", "baseline", "control"
  std::map<std::string, Samples> metrics;
};

struct NamedFigure {
  std::string name;  ///< file stem: docs/results/<slug>-<name>.svg
  Figure figure;
};

/// What a run collects. Arms keep their order of creation.
class Report {
 public:
  Arm& arm(const std::string& name, const std::string& role);
  const Arm* find(const std::string& name) const;
  void add(const std::string& arm, const std::string& role, const std::string& metric,
           double value);
  std::vector<Arm> arms;
  std::vector<std::string> data, notes;
  std::map<std::string, double> limits;
  std::vector<NamedFigure> figures;
};

struct RunOptions {
  std::string slug, scale = "small";
  int seeds = 0;  ///< 0: the scale's own number
  c10::Device device{c10::kCPU};
  std::string work_directory;  ///< for bundles and checkpoints of this run
  std::string command;         ///< as typed, for the report
};

/// Handed to a recipe's run function.
struct RecipeRun {
  const RunOptions& options;
  const Json& settings;         ///< [scale.<scale>] of recipe.toml, over [defaults]
  std::vector<uint64_t> seeds;  ///< fixed list 1, 2, ...
  Report& report;
};

using RecipeFunction = void (*)(RecipeRun& run);
bool register_recipe(const std::string& slug, RecipeFunction run);
/// Slugs with code, sorted.
std::vector<std::string> runnable();

/// Runs and judges. The JSON follows the report schema of docs/add-a-recipe.md. Throws Error{usage}
/// for an unknown slug or scale. `bars` and `controls` of recipe.toml:
///   [[bar]]      name, claim, arm, metric, op = "value"|"ratio"|"diff", against = {arm, metric}?,
///   relation = "<="|">=", bound
///   [[control]]  bar = "<bar name>", arm: the bar evaluated with this arm in place of the system's
///   must fail. Both may carry scales = ["small", "full"]: where they are judged (default all).
Json reproduce(const RunOptions& options, Report& report);

/// Pure function of a report's arms and the declared bars; tested on its own.
Json judge(const Report& report, const Json& declared, const std::string& scale);

/// Writes <directory>/<slug>.json and the figures as <directory>/<slug>-<name>.svg, each whole or
/// not at all; returns the paths. The numbers, which may have cost hours, come first; where there
/// is no gnuplot the figures are written as its scripts (<slug>-<name>.gnuplot), and a line says
/// so.
std::vector<std::string> write_report(const Json& report, const Report& collected,
                                      const std::string& directory);

/// Tables for people from a report JSON.
std::string report_text(const Json& report);
/// docs/catalogue.md from the catalogue and docs/results/*.json of `root`.
std::string catalogue_markdown(const std::string& root);

}  // namespace sluice::recipes
