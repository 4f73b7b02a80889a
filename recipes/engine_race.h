// Networks that skip beside the dense one, in the engine: one sample after another, and many
// together. Every recipe reports the same metrics, so that the catalogue can show them.
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

/// The first racer is the dense network. One thread; the same samples for all, interleaved. Adds to
/// every racer's arm, with B the samples that run together:
///   us_alone, us_batched             microseconds of a sample, one at a time and B at a time
///   time_alone, time_batched         those over the first racer's
///   macs_alone, macs_batched         multiply-accumulates that the engine executed, over the first
///                                    racer's
/// A sample is a picture of the test split (`samples` of them, another one in each run), or a token
/// that is decoded behind others (`decoded` in each of B texts).
struct RaceSize {
  int64_t batch = 64, samples = 256;
  int rounds = 11;
};
void race_pictures(RecipeRun& run, const std::vector<Racer>& racers, const data::ImageSet& data,
                   const RaceSize& size = {});

/// `windows`: ids, at least size.batch rows of at least `decoded` tokens; fewer rows, fewer
/// together. Logits of the last row only, as for choosing a token.
struct DecodeRaceSize {
  int64_t batch = 8, decoded = 48;
  int rounds = 7;
};
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
