#include "sluice/base/shape.h"

#include <limits>

#include "sluice/base/test_error.h"

namespace sluice {
namespace shape_test {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

TEST(Shape, MultipliesUpToTheLimitAndRefusesBeyond) {
  EXPECT_EQ(checked_mul(kMax, 1, "x"), kMax);
  EXPECT_EQ(checked_mul(0, kMax, "x"), 0);
  expect_error(Code::limit, "weights", [&] { checked_mul(kMax / 2 + 1, 2, "weights"); });
  expect_error(Code::limit, "negative", [&] { checked_mul(-1, 2, "weights"); });
  expect_error(Code::limit, "negative", [&] { checked_mul(2, -1, "weights"); });
}

TEST(Shape, AddsUpToTheLimitAndRefusesBeyond) {
  EXPECT_EQ(checked_add(kMax - 1, 1, "x"), kMax);
  expect_error(Code::limit, "offset", [&] { checked_add(kMax, 1, "offset"); });
  expect_error(Code::limit, "negative", [&] { checked_add(-1, 5, "offset"); });
}

TEST(Shape, CountsElements) {
  EXPECT_EQ(numel(Shape{}), 1);
  EXPECT_EQ(numel(Shape{2, 3, 4}), 24);
  EXPECT_EQ(numel(Shape{2, 0, 4}), 0);
}

TEST(Shape, RefusesImpossibleElementCounts) {
  expect_error(Code::limit, "w: 2 x -1", [&] { numel(Shape{2, -1}, "w"); });
  expect_error(Code::limit, "w", [&] { numel(Shape{1LL << 32, 1LL << 32}, "w"); });
  expect_error(Code::limit, "w", [&] { numel(Shape{1LL << 32, 1LL << 32, 0}, "w"); });
}

TEST(Shape, PrintsForPeople) {
  EXPECT_EQ(to_string(Shape{64, 3, 3}), "64 x 3 x 3");
  EXPECT_EQ(to_string(Shape{}), "scalar");
}

}  // namespace shape_test
}  // namespace sluice
