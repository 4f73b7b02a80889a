// Training in turns: sets of parameters that learn one after another, each against what the others
// are at the time (networks and their gates: Regol et al. 2024, arXiv 2310.19163, section 4).
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sluice/lab/train/optimizer.h"

namespace sluice::lab {

/// Parameters that learn together. Their optimizer keeps its moments while others have the turn.
struct Turn {
  std::string name;
  NamedParameters parameters;
  OptimizerOptions optimizer = {};
  /// Loss of a step of this turn; gradients reach this turn's parameters only.
  std::function<at::Tensor(int64_t step)> loss;
};

class AlternatingTrainer {
 public:
  /// Each turn lasts `period` steps; the first one begins. Throws Error{config} for fewer than two
  /// turns, a period below 1, a turn without parameters or loss, and a parameter of two turns.
  AlternatingTrainer(std::vector<Turn> turns, int64_t period);
  ~AlternatingTrainer();

  /// Index of the turn that has step `step`, counted from 0.
  size_t turn_at(int64_t step) const;
  /// One update of that turn's parameters at learning rate `rate`; returns the loss. The others
  /// require no gradient meanwhile and have, bit for bit, the values they had. Throws
  /// Error{numeric} naming turn and step when the loss is not finite: then nothing was updated.
  double run_step(int64_t step, double rate);

 private:
  std::vector<Turn> turns_;
  std::vector<std::unique_ptr<Optimizer>> optimizers_;
  int64_t period_;
};

}  // namespace sluice::lab
