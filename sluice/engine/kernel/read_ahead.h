// What processors want to be told about rows of weights that they will need; internal to kernels.
#pragma once

namespace sluice::engine {

/// True where prefetching by hardware follows a few rows of weights by itself: on a Zen 5 (family
/// 1Ah), which reads 35% of the rows of a matrix, 4 KB each, at 35 GB/s with four side by side and
/// no request, at 30 with requests (sluice_engine_bench, ScatteredRows). What is computed on the
/// way decides as well: packed_dot asks for nothing where rows follow each other, and for the rows
/// of a list; sums of rows ask everywhere.
bool follows_rows();

}  // namespace sluice::engine
