// S049 duo-llm: how much choosing per token could save, and how far routers get (arXiv 2410.10846).
// One run trains a decoder whose every layer runs a big or a small feed-forward network at random,
// enumerates all patterns of every held-out token, trains linear routers under one budget for the
// network, and compares: fixed patterns, random ones, the best of 100 shared ones, routers, the
// oracle, and oracles that were told the wrong thing.
#include "recipes/recipe.h"

#include <torch/types.h>

#include <cmath>

#include "recipes/dynamic/duo-llm/curves.h"
#include "recipes/dynamic/duo-llm/speed.h"
#include "sluice/base/random.h"

namespace sluice::recipes::duo_llm {
namespace {

void run_seed(RecipeRun& run, const DuoPlan& plan, uint64_t seed) {
  const DuoText text = duo_text(run, plan);
  lab::Model model = duo_model(plan, text.tokens.info().vocabulary, seed);
  train_random_routes(run, plan, text, model, seed);

  lab::set_routes(*model.root, lab::Route::always(kBig));
  run.report.add("all-big", "baseline", "own_perplexity", own_perplexity(model, text.test));
  lab::set_routes(*model.root, lab::Route::always(kSmall));
  run.report.add("all-small", "baseline", "own_perplexity", own_perplexity(model, text.test));
  lab::set_routes(*model.root, {});

  const Tables tables = make_tables(model, plan, text, seed);
  const Curves curves = report_patterns(run, plan, tables, seed);

  std::vector<lab::Model> routers;
  for (const int64_t budget : plan.budgets) {
    for (const bool all_weights : {false, true}) {
      lab::Model routed = train_routers(run, plan, text, model, budget, all_weights, seed);
      const lab::ChoiceTable table =
          lab::tree_losses(routed, text.test.ids, text.test.labels, kBig, plan.tree_batch);
      report_router(run, all_weights ? "router-all-weights" : "router",
                    all_weights ? "baseline" : "system", budget, all_weights ? nullptr : &curves,
                    table, routed, text.test);
      if (!all_weights) routers.push_back(std::move(routed));
    }
  }
  if (seed == run.seeds.front()) measure_routing(run, plan, model, routers, text.test);
}

void run(RecipeRun& run) {
  const DuoPlan plan = read_duo_plan(run.settings, run.options.work_directory);
  for (const uint64_t seed : run.seeds) run_seed(run, plan, seed);
  const data::TokenFile tokens = data::TokenFile::open(plan.corpus.tokens);
  run.report.data.push_back(
      fmt::format("{}: {} training tokens; windows of {} from {} held-out tokens, the first half "
                  "for validation, the second for all numbers",
                  tokens.info().source, tokens.count(data::TextSplit::train), plan.context,
                  tokens.count(data::TextSplit::held_out)));
  run.report.notes.push_back(
      "perplexity: in the tree, where keys and values of earlier tokens are those of one pass with "
      "big layers everywhere; own_perplexity: keys and values follow the network's own choices. "
      "_at_B: "
      "B big layers a token (routers: on average). random-tries: the least of as many random "
      "patterns as the oracle chooses from, a gain that is none.");
}

const bool registered = register_recipe("duo-llm", run);

}  // namespace
}  // namespace sluice::recipes::duo_llm
