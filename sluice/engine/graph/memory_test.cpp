#include "sluice/engine/graph/memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace sluice::engine {
namespace memory_test {

TEST(Memory, ValuesAliveTogetherNeverOverlap) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<Lifetime> lives;
    int64_t all = 0;
    for (size_t i = 0; i < 1 + random() % 30; ++i) {
      Lifetime life;
      life.bytes = int64_t(random() % 5000);
      life.first = int(random() % 20);
      life.last = life.first + int(random() % 8);
      all += (life.bytes + 63) / 64 * 64;
      lives.push_back(life);
    }
    const Arena arena = place(lives);
    for (size_t i = 0; i < lives.size(); ++i) {
      ASSERT_EQ(arena.offsets[i] % 64, 0);
      ASSERT_LE(arena.offsets[i] + lives[i].bytes, arena.bytes);
      for (size_t j = 0; j < i; ++j) {
        if (lives[i].last < lives[j].first || lives[j].last < lives[i].first) continue;
        ASSERT_TRUE(arena.offsets[i] + lives[i].bytes <= arena.offsets[j] ||
                    arena.offsets[j] + lives[j].bytes <= arena.offsets[i]);
      }
    }
    ASSERT_LE(arena.bytes, all);
  }
}

TEST(Memory, AChainNeedsTwoBuffers) {
  std::vector<Lifetime> lives;
  for (int i = 0; i < 10; ++i) lives.push_back({1000, i, i + 1});
  EXPECT_EQ(place(lives).bytes, 2048);
}

}  // namespace memory_test
}  // namespace sluice::engine
