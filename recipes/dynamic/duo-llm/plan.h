// Sizes and schedules of one scale, the text, and the network of two-sized slots.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "recipes/recipe.h"
#include "sluice/lab/brick/choice.h"
#include "sluice/lab/model/model.h"
#include "sluice/lab/train/text_corpus.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::duo_llm {

inline constexpr int64_t kBig = 0, kSmall = 1;  ///< options of every slot; 2: nothing

struct RouterPlan {
  int64_t steps = 300;
  double rate = 1e-2, rate_all = 1e-3;  ///< of routers alone, and of all weights
  double weight = 10;                   ///< of the budget loss
  double warm = 1, cold = 0.05;         ///< temperature at the first and last step
};

struct DuoPlan {
  lab::CorpusConfig corpus;
  bool random_text = false, skip = false;
  Json model;
  int64_t layers = 6, context = 64, small = 24;
  lab::TrainOptions train;
  RouterPlan router;
  std::vector<int64_t> budgets;  ///< big layers per token that routers are trained for
  int64_t oracle_tokens = 2000, random_patterns = 100, tree_batch = 4, decoded_tokens = 48;
  double init_std = 0.02;
};

/// Throws Error{config} naming the field.
DuoPlan read_duo_plan(const Json& settings, const std::string& work_directory);

/// Windows that no training sees: [n, T] each, labels the next ids.
struct Windows {
  at::Tensor ids, labels;
};

struct DuoText {
  data::TokenFile tokens;
  Windows validation, test;  ///< of the first and of the second half of the held-out documents
};
DuoText duo_text(const RecipeRun& run, const DuoPlan& plan);

/// The decoder with a choice in every ffn slot: big, small and, with `skip`, nothing.
lab::Model duo_model(const DuoPlan& plan, int64_t vocabulary, uint64_t seed);

/// Stage 1: every token and layer draws its option.
void train_random_routes(const RecipeRun& run, const DuoPlan& plan, const DuoText& text,
                         lab::Model& model, uint64_t seed);

/// Stage 3: a copy of `model` with linear routers trained for `budget` big layers a token, alone or
/// with all weights. Their common bias towards big is then set so that tokens of the validation
/// text take `budget` big layers on average.
lab::Model train_routers(const RecipeRun& run, const DuoPlan& plan, const DuoText& text,
                         const lab::Model& model, int64_t budget, bool all_weights, uint64_t seed);

/// Mean number of big layers of a token, as the network's own routes have it.
double big_layers(lab::Model& model, const Windows& windows);
/// Perplexity as the network's routes have it: keys and values follow them, too.
double own_perplexity(lab::Model& model, const Windows& windows);

}  // namespace sluice::recipes::duo_llm
