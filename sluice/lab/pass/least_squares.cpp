#include "sluice/lab/pass/least_squares.h"

#include <ATen/ops/cholesky_solve.h>
#include <ATen/ops/linalg_cholesky.h>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"

namespace sluice::lab {

LeastSquares::LeastSquares(int64_t inputs, int64_t outputs) : inputs_(inputs), outputs_(outputs) {
  if (inputs < 1 || outputs < 1) {
    fail(Code::usage, "a linear fit of {} inputs and {} outputs; expected at least one each",
         inputs, outputs);
  }
}

void LeastSquares::add(const at::Tensor& x, const at::Tensor& y) {
  const bool fits = x.dim() == y.dim() && x.dim() > 0 && x.size(-1) == inputs_ &&
                    y.size(-1) == outputs_ &&
                    x.sizes().slice(0, x.dim() - 1) == y.sizes().slice(0, y.dim() - 1);
  if (!fits) {
    fail(Code::shape, "linear fit: expected rows [.., {}] and as many [.., {}], found {} and {}",
         inputs_, outputs_, to_string(x.sizes()), to_string(y.sizes()));
  }
  const at::NoGradGuard no_grad;
  at::Tensor a = x.detach().to(at::kDouble).reshape({-1, inputs_});
  at::Tensor b = y.detach().to(at::kDouble).reshape({-1, outputs_});
  if (a.size(0) == 0) return;
  if (!(at::isfinite(a.sum()) & at::isfinite(b.sum())).item<bool>()) {
    fail(Code::numeric, "linear fit: the rows have values that are not finite");
  }
  if (rows_ == 0) {
    x0_ = a.mean(0);
    y0_ = b.mean(0);
    xx_ = at::zeros({inputs_, inputs_}, a.options());
    xy_ = at::zeros({inputs_, outputs_}, a.options());
    x_ = at::zeros({inputs_}, a.options());
    y_ = at::zeros({outputs_}, a.options());
    yy_ = at::zeros({}, a.options());
  }
  a = a - x0_;
  b = b - y0_;
  xx_ += at::matmul(a.t(), a);
  xy_ += at::matmul(a.t(), b);
  x_ += a.sum(0);
  y_ += b.sum(0);
  yy_ += b.square().sum();
  rows_ += a.size(0);
}

LinearFit LeastSquares::solve(double ridge) const {
  if (rows_ == 0) fail(Code::usage, "linear fit: no rows were added");
  const at::NoGradGuard no_grad;
  const auto n = static_cast<double>(rows_);
  const at::Tensor mean_x = x_ / n, mean_y = y_ / n;
  const at::Tensor cxx = xx_ - at::outer(x_, mean_x);
  const at::Tensor cxy = xy_ - at::outer(x_, mean_y);
  const double cyy = (yy_ - at::dot(y_, mean_y)).item<double>();
  const double scale = cxx.diagonal().mean().item<double>();
  LinearFit fit;
  if (scale > 0) {
    at::Tensor regular = cxx.clone();
    regular.diagonal().add_(ridge * scale);
    fit.weight = at::cholesky_solve(cxy, at::linalg_cholesky(regular)).t().contiguous();
  } else {  // nothing varies: the mean is all there is to know
    fit.weight = at::zeros({outputs_, inputs_}, cxx.options());
  }
  fit.bias = y0_ + mean_y - at::mv(fit.weight, x0_ + mean_x);
  if (cyy > 0) {
    const double explained = 2 * (fit.weight * cxy.t()).sum().item<double>() -
                             (at::matmul(fit.weight, cxx) * fit.weight).sum().item<double>();
    fit.residual = std::max(0.0, 1 - explained / cyy);
  }
  return fit;
}

}  // namespace sluice::lab
