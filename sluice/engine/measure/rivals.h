// Library routines at the shapes of a case. Weights are handed over in the layout a library likes
// best, prepared outside the timed call; every rival rotates through cold copies of its own.
#pragma once
#include <optional>

#include "sluice/engine/kernel/onednn.h"
#include "sluice/engine/measure/kernel_case.h"

namespace sluice::engine::measure {

/// y [rows][out] = x [rows][in] weight [out][in] transposed. The spans must outlive the call only.
struct LinearProblem {
  int64_t rows = 1, in = 1, out = 1;
  std::span<const float> x, weight;
  int threads = 1;
  int64_t cold = 0;  ///< bytes that the copies of the weights exceed together

  double operations() const {
    return 2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out);
  }
};

/// Channels last; x [samples][height][width][channels], weight [O][C][kh][kw], one group.
struct ConvProblem {
  onednn::ConvShape shape;
  std::span<const float> x, weight;
  int threads = 1;
  int64_t cold = 0;

  double operations() const;
};

enum class Precision : uint8_t { f32, bf16, int8 };

/// Called directly, not through our wrapper. int8: weights with a scale per output, activations
/// with one scale, quantized in the timed call (convolution: beforehand). Absent where oneDNN has
/// only its reference code, or sums of int8 that saturate (product_usable()).
std::optional<Contender> onednn_matmul(const LinearProblem& problem, Precision precision);
std::optional<Contender> onednn_inner_product(const LinearProblem& problem, Precision precision);
std::optional<Contender> onednn_conv(const ConvProblem& problem, Precision precision);

/// cblas_sgemv or cblas_sgemm of OpenBLAS, looked up when the program runs; absent without it.
std::optional<Contender> openblas_linear(const LinearProblem& problem);

/// XNNPACK's fully connected and convolution operators of f32, looked up when the program runs;
/// absent without it, where it is newer than the release in Debian 12, whose interface it is, and
/// for several threads: those of its pool spin after a call, which slows the next contender.
std::optional<Contender> xnnpack_linear(const LinearProblem& problem);
std::optional<Contender> xnnpack_conv(const ConvProblem& problem);

/// What a build with LibTorch adds; see cli/lab/bench_kernels_libtorch.cpp.
struct LibtorchRivals {
  Contender (*linear)(const LinearProblem& problem) = nullptr;
  Contender (*conv)(const ConvProblem& problem) = nullptr;
};
bool register_libtorch(const LibtorchRivals& rivals);
std::optional<Contender> libtorch_linear(const LinearProblem& problem);
std::optional<Contender> libtorch_conv(const ConvProblem& problem);

/// Every f32 routine above for `problem`, and both of oneDNN's in `precision`.
void add_linear_rivals(const LinearProblem& problem, std::vector<Contender>& contenders,
                       Precision precision = Precision::f32);

}  // namespace sluice::engine::measure
