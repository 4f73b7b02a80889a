// Linear layers whose zeros come in blocks: y = x W^T + bias, x [rows][in], W [out][in], y
// [rows][out]. Only blocks of 16 weights that are not all zero are kept, so that every load of
// weights fills a vector and one column number serves 16 of them.
//   tall: 16 outputs x 1 input; vectors hold outputs, inputs are broadcast
//   wide: 1 output x 16 inputs; vectors hold inputs, each output ends with a sum over lanes
// Zero blocks of 16 x 16 are blocks of both kinds.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/kernel.h"

namespace sluice::engine {

enum class BlockShape : uint8_t { tall, wide };
inline constexpr int64_t kBlock = 16;

struct BlockWeights {
  BlockShape shape = BlockShape::tall;
  int64_t out = 0, in = 0;
  std::vector<uint32_t> start;   ///< by 16 outputs or by output, one more than there are
  std::vector<uint32_t> column;  ///< of each block, the first one
  Buffer value;                  ///< [blocks][16]; past the matrix: 0

  int64_t blocks() const { return static_cast<int64_t>(column.size()); }
  int64_t bytes() const { return blocks() * (4 * kBlock + 4) + std::ssize(start) * 4; }
};

/// Share of blocks that are kept.
double block_density(std::span<const float> weight, int64_t out, int64_t in, BlockShape shape);
BlockWeights compress_blocks(std::span<const float> weight, int64_t out, int64_t in,
                             BlockShape shape);

/// `bias` may be null. Results do not depend on the number of threads.
void linear_blocks(const float* x, const BlockWeights& weights, const float* bias,
                   Activation activation, float* y, size_t rows, int threads);

/// How a linear layer with these weights should be computed for that many rows of x: by the
/// crossings measured in block_sparse_bench.cpp, so that plans do not vary.
enum class SparseChoice : uint8_t { dense, rows, tall, wide };
/// `density` is density_of(weight), or below 0: not known.
SparseChoice choose_sparse(std::span<const float> weight, int64_t out, int64_t in, int64_t rows,
                           double density = -1);

}  // namespace sluice::engine
