// The networks of one seed: nested, trained whole and sliced, trained one by one, and the controls.
#pragma once
#include "recipes/recipe.h"
#include "sluice/data/dataset.h"
#include "sluice/lab/pass/subnet.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::sortednet {

struct Plan {
  std::string data, model;      ///< model: "resnet" or "mlp"
  std::vector<int64_t> widths;  ///< of the stages, or of the hidden layers
  int64_t blocks = 2;           ///< of a stage
  int64_t train_limit = 0, test_limit = 0, calibration = 2000;
  lab::SubnetSpace space;
  lab::TrainOptions train;
  lab::SizeSampler sampler;
  bool sandwich = false;  ///< also trains by the sandwich rule
};

/// Throws Error{config} naming the field.
Plan read_plan(const Json& settings);

/// One sub-network, as measured.
struct Point {
  std::string name;
  double macs = 0, accuracy = 0;  ///< per image; percent of the test split
};

struct Study {
  std::map<std::string, std::vector<Point>> arms;  ///< nested arms: every size, cheapest first
  std::vector<Point> separate;                     ///< one per width, of full depth
  lab::Model nested;                               ///< the system's network, with measured sizes
  std::vector<lab::Model> alone;                   ///< those of `separate`
};

/// Trains all arms of one seed.
Study run_study(const Plan& plan, const data::ImageSet& data, uint64_t seed, c10::Device device,
                const std::string& directory);

/// Accuracy in percent of every size of a nested model (of an ordinary one: of itself) over the
/// test split, and what each cost: by the engine where there is one and the device is the CPU.
std::vector<Point> measure(lab::Model& model, const data::ImageSet& data, c10::Device device,
                           const std::string& directory);

/// Microseconds per image in the engine at batch 1 and 64, of sizes of the nested network and of
/// networks trained at these sizes; largest relative difference to the bricks over all sizes. A
/// note in builds without the engine.
void measure_engine(RecipeRun& run, const Study& study, const data::ImageSet& data);

}  // namespace sluice::recipes::sortednet
