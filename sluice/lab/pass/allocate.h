// Who gives up how much: a budget spread over parts so that the result suffers least.
#pragma once
#include <functional>
#include <span>
#include <vector>

namespace sluice::lab {

struct GreedyOptions {
  double step = 0.025;  ///< of the size-weighted mean per turn; a part moves step / its share
  double most = 0.95;   ///< of each part's level
};

/// Greedy allocation as in TEAL (Liu et al. 2024, arXiv 2408.14690, algorithm 1). All levels start
/// at 0; each turn tries to raise every part alone by step / (its share of the sizes), and keeps
/// the one after which `error(levels)` is least (of equal ones the first), until the size-weighted
/// mean of the levels is `targets[i]`, to 1e-9; the step before a target is cut to reach it.
/// Returns one vector of levels per target; targets ascend. Throws Error{config} for sizes that are
/// not positive, targets that do not ascend within [0, most], and options outside (0, 1];
/// Error{numeric} when an error is NaN.
std::vector<std::vector<double>> allocate_greedy(
    std::span<const double> sizes, std::span<const double> targets,
    const std::function<double(std::span<const double> levels)>& error,
    const GreedyOptions& options = {});

}  // namespace sluice::lab
