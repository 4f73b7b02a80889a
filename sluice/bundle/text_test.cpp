#include "sluice/bundle/text.h"

#include <gtest/gtest.h>

#include "sluice/base/json.h"
#include "sluice/base/test_error.h"

namespace sluice::bundle {
namespace text_test {

TEST(Printable, KeepsOrdinaryText) {
  EXPECT_EQ(printable("blocks.0.größe 界 \xF0\x9F\x98\x80"), "blocks.0.größe 界 \xF0\x9F\x98\x80");
}

TEST(Printable, EscapesWhatATerminalWouldObey) {
  EXPECT_EQ(printable("a\nb\x1b[2J"), "a\\x0ab\\x1b[2J");
  EXPECT_EQ(printable("\xC2\x9B"
                      "31m"),
            "\\xc2\\x9b31m");                               // C1: one-byte CSI
  EXPECT_EQ(printable("\xE2\x80\xAE"), "\\xe2\\x80\\xae");  // right-to-left override
}

TEST(Printable, EscapesBytesThatAreNotUtf8) {
  for (const char* broken : {"\xFF", "\xC0\xAF", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                             "\xE7\x95", "\x80"}) {
    EXPECT_TRUE(is_plain_text(printable(broken)));
    EXPECT_FALSE(is_plain_text(broken));
    EXPECT_EQ(printable(broken).substr(0, 2), "\\x");
  }
}

TEST(Printable, CutsLongTextBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "界";
  const std::string cut = printable(text, 10);
  EXPECT_EQ(cut, "界界界界...");
}

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
