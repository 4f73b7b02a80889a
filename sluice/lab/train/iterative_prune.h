// Iterative pruning with rewind (Frankle & Carbin 2019): train, prune a share of the surviving
// weights, put the survivors back to earlier values, repeat. A driver over (train function, rates
// and score, snapshot), resumable per round.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "sluice/lab/model/model.h"
#include "sluice/lab/pass/mask.h"

namespace sluice::lab {

/// Values of all parameters and buffers at named moments: "init", "step-500".
class Snapshots {
 public:
  void take(const std::string& name, const Brick& root);
  /// Copies the values back. Throws Error{missing} naming the snapshots there are.
  void restore(const std::string& name, Brick& root) const;
  bool has(const std::string& name) const { return snapshots_.contains(name); }
  const std::map<std::string, at::Tensor>& at(const std::string& name) const;
  std::map<std::string, at::Tensor> flattened() const;  ///< "<name>/<tensor>", for state files
  void restore_flattened(const std::map<std::string, at::Tensor>& flattened);

 private:
  std::map<std::string, std::map<std::string, at::Tensor>> snapshots_;
};

struct PruneRound {
  int64_t round = 0;
  double density = 1;  ///< kept / all over the prunable weights
  MaskSet masks;
  Json result;  ///< what the train function returned
};

/// Trains `model` (already rewound and masked) under `masks` and returns what to keep of it. Round
/// 0 is dense; a function that rewinds to a later step takes that snapshot in round 0.
using TrainRound =
    std::function<Json(Model& model, const MaskSet& masks, int64_t round, Snapshots& snapshots)>;

struct IterativePruneOptions {
  int64_t rounds = 15;  ///< prunings; rounds + 1 trainings
  PruneRates rates;
  PruneScore score = magnitude_score();  ///< of the trained weights
  PruneScope scope = PruneScope::layer;
  std::string rewind_to = "init";
  std::string state_file;   ///< written after every round, continued from when it exists; "" none
  std::string fingerprint;  ///< of everything else that shapes the result; a state file with
                            ///< another one is refused
};

/// Runs all rounds; `model` ends as trained in the last one. The snapshot "init" is taken of the
/// model as given. Throws Error{config} when rates match nothing, Error{state} when the rewind
/// snapshot was never taken, Error{config} when the state file belongs to other options.
std::vector<PruneRound> iterative_prune(Model& model, const IterativePruneOptions& options,
                                        const TrainRound& train, Snapshots& snapshots);

/// Masks of all ones over the weights that `rates` match.
MaskSet full_masks(const Brick& root, const PruneRates& rates);

}  // namespace sluice::lab
