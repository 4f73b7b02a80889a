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
  const int64_t in[2] = {s.in_height, s.in_width}, out[2] = {s.out_height, s.out_width};
  double operations =
      2.0 * static_cast<double>(s.samples * s.out_channels * s.in_channels / s.groups);
  for (int d = 0; d < 2; ++d) {
    int64_t taps = 0;  // those in the padding are nobody's work
    for (int64_t o = 0; o < out[d]; ++o) {
      for (int64_t k = 0; k < s.kernel[d]; ++k) {
        const int64_t at = o * s.stride[d] + k * s.dilation[d] - s.padding[d];
        taps += at >= 0 && at < in[d];
      }
    }
    operations *= static_cast<double>(taps);
  }
  return operations;
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
  std::vector<std::optional<Contender>> rivals{
      onednn_inner_product(problem, Precision::f32), onednn_matmul(problem, Precision::f32),
      openblas_linear(problem), libtorch_linear(problem), xnnpack_linear(problem)};
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
