// Training of new layers on what the old ones in their places took and gave, all layers in parallel
// and without the task: the first phase of most surgery that trains.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "sluice/lab/model/model.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::lab {

/// A scalar for the student's brick at one place, what the base's brick there took (x) and gave
/// (y).
using LayerLoss =
    std::function<at::Tensor(Brick& student, const at::Tensor& x, const at::Tensor& y)>;

struct LayerwiseOptions {
  int64_t steps = 500, batch = 64;
  uint64_t seed = 1;
  OptimizerOptions optimizer = {.kind = "adam", .rate = 1e-3, .weight_decay = 0};
  ScheduleOptions schedule = {};
  double clip = 1;  ///< gradient norm of each layer; 0: off
  /// Which parameters learn, by their names below the layer ("up.*"); the others stay.
  std::vector<std::string> parameters = {"**"};
  std::string title = {};
};

struct LayerwiseResult {
  /// By layer: mean loss over the first and the last tenth of the steps.
  std::map<std::string, double> first, last;
  double seconds = 0;
};

/// Runs the base on each batch, in evaluation mode and without gradients, and changes the student's
/// bricks at the paths that match `pattern` by `loss`. Both models have these paths; the base is
/// given them as they are, so layers do not see each other's errors. Throws Error{usage} for a
/// pattern that matches nothing, Error{numeric} naming the layer whose loss is not finite.
LayerwiseResult train_layers(const Model& base, Model& student, const std::string& pattern,
                             BatchSource& feed, const LayerLoss& loss,
                             const LayerwiseOptions& options);

}  // namespace sluice::lab
