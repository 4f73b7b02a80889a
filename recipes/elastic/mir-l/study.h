// Training, pruning and testing of restoration networks on photographs.
#pragma once
#include "recipes/recipe.h"
#include "sluice/data/photos.h"
#include "sluice/lab/brick/restoration.h"
#include "sluice/lab/pass/mask.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::mir_l {

struct Plan {
  std::string data;
  lab::RestorationLayers layers;
  std::vector<std::string> tasks;  ///< degradations
  int64_t crop, batch, steps;      ///< of a training
  int64_t rounds;
  double prune_rate, guard;  ///< guard: share of each layer that stays
  lab::OptimizerOptions optimizer;
  lab::ScheduleOptions schedule;
  int64_t test_crop, test_crops;  ///< side, and crops of each picture
};

/// Throws Error{config} naming the field.
Plan read_plan(const Json& settings);

/// Crops of fixed places, clean and degraded in every way.
struct TestSet {
  std::vector<data::Planes> clean;
  std::map<std::string, std::vector<data::Planes>> degraded;  ///< by task
};
TestSet make_test_set(const Plan& plan, const std::vector<data::Photo>& photos,
                      std::string_view what);

/// Means over the pictures of a test set.
struct Quality {
  std::map<std::string, double> psnr, ssim, input_psnr;       ///< by task, of results and of inputs
  std::map<std::string, std::vector<double>> prompt_weights;  ///< by task, of the first generator
  double psnr_mean() const, ssim_mean() const;
  /// The least that any task gains over its own degraded input, in dB.
  double worst_gain() const;
};
Quality test(lab::Model& model, const TestSet& set, c10::Device device);
/// What the network makes of one picture.
data::Planes restore(lab::Model& model, const data::Planes& picture, c10::Device device);

/// A network with the plan's layers, input [channels, crop, crop].
lab::Model make_network(const Plan& plan, uint64_t seed);
/// The same, so narrow that it has as few prunable weights as it can with at least `weights`.
lab::Model make_narrow_network(const Plan& plan, int64_t weights, uint64_t seed);
/// Weights that pruning may take: of convolutions and linear layers.
int64_t prunable_weights(const lab::Model& model);
lab::PruneRates rates(double rate);

/// plan.steps of L1 between result and clean crop, weights masked after every step. Batches depend
/// on `seed` and the step alone: all arms of a seed see the same ones.
void train(lab::Model& model, const lab::MaskSet& masks, const Plan& plan,
           const std::vector<data::Photo>& photos, uint64_t seed, c10::Device device,
           const std::string& title);

/// Times dense and pruned network in the engine and compares their results with the bricks'; a note
/// in builds without the engine.
void measure_engine(RecipeRun& run, const Plan& plan, const lab::Model& dense,
                    const lab::Model& ticket);

}  // namespace sluice::recipes::mir_l
