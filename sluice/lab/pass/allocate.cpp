#include "sluice/lab/pass/allocate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sluice/base/error.h"

namespace sluice::lab {
namespace {

constexpr double kReached = 1e-9;

void check(std::span<const double> sizes, std::span<const double> targets,
           const GreedyOptions& options) {
  if (sizes.empty()) fail(Code::config, "greedy allocation: no parts");
  for (const double size : sizes) {
    if (!(size > 0) || !std::isfinite(size)) {
      fail(Code::config, "greedy allocation: size {}; expected a number above 0", size);
    }
  }
  if (!(options.step > 0 && options.step <= 1) || !(options.most > 0 && options.most <= 1)) {
    fail(Code::config, "greedy allocation: step {} and most {}; expected above 0, up to 1",
         options.step, options.most);
  }
  double last = 0;
  for (const double target : targets) {
    if (!(target >= last && target <= options.most)) {
      fail(Code::config, "greedy allocation: target {}; expected ascending numbers from 0 to {}",
           target, options.most);
    }
    last = target;
  }
}

}  // namespace

std::vector<std::vector<double>> allocate_greedy(
    std::span<const double> sizes, std::span<const double> targets,
    const std::function<double(std::span<const double> levels)>& error,
    const GreedyOptions& options) {
  check(sizes, targets, options);
  const double total = std::accumulate(sizes.begin(), sizes.end(), 0.0);
  std::vector<double> levels(sizes.size(), 0.0);
  std::vector<std::vector<double>> result;
  double mean = 0;
  for (const double target : targets) {
    while (mean < target - kReached) {
      const double gain = std::min(options.step, target - mean);
      size_t best = sizes.size();
      double least = 0;
      for (size_t i = 0; i < sizes.size(); ++i) {
        const double before = levels[i];
        if (options.most - before < kReached) continue;
        levels[i] = std::min(before + gain * total / sizes[i], options.most);
        const double found = error(levels);
        levels[i] = before;
        if (std::isnan(found)) {
          fail(Code::numeric, "greedy allocation: the error is NaN with part {} at {}", i,
               before + gain * total / sizes[i]);
        }
        if (best == sizes.size() || found < least) {
          best = i;
          least = found;
        }
      }
      SLUICE_CHECK(best < sizes.size());  // the mean is below `most`, so some part is
      levels[best] = std::min(levels[best] + gain * total / sizes[best], options.most);
      mean = 0;
      for (size_t i = 0; i < sizes.size(); ++i) mean += levels[i] * sizes[i] / total;
    }
    result.push_back(levels);
  }
  return result;
}

}  // namespace sluice::lab
