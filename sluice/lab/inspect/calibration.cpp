#include "sluice/lab/inspect/calibration.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"

namespace sluice::lab {

std::vector<ReliabilityBin> reliability(const at::Tensor& confidence, const at::Tensor& correct,
                                        int64_t bins) {
  if (bins < 1) fail(Code::config, "reliability: expected at least 1 bin, found {}", bins);
  if (confidence.dim() != 1 || correct.sizes() != confidence.sizes())
    fail(Code::shape, "reliability: expected [N] twice, found {} and {}",
         to_string(confidence.sizes()), to_string(correct.sizes()));
  const int64_t count = confidence.size(0);
  const at::Tensor all = confidence.detach().to(at::kCPU, at::kDouble);
  if (count > 0 && !((all >= 0) & (all <= 1)).all().item<bool>())
    fail(Code::numeric, "reliability: confidences outside of 0 to 1");
  const auto [sorted, order] = all.sort();
  const at::Tensor right = correct.to(at::kCPU, at::kDouble).index_select(0, order);
  std::vector<ReliabilityBin> result;
  const int64_t parts = std::min(bins, count);
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t first = i * count / parts, size = (i + 1) * count / parts - first;
    result.push_back({sorted.narrow(0, first, size).mean().item<double>(),
                      right.narrow(0, first, size).mean().item<double>(), size});
  }
  return result;
}

double calibration_error(const at::Tensor& confidence, const at::Tensor& correct, int64_t bins) {
  double sum = 0;
  for (const ReliabilityBin& bin : reliability(confidence, correct, bins))
    sum += static_cast<double>(bin.count) * std::abs(bin.accuracy - bin.confidence);
  return sum / std::max<double>(1, static_cast<double>(confidence.size(0)));
}

double brier_score(const at::Tensor& probabilities, const at::Tensor& labels) {
  if (probabilities.dim() != 2 || labels.dim() != 1 || labels.size(0) != probabilities.size(0))
    fail(Code::shape, "brier_score: expected [N, C] and [N], found {} and {}",
         to_string(probabilities.sizes()), to_string(labels.sizes()));
  if (labels.size(0) == 0) return 0;
  const at::Tensor p = probabilities.detach().to(at::kDouble);
  const at::Tensor truth = at::zeros_like(p).scatter(1, labels.to(at::kLong).unsqueeze(1), 1.0);
  return (p - truth).square().sum(1).mean().item<double>();
}

}  // namespace sluice::lab
