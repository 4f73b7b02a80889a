// Linear layers of pruned networks, the weights in compressed sparse rows: y = activation(x W^T +
// bias), x [rows][in], W [out][in], y [rows][out]. (A dense matrix-vector kernel of our own was no
// faster than oneDNN's, so there is none.)
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "sluice/engine/kernel/kernel.h"

namespace sluice::engine {

/// The non-zero weights of [out][in], row by row.
struct SparseWeights {
  int64_t out = 0, in = 0;
  std::vector<uint32_t> start;   ///< out + 1 entries into the two below
  std::vector<uint32_t> column;  ///< padded by kPad zeros, so that vectors may read past the end
  std::vector<float> value;
  static constexpr size_t kPad = 64;

  int64_t nonzero() const { return start.empty() ? 0 : start.back(); }
  double density() const { return double(nonzero()) / double(out * in); }
  int64_t bytes() const { return nonzero() * 8 + (out + 1) * 4; }
};

/// Share of weights that are not zero.
double density_of(std::span<const float> weight);
SparseWeights compress(std::span<const float> weight, int64_t out, int64_t in);

/// Whether skipping zeros is faster than multiplying with them, from sparse_bench.cpp.
bool sparse_pays(double density, int64_t rows);

/// `bias` may be null; `scratch` holds sparse_scratch(weights, rows) floats.
void linear_sparse(const float* x, const SparseWeights& weights, const float* bias,
                   Activation activation, float* y, size_t rows, float* scratch);
size_t sparse_scratch(const SparseWeights& weights, size_t rows);

}  // namespace sluice::engine
