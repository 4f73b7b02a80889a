// What `sluice bench` measured, as tables and in the report schema of docs/results.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sluice/base/json_fwd.h"
#include "sluice/base/machine.h"

namespace sluice::cli {

struct BenchStep {
  std::string path, op, kernel;
  std::vector<std::string> fused;
  int64_t macs = 0;    ///< per sample
  double seconds = 0;  ///< of the whole batch, median
};

/// One model at one batch size and thread count.
struct BenchRow {
  std::string model, path;
  bool is_first = false;  ///< what the ratios refer to
  int64_t batch = 1;
  int threads = 1;
  double macs = 0;  ///< metered, per sample
  int64_t parameters = 0, weight_bytes = 0, arena_bytes = 0;
  std::vector<double> seconds;           ///< per batch, one a round
  std::vector<double> libtorch_seconds;  ///< empty without LibTorch
  std::optional<double> difference;      ///< largest |engine - LibTorch| over the outputs
  std::vector<BenchStep> steps;
};

struct BenchRun {
  Machine machine;
  std::string command;
  int rounds = 0;
  std::map<int, double> peak, bandwidth;  ///< by threads: f32 FLOP/s, bytes/s
  std::vector<BenchRow> rows;
};

std::string bench_text(const BenchRun& run);
Json bench_json(const BenchRun& run);

}  // namespace sluice::cli
