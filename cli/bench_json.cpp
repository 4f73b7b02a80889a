#include "cli/bench_json.h"

#include <fmt/core.h>

#include "sluice/base/json.h"
#include "sluice/base/machine.h"
#include "sluice/base/origin.h"

namespace sluice::cli {

Json samples_json(const std::vector<double>& samples) {
  return {{"mean", mean(samples)},
          {"std", stddev(samples)},
          {"n", samples.size()},
          {"median", median(samples)}};
}

Json value_json(double value) { return {{"mean", value}, {"std", 0.0}, {"n", 1}}; }

Json limits_json(const std::map<int, double>& peak, const std::map<int, double>& bandwidth) {
  Json limits = Json::object();
  for (const auto& [threads, flops] : peak) {
    limits[fmt::format("f32_gflops_threads_{}", threads)] = flops * 1e-9;
    limits[fmt::format("read_gb_per_second_threads_{}", threads)] = bandwidth.at(threads) * 1e-9;
  }
  return limits;
}

Json bench_report(const std::string& slug, const std::string& command, int threads, Json arms,
                  Json limits, Json notes) {
  return {{"slug", slug},
          {"id", nullptr},
          {"family", "bench"},
          {"scale", "small"},
          {"date", today()},
          {"commit", build_commit()},
          {"command", command},
          {"machine", machine_json(threads)},
          {"data", Json::array()},
          {"seeds", Json::array()},
          {"arms", std::move(arms)},
          {"bars", Json::array()},
          {"controls", Json::array()},
          {"limits", std::move(limits)},
          {"figures", Json::array()},
          {"notes", std::move(notes)},
          {"verdict", "met"}};
}

}  // namespace sluice::cli
