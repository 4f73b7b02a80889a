// The inverse of the normal distribution function.
#pragma once

namespace sluice {

/// x with P(Z <= x) = p for standard normal Z, to about 1e-12; -inf and +inf at 0 and 1.
double normal_quantile(double p);

}  // namespace sluice
