#include "sluice/base/plot.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/plot_script.h"
#include "sluice/base/table.h"
#include "sluice/base/temp_directory.h"

extern char** environ;

namespace sluice {
namespace {

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

/// Runs gnuplot on a script file; its exit status, or -1 with errno set.
int run_gnuplot(const std::string& script, const std::string& output, const std::string& errors) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addopen(&actions, 2, errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  // -d: the user's own start-up file must not change the picture.
  const char* arguments[] = {"gnuplot", "-d", script.c_str(), nullptr};
  std::vector<std::string> variables{"LC_ALL=C.UTF-8", "GNUTERM=svg"};
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
  const std::string script = gnuplot_script(figure);
  const TempDirectory directory("plot");
  write_text_file(directory / "figure.gp", script);
  const int status =
      run_gnuplot(directory / "figure.gp", directory / "figure.svg", directory / "errors");
  if (status < 0 || status == 127) {
    if (status == 127 || errno == ENOENT) {
      fail(Code::missing,
           "gnuplot, which draws figures, is not installed: apt-get install gnuplot-nox");
    }
    fail(Code::io, "cannot run gnuplot: {}", std::strerror(errno));
  }
  std::string svg = read_text_file(directory / "figure.svg");
  const size_t begin = svg.find("<svg");
  const size_t end = svg.rfind("</svg>");
  if (status != 0 || begin == std::string::npos || end == std::string::npos) {
    std::string errors = read_text_file(directory / "errors");
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
