#include "sluice/base/html.h"

#include <gmock/gmock.h>

namespace sluice {
namespace html_test {

using testing::HasSubstr;
using testing::Not;

TEST(HtmlReport, EscapesTextAndDropsTheXmlPrologOfPictures) {
  HtmlReport report("a < b", "x & y");
  report.paragraph("<script>");
  report.picture("<?xml version=\"1.0\"?>\n<!DOCTYPE svg>\n<svg><g/></svg>", "curve");
  const std::string html = report.text();
  EXPECT_THAT(html, HasSubstr("a &lt; b"));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;"));
  EXPECT_THAT(html, HasSubstr("<figure><svg><g/></svg>"));
  EXPECT_THAT(html, Not(HasSubstr("<?xml")));
}

TEST(HtmlReport, RefersToNothingOutsideTheFile) {
  HtmlReport report("t", "s");
  report.fact("0.52", "of the MACs");
  report.heading("h");
  EXPECT_THAT(report.text(), Not(HasSubstr("http")));
  EXPECT_THAT(report.text(), HasSubstr("<div class=\"row\"><div class=\"fact\">"));
}

}  // namespace html_test
}  // namespace sluice
