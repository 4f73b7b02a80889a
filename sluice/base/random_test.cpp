#include "sluice/base/random.h"

#include <gtest/gtest.h>

#include <bit>
#include <set>

namespace sluice {
namespace random_test {

TEST(DeriveSeed, KeepsItsValuesAcrossVersions) {
  // Saved runs resume with these numbers.
  EXPECT_EQ(derive_seed(0, ""), 12014417281350144652ULL);
  EXPECT_EQ(derive_seed(1, "shuffle", 7), 1920810974715444225ULL);
}

TEST(DeriveSeed, DiffersInEveryArgument) {
  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    for (const char* stream : {"", "a", "b", "ab", "ba", "init", "shuffle"}) {
      for (uint64_t index = 0; index < 20; ++index) {
        seen.insert(derive_seed(seed, stream, index));
      }
    }
  }
  EXPECT_EQ(seen.size(), 20U * 7 * 20);
}

TEST(DeriveSeed, NeighbouringIndicesShareNoPattern) {
  int flipped = 0;
  for (uint64_t index = 0; index < 1000; ++index) {
    flipped += std::popcount(derive_seed(5, "x", index) ^ derive_seed(5, "x", index + 1));
  }
  EXPECT_NEAR(flipped / 1000.0, 32, 1);
}

}  // namespace random_test
}  // namespace sluice
