#include "sluice/base/plot_script.h"

#include <fmt/format.h>
#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "sluice/base/error.h"

namespace sluice {
namespace {

// Okabe and Ito's palette: told apart with any kind of colour vision. The yellow is left out: too
// faint for lines.
constexpr std::array<const char*, 7> kColours{"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                              "#56B4E9", "#E69F00", "#000000"};

const char* colour(size_t series) { return kColours[series % kColours.size()]; }

/// A gnuplot string literal. Single quotes: no escapes, no command substitution. A quote in the
/// text becomes the typographic one: gnuplot misreads a doubled quote at the start of a literal,
/// and what follows would be a command.
std::string quote(const std::string& text) {
  std::string result = "'";
  for (const char c : text) {
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
    result += c == '\'' ? "\u2019" : std::string(1, control ? ' ' : c);
  }
  return result + "'";
}

/// A tic label is a printf format as well.
std::string quote_tic(const std::string& text) {
  std::string result;
  for (const char c : text) {
    result += c == '%' ? "%%" : std::string(1, c);
  }
  return quote(result);
}

/// At most `length` bytes, cut between characters.
std::string clip(const std::string& text, size_t length) {
  if (text.size() <= length) {
    return text;
  }
  size_t end = length;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) {
    --end;
  }
  return text.substr(0, end) + "\u2026";
}

struct Range {
  double low, high;
};

/// Gnuplot refuses or misplaces an empty range: widen it a little.
Range widened(double low, double high) {
  if (low < high) {
    return {low, high};
  }
  const double pad = low == 0 ? 1 : std::abs(low) * 0.5;
  return {low - pad, high + pad};
}

class Script {
 public:
  explicit Script(const Figure& figure) : figure_(figure) {
    frame();
    switch (figure.kind) {
      case Figure::Kind::lines:
        lines();
        break;
      case Figure::Kind::bars:
        bars();
        break;
      case Figure::Kind::histogram:
        histogram();
        break;
    }
    if (plots_.empty()) {
      fail(Code::shape, "figure '{}': nothing to draw", figure.title);
    }
    text_ += "plot " + fmt::format("{}", fmt::join(plots_, ", \\\n  ")) + "\n";
  }
  const std::string& text() const { return text_; }

 private:
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    text_ += fmt::format(format, std::forward<Args>(args)...) + "\n";
  }

  void frame() {
    add("set encoding utf8");
    add("set terminal svg size {},{} noenhanced font 'sans,12' background '#ffffff' rounded "
        "linewidth 1",
        figure_.width, figure_.height);
    add("set border 3 linecolor '#606060' linewidth 1");
    add("set tics nomirror out scale 0.5 textcolor '#303030'");
    add("set grid linetype 1 linecolor '#e4e4e4' linewidth 0.6");
    add("set grid noxtics nomxtics nomytics ytics back");
    if (figure_.kind == Figure::Kind::lines) {
      add("set grid xtics");
    }
    add("set title {} font 'sans,14' textcolor '#202020'", quote(figure_.title));
    add("set xlabel {} textcolor '#303030'", quote(figure_.x_label));
    add("set ylabel {} textcolor '#303030'", quote(figure_.y_label));
    const auto named = std::count_if(figure_.series.begin(), figure_.series.end(),
                                     [](const Series& s) { return !s.name.empty(); });
    if (named == 0) {
      add("set key off");
    } else {
      add("set key {} Left reverse samplen 2 textcolor '#303030'",
          figure_.names_beside ? "outside right center vertical" : "tmargin center horizontal");
    }
    if (figure_.log_x && figure_.kind == Figure::Kind::lines) {
      add("set logscale x");
    }
    if (figure_.log_y) {
      add("set logscale y");
    }
    if (figure_.y_min < figure_.y_max) {
      add("set yrange [{}:{}]", figure_.y_min, figure_.y_max);
    }
  }

  void key_title(std::string& plot, const Series& s) {
    plot += s.name.empty() ? " notitle" : " title " + quote(s.name);
  }

  void lines() {
    double x_low = std::numeric_limits<double>::infinity(), x_high = -x_low;
    double y_low = x_low, y_high = -x_low, y_positive = x_low;
    for (size_t i = 0; i < figure_.series.size(); ++i) {
      const Series& s = figure_.series[i];
      for (size_t k = 0; k < s.y.size(); ++k) {
        const double x = s.x.empty() ? static_cast<double>(k) : s.x[k];
        x_low = std::min(x_low, x);
        x_high = std::max(x_high, x);
        y_low = std::min({y_low, s.y[k], s.low.empty() ? s.y[k] : s.low[k]});
        y_high = std::max({y_high, s.y[k], s.high.empty() ? s.y[k] : s.high[k]});
        y_positive = std::min(y_positive, s.y[k]);
      }
    }
    for (size_t i = 0; i < figure_.series.size(); ++i) {
      const Series& s = figure_.series[i];
      if (s.y.empty()) {
        continue;
      }
      add("$d{} << EOD", i);
      for (size_t k = 0; k < s.y.size(); ++k) {
        const double x = s.x.empty() ? static_cast<double>(k) : s.x[k];
        const double low = s.low.empty() ? s.y[k] : s.low[k];
        const double high = s.high.empty() ? s.y[k] : s.high[k];
        // A band that reaches 0 ends at the lowest value on a logarithmic axis.
        add("{} {} {} {}", x, s.y[k],
            figure_.log_y ? std::max(low, std::min(y_positive, s.y[k])) : low, high);
      }
      add("EOD");
      if (!s.low.empty() && !s.points) {
        bands_.push_back(
            fmt::format("$d{} using 1:3:4 with filledcurves fillcolor '{}' fillstyle transparent "
                        "solid 0.18 noborder "
                        "notitle",
                        i, colour(i)));
      }
      std::string plot;
      if (s.points) {
        // Shapes differ too, for print in grey: circle, square, triangle, diamond.
        constexpr std::array<int, 4> kShapes{7, 5, 9, 13};
        if (!s.low.empty()) {
          bands_.push_back(whisker(i, colour(i)));
        }
        plot = fmt::format("$d{} using 1:2 with points pointtype {} pointsize 0.6 linecolor '{}'",
                           i, kShapes[i % kShapes.size()], colour(i));
      } else if (s.y.size() == 1) {
        plot = fmt::format("$d{} using 1:2 with points pointtype 7 pointsize 0.6 linecolor '{}'", i,
                           colour(i));
      } else {
        plot = fmt::format("$d{} using 1:2 with lines linewidth 2 linecolor '{}' dashtype {}", i,
                           colour(i), i < kColours.size() ? 1 : 2);
      }
      key_title(plot, s);
      plots_.push_back(plot);
    }
    plots_.insert(plots_.begin(), bands_.begin(), bands_.end());
    if (figure_.x_min < figure_.x_max) {
      add("set xrange [{}:{}]", figure_.x_min, figure_.x_max);
    } else if (x_low == x_high) {
      const Range range = figure_.log_x ? Range{x_low / 2, x_high * 2} : widened(x_low, x_high);
      add("set xrange [{}:{}]", range.low, range.high);
    }
    if (!(figure_.y_min < figure_.y_max) && y_low == y_high) {
      const Range range = figure_.log_y ? Range{y_low / 2, y_high * 2} : widened(y_low, y_high);
      add("set yrange [{}:{}]", range.low, range.high);
    }
  }

  /// From low to high. Gnuplot's own error bars punch a white hole where a marker would be.
  std::string whisker(size_t series, const char* line_colour) {
    return fmt::format(
        "$d{} using 1:3:(0):($4-$3) with vectors nohead linewidth 1.5 linecolor '{}' notitle",
        series, line_colour);
  }

  /// Names stand side by side, broken into lines at spaces; where one word is still too wide, all
  /// are turned.
  void category_tics() {
    constexpr double kCharacter = 7;  // pixels, roughly, of the 12 point font
    const size_t groups = figure_.categories.size();
    const double room = 0.85 * figure_.width / static_cast<double>(groups) / kCharacter - 1;
    std::vector<std::string> tics, turned;
    size_t most_lines = 1, longest = 0;
    bool fits = true;
    for (size_t g = 0; g < groups; ++g) {
      std::vector<std::string> lines(1);
      size_t begin = 0;
      const std::string& name = figure_.categories[g];
      while (begin < name.size()) {
        const size_t end = std::min(name.find(' ', begin), name.size());
        const std::string word = name.substr(begin, end - begin);
        begin = end + 1;
        if (lines.back().empty()) {
          lines.back() = word;
        } else if (static_cast<double>(lines.back().size() + 1 + word.size()) <= room) {
          lines.back() += " " + word;
        } else {
          lines.push_back(word);
        }
        fits = fits && static_cast<double>(word.size()) <= room;
      }
      most_lines = std::max(most_lines, lines.size());
      std::transform(lines.begin(), lines.end(), lines.begin(), quote_tic);
      tics.push_back(fmt::format("{} {}", fmt::join(lines, ".\"\\n\"."), g));
      const std::string clipped = clip(name, 28);
      longest = std::max(longest, clipped.size());
      turned.push_back(fmt::format("{} {}", quote_tic(clipped), g));
    }
    if (fits && most_lines <= 4) {
      if (most_lines > 1) {  // not reserved by gnuplot either; in lines of text
        add("set bmargin {}",
            static_cast<double>(most_lines) + (figure_.x_label.empty() ? 1.2 : 2.7));
        add("set xlabel offset 0,{}", 1 - static_cast<double>(most_lines));
      }
      add("set xtics scale 0 norotate ({})", fmt::join(tics, ", "));
      return;
    }
    add("set xtics scale 0 rotate by 35 right ({})", fmt::join(turned, ", "));
    // Gnuplot reserves too much room on the right, none on the left, and puts the label off the
    // picture.
    const double length = static_cast<double>(longest) * kCharacter;
    const double label = figure_.x_label.empty() ? 0 : 24;
    add("set bmargin at screen {}", std::min(0.7, (0.574 * length + 16 + label) / figure_.height));
    add("set xlabel ''");
    add("set label 1 {} at graph 0.5, screen {} center textcolor '#303030'", quote(figure_.x_label),
        12.0 / figure_.height);
    const double first_bar = 0.6 * figure_.width / static_cast<double>(groups);
    add("set lmargin at screen {}",
        std::clamp((0.9 * length - first_bar) / figure_.width, 60.0 / figure_.width, 0.4));
    add("set rmargin at screen 0.97");
  }

  void bars() {
    const size_t groups = figure_.categories.size(), count = figure_.series.size();
    const double width = 0.8 / static_cast<double>(count);
    add("set style fill solid 0.9 noborder");
    add("set boxwidth {} absolute", width * 0.92);
    add("set xrange [-0.6:{}]", static_cast<double>(groups) - 0.4);
    category_tics();
    bool negative = false;
    for (size_t i = 0; i < count; ++i) {
      const Series& s = figure_.series[i];
      add("$d{} << EOD", i);
      for (size_t g = 0; g < groups; ++g) {
        const double x = static_cast<double>(g) +
                         (static_cast<double>(i) - (static_cast<double>(count) - 1) / 2) * width;
        negative = negative || s.y[g] < 0;
        add("{} {} {} {}", x, s.y[g], s.low.empty() ? s.y[g] : s.low[g],
            s.high.empty() ? s.y[g] : s.high[g]);
      }
      add("EOD");
      std::string plot = fmt::format("$d{} using 1:2 with boxes fillcolor '{}'", i, colour(i));
      key_title(plot, s);
      plots_.push_back(plot);
      if (!s.low.empty()) {
        bands_.push_back(whisker(i, "#303030"));
      }
    }
    plots_.insert(plots_.end(), bands_.begin(), bands_.end());
    if (!figure_.log_y && !(figure_.y_min < figure_.y_max)) {
      // A bar's length is its value: the axis starts at zero.
      add("set yrange [{}:*]", negative ? "*" : "0");
      if (negative) {
        add("set xzeroaxis linetype 1 linecolor '#606060' linewidth 1");
      }
      const bool all_zero =
          std::all_of(figure_.series.begin(), figure_.series.end(), [](const Series& s) {
            return std::all_of(s.y.begin(), s.y.end(), [](double v) { return v == 0; });
          });
      if (all_zero) {
        add("set yrange [0:1]");
      }
    }
  }

  void histogram() {
    Range range{figure_.x_min, figure_.x_max};
    if (!(range.low < range.high)) {
      range = {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};
      for (const Series& s : figure_.series) {
        for (const double v : s.y) {
          range = {std::min(range.low, v), std::max(range.high, v)};
        }
      }
      range = widened(range.low, range.high);
    }
    const double step = range.high / figure_.bins - range.low / figure_.bins;
    add("set xrange [{}:{}]", range.low, range.high);
    add("set boxwidth {} absolute", step);
    if (!figure_.log_y && !(figure_.y_min < figure_.y_max)) {
      add("set yrange [0:*]");
    }
    add("set style fill transparent solid {} noborder", figure_.series.size() > 1 ? 0.45 : 0.85);
    int64_t highest = 0;
    for (size_t i = 0; i < figure_.series.size(); ++i) {
      std::vector<int64_t> counts(static_cast<size_t>(figure_.bins), 0);
      for (const double v : figure_.series[i].y) {
        if (v < range.low || v > range.high) {
          continue;
        }
        // The upper end belongs to the last bin.
        const auto bin = static_cast<size_t>((v - range.low) / step);
        ++counts[std::min(bin, counts.size() - 1)];
      }
      add("$d{} << EOD", i);
      for (size_t b = 0; b < counts.size(); ++b) {
        highest = std::max(highest, counts[b]);
        add("{} {}", range.low + (static_cast<double>(b) + 0.5) * step, counts[b]);
      }
      add("EOD");
      std::string plot = fmt::format("$d{} using 1:2 with boxes fillcolor '{}'", i, colour(i));
      key_title(plot, figure_.series[i]);
      plots_.push_back(plot);
    }
    if (highest == 0) {
      add("unset logscale y");
      add("set yrange [0:1]");
    }
  }

  const Figure& figure_;
  std::string text_;
  std::vector<std::string> plots_, bands_;
};

}  // namespace

std::string gnuplot_script(const Figure& figure) { return Script(figure).text(); }

}  // namespace sluice
