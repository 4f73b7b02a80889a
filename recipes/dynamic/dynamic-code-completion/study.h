// The decoder, its heads and its controller, and what they do to texts and completions.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <optional>
#include <string>
#include <vector>

#include "recipes/recipe.h"
#include "sluice/data/text/token_file.h"
#include "sluice/lab/model/exit_model.h"
#include "sluice/lab/train/text_corpus.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::dynamic_code_completion {

struct Plan {
  lab::CorpusConfig corpus;
  bool random_text = false;
  Json model;
  int64_t context = 128, prompt = 48, completion = 10;
  int64_t cuts = 300;            ///< of the validation and of the test texts each
  int64_t studied_windows = 32;  ///< of each, for what is measured with the text given
  int64_t head_steps = 0, controller_steps = 0;
  double head_rate = 0, controller_rate = 0;
  std::vector<double> exit_thresholds, stop_thresholds;
  double rouge_loss = 0.02, good_lost = 0.1;
  int64_t fit_cuts = 100, fit_steps = 7;  ///< of thresholds that are to skip as much
  int64_t timed_cuts = 40, rounds = 7;
  lab::TrainOptions train;
};
Plan read_plan(const Json& settings, const std::string& work_directory);
data::TokenFile tokens_of(const Plan& plan, const RecipeRun& run);

/// Windows of `width` ids evenly over a part of the held-out texts: [count, width] int64. The first
/// half of these texts is for choosing thresholds, the second for the report.
enum class Half : uint8_t { validation, test };
at::Tensor windows_of(const data::TokenFile& file, Half half, int64_t count, int64_t width);

lab::Model train_decoder(const RecipeRun& run, const Plan& plan, const data::TokenFile& tokens,
                         uint64_t seed);
/// Heads of all layers but the last, on the frozen decoder.
void train_heads(const RecipeRun& run, const Plan& plan, const data::TokenFile& tokens,
                 lab::Model& model, uint64_t seed);
/// The controller, on the frozen decoder and heads. `shuffled`: labels of other positions.
void train_controller(const RecipeRun& run, const Plan& plan, const data::TokenFile& tokens,
                      lab::Model& model, uint64_t seed, bool shuffled);

/// With the text given: at which layer (from 1; 0: at none) each next token is first right,
/// [B, T - 1], for windows [B, T].
at::Tensor first_right(const lab::ExitDecoder& root, const at::Tensor& windows);

inline const lab::ExitDecoder& root_of(const lab::Model& model) {
  return dynamic_cast<const lab::ExitDecoder&>(*model.root);
}

/// When tokens leave: rules of the arms.
struct Rule {
  /// controller: its probability of an exit above `threshold`; confidence: the head's largest
  /// probability; fixed: after `layer` layers; rates: by chance, with the rate of each layer.
  enum class Kind : uint8_t {
    never,
    controller,
    confidence,
    fixed,
    rates,
    stop
  } kind = Kind::never;
  double threshold = 1;
  int64_t layer = 0;
  std::vector<double> rates = {};
  uint64_t seed = 0;
  bool propagate = true;
};
/// Which samples a forward sees, and how many tokens each has.
struct Place {
  int64_t first = 0, width = 1;
};
lab::ExitDecoder::Decide decide_by(const lab::ExitDecoder& root, const Rule& rule,
                                   lab::Context& context, const Place& place);

struct Completions {
  std::vector<std::vector<int64_t>> found, expected;
  double rouge = 0, bleu = 0;    ///< means over cut points, corpus
  double layers = 0;             ///< mean over the tokens that may leave (the first may not)
  std::vector<double> rates;     ///< by layer: share of the tokens that got there which leave
  std::vector<double> by_token;  ///< mean layers of the first token that may leave, the second, ...
  std::vector<bool> stopped;     ///< by cut point: somewhere in the completion
  std::vector<bool> good;        ///< every token is the expected one
};
/// Greedy completions of the first `prompt` ids of windows [B, prompt + completion].
Completions complete(const Plan& plan, const lab::ExitDecoder& root, const at::Tensor& windows,
                     const Rule& rule);

/// The threshold with which the rule's completions take `layers` layers on the mean.
double fit_threshold(const Plan& plan, const lab::ExitDecoder& root, const at::Tensor& windows,
                     Rule rule, double layers);

/// Tokens per second of decoding in the engine, controller and state propagation included, beside
/// the decoder without exits.
void measure_speed(RecipeRun& run, const Plan& plan, const lab::Model& decoder,
                   const lab::Model& exits, const at::Tensor& windows, const Completions& expected);

}  // namespace sluice::recipes::dynamic_code_completion
