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

}  // namespace utf8_test
}  // namespace sluice
