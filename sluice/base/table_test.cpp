#include "sluice/base/table.h"

#include <limits>

#include "sluice/base/test_error.h"

namespace sluice {
namespace table_test {

TEST(TableTest, AlignsNumbersRightAndTextLeft) {
  Table table({"name", "accuracy", "note"});
  table.row({"dense", "93.1", "a"});
  table.row({"pruned net", "9.25", "3x3"});
  EXPECT_EQ(table.text(),
            "name        accuracy  note\n"
            "----------  --------  ----\n"
            "dense           93.1  a\n"
            "pruned net      9.25  3x3\n");
}

TEST(TableTest, TakesUnitsSpreadsAndGapsForNumbers) {
  Table table({"a", "b", "c", "d", "e"});
  table.row({"1.23 M", "93.1 \u00B1 0.4", "-", "8x8", "-"});
  table.row({"12 KiB", "9 %", "+1e-3", "3", ""});
  const std::string markdown = table.markdown();
  EXPECT_THAT(markdown, ::testing::HasSubstr("| ---: | ---: | ---: | --- | --- |"));
}

TEST(TableTest, CountsCharactersNotBytes) {
  Table table({"x", "y"});
  table.row({"\u00e9\u00e9\u00e9", "a"});
  table.row({"abc", "b"});
  EXPECT_EQ(table.text(), "x    y\n---  -\n\u00e9\u00e9\u00e9  a\nabc  b\n");
}

TEST(TableTest, PadsShortRowsAndRefusesLongOnes) {
  Table table({"a", "b"});
  table.row({"x"});
  EXPECT_EQ(table.text(), "a  b\n-  -\nx\n");
  expect_error(Code::internal, "table.cpp", [&] { table.row({"1", "2", "3"}); });
}

TEST(TableTest, EscapesForMarkdownAndHtml) {
  Table table({"<a|b>"});
  table.row({"x|y\nz & \"q\""});
  EXPECT_EQ(table.markdown(), "| <a\\|b> |\n| --- |\n| x\\|y z & \"q\" |\n");
  EXPECT_THAT(table.html(), ::testing::HasSubstr("<th>&lt;a|b&gt;</th>"));
  EXPECT_THAT(table.html(), ::testing::HasSubstr("<td>x|y z &amp; &quot;q&quot;</td>"));
}

TEST(Format, Counts) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1000), "1.00 k");
  EXPECT_EQ(format_count(1234567), "1.23 M");
  EXPECT_EQ(format_count(12345678), "12.3 M");
  EXPECT_EQ(format_count(999999), "1.00 M");
  EXPECT_EQ(format_count(-1234567), "-1.23 M");
  EXPECT_EQ(format_count(std::numeric_limits<int64_t>::max()), "9.22 E");
  EXPECT_EQ(format_count(std::numeric_limits<int64_t>::min()), "-9.22 E");
}

TEST(Format, Bytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1536), "1.50 KiB");
  EXPECT_EQ(format_bytes(1024 * 1000), "1000 KiB");
  EXPECT_EQ(format_bytes(1024 * 1024 - 1), "1.00 MiB");
  EXPECT_EQ(format_bytes(int64_t{3} << 30), "3.00 GiB");
}

TEST(Format, Seconds) {
  EXPECT_EQ(format_seconds(0), "0 s");
  EXPECT_EQ(format_seconds(0.000123), "123 us");
  EXPECT_EQ(format_seconds(2.5e-9), "2.50 ns");
  EXPECT_EQ(format_seconds(0.0123), "12.3 ms");
  EXPECT_EQ(format_seconds(0.9999), "1.00 s");
  EXPECT_EQ(format_seconds(59.99), "1 min 0 s");
  EXPECT_EQ(format_seconds(75), "1 min 15 s");
  EXPECT_EQ(format_seconds(3725), "1 h 2 min");
  EXPECT_EQ(format_seconds(-0.5), "-500 ms");
}

TEST(HtmlEscape, LeavesNoMarkup) {
  EXPECT_EQ(html_escape("<b a='x'>&\"</b>"), "&lt;b a=&#39;x&#39;&gt;&amp;&quot;&lt;/b&gt;");
}

}  // namespace table_test
}  // namespace sluice
