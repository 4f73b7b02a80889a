// Training that is sparse from the start, or becomes so: weights are dropped and grown again while
// the number of them stays the same (SET: Mocanu et al. 2018; RigL: Evci et al. 2020), or a mask is
// learned with the weights and hardened to the wanted density (straight-through: Bengio et al.
// 2013; sigmoids that grow steep: Savarese et al. 2020).
#pragma once
#include "sluice/lab/pass/mask.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::lab {

struct SparseOptions {
  std::string method = "rigl";         ///< "set", "rigl", "soft"
  double density = 0.1;                ///< kept weights / weights of the layers below, in (0, 1]
  std::string slots = "**";            ///< linear layers and convolutions in these slots ...
  std::vector<std::string> skip = {};  ///< ... but not in these
  /// set and rigl: how the kept weights spread over layers. "erk": density in proportion to the
  /// sum of a weight's dimensions over their product, 1 at most; "uniform": the same everywhere.
  std::string distribution = "erk";
  std::string start = "random";  ///< set and rigl: the first weights; "random" or "magnitude"
  int64_t every = 100;           ///< set and rigl: steps between two changes of the masks
  double drop = 0.3;             ///< share of a layer's weights that the first change replaces ...
  double until = 0.75;           ///< ... falling by a cosine to 0 at this share of the steps
  std::string granularity = "weight";  ///< soft: one score a "weight", or a "unit" (output)
  /// soft: "sigmoid": the forward sees sigmoid(slope * score), whose slope rises to `slope`;
  /// "straight_through": it sees 0 and 1, the gradient is the sigmoid's.
  std::string estimator = "sigmoid";
  double slope = 30;
  double pressure = 0.1;  ///< soft: weight of the sparsity loss
  double rate = 0.02;     ///< soft: Adam's rate of the scores
  double harden = 0.7;    ///< soft: share of the steps after which the mask is 0 and 1
};

/// Reads the fields of the same names. Throws Error{config} for an unknown key or a value out of
/// range.
SparseOptions sparse_options(const Json& json);

/// Weights to keep of each layer, by parameter path: round(density * all) together, at least one
/// each. Throws Error{config} when that cannot be.
std::map<std::string, int64_t> sparse_counts(const std::map<std::string, at::Tensor>& weights,
                                             double density, const std::string& distribution);

/// One sparse training. Built before its Trainer, which must see the hooks it adds:
///
///   SparseTraining sparse(model, options, train.steps, train.seed);
///   sparse.attach(hooks);
///   Trainer trainer(model, feed, train, hooks);
///   sparse.follow(trainer);
///
/// set, rigl: every `every` steps, after the update, each layer drops its weights of least
/// magnitude and grows as many elsewhere: at random (set), or those whose gradients of this step
/// are largest (rigl). One that would be dropped and grown at once stays as it was. Grown ones
/// begin at 0 with moments of 0; weights and moments outside the masks are 0 after every step.
///
/// soft: per weight or unit a score s with mask m(s). The loss gets pressure * n * (mean m - target
/// of this step)^2 over all n scores, the target falling from what it is at first to `density` in
/// the first 4/5 of the time until the mask hardens: then the round(density * n) highest scores of
/// all layers stay. Between steps the parameters are the unmasked ones until then.
///
/// Everything drawn depends on (seed, step, path); masks and scores go into checkpoints.
class SparseTraining {
 public:
  /// Masks the first weights at once (set, rigl). Throws Error{usage} when no layer matches,
  /// Error{config}.
  SparseTraining(Model& model, SparseOptions options, int64_t steps, uint64_t seed);
  ~SparseTraining();
  /// Adds to hooks that are there; they run first, and validate sees the masked network.
  void attach(TrainHooks& hooks);
  void follow(Trainer& trainer);
  /// As they are now; of soft ones empty until they are hard.
  const MaskSet& masks() const;
  /// Share of weights that the mask leaves, in the mean; of hard masks the density.
  double density() const;
  /// Changes of the masks so far.
  int64_t updates() const;
  /// {"method", "density", "updates", "layers": {path: density}}
  Json report() const;

 private:
  struct State;
  std::shared_ptr<State> state_;  ///< shared with the hooks
};

}  // namespace sluice::lab
