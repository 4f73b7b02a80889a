// Training of nested networks: every update takes some of the sizes over the same batch
// (SortedNet: Valipour et al. 2023; summed over all sizes: MatFormer, Devvrit et al. 2023).
#pragma once
#include "sluice/lab/pass/subnet.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::lab {

struct ElasticOptions {
  Json nest = Json::object();        ///< of pass nest; for a model that is nested already: none
  std::string sampling = "uniform";  ///< SizeSampler::kind
  int64_t draws = 2;                 ///< sizes of an update
  int64_t calibration = 2000;  ///< training samples for the batch norm statistics of each size
};

/// Reads sampling, draws and calibration; all other keys are options of pass nest. Throws
/// Error{config} for a value out of range.
ElasticOptions elastic_options(const Json& json);

/// Lets `hooks` choose the sizes of a nested `model` that each step trains, as `options` say and a
/// training run of seed `seed` draws them.
void sample_sizes(TrainHooks& hooks, const Model& model, const ElasticOptions& options,
                  uint64_t seed);

struct ElasticResult {
  Model model;
  TrainResult training;
};

/// Nests a clone of `model` where it is not nested yet, trains it for options.steps, and measures
/// batch norm statistics of each size. Continues from train.checkpoint when `resume` is set. Throws
/// Error{usage} for options of pass nest where there is nothing to nest any more.
ElasticResult train_elastic(const Model& model, Feed& feed, const TrainOptions& train,
                            const ElasticOptions& options, bool resume = false);

}  // namespace sluice::lab
