// Curves for a terminal, in plain characters.
#pragma once
#include <string>
#include <vector>

#include "sluice/base/plot.h"

namespace sluice {

/// Lines over a common x axis, each drawn with a letter of its own ('*', 'o', '+', 'x', ...), with
/// the ranges at the axes and a legend; later series are drawn over earlier ones. `width` x
/// `height` characters for the picture itself. Points that are not finite are left out; "" when
/// none is left.
std::string text_plot(const std::vector<Series>& series, int width = 64, int height = 12);

}  // namespace sluice
