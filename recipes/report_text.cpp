// Reports for people: the tables of one run, and the catalogue page from all committed runs.
#include <cmath>
#include <filesystem>
#include <set>

#include "recipes/registry.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/table.h"

namespace sluice::recipes {
namespace {

/// Four significant digits; whole numbers up to a million in full.
std::string number(double value) {
  if (value == std::round(value) && std::abs(value) < 1e6) return fmt::format("{:.0f}", value);
  return fmt::format("{:.4g}", value);
}

std::string cell(const Json& summary) {
  const double mean = summary.at("mean").get<double>(), std = summary.at("std").get<double>();
  if (summary.at("n").get<int64_t>() < 2) return number(mean);
  return fmt::format("{} +- {}", number(mean), fmt::format("{:.2g}", std));
}

/// "accuracy of ticket - accuracy of dense".
std::string expression(const Json& bar) {
  const auto metric = bar.at("metric").get<std::string>(), arm = bar.at("arm").get<std::string>();
  const auto& against = bar.at("against");
  if (against.is_null()) return fmt::format("{} of {}", metric, arm);
  const bool ratio = bar.at("op") == "ratio";
  const auto other = against.at("metric").get<std::string>();
  if (other == metric)
    return fmt::format("{}: {} {} {}", metric, arm, ratio ? "/" : "-",
                       against.at("arm").get<std::string>());
  return fmt::format("{} of {} {} {} of {}", metric, arm, ratio ? "/" : "-", other,
                     against.at("arm").get<std::string>());
}

std::string bound_text(const Json& bar) {
  return fmt::format("{} {}", bar.at("relation").get<std::string>(),
                     number(bar.at("bound").get<double>()));
}

/// Markdown table cells end at '|'.
std::string escape_cell(std::string text) {
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2)
    text.insert(at, 1, '\\');
  return text;
}

struct Result {
  std::string state = "not yet", summary, engine;
};

/// Of the system's cheapest setting that raced in the engine (recipes/engine_race.h): time and MACs
/// over those of the dense network.
std::string engine_cell(const Json& report) {
  const auto& limits = report.at("limits");
  if (!limits.contains("race_batch")) return "";
  const Json* cheapest = nullptr;
  std::string ending;
  double least = 0;
  const std::string prefix = "macs_alone";
  for (const auto& arm : report.at("arms")) {
    if (arm.at("role") != "system") continue;
    for (const auto& [name, value] : arm.at("metrics").items()) {
      if (!name.starts_with(prefix)) continue;
      const double macs = value.at("mean").get<double>();
      if (cheapest != nullptr && macs >= least) continue;
      cheapest = &arm.at("metrics");
      ending = name.substr(prefix.size());
      least = macs;
    }
  }
  if (cheapest == nullptr) return "";
  const auto mean = [&](const char* metric) {
    return cheapest->at(metric + ending).at("mean").get<double>();
  };
  return fmt::format("{:.2f} ({:.2f}) alone, {:.2f} ({:.2f}) with {}", mean("time_alone"),
                     mean("macs_alone"), mean("time_batched"), mean("macs_batched"),
                     limits.at("race_batch").get<int64_t>());
}

Result read_result(const std::filesystem::path& path, const CatalogueEntry& entry) {
  if (!std::filesystem::exists(path)) return {};
  const auto report = read_json_file(path.string());
  const auto what = path.string();
  if (json_get<std::string>(report, "slug", what) != entry.slug)
    fail(Code::config, "{}: slug '{}', expected '{}'", what, report.at("slug").get<std::string>(),
         entry.slug);
  const auto scale = json_get<std::string>(report, "scale", what);
  if (scale != "small" && scale != "full") return {};
  Result out;
  out.state = json_get<std::string>(report, "verdict", what) == "met" ? "works" : "missed";
  for (const auto& bar : json_get<Json>(report, "bars", what)) {
    if (!out.summary.empty()) out.summary += "; ";
    out.summary += fmt::format("{}: {} ({}{})", bar.at("claim").get<std::string>(),
                               number(bar.at("value").get<double>()), bound_text(bar),
                               bar.at("met").get<bool>() ? "" : ", missed");
  }
  int64_t strong = 0;
  const auto controls = json_get<Json>(report, "controls", what);
  for (const auto& control : controls)
    if (!control.at("fails").get<bool>()) ++strong;
  out.engine = engine_cell(report);
  if (strong > 0)
    out.summary += fmt::format("; {} of {} controls passed the bar too", strong, controls.size());
  return out;
}

/// A second report, of scale full, beside the small one: a proof that failed on a GPU must not hide
/// behind one that did not.
std::string full_summary(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return {};
  const auto what = path.string();
  const auto report = read_json_file(what);
  std::string missed;
  for (const auto& bar : json_get<Json>(report, "bars", what))
    if (!bar.at("met").get<bool>())
      missed += (missed.empty() ? "" : ", ") + bar.at("name").get<std::string>();
  const auto verdict = json_get<std::string>(report, "verdict", what);
  return fmt::format(". At full scale ({} seed{}): {}{}", report.at("seeds").size(),
                     report.at("seeds").size() == 1 ? "" : "s", verdict,
                     missed.empty() ? "" : " " + missed);
}

}  // namespace

std::string report_text(const Json& report) {
  std::string out;
  auto text = [&](const char* key) { return json_get<std::string>(report, key, "report"); };
  const auto machine = json_get<Json>(report, "machine", "report");
  out += fmt::format("{} {} ({}), scale {}, {} seeds, {}\n", text("id"), text("slug"),
                     text("family"), text("scale"), report.at("seeds").size(), text("date"));
  out += fmt::format("{}, {}, {} threads, commit {}\n\n", machine.at("cpu").get<std::string>(),
                     machine.at("isa").get<std::string>(), machine.at("threads").get<int64_t>(),
                     text("commit"));

  const auto& arms = report.at("arms");
  std::vector<std::string> header{"metric"};
  std::vector<std::string> metrics;
  std::set<std::string> seen;
  for (const auto& arm : arms) {
    header.push_back(fmt::format("{} ({})", arm.at("name").get<std::string>(),
                                 arm.at("role").get<std::string>()));
    for (const auto& [name, value] : arm.at("metrics").items())
      if (seen.insert(name).second) metrics.push_back(name);
  }
  Table table(header);
  for (const auto& metric : metrics) {
    std::vector<std::string> row{metric};
    for (const auto& arm : arms) {
      const auto& values = arm.at("metrics");
      row.push_back(values.contains(metric) ? cell(values.at(metric)) : "");
    }
    table.row(std::move(row));
  }
  out += table.text() + "\n";

  Table bars({"bar", "claim", "measured as", "value", "bound", "met"});
  for (const auto& bar : report.at("bars"))
    bars.row({bar.at("name").get<std::string>(), bar.at("claim").get<std::string>(),
              expression(bar), number(bar.at("value").get<double>()), bound_text(bar),
              bar.at("met").get<bool>() ? "yes" : "NO"});
  out += bars.text() + "\n";
  if (!report.at("controls").empty()) {
    Table controls({"control", "bar", "value", "fails, as it must"});
    for (const auto& control : report.at("controls"))
      controls.row({control.at("arm").get<std::string>(), control.at("bar").get<std::string>(),
                    number(control.at("value").get<double>()),
                    control.at("fails").get<bool>() ? "yes" : "NO"});
    out += controls.text() + "\n";
  }
  for (const auto& [name, value] : report.at("limits").items())
    out += fmt::format("{}: {}\n", name, number(value.get<double>()));
  for (const auto& note : report.at("notes"))
    out += fmt::format("note: {}\n", note.get<std::string>());
  out += fmt::format("verdict: {}\n", text("verdict"));
  return out;
}

std::string catalogue_markdown(const std::string& root) {
  namespace fs = std::filesystem;
  int64_t works = 0, missed = 0, waiting = 0;
  std::string rows;
  for (const auto& entry : catalogue()) {
    const auto result =
        read_result(fs::path(root) / "docs/results" / (entry.slug + ".json"), entry);
    const auto full = full_summary(fs::path(root) / "docs/results" / (entry.slug + "-full.json"));
    ++(result.state == "works" ? works : result.state == "missed" ? missed : waiting);
    const auto readme = fmt::format("recipes/{}/{}/README.md", entry.family, entry.slug);
    const auto name = fs::exists(fs::path(root) / readme)
                          ? fmt::format("[{}](../{})", entry.slug, readme)
                          : entry.slug;
    rows += fmt::format(
        "| {} | {} | {} | {} | {} | {} |\n", entry.id, name, entry.family, result.state,
        result.engine, escape_cell((result.summary.empty() ? entry.title : result.summary) + full));
  }
  std::string out = "# The catalogue\n\n";
  out += fmt::format(
      "Generated by `sluice reproduce --catalogue` from `recipes/catalogue.toml` and "
      "`docs/results/*.json`; a result "
      "counts when it is of scale small or full. Engine: time and, in brackets, executed "
      "multiply-accumulates of the system's cheapest setting, over those of the dense network; one "
      "thread, one sample at a time and many together; where nothing stands, the recipe's own "
      "metrics say it.\n\n{} systems: {} work, {} missed a bar, {} not "
      "yet.\n\n",
      catalogue().size(), works, missed, waiting);
  out +=
      "| id | system | family | state | engine | claim: measured (bar) |\n"
      "| --- | --- | --- | --- | --- | --- |\n";
  return out + rows;
}

}  // namespace sluice::recipes
