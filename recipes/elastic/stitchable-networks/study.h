// The networks of one seed: anchors trained one by one, stitched in several ways, trained on.
#pragma once
#include "recipes/recipe.h"
#include "sluice/data/dataset.h"
#include "sluice/lab/pass/stitch.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::stitchable_networks {

/// A family of networks of one kind, smallest first.
struct Family {
  std::string prefix;          ///< of its arms: "" or "cnn-"
  std::string model;           ///< of the zoo
  std::vector<Json> options;   ///< of each anchor
  std::vector<int64_t> steps;  ///< of each anchor's training
  double rate = 1e-3;
};

struct Plan {
  std::string data;
  data::LoadOptions load;
  std::vector<Family> families;
  int64_t stitch_steps, stitch_batch, fit_samples, untrained_limit;
  double stitch_rate;
  lab::StitchOptions stitch;
  lab::TrainOptions train;  ///< what all trainings share
};

/// Throws Error{config} naming the field.
Plan read_plan(const Json& settings);

/// One path, as measured.
struct Point {
  std::string name;
  double macs = 0, accuracy = 0;  ///< per image; percent of the test split
};
using Points = std::vector<Point>;  ///< in the order of Model::sizes

struct Study {
  std::vector<Point> anchors;  ///< as trained alone, smallest first
  /// By arm: "stitched", "random-init", "shuffled", and before any training of the stitches
  /// "stitched-untrained", "random-untrained".
  std::map<std::string, Points> arms;
  std::map<std::string, double> residuals;  ///< of the least-squares maps, by path
  lab::Model stitched;                      ///< the system, with its accuracies in the table
};

Study run_study(const Plan& plan, const Family& family, const data::ImageSet& data, uint64_t seed,
                c10::Device device, const std::string& directory);

/// Accuracy in percent of every path over the test split (of an ordinary model: of itself), and its
/// MACs: by the engine where there is one and the device is the CPU.
Points measure(lab::Model& model, const data::ImageSet& data, c10::Device device,
               const std::string& directory);

/// Microseconds per image of some paths of the stitched network in the engine, one session, and
/// largest relative difference to the bricks; a note in builds without the engine.
void measure_engine(RecipeRun& run, const lab::Model& stitched, const data::ImageSet& data,
                    const std::string& arm);

/// Whether a path leads from one anchor into another.
bool is_stitched(const std::string& name);

}  // namespace sluice::recipes::stitchable_networks
