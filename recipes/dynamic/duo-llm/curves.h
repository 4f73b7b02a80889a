// What the table of losses says: the arms, by number of big layers.
#pragma once
#include "recipes/dynamic/duo-llm/plan.h"
#include "sluice/lab/inspect/oracle.h"

namespace sluice::recipes::duo_llm {

/// Losses of every pattern on the validation and test windows; wrong: the test windows against
/// other tokens' answers.
struct Tables {
  lab::ChoiceTable validation, test, wrong;
};
Tables make_tables(lab::Model& model, const DuoPlan& plan, const DuoText& text, uint64_t seed);

/// Losses in nats by number of big layers, 0 to L; of fixed patterns and random ones.
struct Curves {
  std::vector<double> first, last, even, mean_random, best_shared, oracle;
};

/// Reports all arms that need no router, and the curves of the run's first seed as figures.
Curves report_patterns(RecipeRun& run, const DuoPlan& plan, const Tables& tables, uint64_t seed);

/// A router's arm at one budget: perplexity in the tree, the network's own, big layers; with the
/// curves of the same weights also how much of the way from mean random to the oracle it went.
void report_router(RecipeRun& run, const std::string& arm, const char* role, int64_t budget,
                   const Curves* curves, const lab::ChoiceTable& table, lab::Model& model,
                   const Windows& test);

}  // namespace sluice::recipes::duo_llm
