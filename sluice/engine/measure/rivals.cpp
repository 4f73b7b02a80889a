#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace {

LibtorchRivals& registered() {
  static LibtorchRivals rivals;
  return rivals;
}

}  // namespace

double ConvProblem::operations() const {
  const onednn::ConvShape& s = shape;
  return 2.0 * static_cast<double>(s.samples * s.out_height * s.out_width) *
         static_cast<double>(s.out_channels * s.in_channels / s.groups) *
         static_cast<double>(s.kernel[0] * s.kernel[1]);
}

bool register_libtorch(const LibtorchRivals& rivals) {
  registered() = rivals;
  return true;
}

std::optional<Contender> libtorch_linear(const LinearProblem& problem) {
  if (registered().linear == nullptr) {
    return std::nullopt;
  }
  return registered().linear(problem);
}

std::optional<Contender> libtorch_conv(const ConvProblem& problem) {
  if (registered().conv == nullptr) {
    return std::nullopt;
  }
  return registered().conv(problem);
}

void add_linear_rivals(const LinearProblem& problem, std::vector<Contender>& contenders,
                       Precision precision) {
  std::vector<std::optional<Contender>> rivals{onednn_inner_product(problem, Precision::f32),
                                               onednn_matmul(problem, Precision::f32),
                                               openblas_linear(problem), libtorch_linear(problem)};
  if (precision != Precision::f32) {
    rivals.push_back(onednn_inner_product(problem, precision));
    rivals.push_back(onednn_matmul(problem, precision));
  }
  for (std::optional<Contender>& rival : rivals) {
    if (rival) {
      contenders.push_back(std::move(*rival));
    }
  }
}

}  // namespace sluice::engine::measure
