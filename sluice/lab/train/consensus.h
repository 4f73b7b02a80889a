// One training run that ends in a smaller static network (Zhi et al. 2023, arXiv 2302.10798): gates
// attached while training, a budget loss and a polarization loss ramped in, gates frozen to the
// consensus for the last steps.
#pragma once
#include "sluice/lab/gate/regularizer.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::lab {

struct ConsensusOptions {
  std::string granularity = "channel";  ///< "channel" or "block"
  double kept = 0.5;                    ///< wanted share of the gated MACs
  double budget_weight = 30.0;          ///< lam_s at the end of the ramp
  double polarization_weight = 4.0;     ///< lam_p at the end of the ramp; 0 is the negative control
  double warmup = 0.1;                  ///< share of steps with gates forced open
  double ramp = 0.5;                    ///< share of steps over which both weights rise
  double frozen = 0.2;                  ///< share of steps, at the end, with the consensus frozen
  int64_t calibration = 2000;           ///< training samples for the freeze
  double mean_decay = 0.9;              ///< of the running batch means
  /// "consensus", or "random": as many units per layer as the consensus keeps, chosen at random (a
  /// negative control).
  std::string mask_rule = "consensus";
};

/// Reads the fields above by name. Throws Error{config} for an unknown key or a value out of range.
ConsensusOptions consensus_options(const Json& json);

struct ConsensusResult {
  Model model;  ///< gates frozen to constant masks, statistics re-estimated, not sliced yet
  Model gated;  ///< the gated network as it was just before the freeze
  TrainResult training;
  Json freeze_report;  ///< of pass freeze-gates
  Json gate_history;  ///< [{"step", "kept": {path: share}, "means": [..all m_j..]}], about once per
                      ///< 5% of the steps
};

/// Inserts gates into a clone of `model` and trains it for options.steps in total. Continues from
/// train.checkpoint when that file exists and `resume` is set.
ConsensusResult train_consensus(const Model& model, Feed& feed, const TrainOptions& train,
                                const ConsensusOptions& options, bool resume = false);

}  // namespace sluice::lab
