// Kernels on arrays of any rank: element-wise with broadcasting, copies in another order,
// reductions. Loops are merged when they are planned, so that most run over long rows; Highway with
// run-time dispatch where there is arithmetic worth it.
#pragma once
#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "sluice/base/shape.h"
#include "sluice/bundle/ops_array.h"
#include "sluice/bundle/scalar_ops.h"

namespace sluice::engine {

/// Loops over the elements of an output in its order. strides[k][i]: how far operand k moves when
/// loop i advances, in elements; 0 where it is repeated. The innermost loop is the last.
struct Loops {
  std::vector<size_t> sizes;
  std::array<std::vector<size_t>, 3> strides;
};

/// Row-major strides of `shape`, repeated to fill `out`: 0 along dimensions of 1 that are longer
/// there, aligned at the last dimension.
std::vector<size_t> broadcast_strides(const Shape& shape, const Shape& out);
/// Without loops of 1, and with loops joined that are one for all operands.
Loops merge_loops(const Shape& out, std::span<const std::vector<size_t>> operands);

/// out = in, read with the strides of operand 0: transposes, slices, repeats.
void copy_array(const Loops& loops, const float* in, float* out);
/// out = a op b
void binary_array(bundle::Binary kind, const Loops& loops, const float* a, const float* b,
                  float* out);
/// out = condition != 0 ? a : b
void where_array(const Loops& loops, const float* condition, const float* a, const float* b,
                 float* out);
/// out may be in.
void unary_array(bundle::Unary kind, float alpha, float beta, const float* in, float* out,
                 size_t count);

/// Along dimensions that lie one after another: in [outer][reduced][inner] -> out [outer][inner].
/// Sums and products are kept in double precision, but for means of numbers that lie one behind the
/// other (average_plain's); argmax and argmin give the first of equal ones.
void reduce_middle(bundle::Reduce kind, const float* in, float* out, size_t outer, size_t reduced,
                   size_t inner);

}  // namespace sluice::engine
