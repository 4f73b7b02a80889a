#include "cli/size_budget.h"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/machine.h"
#include "sluice/base/table.h"
#include "sluice/bundle/size_choice.h"

namespace sluice::cli {
namespace {

constexpr int kTimedRounds = 5;
constexpr double kShortest = 0.005;  // seconds of a sample

/// Seconds of a unit at each of `sizes`, interleaved.
std::vector<double> time_sizes(const std::vector<int64_t>& sizes, const SizeProbe& probe,
                               double units) {
  std::vector<std::function<void()>> calls;
  for (const int64_t size : sizes) calls.push_back([&probe, size] { probe(size, nullptr); });
  std::vector<double> seconds = time_interleaved(calls, kTimedRounds, kShortest);
  for (double& each : seconds) each /= units;
  return seconds;
}

/// Metered, of what the largest size spends on the same input.
std::vector<double> metered_shares(const bundle::Bundle& bundle, const SizeProbe& probe) {
  std::vector<double> macs;
  for (size_t i = 0; i < bundle.sizes().size(); ++i) {
    Meter meter;
    probe(static_cast<int64_t>(i), &meter);
    macs.push_back(static_cast<double>(meter.macs()));
  }
  return bundle::relative_costs(bundle.graph(), std::move(macs));
}

/// What the table measured, or where it did not, the trial.
std::vector<double> expected_costs(const std::vector<bundle::SizeEntry>& sizes,
                                   const std::vector<double>& trial) {
  const bool told = std::ranges::all_of(sizes, [](const auto& each) {
    return bundle::measured(each, bundle::kCostShare).has_value();
  });
  if (!told) return trial;
  std::vector<double> costs;
  for (size_t i = 0; i < sizes.size(); ++i) costs.push_back(bundle::cost_share(sizes, i));
  return costs;
}

int64_t fastest_within(const std::vector<bundle::SizeEntry>& sizes,
                       const std::vector<double>& costs, const std::vector<double>& seconds,
                       double milliseconds, const std::string& path, const std::string& unit) {
  std::vector<bool> fits;
  for (const double each : seconds) fits.push_back(1e3 * each <= milliseconds);
  const int64_t best = bundle::best_size(sizes, costs, fits);
  if (best >= 0) return best;
  const auto least = std::min_element(seconds.begin(), seconds.end()) - seconds.begin();
  fail(Code::limit, "{}: no size takes {:.4g} ms a {} here; the fastest, '{}', takes {:.4g} ms",
       path, milliseconds, unit, sizes[static_cast<size_t>(least)].name,
       1e3 * seconds[static_cast<size_t>(least)]);
}

}  // namespace

void add_size_options(CLI::App& app, SizeBudget& budget, const std::string& unit) {
  auto* size = app.add_option("--size", budget.size,
                              "Size of a network that has several, by name or number (sluice "
                              "inspect --sizes); the last without it")
                   ->type_name("NAME");
  auto* share = app.add_option("--budget", budget.share,
                               "Run the best size that costs at most this share of the largest one")
                    ->check(CLI::Range(1e-6, 1.0))
                    ->type_name("SHARE");
  auto* time = app.add_option("--budget-ms", budget.milliseconds,
                              "Run the best size that takes at most N ms a " + unit +
                                  ", as a short trial measures it here")
                   ->check(CLI::PositiveNumber)
                   ->type_name("N");
  size->excludes(share)->excludes(time);
  share->excludes(time);
}

Json ChosenSize::json() const {
  Json json = {{"size", name}};
  if (seconds > 0) {
    json["share"] = share;
    json["expected_share"] = expected;
    json["seconds"] = seconds;
  }
  return json;
}

std::string ChosenSize::text() const {
  if (seconds <= 0) return "size " + name;
  return fmt::format("size {}: {:.2f} of the largest, {} a {}", name, share,
                     format_seconds(seconds), unit);
}

ChosenSize choose_size(const bundle::Bundle& bundle, const SizeBudget& budget,
                       const SizeProbe& probe, double units, const std::string& unit) {
  const auto& sizes = bundle.sizes();
  ChosenSize chosen;
  chosen.unit = unit;
  if (!budget.size.empty()) {
    chosen.size = bundle::find_size(sizes, budget.size, bundle.path());
    chosen.name = sizes[static_cast<size_t>(chosen.size)].name;
    return chosen;
  }
  if (!budget.wanted()) return chosen;
  bundle::require_sizes(sizes, bundle.path());
  const std::vector<double> trial = metered_shares(bundle, probe);
  const std::vector<double> costs = expected_costs(sizes, trial);
  if (budget.share) {
    chosen.size = bundle::best_size(sizes, costs, *budget.share, bundle.path());
    chosen.seconds = time_sizes({chosen.size}, probe, units).front();
  } else {
    std::vector<int64_t> all;
    for (size_t i = 0; i < sizes.size(); ++i) all.push_back(static_cast<int64_t>(i));
    const std::vector<double> seconds = time_sizes(all, probe, units);
    chosen.size = fastest_within(sizes, costs, seconds, *budget.milliseconds, bundle.path(), unit);
    chosen.seconds = seconds[static_cast<size_t>(chosen.size)];
  }
  chosen.name = sizes[static_cast<size_t>(chosen.size)].name;
  chosen.expected = costs[static_cast<size_t>(chosen.size)];
  chosen.share = trial[static_cast<size_t>(chosen.size)];
  return chosen;
}

}  // namespace sluice::cli
