// What config.json says about rotary positions, as the rope operator computes them.
#pragma once
#include <cstdint>
#include <vector>

#include "sluice/bundle/import/config.h"

namespace sluice::bundle::hf {

struct RopeScaling {
  double base = 10000, scale = 1;
  int64_t dims = 0;            ///< of a head, from its first column
  std::vector<float> factors;  ///< dims / 2 divisors of the frequencies; empty: all 1
  double attention = 1;        ///< the products of queries and keys are multiplied by this
  int64_t positions = 0;       ///< at most
};

/// From `rope_parameters` or `rope_theta` and `rope_scaling`: types default, linear, dynamic (up to
/// the original length, where it is the default), llama3 and yarn. Throws Error{unsupported} naming
/// the field for others.
RopeScaling read_rope(const Config& config, int64_t head_dim);

}  // namespace sluice::bundle::hf
