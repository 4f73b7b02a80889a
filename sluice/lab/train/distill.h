// Learning from another network: a student is drawn to a teacher's outputs and to what the
// teacher's bricks give on the way (Hinton et al. 2015; features as in TinyBERT, Jiao et al. 2020).
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "sluice/lab/gate/budget.h"
#include "sluice/lab/model/model.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::lab {

/// Slots of both networks whose outputs are compared.
struct FeaturePair {
  std::string student, teacher = {};  ///< patterns; with `teacher` "" the same paths in both
  double weight = 1;
};

struct DistillOptions {
  /// How outputs are compared: "kl" (distributions over the last dimension: logits), "mse" (over
  /// the teacher's mean square), "cosine" (1 - cosine of the last dimension: vectors),
  /// "probabilities" (kl of outputs that a softmax has been through); "": cosine for models that
  /// embed, probabilities for graphs that end in a softmax, kl for all others.
  std::string output = {};
  double output_weight = 1;
  double temperature = 1;  ///< of kl and probabilities; the loss is multiplied by its square
  /// Mean squared differences over the teacher's mean square, averaged over the pairs' slots.
  std::vector<FeaturePair> features = {};
};

/// x: what the model takes; lengths: undefined, or the samples' true lengths (Context::lengths):
/// rows behind them do not count. `size`: of a nested student, as Context::size.
struct DistillBatch {
  at::Tensor x, lengths;
  int64_t size = -1;
};

struct DistillLoss {
  at::Tensor total;  ///< with gradients of the student's parameters
  double output = 0, features = 0;
};

class Distiller {
 public:
  /// The teacher runs in evaluation mode and without gradients; it is not changed. Throws
  /// Error{config} for unknown options.
  Distiller(const Model& teacher, DistillOptions options);
  /// Runs both on the batch; `log` gets what the student's gates decide. Throws Error{usage} for
  /// patterns that match nothing or not equally many slots, Error{shape} naming the slots whose
  /// outputs differ in shape.
  DistillLoss loss(Model& student, const DistillBatch& batch, GateLog* log = nullptr);

 private:
  Model teacher_;
  DistillOptions options_;
  std::string output_;
};

struct TuneOptions {
  int64_t steps = 500;
  OptimizerOptions optimizer = {.kind = "adamw", .rate = 1e-4, .weight_decay = 0.01};
  ScheduleOptions schedule = {};
  double clip = 1;  ///< global gradient norm; 0: off. Of the gates under a budget another one
  /// What the student's gates may open; unset: they learn from the teacher alone, as all else does.
  std::optional<GateBudgetOptions> gates = {};
  std::string title = {};
  /// After each step's update (apply masks, ...).
  std::function<void(int64_t step)> after_step = {};
};

struct TuneResult {
  double first_loss = 0, last_loss = 0;  ///< means over the first and last tenth of the steps
  int64_t steps = 0;
  double seconds = 0;
};

/// Trains the student in place, one batch a step. Throws Error{numeric} naming the step when the
/// loss is not finite, and as GateBudget.
TuneResult tune(Model& student, Distiller& distiller,
                const std::function<DistillBatch(int64_t step)>& batches,
                const TuneOptions& options);

}  // namespace sluice::lab
