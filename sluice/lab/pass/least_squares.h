// Linear maps fitted to data that streams by: min over W, b of sum |W x + b - y|^2.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace sluice::lab {

struct LinearFit {
  at::Tensor weight, bias;  ///< [outputs, inputs], [outputs], f64
  /// What is left: sum |W x + b - y|^2 over sum |y - mean of y|^2. 0 where y is constant.
  double residual = 0;
};

/// Sums of x x^T and x y^T in double, about the mean of the first batch so that large means do not
/// cost digits. Rows are seen once and not kept.
class LeastSquares {
 public:
  LeastSquares(int64_t inputs, int64_t outputs);
  /// x [.., inputs], y [.., outputs] with the same leading dimensions, of any type and device.
  /// Throws Error{shape} naming both when they do not fit, Error{numeric} for values that are not
  /// finite.
  void add(const at::Tensor& x, const at::Tensor& y);
  int64_t rows() const { return rows_; }
  /// By Cholesky factors of the centred x x^T + ridge * (its mean diagonal) * I, which exists also
  /// where inputs are correlated, constant, or more than rows. b is not shrunk. Throws Error{usage}
  /// before any row.
  LinearFit solve(double ridge = 1e-4) const;

 private:
  int64_t inputs_, outputs_, rows_ = 0;
  at::Tensor x0_, y0_;          ///< what the sums are about
  at::Tensor xx_, xy_, x_, y_;  ///< [I, I], [I, O], [I], [O]
  at::Tensor yy_;               ///< []
};

}  // namespace sluice::lab
