// The TOML file of `sluice train`.
//
//   [data]   name, directory, train_limit, test_limit, validation = 0.1, split_seed = 1
//   [model]  name and the options of lab::make_model
//   [train]  epochs or steps, batch, seed, label_smoothing, clip, checkpoint, checkpoint_every,
//   log_every [train.optimizer]  kind, rate, momentum, weight_decay, decay_all [train.schedule]
//   kind, warmup, floor [gates]  the fields of lab::ConsensusOptions; the table's presence turns
//   one-pass gated training on
#pragma once
#include <optional>
#include <string>

#include "sluice/data/dataset.h"
#include "sluice/lab/train/consensus.h"

namespace sluice::cli {

struct TrainConfig {
  std::string data;
  data::LoadOptions load;
  double validation = 0.1;
  uint64_t split_seed = 1;
  std::string model;
  Json model_options = Json::object();
  lab::TrainOptions train;
  double epochs = 0;  ///< 0: train.steps was given
  std::optional<lab::ConsensusOptions> gates;
  Json record;  ///< the configuration without paths, for the provenance
};

/// Throws Error{config} naming `what`, the key, expected and found; unknown keys are refused with
/// the nearest.
TrainConfig parse_train_config(const Json& config, const std::string& what);

}  // namespace sluice::cli
