// The TOML file of `sluice train`.
//
//   [data]   name, directory, train_limit, test_limit, validation = 0.1, split_seed = 1
//   [model]  name and the options of lab::make_model
//   [train]  epochs or steps, batch, seed, label_smoothing, clip, checkpoint, checkpoint_every,
//   log_every [train.optimizer]  kind, rate, momentum, beta2, weight_decay, decay_all
//   [train.schedule] kind, warmup, floor
//   [gates]  the fields of lab::ConsensusOptions: one-pass gated training
//   [nest]   the fields of lab::ElasticOptions: a nested network of many sizes
//   [sparse] the fields of lab::SparseOptions: few weights, found while training
#pragma once
#include <optional>
#include <string>

#include "sluice/data/dataset.h"
#include "sluice/lab/train/consensus.h"
#include "sluice/lab/train/elastic.h"
#include "sluice/lab/train/sparse_training.h"

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
  std::optional<lab::ElasticOptions> nest;
  std::optional<lab::SparseOptions> sparse;
  Json record;  ///< the configuration without paths, for the provenance
};

/// Throws Error{config} naming `what`, the key, expected and found; unknown keys are refused with
/// the nearest. Without `with_model` the table [model] is not looked at.
TrainConfig parse_train_config(const Json& config, const std::string& what, bool with_model = true);

/// Where the checkpoint goes, and how often; true when the configuration did not say where and the
/// file is to be removed at the end.
bool place_checkpoint(lab::TrainOptions& options, const std::string& output);

/// The table [train]. `epochs` (may be null when the table cannot have it) gets what stands there
/// instead of steps.
void read_train_table(const Json& train, const std::string& what, lab::TrainOptions& options,
                      double* epochs = nullptr);

/// The table [sparse], where there is one. Error{config} with `what` in front, also when one of the
/// tables [gates] and [nest] is there, too.
std::optional<lab::SparseOptions> read_sparse_table(const Json& config, const std::string& what);

/// What SparseTraining::report() says, as a table of layers.
std::string sparse_text(const Json& report);

/// A table of the configuration; empty when absent. Error{config} for anything else.
Json config_table(const Json& config, const std::string& key, const std::string& what);
/// Values with their bounds.
int64_t config_at_least(int64_t least, const Json& object, const char* key, int64_t fallback,
                        const std::string& what);
double config_between(double low, double high, const Json& object, const char* key, double fallback,
                      const std::string& what);

}  // namespace sluice::cli
