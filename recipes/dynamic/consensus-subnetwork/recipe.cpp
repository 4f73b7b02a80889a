// S001 consensus-subnetwork: dynamic gates that agree on one static sub-network (arXiv 2302.10798).
#include "recipes/recipe.h"

#include "recipes/dynamic/consensus-subnetwork/study.h"
#include "sluice/base/json.h"

namespace sluice::recipes::consensus_subnetwork {
namespace {

void record(Report& report, const Study& study, const std::string& prefix) {
  const StudyArm& dense = study.arm("dense");
  for (const StudyArm& arm : study.arms) {
    const auto add = [&](const std::string& metric, double value) {
      report.add(prefix + arm.name, arm.role, metric, value);
    };
    const auto add_if = [&](const std::string& metric, const std::optional<double>& value,
                            double factor = 1) {
      if (value) add(metric, *value * factor);
    };
    add("accuracy", 100 * arm.accuracy);
    add("macs", arm.macs);
    add("parameters", static_cast<double>(arm.parameters));
    add("bytes", static_cast<double>(arm.bytes));
    add("train_seconds", arm.train_seconds);
    add_if("latency_batch1_ms", arm.latency_batch1, 1e3);
    add_if("latency_batch64_ms", arm.latency_batch64, 1e3);
    if (arm.latency_batch1 && dense.latency_batch1)
      add("latency_batch1_ratio", *arm.latency_batch1 / *dense.latency_batch1);
    if (arm.latency_batch64 && dense.latency_batch64)
      add("latency_batch64_ratio", *arm.latency_batch64 / *dense.latency_batch64);
    add_if("gated_accuracy", arm.gated_accuracy, 100);
    add_if("consensus_gap", arm.consensus_gap);
    add_if("freeze_flips", arm.freeze_flips, 100);
    add_if("freeze_loss", arm.freeze_loss, 100);
  }
}

/// `settings` for every seed; arms and figures are called by the prefix and their own name.
void run_data_set(RecipeRun& run, const Json& settings, const std::string& prefix) {
  StudyOptions options = study_options(settings);
  options.device = run.options.device;
  run.report.data.push_back(options.data_name);
  for (const uint64_t seed : run.seeds) {
    options.seed = seed;
    options.directory = run.options.work_directory + "/" + prefix + "seed" + std::to_string(seed);
    const Study study = run_study(options);
    record(run.report, study, prefix);
    if (seed == run.seeds.front()) {
      for (auto& [name, figure] : study_figures(study))
        run.report.figures.push_back({prefix + name, figure});
    }
    if (study.engine_parity > 0) {
      double& parity = run.report.limits["engine_parity"];
      parity = std::max(parity, study.engine_parity);
    }
  }
}

void run(RecipeRun& run) {
  Json settings = run.settings;
  const Json other = json_get_or<Json>(settings, "second", Json(), "recipe.toml");
  settings.erase("second");
  run_data_set(run, settings, "");
  if (!other.is_null()) {
    settings.update(other);
    run_data_set(run, settings, settings.at("data").at("name").get<std::string>() + "-");
  }
  run.report.notes.push_back(
      "accuracies in percent of the test split; latencies with one thread, interleaved, median of "
      "11 rounds");
  run.report.notes.push_back("figures show the first seed");
}

const bool registered = register_recipe("consensus-subnetwork", run);

}  // namespace
}  // namespace sluice::recipes::consensus_subnetwork
