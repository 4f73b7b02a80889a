// The inverse of the normal distribution function.
#pragma once

namespace sluice {

/// x with P(Z <= x) = p for standard normal Z, to about 1e-15 of the larger of 1 and |x|; -inf and
/// +inf at 0 and 1. Three rational functions: M. J. Wichura, Algorithm AS 241, Applied Statistics
/// 37 (1988). Statistical top-k asks for it row by row.
double normal_quantile(double p);

}  // namespace sluice
