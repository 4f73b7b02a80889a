// Sizes and schedules of one scale, read from recipe.toml, and the network they describe.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/base/json.h"
#include "sluice/data/dataset.h"
#include "sluice/lab/model/model.h"
#include "sluice/lab/pass/mask.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::lottery_ticket {

/// A density at which every arm is trained.
struct Level {
  int64_t round;
  std::string name;
};

struct Plan {
  std::string model, what = "lottery-ticket";
  std::vector<int64_t> hidden;
  lab::TrainOptions train;
  int64_t epochs, long_epochs, rounds, rewind_step, validate_every;
  double validation;
  lab::PruneRates rates;
  std::vector<Level> levels;

  const Level* level_of(int64_t round) const {
    for (const auto& level : levels)
      if (level.round == round) return &level;
    return nullptr;
  }
};

/// Throws Error{config} naming the field.
Plan read_plan(const Json& settings);

/// Step 1 of the mechanism: Glorot-normal weights, zero biases.
lab::Model make_network(const Plan& plan, const data::ImageSet& data, uint64_t seed);

}  // namespace sluice::recipes::lottery_ticket
