// The training loop: one model, one feed, an optimizer, a schedule, and hooks. Everything it draws
// is derived from (seed, step), and a checkpoint holds all state, so a killed run continues to the
// same result.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "sluice/lab/model/model.h"
#include "sluice/lab/train/feed.h"

namespace sluice::lab {

struct OptimizerOptions {
  std::string kind = "sgd";  ///< "sgd" (momentum, Nesterov), "adam", "adamw"
  double rate = 0.1;
  double momentum = 0.9;
  double weight_decay = 5e-4;  ///< not applied to 1-D parameters (biases, norms) unless decay_all
  bool decay_all = false;
};

struct ScheduleOptions {
  std::string kind = "cosine";  ///< "cosine", "linear", "constant", "step" (x0.1 at 50% and 75%)
  double warmup = 0.05;         ///< fraction of steps with linearly rising rate
  double floor = 0.0;           ///< final rate / peak rate
};

/// Rate multiplier at `step` of `steps`.
double schedule_factor(const ScheduleOptions& options, int64_t step, int64_t steps);

struct TrainOptions {
  int64_t steps = 1000;
  int64_t batch = 128;
  uint64_t seed = 1;
  OptimizerOptions optimizer;
  ScheduleOptions schedule;
  double label_smoothing = 0;
  double clip = 0;               ///< global gradient norm; 0 off
  std::string title = "train";   ///< of the progress bar; "" none
  std::string checkpoint;        ///< file; "" none
  int64_t checkpoint_every = 0;  ///< steps; 0 only at the end of the run
  /// Called with the step once a checkpoint is safely on disk; an exception from it ends the run.
  std::function<void(int64_t step)> after_checkpoint;
  int64_t log_every = 20;  ///< steps between curve points
};

/// State that goes into checkpoints besides model and optimizer.
using ExtraState = std::map<std::string, at::Tensor>;

struct TrainHooks {
  /// Added to the task loss; sees the batch's gate log. `step` counts from 0.
  std::function<at::Tensor(const GateLog& log, int64_t step)> extra_loss;
  /// Before the forward of each step (set context.gates_forced_open, swap bricks, ...).
  std::function<void(int64_t step, Context& context)> before_step;
  /// Between the backward pass and the update of each step (mask gradients, read them, ...).
  std::function<void(int64_t step)> after_backward;
  /// After optimizer.step() of each step (apply masks, ...).
  std::function<void(int64_t step)> after_step;
  std::function<ExtraState()> save_extra;
  std::function<void(const ExtraState&)> load_extra;
};

struct CurvePoint {
  int64_t step;
  double loss, accuracy, rate;  ///< of the training batches since the last point
};

struct TrainResult {
  std::vector<CurvePoint> curve;
  double seconds = 0;
  int64_t steps = 0;
};

class Trainer {
 public:
  /// The model's bricks are trained in place, on the device they are on.
  Trainer(Model& model, Feed& feed, TrainOptions options, TrainHooks hooks = {});
  ~Trainer();

  /// Runs steps [current, until) (until < 0: all). Stops with Error{numeric} naming the step when
  /// the loss is not finite.
  TrainResult run(int64_t until = -1);
  int64_t step() const;
  /// Rebuilds the optimizer over the model's present parameters (after surgery); momentum starts
  /// anew.
  void reset_optimizer();

  /// One safetensors file: parameters and buffers, optimizer state, step, extra state, and the
  /// brick description.
  void save_checkpoint(const std::string& path) const;
  /// Continues from the file: rebuilds the bricks when the description differs from the present
  /// model (surgery happened before the checkpoint). Throws Error{config} when options that shape
  /// the result differ.
  void load_checkpoint(const std::string& path);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Mean cross-entropy and accuracy in evaluation mode, without gradients; logs gates when
/// `log_gates` is set (mean decision per unit by path).
struct LabEvaluation {
  double accuracy = 0, loss = 0;
  at::Tensor predictions;                        ///< [count] int64, CPU
  std::map<std::string, at::Tensor> gate_means;  ///< share of samples for which each unit is open
};
LabEvaluation evaluate(Model& model, const Feed& feed, bool log_gates = false, int64_t batch = 250);

}  // namespace sluice::lab
