// What SparseTraining holds, and its two ways of getting masks. Internal to train.
#pragma once
#include "sluice/lab/train/optimizer.h"
#include "sluice/lab/train/sparse_training.h"

namespace sluice::lab {

/// Scores that make soft masks of weights.
class SoftMasks {
 public:
  /// `weights` by path; scores begin alike.
  SoftMasks(const std::map<std::string, at::Tensor>& weights, const SparseOptions& options,
            int64_t steps);
  /// The weights become what the forward of `step` sees; until restore().
  void mask(const std::map<std::string, at::Tensor>& weights, int64_t step);
  bool masked() const { return !dense_.empty(); }
  void restore(const std::map<std::string, at::Tensor>& weights);
  /// After the backward pass through masked weights: their gradients become those of the unmasked
  /// ones, the scores take a step.
  void learn(const std::map<std::string, at::Tensor>& weights, int64_t step);
  /// Mean of the mask, with weights as units.
  double density(int64_t step) const;
  MaskSet harden() const;
  std::map<std::string, at::Tensor> state() const;
  void load_state(const std::map<std::string, at::Tensor>& state);

 private:
  at::Tensor mask_of(const std::string& path, int64_t step) const;
  double target(int64_t step) const;

  SparseOptions options_;
  int64_t soft_steps_;  ///< until the mask is hard
  double start_ = 1;    ///< mean of the mask at first
  int64_t count_ = 0;   ///< scores
  std::map<std::string, at::Tensor> scores_;
  std::map<std::string, std::vector<int64_t>> shapes_;  ///< of the weights
  std::map<std::string, at::Tensor> dense_;             ///< the weights while they are masked
  std::unique_ptr<Optimizer> optimizer_;
};

struct SparseTraining::State {
  Model& model;
  SparseOptions options;
  int64_t steps;
  uint64_t seed;
  std::vector<std::string> paths = {};  ///< of the weights
  MaskSet masks = {};
  std::unique_ptr<SoftMasks> soft = nullptr;      ///< until hard
  std::map<std::string, at::Tensor> growth = {};  ///< |gradient| of this step, where masks change
  Trainer* trainer = nullptr;
  int64_t updates = 0;
  int64_t step = 0;  ///< finished ones

  std::map<std::string, at::Tensor> weights() const;
  bool changes_after(int64_t at) const;
  void before_step(int64_t at);
  void after_backward(int64_t at);
  void after_step(int64_t at);
  void regrow(int64_t at);
  void apply();  ///< masks, to weights and moments
};

}  // namespace sluice::lab
