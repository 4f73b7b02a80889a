// Masks over weights that survive the optimiser: kept beside the parameters, applied after every
// step, so that momentum and weight decay cannot move a pruned weight.
#pragma once
#include <functional>
#include <map>

#include "sluice/lab/model/model.h"

namespace sluice::lab {

/// Parameter path -> 0/1 tensor of the parameter's shape.
class MaskSet {
 public:
  void set(const std::string& path, at::Tensor mask) { masks_[path] = std::move(mask); }
  const std::map<std::string, at::Tensor>& masks() const { return masks_; }
  bool empty() const { return masks_.empty(); }
  /// theta <- m * theta for every masked parameter of `root`. Throws Error{missing|shape} when a
  /// path does not fit.
  void apply(Brick& root) const;
  /// grad <- m * grad where there is one.
  void apply_to_gradients(Brick& root) const;
  /// Kept weights / weights over the masked parameters.
  double density() const;
  std::map<std::string, double> density_by_path() const;

 private:
  std::map<std::string, at::Tensor> masks_;
};

enum class PruneScope { layer, global };

/// Which weights may be pruned and how fast: the first pattern that matches a parameter path
/// decides its rate.
struct PruneRates {
  std::vector<std::pair<std::string, double>> rates;  ///< {"fc3.weight", 0.1}, {"**.weight", 0.2}
};

/// [weight's shape], higher = keep.
using PruneScore = std::function<at::Tensor(const std::string& path, const at::Tensor& weight)>;
PruneScore magnitude_score();                                        ///< |w|
PruneScore movement_score(std::map<std::string, at::Tensor> start);  ///< |w - w0|
PruneScore random_score(uint64_t seed);
/// `score`, but the ceil(share * n) highest of each weight's n stand above all others: with a
/// global scope no layer becomes emptier than that.
PruneScore guarded_score(PruneScore score, double share);

/// [n] bool: the `count` highest of n scores; among equal ones the lowest indices are taken.
at::Tensor highest(const at::Tensor& scores, int64_t count);

/// Prunes the lowest-scoring fraction of the *surviving* weights (percentiles over survivors only):
/// exactly round(rate * survivors) per layer or over all layers; ties at the cut-off keep the
/// lowest index. Biases and norms are not pruned.
MaskSet prune_masks(const Brick& root, const MaskSet& current, const PruneRates& rates,
                    const PruneScore& score, PruneScope scope);
/// Same number of survivors per layer, positions shuffled (a negative control).
MaskSet shuffle_masks(const MaskSet& masks, uint64_t seed);

}  // namespace sluice::lab
