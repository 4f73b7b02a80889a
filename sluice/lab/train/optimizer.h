// Building LibTorch optimizers and moving their state in and out by parameter name: LibTorch keys
// it by address, in a type that changed between versions. Internal to train.
#pragma once
#include <torch/optim/optimizer.h>

#include "sluice/lab/train/trainer.h"

namespace sluice::lab {

using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

/// Those that require gradients.
NamedParameters trainable_parameters(const Brick& root);
/// Global norm clipping without waiting for the device.
void clip_gradients(const NamedParameters& parameters, double limit);

/// Changes parameters by their gradients. State moves in and out by parameter name.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual void set_rate(double rate) = 0;
  /// Before each step: what follows schedules of its own looks here where it is.
  virtual void begin_step(int64_t) {}
  virtual void step() = 0;
  /// "<parameter>.momentum_buffer", or ".exp_avg", ".exp_avg_sq", ".step".
  virtual std::map<std::string, at::Tensor> state() const = 0;
  /// Throws Error{format} naming the tensor that is missing, misshapen or unknown.
  virtual void load_state(const std::map<std::string, at::Tensor>& state,
                          const std::string& what) = 0;
};

/// Any kind, over `parameters`. Throws Error{config}.
std::unique_ptr<Optimizer> build_optimizer(const OptimizerOptions& options,
                                           const NamedParameters& parameters);

/// One optimizer for each of options.groups and one for the rest, which alone obeys set_rate; the
/// groups follow their schedules over options.steps, each until its end. Throws Error{config}
/// naming a group that matches no parameter, or when none is left.
std::unique_ptr<Optimizer> build_grouped_optimizer(const TrainOptions& options,
                                                   const NamedParameters& parameters);

/// LibTorch's sgd, adam and adamw: two parameter groups, with weight decay (matrices and kernels,
/// or all), and without. Throws Error{config}.
std::unique_ptr<torch::optim::Optimizer> make_optimizer(const OptimizerOptions& options,
                                                        const NamedParameters& parameters);

}  // namespace sluice::lab
