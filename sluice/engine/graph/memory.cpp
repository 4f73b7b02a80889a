#include "sluice/engine/graph/memory.h"

#include <algorithm>
#include <numeric>

#include "sluice/engine/kernel/buffer.h"

namespace sluice::engine {

Arena place(const std::vector<Lifetime>& lifetimes) {
  std::vector<size_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return lifetimes[a].bytes > lifetimes[b].bytes; });
  Arena arena;
  arena.offsets.assign(lifetimes.size(), 0);
  std::vector<size_t> placed;  // by offset
  for (size_t i : order) {
    const Lifetime& life = lifetimes[i];
    int64_t offset = 0;
    for (size_t j : placed) {
      const Lifetime& other = lifetimes[j];
      if (other.last < life.first || life.last < other.first) continue;
      if (offset + life.bytes <= arena.offsets[j]) break;
      offset = std::max(offset, align_up(arena.offsets[j] + other.bytes));
    }
    arena.offsets[i] = offset;
    arena.bytes = std::max(arena.bytes, align_up(offset + life.bytes));
    const auto at = std::find_if(placed.begin(), placed.end(),
                                 [&](size_t j) { return arena.offsets[j] > offset; });
    placed.insert(at, i);
  }
  return arena;
}

}  // namespace sluice::engine
