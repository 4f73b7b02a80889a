// How large the numbers that pass somewhere are: from calibration text to a threshold that leaves
// out a wanted share of them.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "sluice/lab/pass/pass.h"

namespace sluice::lab {

/// Counts numbers >= 0 in bins as fine as 1/256 of their size, over the whole range of f32: a bin
/// is the exponent and the first 8 bits of the mantissa, so nothing has to be known beforehand and
/// histograms of batches add up. 512 KiB each.
class ScoreHistogram {
 public:
  ScoreHistogram() : counts_(kBins, 0) {}
  /// All elements of `scores`, of any shape and float type. Throws Error{numeric} naming `what` for
  /// NaN, infinity and numbers below 0.
  void add(const at::Tensor& scores, const std::string& what);
  int64_t count() const { return count_; }
  /// The number below which a share `share` of all lies, linear within a bin: 0 gives the least,
  /// 1 the largest. Throws Error{usage} when nothing was counted, Error{config} for a share outside
  /// [0, 1].
  float quantile(double share) const;
  /// Share of the numbers above `threshold`, linear within a bin.
  double share_above(float threshold) const;

 private:
  static constexpr size_t kBins = 1 << 16;
  std::vector<int64_t> counts_;
  int64_t count_ = 0;
  float least_ = 0, largest_ = 0;
};

/// Runs the calibration inputs through the model as it is and counts, for each of `paths` (slots),
/// |x_j| of what goes into it, times factors[path] [inputs] where there is one. Rows below
/// `skip_first` of each sample are left out when inputs are [B, T, inputs]. Throws as
/// for_each_calibration_batch with `pass`'s name, Error{numeric} naming the slot, and Error{usage}
/// naming a slot through which nothing went.
std::map<std::string, ScoreHistogram> input_histograms(
    Model& model, const PassInput& input, const std::string& pass,
    const std::vector<std::string>& paths, const std::map<std::string, at::Tensor>& factors,
    int64_t skip_first = 0);

}  // namespace sluice::lab
