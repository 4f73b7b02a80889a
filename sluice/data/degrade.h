// What bad weather and sensors do to pictures: for training and testing of restoration. Every
// function depends on its arguments alone, is equal on every machine up to rounding, and leaves
// values within 0..1.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/data/planes.h"

namespace sluice::data {

/// Adds independent normal noise of deviation `sigma` (on the scale 0..255) to every value.
void add_noise(Planes& picture, double sigma, uint64_t seed);
/// Adds rain: sparse bright dots drawn out along one angle of 70 to 110 degrees from the horizontal
/// into streaks of 7 to 15 pixels, alike in all channels, times an opacity of 0.25 to 0.6.
void add_rain(Planes& picture, uint64_t seed);
/// Adds haze: J t + A (1 - t), t = exp(-beta d), with airlight A in 0.7..1, beta in 0.6..1.8, and a
/// depth d in 0..1 that rises along a random direction, with a smooth wave on it (the model of
/// Koschmieder 1924, as in RESIDE, Li et al. 2019).
void add_haze(Planes& picture, uint64_t seed);

/// "noise15", "noise25", "noise50", "rain", "haze".
const std::vector<std::string>& degradation_names();
/// Throws Error{usage} naming the known ones.
void degrade(Planes& picture, const std::string& name, uint64_t seed);

}  // namespace sluice::data
