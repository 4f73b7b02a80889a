#include "sluice/base/error.h"

#include <set>

#include "sluice/base/test_error.h"

namespace sluice {
namespace error_test {

TEST(ErrorTest, EveryCodeHasItsOwnName) {
  std::set<std::string_view> names;
  for (int code = static_cast<int>(Code::usage); code <= static_cast<int>(Code::internal); ++code) {
    names.insert(code_name(static_cast<Code>(code)));
  }
  EXPECT_EQ(names.size(), 12U);
  EXPECT_EQ(names.count("unknown"), 0U);
  EXPECT_EQ(code_name(static_cast<Code>(99)), "unknown");
}

TEST(ErrorTest, CodesKeepTheirNumbers) {
  EXPECT_EQ(static_cast<int>(Code::usage), 1);
  EXPECT_EQ(static_cast<int>(Code::format), 3);
  EXPECT_EQ(static_cast<int>(Code::limit), 8);
  EXPECT_EQ(static_cast<int>(Code::internal), 12);
}

TEST(ErrorTest, FailFormatsItsMessage) {
  expect_error(Code::shape, "x: expected 3, found 4",
               [&] { fail(Code::shape, "{}: expected {}, found {}", "x", 3, 4); });
}

TEST(ErrorTest, CheckNamesConditionAndPlaceInsideTheTree) {
  expect_error(Code::internal, "1 + 1 == 3 does not hold at sluice/base/error_test.cpp:", [&] {
    SLUICE_CHECK(1 + 1 == 3);
  });
  EXPECT_NO_THROW(SLUICE_CHECK(1 + 1 == 2));
}

}  // namespace error_test
}  // namespace sluice
