// Building LibTorch optimizers and moving their state in and out by parameter name: LibTorch keys
// it by address, in a type that changed between versions. Internal to train.
#pragma once
#include <torch/optim.h>

#include "sluice/lab/train/trainer.h"

namespace sluice::lab {

using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

/// Two parameter groups: with weight decay (matrices and kernels, or all), and without. Throws
/// Error{config}.
std::unique_ptr<torch::optim::Optimizer> make_optimizer(const OptimizerOptions& options,
                                                        const NamedParameters& parameters);

void set_rate(torch::optim::Optimizer& optimizer, double rate);

/// "<parameter>.momentum_buffer", or ".exp_avg", ".exp_avg_sq", ".step".
std::map<std::string, at::Tensor> optimizer_state(const torch::optim::Optimizer& optimizer,
                                                  const OptimizerOptions& options,
                                                  const NamedParameters& parameters);
/// Throws Error{format} naming the tensor that is missing, misshapen or unknown.
void load_optimizer_state(torch::optim::Optimizer& optimizer, const OptimizerOptions& options,
                          const NamedParameters& parameters,
                          const std::map<std::string, at::Tensor>& state, const std::string& what);

}  // namespace sluice::lab
