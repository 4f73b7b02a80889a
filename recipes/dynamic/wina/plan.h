// Sizes and schedules of one scale, the text, and the decoder that everything is measured on.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "recipes/recipe.h"
#include "sluice/lab/pass/pass.h"
#include "sluice/lab/train/text_corpus.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::wina {

inline constexpr const char* kWhat = "wina settings";

struct Plan {
  bool trained = true;  ///< false: random weights, random tokens; no perplexities
  lab::CorpusConfig corpus;
  Json model;
  int64_t context = 128, evaluated_tokens = 20000, calibration_windows = 64;
  lab::TrainOptions train;
  std::vector<double> sparsities;
  int64_t theorem_tokens = 64, theorem_masks = 1000;
  int64_t gemv = 4096, decoded_tokens = 32, greedy_samples = 20;
};

/// Throws Error{config} naming the field.
Plan read_plan(const Json& settings, const std::string& work_directory);

/// What one seed starts from.
struct Subject {
  lab::Model model;  ///< as trained, on the run's device
  std::optional<data::TokenFile> tokens;
  lab::PassInput calibration;  ///< windows of the training split
  at::Tensor probe;            ///< held-out windows [n, context]
};

/// Trains the decoder (or draws a random one). A killed run's checkpoint in the work directory is
/// taken up, a finished run leaves none. Throws Error{missing} naming the script for absent text.
Subject make_subject(const RecipeRun& run, const Plan& plan, uint64_t seed);

/// "25" for 0.25: what metrics end with.
std::string percent(double sparsity);

}  // namespace sluice::recipes::wina
