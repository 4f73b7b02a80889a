#include "sluice/base/plot.h"

#include <cmath>
#include <cstdlib>
#include <limits>

#include "sluice/base/plot_script.h"
#include "sluice/base/test_error.h"

namespace sluice {
namespace plot_test {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

Figure simple() {
  Figure figure;
  figure.title = "Accuracy";
  figure.x_label = "kept";
  figure.y_label = "accuracy";
  figure.series = {{"dense", {1, 2, 3}, {4, 5, 6}, {}, {}, false}};
  return figure;
}

TEST(RenderSvg, GivesTextThatStandsInHtml) {
  const std::string svg = render_svg(simple());
  EXPECT_THAT(svg, StartsWith("<svg"));
  EXPECT_THAT(svg, ::testing::EndsWith("</svg>\n"));
  EXPECT_THAT(svg, Not(HasSubstr("<?xml")));
  EXPECT_THAT(svg, HasSubstr("<title>Accuracy</title>"));
  EXPECT_THAT(svg, HasSubstr("width=\"640\" height=\"400\""));
  for (const char* text : {"Accuracy", "kept", "accuracy", "dense"}) {
    EXPECT_THAT(svg, HasSubstr(text));
  }
}

TEST(RenderSvg, DrawsEveryKind) {
  Figure figure = simple();
  figure.series[0].low = {3, 4, 5};
  figure.series[0].high = {5, 6, 7};
  figure.series.push_back({"points", {1, 2, 3}, {1, 2, 3}, {0, 1, 2}, {2, 3, 4}, true});
  figure.series.push_back({"one", {2}, {2}, {}, {}, false});
  EXPECT_THAT(render_svg(figure), HasSubstr("points"));
  figure.log_x = figure.log_y = true;
  EXPECT_THAT(render_svg(figure), HasSubstr("points"));

  Figure bars;
  bars.kind = Figure::Kind::bars;
  bars.categories = {"pruned 50 %", "a 'quoted' name that needs several lines of text", "z"};
  bars.series = {{"a", {}, {1, 2, 3}, {0, 1, 2}, {2, 3, 4}, false},
                 {"b", {}, {-1, 0, 1}, {}, {}, false}};
  EXPECT_THAT(render_svg(bars), HasSubstr("pruned 50 %"));
  bars.categories[1] = "one-word-that-is-much-too-wide-for-its-place-on-the-axis";
  EXPECT_THAT(render_svg(bars), HasSubstr("one-word-that-is-much-too-wi\u2026"));

  Figure histogram;
  histogram.kind = Figure::Kind::histogram;
  histogram.series = {{"h", {}, {1, 1, 2, 5}, {}, {}, false}};
  EXPECT_THAT(render_svg(histogram), HasSubstr("<svg"));
}

TEST(RenderSvg, SurvivesDegenerateRanges) {
  Figure figure = simple();
  figure.series = {{"p", {2}, {3}, {}, {}, false}};
  EXPECT_NO_THROW(render_svg(figure));
  figure.log_x = figure.log_y = true;
  EXPECT_NO_THROW(render_svg(figure));
  figure = simple();
  figure.series[0].y = {0, 0, 0};
  EXPECT_NO_THROW(render_svg(figure));
  figure.kind = Figure::Kind::bars;
  figure.categories = {"", "b", "c"};
  EXPECT_NO_THROW(render_svg(figure));
  figure.kind = Figure::Kind::histogram;
  EXPECT_NO_THROW(render_svg(figure));
  figure.x_min = 5;
  figure.x_max = 6;  // no sample inside
  EXPECT_NO_THROW(render_svg(figure));
}

TEST(RenderSvg, TextIsNeverACommandNorMarkup) {
  Figure figure = simple();
  const std::string hostile = "'; system 'false' # `false` @x {/Bold y} a_b <script>& \" \\n %d";
  figure.title = figure.x_label = figure.y_label = figure.series[0].name = hostile;
  std::string svg = render_svg(figure);
  EXPECT_THAT(svg, Not(HasSubstr("<script>")));
  EXPECT_THAT(svg, HasSubstr("&lt;script&gt;"));
  EXPECT_THAT(svg, HasSubstr("`false`"));
  EXPECT_THAT(svg, HasSubstr("a_b"));
  figure.kind = Figure::Kind::bars;
  figure.categories = {hostile, "b", "c\nd"};
  svg = render_svg(figure);
  EXPECT_THAT(svg, HasSubstr("`false`"));
}

TEST(RenderSvg, RefusesWhatCannotBeDrawn) {
  Figure figure = simple();
  figure.series[0].y[1] = std::nan("");
  expect_error(Code::numeric, "y of 'dense' has nan at index 1", [&] { render_svg(figure); });
  figure.series[0].y[1] = std::numeric_limits<double>::infinity();
  expect_error(Code::numeric, "inf", [&] { render_svg(figure); });
  figure.series[0].y[1] = 0;
  figure.log_y = true;
  expect_error(Code::numeric, "logarithmic", [&] { render_svg(figure); });
  figure = simple();
  figure.series[0].x.pop_back();
  expect_error(Code::shape, "expected 2 values, found 3", [&] { render_svg(figure); });
  figure.series.clear();
  expect_error(Code::shape, "nothing to draw", [&] { render_svg(figure); });
  figure = simple();
  figure.kind = Figure::Kind::bars;
  expect_error(Code::shape, "expected 0 values, found 3", [&] { render_svg(figure); });
  figure = simple();
  figure.width = 1;
  expect_error(Code::limit, "1 x 400", [&] { render_svg(figure); });
}

TEST(RenderSvg, NamesThePackageWhenGnuplotIsAbsent) {
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", "/nonexistent", 1);
  expect_error(Code::missing, "apt-get install gnuplot", [&] { render_svg(simple()); });
  ::setenv("PATH", path.c_str(), 1);
}

TEST(GnuplotScript, PutsTheUpperEndIntoTheLastBin) {
  Figure figure;
  figure.kind = Figure::Kind::histogram;
  figure.bins = 2;
  figure.x_min = 0;
  figure.x_max = 2;
  figure.series = {{"h", {}, {0, 0.5, 1, 2, 3, -1}, {}, {}, false}};
  EXPECT_THAT(gnuplot_script(figure), HasSubstr("$d0 << EOD\n0.5 2\n1.5 2\nEOD"));
}

TEST(GnuplotScript, WritesNumbersExactly) {
  Figure figure = simple();
  figure.series[0].y[0] = 0.1 + 0.2;
  EXPECT_THAT(gnuplot_script(figure), HasSubstr("0.30000000000000004"));
}

}  // namespace plot_test
}  // namespace sluice
