#include "sluice/base/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace sluice {
namespace utf8_test {

/// UTF-8 of any number below 2^21, by the bit patterns alone.
std::string encoded(unsigned c) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xC0 | c >> 6), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xE0 | c >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | c >> 18), tail(12), tail(6), tail(0)};
}

TEST(Utf8, CharactersAreValidAndNothingElse) {
  for (unsigned c = 0; c < 0x200000; ++c) {
    const std::string text = encoded(c);
    const bool character = c < 0xD800 || (c >= 0xE000 && c < 0x110000);
    ASSERT_EQ(valid_utf8_prefix(text), character ? text.size() : 0) << c;
    if (c > 0x80 && c % 97 == 0) {
      ASSERT_EQ(valid_utf8_prefix("ab" + text.substr(0, text.size() - 1)), 2u) << c;
    }
  }
}

TEST(Utf8, BrokenSequencesEndThePrefix) {
  for (const char* broken :
       {"\x80", "\xBF", "\xC0\xAF", "\xC1\xBF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xC3(",
        "\xE2\x82(", "\xF0\x9F\x98(", "\xF5\x80\x80\x80", "\xFF"}) {
    const std::string text = std::string("\xC3\xA4x") + broken + "y";
    EXPECT_EQ(valid_utf8_prefix(text), 3u) << broken;
  }
  EXPECT_EQ(valid_utf8_prefix(""), 0u);
}

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

}  // namespace utf8_test
}  // namespace sluice
