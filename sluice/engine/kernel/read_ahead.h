// What processors want to be told about rows of weights that they will need; internal to kernels.
#pragma once

namespace sluice::engine {

/// True where prefetching by hardware follows a few rows of weights by itself, and requests for
/// them cost more than they bring: a Zen 5 (family 1Ah) reads 35% of the rows of a matrix, 4 KB
/// each, at 37 GB/s with four side by side and no request, at 23 to 32 with requests, and 16 side
/// by side at 28 to 31 either way. A Zen 4 needs requests, and 16 rows suit it.
bool follows_rows();

}  // namespace sluice::engine
