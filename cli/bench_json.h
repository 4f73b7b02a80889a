// What the reports of `sluice bench` share: numbers, limits and the frame of the schema of
// docs/add-a-recipe.md.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "sluice/base/json_fwd.h"

namespace sluice::cli {

Json samples_json(const std::vector<double>& samples);
Json value_json(double value);
/// Measured f32 FLOP/s and read bytes/s, by threads.
Json limits_json(const std::map<int, double>& peak, const std::map<int, double>& bandwidth);
/// A report of this commit, day and machine without bars, controls and figures; `threads`: the most
/// that an arm used.
Json bench_report(const std::string& slug, const std::string& command, int threads, Json arms,
                  Json limits, Json notes);

}  // namespace sluice::cli
