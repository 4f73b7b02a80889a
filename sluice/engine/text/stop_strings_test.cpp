#include "sluice/engine/text/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

#include "sluice/base/test_error.h"

namespace sluice::engine {
namespace stop_strings_test {

TEST(StopStrings, GivesTextAsSoonAsItIsCertain) {
  StopStrings stop({"END", "\n\n"});
  EXPECT_EQ(stop.push("one E"), "one ");
  EXPECT_EQ(stop.push("N"), "");
  EXPECT_EQ(stop.push("x\n"), "ENx");
  EXPECT_EQ(stop.push("two\n"), "\ntwo");
  EXPECT_FALSE(stop.stopped());
  EXPECT_EQ(stop.push("\nrest"), "");
  EXPECT_TRUE(stop.stopped());
  EXPECT_EQ(stop.push("more"), "");
  EXPECT_EQ(stop.flush(), "");
}

TEST(StopStrings, TheOneThatBeginsFirstWins) {
  StopStrings stop({"bc", "abcd"});
  EXPECT_EQ(stop.push("xabc"), "x");
  EXPECT_FALSE(stop.stopped());  // abcd may still come
  EXPECT_EQ(stop.push("d"), "");
  EXPECT_TRUE(stop.stopped());
  StopStrings other({"bc", "abcd"});
  EXPECT_EQ(other.push("xabc"), "x");
  EXPECT_EQ(other.push("e"), "a");
  EXPECT_TRUE(other.stopped());
  StopStrings end({"bc", "abcd"});
  EXPECT_EQ(end.push("xabc"), "x");
  EXPECT_EQ(end.flush(), "a");
  EXPECT_TRUE(end.stopped());
}

TEST(StopStrings, AnyCutGivesTheTextBeforeTheFirst) {
  std::mt19937 random(1);
  const auto letters = [&](size_t most) {
    std::string text;
    const size_t length = random() % most + 1;
    for (size_t i = 0; i < length; ++i) text += char('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 2000; ++round) {
    const std::vector<std::string> strings{letters(4), letters(4)};
    const std::string text = letters(12);
    StopStrings stop(strings);
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const size_t length = random() % 3 + 1;
      out += stop.push(std::string_view(text).substr(at, length));
      at += length;
    }
    out += stop.flush();
    const size_t first = std::min(text.find(strings[0]), text.find(strings[1]));
    EXPECT_EQ(out, text.substr(0, first)) << text << " / " << strings[0] << " / " << strings[1];
    EXPECT_EQ(stop.stopped(), first != std::string::npos);
  }
}

TEST(StopStrings, RefusesAnEmptyOne) { EXPECT_ERROR(StopStrings({"a", ""}), Code::usage, "empty"); }

}  // namespace stop_strings_test
}  // namespace sluice::engine
