// Sizes and schedules of a run.
#pragma once
#include "sluice/base/json_fwd.h"
#include "sluice/data/dataset.h"
#include "sluice/lab/train/layerwise.h"

namespace sluice::recipes::acm {

struct Plan {
  std::string data;
  data::LoadOptions load;
  std::string pooling = "first";  ///< what the head reads: a class token, or the "mean" of patches
  double holdout = 0;  ///< above 0: this share of the training images stands for the test split
  int64_t patch = 7, width = 64, layers = 4, heads = 4, neurons = 256;
  int64_t learners = 4, hidden = 16;
  std::vector<double> budgets;   ///< shares of the dense feed-forward MACs, rising
  std::vector<int64_t> uniform;  ///< learners of uniform-k at each budget
  double gain = 1.2;
  double dense_epochs = 3, distill_epochs = 1, gate_epochs = 0.3, tune_epochs = 1;
  lab::TrainOptions dense, tune;  ///< steps, seed and title are set by the study
  lab::LayerwiseOptions distill, gates;
  double tune_gate_rate = 0;  ///< of the gates in phase 3; 0: as everything
  double budget_weight = 0.1, entropy_weight = 0.05, diversity_weight = 0.05;
  double quiet_from = 1;  ///< share of fine-tuning after which gates choose without noise
};

/// Throws Error{config} naming the field.
Plan read_plan(const Json& settings);

}  // namespace sluice::recipes::acm
