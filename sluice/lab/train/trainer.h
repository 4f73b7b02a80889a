// The training loop: one model, one feed, an optimizer, a schedule, and hooks. Everything it draws
// is derived from (seed, step), and a checkpoint holds all state, so a killed run continues to the
// same result.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "sluice/lab/model/model.h"
#include "sluice/lab/train/distributed.h"
#include "sluice/lab/train/feed.h"

namespace sluice::lab {

struct OptimizerOptions {
  std::string kind = "sgd";  ///< "sgd" (momentum, Nesterov), "adam", "adamw", "muon" (muon.h)
  double rate = 0.1;
  double momentum = 0.9;       ///< of sgd and muon
  double weight_decay = 5e-4;  ///< not applied to 1-D parameters (biases, norms) unless decay_all
  bool decay_all = false;
  double beta2 = 0.999;  ///< of adam, adamw and what muon leaves to adamw
};

struct ScheduleOptions {
  std::string kind = "cosine";  ///< "cosine", "linear", "constant", "step" (x0.1 at each milestone)
  double warmup = 0.05;         ///< fraction of steps with linearly rising rate
  double floor = 0.0;           ///< final rate / peak rate
  std::vector<double> milestones = {};  ///< of "step": shares of the steps; empty: 0.5 and 0.75
};

/// Rate multiplier at `step` of `steps`.
double schedule_factor(const ScheduleOptions& options, int64_t step, int64_t steps);

/// Parameters that learn by an optimizer and a schedule of their own.
struct ParameterGroup {
  std::string pattern;  ///< of their dotted names (base/path_pattern.h): "**.gate.**"
  OptimizerOptions optimizer = {};
  ScheduleOptions schedule = {};
  double until = 1;  ///< share of the steps after which they stay as they are
};

struct TrainOptions {
  int64_t steps = 1000;
  int64_t batch = 128;      ///< samples of a step, over all processes
  int64_t micro_batch = 0;  ///< samples of one forward of one process; 0: all of its part
  uint64_t seed = 1;
  OptimizerOptions optimizer;
  ScheduleOptions schedule;
  /// A parameter belongs to the first group whose pattern matches, the others to `optimizer` and
  /// `schedule`. Every group must match some.
  std::vector<ParameterGroup> groups = {};
  double label_smoothing = 0;
  double clip = 0;               ///< global gradient norm; 0 off
  std::string title = "train";   ///< of the progress bar; "" none
  std::string checkpoint;        ///< file; "" none
  int64_t checkpoint_every = 0;  ///< steps; 0 only at the end of the run
  /// Called with the step once a checkpoint is safely on disk; an exception from it ends the run.
  std::function<void(int64_t step)> after_checkpoint;
  int64_t log_every = 20;         ///< steps between curve points
  int64_t validate_every = 0;     ///< steps between calls of hooks.validate; 0 only at the end
  bool bf16 = false;              ///< matrix products in bf16 (CUDA only); weights stay f32
  int64_t tokens_per_sample = 0;  ///< when not 0, progress also tells tokens per second
  /// What else shapes the result (data, architecture); a checkpoint with another one is refused.
  std::string fingerprint;
  /// Other processes that train the same model; each must construct the Trainer alike. Process 0
  /// writes checkpoints and calls on_point, on_validation and validate.
  std::shared_ptr<ProcessGroup> processes;
};

/// State that goes into checkpoints besides model and optimizer.
using ExtraState = std::map<std::string, at::Tensor>;

struct CurvePoint {
  int64_t step;
  double loss, accuracy, rate;  ///< of the training batches since the last point
};

struct ValidationPoint {
  int64_t step;
  double loss;
};

struct TrainHooks {
  /// Added to the task loss; sees the batch's gate log. `step` counts from 0.
  std::function<at::Tensor(const GateLog& log, int64_t step)> extra_loss;
  /// Before each forward of a step (set context.gates_forced_open, swap bricks, ...).
  std::function<void(int64_t step, Context& context)> before_step;
  /// Sizes of a nested network (Context::size) that the step trains: one forward and backward each
  /// over the same samples, the loss and its gradient being their mean. Curves show the accuracy of
  /// the last one. Unset: one pass of the whole network.
  std::function<std::vector<int64_t>(int64_t step)> sizes;
  /// Between the backward pass and the update of each step (mask gradients, read them, ...).
  std::function<void(int64_t step)> after_backward;
  /// After optimizer.step() of each step (apply masks, ...).
  std::function<void(int64_t step)> after_step;
  /// Loss on held-out data of the model as it is.
  std::function<double()> validate;
  /// After each point of the curves; `tokens_per_second` is 0 without tokens_per_sample.
  std::function<void(const CurvePoint& point, double tokens_per_second)> on_point;
  std::function<void(const ValidationPoint& point)> on_validation;
  std::function<ExtraState()> save_extra;
  std::function<void(const ExtraState&)> load_extra;
};

struct TrainResult {
  std::vector<CurvePoint> curve;
  std::vector<ValidationPoint> validation;
  double seconds = 0;
  int64_t steps = 0;
};

class Trainer {
 public:
  /// The model's bricks are trained in place, on the device they are on.
  Trainer(Model& model, BatchSource& feed, TrainOptions options, TrainHooks hooks = {});
  ~Trainer();

  /// Runs steps [current, until) (until < 0: all). Stops with Error{numeric} naming the step and
  /// the first tensor that is not finite when the loss is not; the checkpoint stays the last one
  /// whose values all were. Error{io} when another process is lost: process 0 then keeps a
  /// checkpoint of the last whole step.
  TrainResult run(int64_t until = -1);
  int64_t step() const;
  /// Rebuilds the optimizer over the model's present parameters (after surgery); momentum starts
  /// anew.
  void reset_optimizer();
  /// What the optimizer keeps of each parameter ("<parameter>.exp_avg", ".momentum_buffer", ...),
  /// to be changed in place; nothing before the first step.
  std::map<std::string, at::Tensor> moments() const;

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
/// `log_gates` is set (mean decision per unit by path). `size` as Context::size.
struct LabEvaluation {
  double accuracy = 0, loss = 0;
  at::Tensor predictions;                        ///< [count] int64, CPU
  std::map<std::string, at::Tensor> gate_means;  ///< share of samples for which each unit is open
};
LabEvaluation evaluate(Model& model, const Feed& feed, bool log_gates = false, int64_t batch = 250,
                       int64_t size = -1);

}  // namespace sluice::lab
