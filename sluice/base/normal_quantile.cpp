#include "sluice/base/normal_quantile.h"

#include <cmath>
#include <limits>

namespace sluice {

double normal_quantile(double p) {
  if (!(p > 0)) return -std::numeric_limits<double>::infinity();
  if (!(p < 1)) return std::numeric_limits<double>::infinity();
  // Bisection on the distribution function; past the middle on its complement, which keeps digits.
  const bool upper = p > 0.5;
  const double tail = upper ? 1 - p : p;
  double low = -40, high = 0;
  for (int i = 0; i < 80; ++i) {
    const double middle = 0.5 * (low + high);
    (0.5 * std::erfc(-middle * std::sqrt(0.5)) < tail ? low : high) = middle;
  }
  return upper ? -high : high;
}

}  // namespace sluice
