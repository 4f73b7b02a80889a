#include "sluice/bundle/text.h"

#include <gtest/gtest.h>

#include "sluice/base/json.h"
#include "sluice/base/test_error.h"

namespace sluice::bundle {
namespace text_test {

TEST(ParseDocument, RefusesWhatIsTooLargeTooDeepOrNotOneValue) {
  expect_error(Code::limit, "at most 4", [] { parse_document("[1,2,3]", "x", 4, 8); });
  expect_error(Code::format, "deeper than 2", [] { parse_document("[[[1]]]", "x", 100, 2); });
  expect_error(Code::format, "x: byte", [] { parse_document("{} {}", "x", 100, 8); });
  expect_error(Code::format, "zero byte",
               [] { parse_document(std::string_view("{}\0 1", 5), "x", 100, 8); });
  expect_error(Code::format, "twice", [] { parse_document(R"({"a\n":1,"a\n":2})", "x", 100, 8); });
}

TEST(JsonQuote, RefusesBytesThatAreNotUtf8) {
  EXPECT_EQ(json_quote("a\"\n", "x"), R"("a\"\n")");
  expect_error(Code::usage, "not valid UTF-8", [] { json_quote("\xFF", "x"); });
}

}  // namespace text_test
}  // namespace sluice::bundle
