#include <algorithm>
#include <cmath>

#include "sluice/engine/kernel/reference_call.h"

namespace sluice::engine {
namespace {

std::vector<double> l2_normalize(const ReferenceCall& c) {
  const double eps = bundle::attr_double(c.node.attrs, "eps", 1e-12);
  const size_t width = static_cast<size_t>(c.shape().back());
  std::vector<double> y = c.x();
  for (size_t first = 0; first < y.size(); first += width) {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += y[first + i] * y[first + i];
    const double length = std::max(std::sqrt(squares), eps);
    // Zeros stay zeros, also with eps 0.
    for (size_t i = 0; i < width; ++i) y[first + i] = length > 0 ? y[first + i] / length : 0.0;
  }
  return y;
}

}  // namespace

std::vector<ReferenceEntry> text_references() { return {{"l2_normalize", l2_normalize}}; }

}  // namespace sluice::engine
