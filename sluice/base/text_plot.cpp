#include "sluice/base/text_plot.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice {
namespace {

constexpr char kMarks[] = "*o+x#@";

struct Interval {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  /// Position of `value` among `cells` cells.
  int cell(double value, int cells) const {
    const double share = high > low ? (value - low) / (high - low) : 0.5;
    return std::clamp(static_cast<int>(std::lround(share * (cells - 1))), 0, cells - 1);
  }
};

template <class Use>
void each_point(const Series& series, Use&& use) {
  for (size_t i = 0; i < std::min(series.x.size(), series.y.size()); ++i) {
    if (std::isfinite(series.x[i]) && std::isfinite(series.y[i])) {
      use(series.x[i], series.y[i]);
    }
  }
}

}  // namespace

std::string text_plot(const std::vector<Series>& series, int width, int height) {
  Interval x, y;
  for (const Series& one : series) {
    each_point(one, [&](double at, double value) {
      x.add(at);
      y.add(value);
    });
  }
  if (x.low > x.high) {
    return "";
  }
  width = std::max(width, 2);
  height = std::max(height, 2);
  std::vector<std::string> rows(static_cast<size_t>(height),
                                std::string(static_cast<size_t>(width), ' '));
  std::string legend;
  for (size_t s = 0; s < series.size(); ++s) {
    const char mark = kMarks[s % (sizeof kMarks - 1)];
    bool first = true;
    double last_x = 0, last_y = 0;
    const auto draw = [&](double at, double value) {
      rows[static_cast<size_t>(height - 1 - y.cell(value, height))]
          [static_cast<size_t>(x.cell(at, width))] = mark;
    };
    each_point(series[s], [&](double at, double value) {
      // A line between points: one mark per column.
      const int from = first ? 0 : x.cell(last_x, width), to = x.cell(at, width);
      for (int column = from + 1; !first && column < to; ++column) {
        const double share = double(column - from) / double(to - from);
        draw(last_x + share * (at - last_x), last_y + share * (value - last_y));
      }
      draw(at, value);
      first = false;
      last_x = at;
      last_y = value;
    });
    if (!first) {
      legend += fmt::format("  {} {} (last {:.4g})", mark, series[s].name, last_y);
    }
  }
  std::string out;
  for (int row = 0; row < height; ++row) {
    std::string label;
    if (row == 0) {
      label = fmt::format("{:.4g}", y.high);
    } else if (row == height - 1) {
      label = fmt::format("{:.4g}", y.low);
    }
    std::string line = fmt::format("{:>9} |{}", label, rows[static_cast<size_t>(row)]);
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  const std::string left = fmt::format("{:.6g}", x.low), right = fmt::format("{:.6g}", x.high);
  const int gap = std::max(1, width - static_cast<int>(left.size() + right.size()));
  out += fmt::format("{:>10}+{}\n{:>11}{}{:>{}}{}\n", "",
                     std::string(static_cast<size_t>(width), '-'), "", left, "", gap, right);
  return out + fmt::format("{:>9}{}\n", "", legend);
}

}  // namespace sluice
