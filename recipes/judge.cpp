// Bars and controls: declared as data, judged from the arms' means, never written by a recipe.
#include <algorithm>
#include <cmath>

#include "recipes/registry.h"

#include <fmt/ranges.h>  // fmt::join, from fmt 11 on
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/machine.h"

namespace sluice::recipes {
namespace {

struct Bar {
  std::string name, claim, arm, metric, op, relation, against_arm, against_metric;
  double bound = 0;

  Json against() const {
    return against_arm.empty() ? Json() : Json{{"arm", against_arm}, {"metric", against_metric}};
  }
};

bool judged_at(const Json& entry, const std::string& scale, const std::string& what) {
  if (!entry.contains("scales")) return true;
  const auto scales = json_get<std::vector<std::string>>(entry, "scales", what);
  return std::find(scales.begin(), scales.end(), scale) != scales.end();
}

Bar read_bar(const Json& entry) {
  const auto name = json_get<std::string>(entry, "name", "[[bar]]");
  const std::string what = "bar '" + name + "'";
  json_require_known_keys(
      entry, {"name", "claim", "arm", "metric", "op", "against", "relation", "bound", "scales"},
      what);
  Bar bar{name,
          json_get<std::string>(entry, "claim", what),
          json_get<std::string>(entry, "arm", what),
          json_get<std::string>(entry, "metric", what),
          json_get_or<std::string>(entry, "op", "value", what),
          json_get<std::string>(entry, "relation", what),
          "",
          "",
          json_get<double>(entry, "bound", what)};
  if (bar.relation != "<=" && bar.relation != ">=")
    fail(Code::config, "{}: relation '{}': <= or >=", what, bar.relation);
  if (!std::isfinite(bar.bound)) fail(Code::config, "{}: the bound is not finite", what);
  const bool has_against = entry.contains("against");
  if (bar.op == "value") {
    if (has_against)
      fail(Code::config, "{}: op \"value\" compares with the bound alone: remove 'against'", what);
  } else if (bar.op == "ratio" || bar.op == "diff") {
    if (!has_against)
      fail(Code::config, "{}: op \"{}\" needs against = {{arm = \"...\", metric = \"...\"}}", what,
           bar.op);
    const auto against = json_get<Json>(entry, "against", what);
    json_require_known_keys(against, {"arm", "metric"}, what + " against");
    bar.against_arm = json_get<std::string>(against, "arm", what + " against");
    bar.against_metric = json_get_or(against, "metric", bar.metric, what + " against");
  } else {
    fail(Code::config, "{}: op '{}': value, ratio or diff", what, bar.op);
  }
  return bar;
}

double metric_mean(const Report& report, const std::string& arm, const std::string& metric,
                   const std::string& what) {
  const auto* found = report.find(arm);
  if (found == nullptr) {
    std::vector<std::string> names;
    for (const auto& a : report.arms) names.push_back(a.name);
    fail(Code::config, "{}: no arm '{}' in this run; there are: {}", what, arm,
         fmt::join(names, ", "));
  }
  const auto samples = found->metrics.find(metric);
  if (samples == found->metrics.end() || samples->second.empty()) {
    std::vector<std::string> names;
    for (const auto& [name, values] : found->metrics) names.push_back(name);
    fail(Code::config, "{}: arm '{}' has no metric '{}'; it has: {}", what, arm, metric,
         fmt::join(names, ", "));
  }
  const double value = mean(samples->second);
  if (!std::isfinite(value))
    fail(Code::numeric, "{}: {} of arm '{}' is {}", what, metric, arm, value);
  return value;
}

/// The bar's number with `arm` in the place of the declared one.
double bar_value(const Report& report, const Bar& bar, const std::string& arm) {
  const std::string what = "bar '" + bar.name + "'";
  const double value = metric_mean(report, arm, bar.metric, what);
  if (bar.op == "value") return value;
  const double against = metric_mean(report, bar.against_arm, bar.against_metric, what);
  if (bar.op == "diff") return value - against;
  if (against == 0)
    fail(Code::numeric, "{}: ratio to {} of arm '{}', which is 0", what, bar.against_metric,
         bar.against_arm);
  return value / against;
}

bool meets(const Bar& bar, double value) {
  return bar.relation == "<=" ? value <= bar.bound : value >= bar.bound;
}

}  // namespace

Json summarize(const Samples& samples, const std::string& what) {
  if (samples.empty()) fail(Code::config, "{}: no samples", what);
  for (const double value : samples)
    if (!std::isfinite(value)) fail(Code::numeric, "{}: a sample is {}", what, value);
  return {{"mean", mean(samples)}, {"std", stddev(samples)}, {"n", samples.size()}};
}

Json judge(const Report& report, const Json& declared, const std::string& scale) {
  Json bars = Json::array(), controls = Json::array();
  std::map<std::string, Bar> judged;
  std::vector<std::string> all;
  bool verdict = true;
  for (const auto& entry : json_get_or(declared, "bar", Json(Json::array()), "recipe.toml")) {
    const Bar bar = read_bar(entry);
    if (std::find(all.begin(), all.end(), bar.name) != all.end())
      fail(Code::config, "bar '{}' is declared twice", bar.name);
    all.push_back(bar.name);
    if (!judged_at(entry, scale, "bar '" + bar.name + "'")) continue;
    const double value = bar_value(report, bar, bar.arm);
    const bool met = meets(bar, value);
    verdict = verdict && met;
    bars.push_back({{"name", bar.name},
                    {"claim", bar.claim},
                    {"arm", bar.arm},
                    {"metric", bar.metric},
                    {"relation", bar.relation},
                    {"against", bar.against()},
                    {"op", bar.op},
                    {"bound", bar.bound},
                    {"value", value},
                    {"met", met}});
    judged.emplace(bar.name, bar);
  }
  if (bars.empty() && scale != "tiny")
    fail(Code::config, "no bar is judged at scale '{}': a run without one proves nothing", scale);

  for (const auto& entry : json_get_or(declared, "control", Json(Json::array()), "recipe.toml")) {
    json_require_known_keys(entry, {"bar", "arm", "scales"}, "[[control]]");
    const auto name = json_get<std::string>(entry, "bar", "[[control]]");
    const auto arm = json_get<std::string>(entry, "arm", "[[control]]");
    if (std::find(all.begin(), all.end(), name) == all.end())
      fail(Code::config, "control '{}': there is no bar '{}'; there are: {}", arm, name,
           fmt::join(all, ", "));
    const auto bar = judged.find(name);
    if (bar == judged.end() || !judged_at(entry, scale, "control '" + arm + "'")) continue;
    if (arm == bar->second.arm)
      fail(Code::config, "control of bar '{}': '{}' is the bar's own arm, not a control", name,
           arm);
    const double value = bar_value(report, bar->second, arm);
    const bool fails = !meets(bar->second, value);
    verdict = verdict && fails;
    controls.push_back({{"bar", name}, {"arm", arm}, {"value", value}, {"fails", fails}});
  }
  return {{"bars", bars}, {"controls", controls}, {"verdict", verdict ? "met" : "missed"}};
}

}  // namespace sluice::recipes
