// Pictures: a figure is data; gnuplot draws it as SVG (self-contained text that goes into HTML
// reports and docs).
#pragma once
#include <string>
#include <vector>

namespace sluice {

struct Series {
  std::string name;
  std::vector<double> x = {}, y = {};
  std::vector<double> low = {}, high = {};  ///< optional band around y
  bool points = false;                      ///< markers only, no line
};

struct Figure {
  enum class Kind { lines, bars, histogram };
  Kind kind = Kind::lines;
  std::string title, x_label, y_label;
  bool log_x = false, log_y = false;
  std::vector<std::string>
      categories;  ///< bars: one name per group on the x axis; series y has one value per group
  std::vector<Series> series;   ///< histogram: y holds raw samples, binned over [x_min, x_max]
  double x_min = 0, x_max = 0;  ///< used when x_min < x_max
  double y_min = 0, y_max = 0;
  int bins = 20;
  int width = 640, height = 400;
  bool names_beside = false;  ///< at the right, not above, where many would leave no place
};

/// SVG text. Throws Error{missing} with the package to install when gnuplot is absent,
/// Error{numeric} when a value is not finite.
std::string render_svg(const Figure& figure);

}  // namespace sluice
