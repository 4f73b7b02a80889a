#include "sluice/base/plot.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/table.h"

extern char** environ;

namespace sluice {
namespace {

// Okabe and Ito's palette: told apart with any kind of colour vision. The yellow is left out: too
// faint for lines.
constexpr std::array<const char*, 7> kColours{"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                              "#56B4E9", "#E69F00", "#000000"};

const char* colour(size_t series) { return kColours[series % kColours.size()]; }

/// A gnuplot string literal. Single quotes: no escape sequences, only a quote itself is doubled.
std::string quote(const std::string& text) {
  std::string result = "'";
  for (const char c : text) {
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
    result += c == '\'' ? "''" : std::string(1, control ? ' ' : c);
  }
  return result + "'";
}

void require_finite(const Figure& figure, const std::string& name,
                    const std::vector<double>& values, bool logarithmic) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      fail(Code::numeric, "figure '{}': {} has {} at index {}; expected finite numbers",
           figure.title, name, values[i], i);
    }
    if (logarithmic && values[i] <= 0) {
      fail(Code::numeric,
           "figure '{}': {} has {} at index {}; a logarithmic axis needs numbers above 0",
           figure.title, name, values[i], i);
    }
  }
}

void require_size(const Figure& figure, const std::string& name, size_t expected, size_t found) {
  if (expected != found) {
    fail(Code::shape, "figure '{}': {}: expected {} values, found {}", figure.title, name, expected,
         found);
  }
}

void check(const Figure& figure) {
  size_t points = 0;
  const bool histogram = figure.kind == Figure::Kind::histogram;
  const bool lines = figure.kind == Figure::Kind::lines;
  for (const Series& s : figure.series) {
    points += s.y.size();
    require_finite(figure, "y of '" + s.name + "'", s.y, figure.log_y && !histogram);
    if (lines && !s.x.empty()) {
      require_size(figure, "y of '" + s.name + "'", s.x.size(), s.y.size());
      require_finite(figure, "x of '" + s.name + "'", s.x, figure.log_x);
    }
    if (figure.kind == Figure::Kind::bars) {
      require_size(figure, "y of '" + s.name + "'", figure.categories.size(), s.y.size());
    }
    require_size(figure, "the band of '" + s.name + "'", s.low.size(), s.high.size());
    if (!s.low.empty() && !histogram) {
      require_size(figure, "the band of '" + s.name + "'", s.y.size(), s.low.size());
      require_finite(figure, "low of '" + s.name + "'", s.low, false);
      require_finite(figure, "high of '" + s.name + "'", s.high, figure.log_y);
    }
  }
  if (points == 0) {
    fail(Code::shape, "figure '{}': nothing to draw; expected at least one value", figure.title);
  }
  require_finite(figure, "the axis range", {figure.x_min, figure.x_max, figure.y_min, figure.y_max},
                 false);
  if (figure.width < 100 || figure.height < 80 || figure.width > 10000 || figure.height > 10000) {
    fail(Code::limit, "figure '{}': expected 100 x 80 to 10000 x 10000 pixels, found {} x {}",
         figure.title, figure.width, figure.height);
  }
  if (histogram && (figure.bins < 1 || figure.bins > 10000)) {
    fail(Code::limit, "figure '{}': expected 1 to 10000 bins, found {}", figure.title, figure.bins);
  }
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
      add("set key outside below center horizontal Left reverse samplen 2 textcolor '#303030'");
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
          bands_.push_back(
              fmt::format("$d{} using 1:2:3:4 with yerrorbars pointtype 0 linewidth 1 "
                          "linecolor '{}' notitle",
                          i, colour(i)));
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

  void bars() {
    const size_t groups = figure_.categories.size(), count = figure_.series.size();
    const double width = 0.8 / static_cast<double>(count);
    add("set style fill solid 0.9 noborder");
    add("set boxwidth {} absolute", width * 0.92);
    add("set xrange [-0.6:{}]", static_cast<double>(groups) - 0.4);
    std::vector<std::string> tics;
    size_t characters = 0;
    for (size_t g = 0; g < groups; ++g) {
      tics.push_back(fmt::format("{} {}", quote(figure_.categories[g]), g));
      characters += figure_.categories[g].size() + 2;
    }
    // Names that cannot stand side by side are turned.
    const bool turned = characters * 7 > static_cast<size_t>(figure_.width);
    add("set xtics scale 0 {} ({})", turned ? "rotate by 30 right" : "norotate",
        fmt::join(tics, ", "));
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
        bands_.push_back(
            fmt::format("$d{} using 1:2:3:4 with yerrorbars pointtype 0 linewidth 1 "
                        "linecolor '#303030' notitle",
                        i));
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

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::error_code error;
    std::string base = std::filesystem::temp_directory_path(error).string();
    path_ = (error ? "/tmp" : base) + "/sluice-plot-XXXXXX";
    if (::mkdtemp(path_.data()) == nullptr) {
      fail(Code::io, "cannot create a temporary directory {}: {}", path_, std::strerror(errno));
    }
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  std::string file(const char* name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// Runs gnuplot on a script file; its exit status, or -1 with errno set.
int run_gnuplot(const std::string& script, const std::string& output, const std::string& errors) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addopen(&actions, 2, errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  // -d: the user's own start-up file must not change the picture.
  const char* arguments[] = {"gnuplot", "-d", script.c_str(), nullptr};
  std::vector<std::string> variables{"LC_ALL=C", "GNUTERM=svg"};
  std::vector<char*> environment;
  for (std::string& v : variables) {
    environment.push_back(v.data());
  }
  for (char** v = environ; v != nullptr && *v != nullptr; ++v) {
    const std::string_view variable = *v;
    if (!variable.starts_with("LC_ALL=") && !variable.starts_with("GNUTERM=") &&
        !variable.starts_with("DISPLAY=")) {
      environment.push_back(*v);
    }
  }
  environment.push_back(nullptr);
  pid_t child = 0;
  const int error = ::posix_spawnp(&child, "gnuplot", &actions, nullptr,
                                   const_cast<char**>(arguments), environment.data());
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    errno = error;
    return -1;
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) {
      return -1;
    }
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

void replace_first(std::string& text, std::string_view from, const std::string& to) {
  if (const size_t at = text.find(from); at != std::string::npos) {
    text.replace(at, from.size(), to);
  }
}

}  // namespace

std::string render_svg(const Figure& figure) {
  check(figure);
  const Script script(figure);
  const TemporaryDirectory directory;
  write_text_file(directory.file("figure.gp"), script.text());
  const int status = run_gnuplot(directory.file("figure.gp"), directory.file("figure.svg"),
                                 directory.file("errors"));
  if (status < 0 || status == 127) {
    if (status == 127 || errno == ENOENT) {
      fail(Code::missing,
           "gnuplot, which draws figures, is not installed: apt-get install gnuplot-nox");
    }
    fail(Code::io, "cannot run gnuplot: {}", std::strerror(errno));
  }
  std::string svg = read_text_file(directory.file("figure.svg"));
  const size_t begin = svg.find("<svg");
  const size_t end = svg.rfind("</svg>");
  if (status != 0 || begin == std::string::npos || end == std::string::npos) {
    std::string errors = read_text_file(directory.file("errors"));
    std::replace(errors.begin(), errors.end(), '\n', ' ');
    fail(Code::internal, "figure '{}': gnuplot failed with status {}: {}", figure.title, status,
         errors.substr(0, 400));
  }
  // Without the XML declaration the text can stand inside HTML as it is, and alone as UTF-8.
  svg = svg.substr(begin, end + 6 - begin) + "\n";
  replace_first(svg, "<title>Gnuplot</title>", "<title>" + html_escape(figure.title) + "</title>");
  return svg;
}

}  // namespace sluice
