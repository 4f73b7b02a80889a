// The text that makes gnuplot draw a Figure.
#pragma once
#include <string>

#include "sluice/base/plot.h"

namespace sluice {

/// A whole script that writes SVG to its standard output. render_svg has checked the figure: finite
/// values, sizes that fit each other, at least one value.
std::string gnuplot_script(const Figure& figure);

}  // namespace sluice
