// Internal: what the sizes of a network spend and say on calibration inputs, for the passes that
// choose settings by it.
#pragma once
#include "sluice/lab/pass/pass.h"

namespace sluice::lab {

/// Samples [first, first + count) of the calibration inputs.
PassInput part_of(const PassInput& input, int64_t first, int64_t count);

struct Metered {
  double macs = 0, agreement = 0;  ///< of a row
  int64_t rows = 0;
};

/// What the network spends and says at a size; `dense`: first choices to compare with, batch by
/// batch, or empty to fill them.
Metered meter_size(Model& model, const PassInput& data, const std::string& what, int64_t size,
                   std::vector<at::Tensor>& dense);

struct ShareTarget {
  std::string name;  ///< prefix and percent: "exit50"
  double share = 0;  ///< of the dense cost
};
/// Option shares (default 0.5, 0.7, 0.85), ascending. Throws Error{config} unless all lie between 0
/// and 1 and differ.
std::vector<ShareTarget> read_shares(const Json& options, const std::string& prefix,
                                     const std::string& what);

}  // namespace sluice::lab
