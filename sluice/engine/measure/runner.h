// Times the contenders of a case against each other, round by round, and compares their results.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "sluice/engine/measure/kernel_case.h"
#include "sluice/engine/measure/limit_probe.h"

namespace sluice::engine::measure {

/// Of one value per round: the median and the quartiles around it.
struct Spread {
  double median = 0, low = 0, high = 0, mean = 0, deviation = 0;
  int n = 0;
};
/// Throws Error{shape} when empty. Quartiles are interpolated.
Spread spread_of(const std::vector<double>& samples);

/// What one contender showed. Ratios and shares are medians over rounds of values that were taken
/// within one round, so that slow phases of the machine cancel.
struct Measurement {
  std::string name;
  Role role = Role::ours;
  Spread seconds;
  double bytes = 0, operations = 0;
  std::optional<double> share;       ///< of the limit
  double ours_over_this = 1;         ///< time of ours over the time of this one
  std::optional<double> difference;  ///< largest, over the largest output of ours
  double tolerance = 0;
  std::string note;

  bool agrees() const { return !difference || *difference <= tolerance; }
};

struct MeasuredCase {
  std::string kernel, shape;
  int threads = 1;
  double kept = 1;
  bool conditional = false;
  Limit limit = Limit::none;
  double limit_rate = 0;                ///< bytes or operations per second, 0: not measured
  std::vector<Measurement> contenders;  ///< ours first

  const Measurement& ours() const { return contenders.front(); }
  const Measurement* dense() const;       ///< the first of Role::dense, nullptr without one
  const Measurement* best_rival() const;  ///< the fastest of Role::rival
  /// "gemv i4-32 4096x4096 batch 1"
  std::string name() const { return kernel + " " + shape; }
};

struct TimingOptions {
  int rounds = 7;
  double min_seconds = 0.015;  ///< of one sample
};

/// Seconds per call of each function in each round; one call before every sample does not count.
std::vector<std::vector<double>> sample_interleaved(
    const std::vector<std::function<void()>>& functions, const TimingOptions& options,
    const std::function<void(int round)>& after_round = {});

MeasuredCase measure_case(const KernelCase& kernel_case, const TimingOptions& options,
                          const ProbeMemory& memory,
                          const std::function<void(int round)>& after_round = {});

/// Whether `name` begins with `pattern`, in which `*` stands for anything; commas separate
/// alternatives. Empty matches all.
bool name_matches(std::string_view pattern, std::string_view name);
/// The same for the whole name.
bool is_one_of(std::string_view pattern, std::string_view name);

}  // namespace sluice::engine::measure
