// Operators on constants: what of a graph does not depend on its inputs is computed when it is
// read. Integers stay integers. Results have as many elements as the caller has checked.
#pragma once
#include "sluice/bundle/import/onnx/model.h"
#include "sluice/bundle/ops_array.h"
#include "sluice/bundle/scalar_ops.h"

namespace sluice::bundle::onnx {

ConstantPtr make_constant(Shape shape, std::vector<float> values);
ConstantPtr make_constant(Shape shape, std::vector<int64_t> values);

ConstantPtr fold_reshape(const Constant& x, Shape shape);
ConstantPtr fold_transpose(const Constant& x, const std::vector<int64_t>& perm);
ConstantPtr fold_concat(const std::vector<ConstantPtr>& parts, size_t axis);
ConstantPtr fold_gather(const Constant& x, size_t axis, const std::vector<int64_t>& indices);
ConstantPtr fold_pad(const Constant& x, const std::vector<int64_t>& before, const Shape& shape,
                     double value);
/// Integers where both are; division of integers goes towards zero. Throws Error{numeric} for one
/// by zero.
ConstantPtr fold_binary(Binary kind, const Constant& a, const Constant& b);
ConstantPtr fold_unary(Unary kind, const Constant& x, double alpha, double beta);
ConstantPtr fold_where(const Constant& condition, const Constant& a, const Constant& b);
ConstantPtr fold_reduce(Reduce kind, const Constant& x, const std::vector<int64_t>& axes);
/// Matrices, or lists of as many.
ConstantPtr fold_matmul(const Constant& a, const Constant& b, const Shape& shape);
ConstantPtr fold_cast(const Constant& x, bool integer, bool boolean);

}  // namespace sluice::bundle::onnx
