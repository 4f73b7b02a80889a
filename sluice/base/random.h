// Seeds that do not depend on call order: every consumer derives its own stream from (seed, name,
// index), so that a resumed run draws what the uninterrupted one would have drawn.
#pragma once
#include <cstdint>
#include <string_view>

namespace sluice {

/// SplitMix64 finalizer over the three values.
uint64_t derive_seed(uint64_t seed, std::string_view stream, uint64_t index = 0);

}  // namespace sluice
