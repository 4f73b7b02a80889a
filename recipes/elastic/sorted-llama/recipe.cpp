// S063 sorted-llama: sorted fine-tuning of a decoder (SoFT, arXiv 2309.08968): the loss is the mean
// over the depths of a network, which share the last norm and the head. One run fine-tunes, from
// the same start and on the same words: the last layer alone (SFT), heads on the frozen result (SFT
// + ICT), all depths (SoFT), and the first half of the blocks by themselves.
#include "recipes/recipe.h"

#include "recipes/elastic/sorted-llama/study.h"
#include "sluice/base/json.h"

namespace sluice::recipes::sorted_llama {
namespace {

/// Exact match and accuracy of every depth; returns the exact match of the half.
double add_depths(RecipeRun& run, const std::string& arm, const char* role, const Plan& plan,
                  const Evaluation& evaluation, Figure* figure) {
  Series series{arm};
  double half = 0;
  for (size_t i = 0; i < plan.depths.size(); ++i) {
    const at::Tensor choice = evaluation.table.choice.select(1, static_cast<int64_t>(i));
    const double exact = evaluation.exact_match(choice), accuracy = evaluation.accuracy(choice);
    run.report.add(arm, role, fmt::format("exact_match_d{}", plan.depths[i]), exact);
    run.report.add(arm, role, fmt::format("phonemes_d{}", plan.depths[i]), accuracy);
    series.x.push_back(double(plan.depths[i]));
    series.y.push_back(exact);
    if (plan.depths[i] == plan.half) {
      run.report.add(arm, role, "half_exact_match", exact);
      half = exact;
    }
    if (i + 1 == plan.depths.size()) run.report.add(arm, role, "full_phonemes", accuracy);
  }
  if (figure != nullptr) figure->series.push_back(std::move(series));
  return half;
}

void run_seed(RecipeRun& run, const Plan& plan, uint64_t seed) {
  const bool first = seed == run.seeds.front();
  Study study = run_study(run, plan, seed);
  const auto depths = std::ssize(plan.depths);
  const auto of = [&](lab::Brick& root, int64_t count) {
    return evaluate(root, count, study.words.test, run.options.device);
  };
  lab::AllDepths sft_depths(study.sft.root, plan.depths), soft_depths(study.soft.root, plan.depths);
  const Evaluation sft = of(sft_depths, depths), ict = of(*study.sft_ict, depths),
                   soft = of(soft_depths, depths), extracted = of(*study.extracted.root, 1);
  Figure figure;
  figure.title = "Words spoken without an error, by depth";
  figure.x_label = "blocks";
  figure.y_label = "exact match, %";
  const double of_soft = add_depths(run, "soft", "system", plan, soft, &figure),
               of_sft = add_depths(run, "sft", "baseline", plan, sft, &figure);
  add_depths(run, "sft-ict", "baseline", plan, ict, &figure);
  // "At least three times": what is left of it after three times the baseline's.
  run.report.add("soft", "system", "half_above_thrice_sft", of_soft - 3 * of_sft);
  run.report.add("sft", "baseline", "half_above_thrice_sft", of_sft - 3 * of_sft);
  const at::Tensor choice = extracted.table.choice.select(1, 0);
  run.report.add("extracted", "baseline", "half_exact_match", extracted.exact_match(choice));
  run.report.add("extracted", "baseline", fmt::format("phonemes_d{}", plan.half),
                 extracted.accuracy(choice));
  if (first) run.report.figures.push_back({"depths", std::move(figure)});
  measure_exits(run, plan, study, seed);
  measure_engine(run, plan, study, soft, !plan.synthetic && first);
  if (!first) return;
  run.report.data.push_back(fmt::format(
      "{}: {} words to train on, {} for thresholds, {} test words",
      plan.synthetic ? "made-up words" : "CMU pronouncing dictionary", study.words.train.size(),
      study.words.validation.size(), study.words.test.size()));
}

void run(RecipeRun& run) {
  const Plan plan = read_plan(run.settings);
  for (const uint64_t seed : run.seeds) run_seed(run, plan, seed);
  run.report.notes.push_back(
      "exact_match: percent of test words whose phonemes are all right; phonemes: percent of "
      "tokens, "
      "given the right ones before; layers: blocks a token waits for, of all; layers_filled: with "
      "those that are run later to fill caches; matched_layers: layers where exact match is within "
      "0.5 points of the full depth's, else 1; controls are means of 20 draws; tokens per second: "
      "one thread, one sequence, prompts included, first seed, medians of interleaved rounds; "
      "draft "
      "depth and number of proposals: the fastest on validation words");
}

const bool registered = register_recipe("sorted-llama", run);

}  // namespace
}  // namespace sluice::recipes::sorted_llama
