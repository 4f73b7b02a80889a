// Tokens that leave at the depth that is sure of them.
#include <torch/types.h>

#include <algorithm>
#include <numeric>

#include "recipes/elastic/sorted-llama/study.h"
#include "sluice/base/random.h"

namespace sluice::recipes::sorted_llama {
namespace {

constexpr double kMatched = 0.5;  // points of exact match below the full depth that still count
constexpr int kShuffles = 20;

struct Outcome {
  double exact = 0, layers = 0, filled = 0;  ///< percent; layers a token, of all of them
  std::vector<double> histogram;             ///< share of tokens by depth
};

/// `depths` [tokens]: indices into plan.depths. A token that leaves early has no keys and values
/// above; a later token that goes deeper fills them in, in one batch for all that wait: `filled`
/// counts these layers, too, which `layers` (what a token waits for) does not.
Outcome outcome_of(const Plan& plan, const Evaluation& evaluation, const at::Tensor& depths) {
  Outcome result;
  result.exact = evaluation.exact_match(lab::exit_choices(evaluation.table, depths));
  result.histogram.assign(plan.depths.size(), 0);
  const at::Tensor indices = depths.contiguous();
  const int64_t* index = indices.data_ptr<int64_t>();
  const double all = double(plan.depths.back()), tokens = double(indices.numel());
  for (const auto& [first, end] : evaluation.words) {
    int64_t deepest = 0;
    for (int64_t t = end; t-- > first;) {
      const int64_t depth = plan.depths[static_cast<size_t>(index[t])];
      result.layers += double(depth) / all / tokens;
      result.filled += double(std::max(depth, deepest - 1)) / all / tokens;
      result.histogram[static_cast<size_t>(index[t])] += 1 / tokens;
      deepest = std::max(deepest, depth);
    }
  }
  return result;
}

/// Of the thresholds for every risk those that cost fewest layers and lose no more than the margin.
std::vector<double> calibrate(const Plan& plan, const Evaluation& validation) {
  const at::Tensor last = validation.table.choice.select(1, std::ssize(plan.depths) - 1);
  const double full = validation.exact_match(last);
  std::vector<double> best(plan.depths.size() - 1, 2.0);  // nobody leaves
  double fewest = 1;
  for (const double risk : plan.risks) {
    const auto thresholds = lab::calibrate_exits(validation.table, risk);
    const Outcome found =
        outcome_of(plan, validation, lab::exit_depths(validation.table, thresholds));
    if (found.exact < full - plan.margin || found.layers >= fewest) continue;
    fewest = found.layers;
    best = thresholds;
  }
  return best;
}

/// The same depths, as many tokens each, for other tokens.
at::Tensor shuffled_depths(const at::Tensor& depths, uint64_t seed) {
  at::Tensor result = depths.clone().contiguous();
  int64_t* values = result.data_ptr<int64_t>();
  for (auto i = static_cast<uint64_t>(result.numel()); i > 1; --i)
    std::swap(values[i - 1], values[derive_seed(seed, "random exit", i) % i]);
  return result;
}

std::vector<double> shuffled(std::vector<double> values, uint64_t seed) {
  const std::vector<double> before = values;
  const bool same =
      std::all_of(values.begin(), values.end(), [&](double v) { return v == values.front(); });
  for (uint64_t attempt = 0; values == before && !same; ++attempt) {
    for (uint64_t i = values.size(); i > 1; --i)
      std::swap(values[i - 1], values[derive_seed(seed + attempt, "threshold", i) % i]);
  }
  return values;
}

}  // namespace

void measure_exits(RecipeRun& run, const Plan& plan, Study& study, uint64_t seed) {
  const auto depths = std::ssize(plan.depths);
  lab::AllDepths all(study.soft.root, plan.depths);
  const Evaluation validation = evaluate(all, depths, study.words.validation, run.options.device),
                   test = evaluate(all, depths, study.words.test, run.options.device);
  const double full = test.exact_match(test.table.choice.select(1, depths - 1));
  const std::vector<double> thresholds = calibrate(plan, validation);
  const at::Tensor chosen = lab::exit_depths(test.table, thresholds);
  // At matched accuracy the share of layers that ran; where it is not matched all are needed.
  const auto matched = [&](const Outcome& found) {
    return found.exact >= full - kMatched ? found.layers : 1.0;
  };
  const auto add = [&](const std::string& arm, const char* role, const Outcome& found) {
    run.report.add(arm, role, "exact_match", found.exact);
    run.report.add(arm, role, "exit_loss", full - found.exact);
    run.report.add(arm, role, "layers", found.layers);
    run.report.add(arm, role, "layers_filled", found.filled);
    run.report.add(arm, role, "matched_layers", matched(found));
  };
  const Outcome confident = outcome_of(plan, test, chosen);
  add("confidence-exits", "system", confident);
  for (size_t i = 0; i < thresholds.size(); ++i)
    run.report.add("confidence-exits", "system", fmt::format("threshold_d{}", plan.depths[i]),
                   thresholds[i]);
  Outcome random, other;
  double random_matched = 0, other_matched = 0;
  const auto average = [&](Outcome& mean, double& of_matched, const Outcome& found) {
    mean.exact += found.exact / kShuffles;
    mean.layers += found.layers / kShuffles;
    mean.filled += found.filled / kShuffles;
    of_matched += matched(found) / kShuffles;
  };
  for (uint64_t i = 0; i < kShuffles; ++i) {
    const uint64_t own = derive_seed(seed, "shuffle", i);
    average(random, random_matched, outcome_of(plan, test, shuffled_depths(chosen, own)));
    average(other, other_matched,
            outcome_of(plan, test, lab::exit_depths(test.table, shuffled(thresholds, own))));
  }
  const auto add_mean = [&](const std::string& arm, const Outcome& found, double of_matched) {
    run.report.add(arm, "control", "exact_match", found.exact);
    run.report.add(arm, "control", "exit_loss", full - found.exact);
    run.report.add(arm, "control", "layers", found.layers);
    run.report.add(arm, "control", "layers_filled", found.filled);
    run.report.add(arm, "control", "matched_layers", of_matched);
  };
  add_mean("random-exits", random, random_matched);
  add_mean("shuffled-thresholds", other, other_matched);

  if (seed != run.seeds.front()) return;
  Figure figure;
  figure.title = "Where tokens of test words leave";
  figure.x_label = "blocks";
  figure.y_label = "percent of tokens";
  Series series{"confidence exits"};
  for (size_t i = 0; i < plan.depths.size(); ++i) {
    series.x.push_back(double(plan.depths[i]));
    series.y.push_back(100 * confident.histogram[i]);
  }
  figure.series.push_back(std::move(series));
  run.report.figures.push_back({"exits", std::move(figure)});
}

}  // namespace sluice::recipes::sorted_llama
