// Sizes and schedules of a run.
#pragma once
#include "recipes/dynamic/fire-together-wire-together/network.h"
#include "sluice/base/json_fwd.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::fire_together {

struct Plan {
  std::string data;
  data::LoadOptions load;
  double holdout = 0;  ///< above 0: this share of the training images stands for the test split
  Layout layout;
  std::vector<double> masses;  ///< of the label, from the mildest cut to the deepest
  int64_t pretrain_epochs = 3, tune_epochs = 2;
  lab::TrainOptions pretrain;  ///< steps, seed and title are set by the study
  lab::TrainOptions tune;      ///< all arms alike
  lab::ParameterGroup predictors;
  int64_t estimated = 500;  ///< training images of the preview: one batch
};

/// Throws Error{config} naming the field.
Plan read_plan(const Json& settings);

}  // namespace sluice::recipes::fire_together
