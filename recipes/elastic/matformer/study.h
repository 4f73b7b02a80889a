// The decoders of one seed: nested, trained one by one, and what the controls make of them.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "recipes/recipe.h"
#include "sluice/lab/pass/subnet.h"
#include "sluice/lab/train/text_corpus.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::matformer {

struct Plan {
  bool synthetic = false;  ///< random text of a Markov chain: wiring only
  lab::CorpusConfig corpus;
  Json model;  ///< of make_model("decoder"); ffn is that of the whole network
  std::vector<double> widths;
  int64_t context = 64, evaluated_tokens = 16384;
  int64_t budgets = 20;  ///< of mixtures
  int64_t prompts = 32, prompt_tokens = 16, generated_tokens = 40, draft_tokens = 4;
  int64_t decoded_tokens = 48;  ///< of the timing
  lab::TrainOptions train;
};

/// Throws Error{config} naming the field.
Plan read_plan(const Json& settings, const std::string& work_directory);

struct Study {
  data::TokenFile tokens;
  lab::Model matlm;                  ///< nested, every step all sizes
  lab::Model sampled;                ///< nested, every step one size: the compute of one network
  lab::Model sliced;                 ///< nested, but only the whole network was trained
  std::vector<lab::Model> separate;  ///< ordinary ones, by width
};

/// Trains all of them: same start, batches and number of steps.
Study run_study(const RecipeRun& run, const Plan& plan, uint64_t seed);

/// Mean cross-entropy on the held-out tokens, in nats.
double loss_of(lab::Model& model, const Study& study, const Plan& plan, int64_t size = -1);
/// Held-out windows [count, tokens] int64, evenly over the split.
at::Tensor held_out_windows(const Study& study, int64_t count, int64_t tokens);
/// Share of held-out positions at which two networks (or sizes) find the same token most probable.
double consistency(lab::Model& a, int64_t size_a, lab::Model& b, int64_t size_b, const Study& study,
                   const Plan& plan);
/// The nested network with the neurons of every layer in random order: the same function as a
/// whole, but its sizes run random subsets of them.
lab::Model with_random_neurons(const lab::Model& nested, uint64_t seed);
/// "12.5": what metrics of a width end with.
std::string percent(double width);

/// Mix'n'Match: losses of mixtures at random budgets against the line through the trained sizes,
/// of the rule (sizes that grow with depth), its mirror image, random orders, and random neurons.
void measure_mixtures(RecipeRun& run, const Plan& plan, const Study& study, uint64_t seed);

/// Speculative decoding with the smallest size (separate: the smallest network), tokens per second
/// of every size, parity of lab, engine and picked sizes. A note in builds without the engine.
void measure_engine(RecipeRun& run, const Plan& plan, const Study& study, uint64_t seed,
                    bool timed);

}  // namespace sluice::recipes::matformer
