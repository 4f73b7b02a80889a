// Offsets in one arena for buffers that are alive for a range of steps.
#pragma once
#include <cstdint>
#include <vector>

namespace sluice::engine {

struct Lifetime {
  int64_t bytes = 0;
  int first = 0, last = 0;  ///< steps, both included
};

struct Arena {
  std::vector<int64_t> offsets;  ///< one per lifetime, 64-byte aligned
  int64_t bytes = 0;
};

/// Largest first, each at the lowest offset where no buffer alive at the same time lies.
Arena place(const std::vector<Lifetime>& lifetimes);

}  // namespace sluice::engine
