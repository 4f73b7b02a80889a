// S047 matformer: nested feed-forward networks with Mix'n'Match (MatFormer, arXiv 2310.07707). One
// run trains, from the same start and on the same batches: the nested decoder with the summed loss
// of four granularities, one that draws a granularity a step, the whole network alone (then
// sliced), and networks of the four sizes one by one.
#include "recipes/recipe.h"

#include <algorithm>
#include <limits>

#include "recipes/elastic/matformer/study.h"
#include "sluice/base/json.h"
#include "sluice/base/random.h"

namespace sluice::recipes::matformer {
namespace {

/// Adds losses by width, the worst gap to the networks trained one by one, and the mean of all
/// sizes but the whole one.
void add_losses(RecipeRun& run, const std::string& arm, const char* role, const Plan& plan,
                const std::vector<double>& losses, const std::vector<double>& alone) {
  double worst = -std::numeric_limits<double>::infinity(), sub = 0;
  for (size_t i = 0; i < losses.size(); ++i) {
    run.report.add(arm, role, "loss_w" + percent(plan.widths[i]), losses[i]);
    worst = std::max(worst, losses[i] - alone[i]);
    if (i + 1 < losses.size()) sub += losses[i] / double(losses.size() - 1);
  }
  run.report.add(arm, role, "worst_gap", worst);
  run.report.add(arm, role, "sub_loss", sub);
}

std::vector<double> losses_of(lab::Model model, const Study& study, const Plan& plan) {
  std::vector<double> losses;
  for (size_t i = 0; i < plan.widths.size(); ++i)
    losses.push_back(loss_of(model, study, plan, static_cast<int64_t>(i)));
  return losses;
}

void measure_consistency(RecipeRun& run, const Plan& plan, Study& study) {
  const int64_t last = std::ssize(plan.widths) - 1;
  for (int64_t i = 0; i < last; ++i) {
    const std::string name =
        i == 0 ? "consistency" : "consistency_w" + percent(plan.widths[static_cast<size_t>(i)]);
    run.report.add("matlm", "system", name,
                   consistency(study.matlm, i, study.matlm, last, study, plan));
    run.report.add("separate", "baseline", name,
                   consistency(study.separate[static_cast<size_t>(i)], -1, study.separate.back(),
                               -1, study, plan));
  }
}

void run_seed(RecipeRun& run, const Plan& plan, uint64_t seed) {
  Study study = run_study(run, plan, seed);
  std::vector<double> alone;
  for (lab::Model& model : study.separate) alone.push_back(loss_of(model, study, plan));
  add_losses(run, "matlm", "system", plan, losses_of(study.matlm, study, plan), alone);
  add_losses(run, "matlm-sampled", "baseline", plan, losses_of(study.sampled, study, plan), alone);
  add_losses(run, "separate", "baseline", plan, alone, alone);
  add_losses(run, "sliced", "control", plan, losses_of(study.sliced, study, plan), alone);
  add_losses(run, "random-neurons", "control", plan,
             losses_of(with_random_neurons(study.matlm, derive_seed(seed, "neurons")), study, plan),
             alone);
  measure_mixtures(run, plan, study, seed);
  measure_consistency(run, plan, study);
  measure_engine(run, plan, study, seed, !plan.synthetic && seed == run.seeds.front());
  if (seed == run.seeds.front())
    run.report.data.push_back(
        fmt::format("{}: {} training tokens, {} of {} held-out tokens", study.tokens.info().source,
                    study.tokens.count(data::TextSplit::train), plan.evaluated_tokens,
                    study.tokens.count(data::TextSplit::held_out)));
}

void run(RecipeRun& run) {
  const Plan plan = read_plan(run.settings, run.options.work_directory);
  for (const uint64_t seed : run.seeds) run_seed(run, plan, seed);
  run.report.notes.push_back(
      "worst_gap: largest difference to the network of that size trained alone, nats; sub_loss: "
      "mean loss of all sizes but the whole one; mixtures_on_line: share of budgets at which the "
      "mixture's loss is at most 0.01 above the line through the trained sizes; mixture_excess: "
      "mean distance from it; consistency: share of tokens with the same first choice, smallest "
      "and whole; accepted_length: proposals that stand per run of the whole network; tokens per "
      "second: one thread, one sequence, first seed, medians of interleaved rounds");
}

const bool registered = register_recipe("matformer", run);

}  // namespace
}  // namespace sluice::recipes::matformer
