// What `sluice bench kernels` measured, as tables, pictures and in the report schema of
// docs/results.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "sluice/base/json_fwd.h"
#include "sluice/base/machine.h"
#include "sluice/base/plot.h"
#include "sluice/engine/measure/runner.h"

namespace sluice::cli {

struct KernelLimits {
  double read_bandwidth = 0, f32_peak = 0, int8_peak = 0;  ///< per second
};

struct KernelRun {
  Machine machine;
  std::string command;
  int rounds = 0;
  bool quick = false;
  std::map<int, KernelLimits> limits;  ///< by threads
  std::vector<engine::measure::MeasuredCase> cases;
  std::vector<std::string> notes;
};

std::string kernels_text(const KernelRun& run);
/// `figures`: file names.
Json kernels_json(const KernelRun& run, const std::vector<std::string>& figures);
/// As kernels_json() wrote it. Throws Error{config} for anything else.
KernelRun kernels_from_json(const Json& report, const std::string& what);
/// The document with one arm and one bar a line: readable, and a change shows as its lines.
std::string kernels_file(const Json& report);

/// File name -> figure: time over kept fraction for each thread count, and the share of memory
/// bandwidth of each format. What was not measured has no picture.
std::vector<std::pair<std::string, Figure>> kernels_figures(const KernelRun& run);

/// Contenders whose results are not those of ours, as sentences.
std::vector<std::string> disagreements(const KernelRun& run);

/// Puts the cases of `run` in the place of theirs in `before` and keeps the others.
void merge_kernels(KernelRun& run, const KernelRun& before);

}  // namespace sluice::cli
