// What the kernels are to reach, as data, and how far they got.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "sluice/engine/measure/runner.h"

namespace sluice::engine::measure {

enum class Metric : uint8_t {
  share_of_limit,
  time_ratio,              ///< ours over the contender that `against` names, or over dense
  time_over_proportional,  ///< (ours over dense) over the kept fraction
  time_over_bytes,         ///< (ours over dense) over the ratio of their bytes
};
/// "share_of_limit", ...
std::string_view metric_name(Metric metric);

/// One claim about every case it matches.
struct Bar {
  std::string name, claim;
  std::string kernel;                    ///< whole names, as is_one_of
  std::string shape = {};                ///< beginning, as name_matches; empty: any
  int threads = 0;                       ///< 0: any count
  double kept_low = 0, kept_high = 1e9;  ///< the cases whose kept fraction lies in between
  Metric metric = Metric::share_of_limit;
  /// How a contender's name begins, of several the fastest; empty: the dense one.
  std::string against = {};
  bool at_most = true;  ///< value <= bound, else value >= bound
  double bound = 0;
};
const std::vector<Bar>& all_bars();

struct Judgement {
  const Bar* bar = nullptr;
  const MeasuredCase* measured = nullptr;
  const Measurement* against = nullptr;  ///< time_ratio: the other one
  double value = 0;
  bool met = false;
};
/// Every bar at every case it speaks about, in the order of the bars. The pointers are into
/// `cases` and all_bars().
std::vector<Judgement> judge(const std::vector<MeasuredCase>& cases,
                             const std::vector<Bar>& bars = all_bars());

}  // namespace sluice::engine::measure
