// Networks that skip beside the dense one, in the engine: one sample after another, and many
// together. Recipes that race report the same metrics, so that the catalogue can show them.
#pragma once
#if SLUICE_HAS_ENGINE
#include <cstdint>
#include <string>
#include <vector>

#include "recipes/recipe.h"
#include "sluice/data/dataset.h"
#include "sluice/engine/graph/network.h"

namespace sluice::recipes {

/// One network of a race, or one size of a nested network.
struct Racer {
  std::string arm, role;
  const engine::Network* network = nullptr;
  int64_t size = -1;        ///< see engine::RunOptions
  std::string ending = {};  ///< behind the names of the metrics, "_at_50"
};

struct RaceSize {
  int64_t batch = 64;     ///< pictures that run together
  int64_t samples = 256;  ///< of the test split, all of them in every round
  int rounds = 11;
};
/// The first racer is the dense network. One thread; the same samples for all, interleaved. Adds to
/// every racer's arm:
///   us_alone, us_batched       microseconds of a sample, one at a time and `batch` at a time
///   time_alone, time_batched   those over the first racer's
///   macs_alone, macs_batched   multiply-accumulates that the engine executed, over the first
///                              racer's
/// and to the limits race_batch.
void race_pictures(RecipeRun& run, const std::vector<Racer>& racers, const data::ImageSet& data,
                   const RaceSize& size = {});

struct DecodeRaceSize {
  int64_t batch = 8;     ///< texts that are decoded side by side; as many as there are windows
  int64_t decoded = 48;  ///< tokens of each, from its first on
  int rounds = 7;
};
/// The same of decoders: a sample is a token that is decoded behind those before it. `windows`: ids
/// [texts, tokens]. Logits of the last row only, as for choosing a token.
void race_decoding(RecipeRun& run, const std::vector<Racer>& racers, const at::Tensor& windows,
                   const DecodeRaceSize& size = {});

/// What both end with, for races that run by themselves: seconds and MACs of a sample, of each
/// racer alone and then batched.
struct Lap {
  double seconds_alone = 0, seconds_batched = 0, macs_alone = 0, macs_batched = 0;
};
void report_race(RecipeRun& run, const std::vector<Racer>& racers, const std::vector<Lap>& laps,
                 int64_t batch, const std::string& sample);

}  // namespace sluice::recipes
#endif
