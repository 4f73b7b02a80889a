// The decoders of one seed, and what every depth of them says of a set of words.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "recipes/elastic/sorted-llama/words.h"
#include "recipes/recipe.h"
#include "sluice/lab/gate/confidence_exit.h"
#include "sluice/lab/model/model.h"
#include "sluice/lab/train/depths.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::sorted_llama {

struct Plan {
  bool synthetic = false;  ///< made-up words: wiring only
  Json model;              ///< of make_model("decoder"), without vocab
  std::vector<int64_t> depths;
  int64_t half = 3;      ///< the depth that bars are about
  int64_t words = 2000;  ///< of validation and of test
  int64_t pretrain_steps = 300;
  lab::TrainOptions train;
  std::vector<double> risks;   ///< that exits are calibrated for
  double margin = 0.25;        ///< points of exact match that exits may lose on validation words
  int64_t spoken_words = 200;  ///< of the engine's timing
  std::vector<int64_t> draft_tokens;
};

/// Throws Error{config} naming the field.
Plan read_plan(const Json& settings);

struct Study {
  Splits words;
  lab::Model sft, soft;   ///< nested in depth
  lab::BrickPtr sft_ict;  ///< all depths of sft, with heads of their own
  lab::Model extracted;   ///< the first `half` blocks, trained by themselves
};

Study run_study(const RecipeRun& run, const Plan& plan, uint64_t seed);

/// Every depth's word on every token of the answers, given the right tokens before it. An answer is
/// matched exactly when each of its tokens is: the first wrong one is where greedy decoding leaves
/// the right answer, so this is what decoding gives.
struct Evaluation {
  lab::DepthTable table;                           ///< [tokens, depths]
  at::Tensor truth;                                ///< [tokens] int64
  std::vector<std::pair<int64_t, int64_t>> words;  ///< [first, end) tokens of each word

  /// Percent of words with all tokens right, and percent of tokens, of choices [tokens].
  double exact_match(const at::Tensor& choices) const;
  double accuracy(const at::Tensor& choices) const;
};

/// `root` gives logits of `depths` networks one after another along T (lab::AllDepths).
Evaluation evaluate(lab::Brick& root, int64_t depths, const Words& words, c10::Device device);

/// Exits by confidence: thresholds from validation words, accuracy and depths on test words,
/// against exits at random and shuffled thresholds.
void measure_exits(RecipeRun& run, const Plan& plan, Study& study, uint64_t seed);

/// Depth sizes in the engine: parity with the lab, decoding against teacher forcing, and drafts
/// from the same file. A note in builds without the engine.
void measure_engine(RecipeRun& run, const Plan& plan, Study& study, const Evaluation& soft,
                    bool timed);

}  // namespace sluice::recipes::sorted_llama
