// What packed_accumulate.cpp hands to its vector code.
#pragma once
#include <cstddef>

#include "sluice/bundle/packed.h"

namespace sluice::engine {

inline constexpr size_t kRows = 8;        // side by side
inline constexpr size_t kColumns = 4096;  // of y per pass: y and the rows' piece stay in the caches
inline constexpr size_t kTokens = 16;     // whose factors are prepared together
inline constexpr size_t kBlock = bundle::kGroup;
inline constexpr size_t kMinimum = kColumns / kBlock;  // in converted scales: minima start here

/// Eight rows from one column on, for up to kTokens tokens.
struct Pass {
  const std::byte* codes[kRows];
  const std::byte* scales[kRows];
  const std::byte* ahead[kRows];  // the rows of the next pass, and their scales
  const std::byte* ahead_scales[kRows];
  size_t minimum = 0;  // bytes from a group's scale to its minimum
  size_t count = 0;    // of rows
  size_t tokens = 0;   // that have a factor other than zero
  float factor[kTokens][kRows];
  float* y[kTokens];
  size_t columns = 0;
};

}  // namespace sluice::engine
