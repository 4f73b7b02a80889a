// What a request may spend: of the sizes that a bundle offers, the best that stays inside.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "sluice/base/cost.h"
#include "sluice/base/json_fwd.h"
#include "sluice/bundle/bundle.h"

namespace CLI {
class App;
}

namespace sluice::cli {

struct SizeBudget {
  std::optional<double> share;         ///< of what the largest size costs
  std::optional<double> milliseconds;  ///< of one picture, text or token on this machine
  std::string size;                    ///< or a size by name or number
  bool wanted() const { return share || milliseconds; }
};
/// --size, --budget and --budget-ms, of which one can be given. `unit`: "picture, text or token".
void add_size_options(CLI::App& app, SizeBudget& budget, const std::string& unit);

/// Runs the network once at a size; what ran goes to the meter where there is one.
using SizeProbe = std::function<void(int64_t size, Meter* meter)>;

struct ChosenSize {
  int64_t size = -1;  ///< -1: nothing was asked for
  std::string name;
  // With a budget, of the probe:
  double share = 0;     ///< metered, of what the largest size spends on the same input
  double expected = 0;  ///< what it was chosen by
  double seconds = 0;   ///< per unit

  Json json() const;         ///< {"size", "share", "expected_share", "seconds"} as far as known
  std::string text() const;  ///< "size keep50: 0.47 of the largest, 3.1 ms a picture"
  std::string unit;
};
/// The size that `budget` means, by the costs that the table of sizes measured, or where it has
/// none by what each size spends in a trial. `probe` runs `units` units; it is called for every
/// size. Throws Error{usage} for a bundle without sizes, naming the passes that make them,
/// Error{limit} naming the cheapest size when none fits.
ChosenSize choose_size(const bundle::Bundle& bundle, const SizeBudget& budget,
                       const SizeProbe& probe, double units, const std::string& unit);

}  // namespace sluice::cli
