// The text that makes gnuplot draw a Figure.
#pragma once
#include <string>

#include "sluice/base/plot.h"

namespace sluice {

/// Checks the figure (errors as render_svg) and returns a whole script that writes SVG to its
/// standard output.
std::string gnuplot_script(const Figure& figure);

}  // namespace sluice
