#include "cli/bench_report.h"

#include <fmt/core.h>

#include <algorithm>

#include "cli/bench_json.h"
#include "cli/model_data.h"
#include "sluice/base/json.h"
#include "sluice/base/table.h"

namespace sluice::cli {
namespace {

const BenchRow& reference_of(const BenchRun& run, const BenchRow& row) {
  return *std::find_if(run.rows.begin(), run.rows.end(), [&](const BenchRow& other) {
    return other.is_first && other.batch == row.batch && other.threads == row.threads;
  });
}

double flops(const BenchRow& row) {
  return 2 * row.macs * static_cast<double>(row.batch) / median(row.seconds);
}

std::string ratio(double value, double reference) {
  return reference > 0 ? fmt::format("{:.2f}", value / reference) : "-";
}

std::string step_table(const BenchRow& row) {
  double total = 0;
  for (const BenchStep& step : row.steps) {
    total += step.seconds;
  }
  Table table({"step", "op", "kernel", "MACs", "time", "share", "GFLOP/s", "with"});
  for (const BenchStep& step : row.steps) {
    std::string fused;
    for (const std::string& path : step.fused) {
      fused += (fused.empty() ? "" : ", ") + path;
    }
    const double rate =
        2 * static_cast<double>(step.macs * row.batch) / std::max(step.seconds, 1e-12) * 1e-9;
    table.row({step.path, step.op, step.kernel, format_count(step.macs),
               format_seconds(step.seconds), fmt::format("{:.1f} %", 100 * step.seconds / total),
               step.macs > 0 ? fmt::format("{:.1f}", rate) : "-", fused});
  }
  return fmt::format("\n{}, batch {}, {} thread{}: {} a run, step by step\n\n{}", row.model,
                     row.batch, row.threads, row.threads == 1 ? "" : "s", format_seconds(total),
                     table.text());
}

}  // namespace

std::string bench_text(const BenchRun& run) {
  const bool libtorch = std::any_of(run.rows.begin(), run.rows.end(), [](const BenchRow& row) {
    return !row.libtorch_seconds.empty();
  });
  const bool several = std::any_of(run.rows.begin(), run.rows.end(),
                                   [](const BenchRow& row) { return !row.is_first; });
  std::vector<std::string> header{"model", "batch", "threads", "time", "per picture"};
  if (several) {
    header.push_back("x first");
  }
  header.insert(header.end(), {"MACs"});
  if (several) {
    header.push_back("x first");
  }
  header.insert(header.end(), {"GFLOP/s", "of peak"});
  if (libtorch) {
    header.insert(header.end(), {"LibTorch", "speed-up"});
  }
  Table table(header);
  for (const BenchRow& row : run.rows) {
    const BenchRow& reference = reference_of(run, row);
    const double seconds = median(row.seconds);
    std::vector<std::string> cells{row.model, std::to_string(row.batch),
                                   std::to_string(row.threads), format_seconds(seconds),
                                   format_seconds(seconds / static_cast<double>(row.batch))};
    if (several) {
      cells.push_back(ratio(seconds, median(reference.seconds)));
    }
    cells.push_back(format_macs(row.macs));
    if (several) {
      cells.push_back(ratio(row.macs, reference.macs));
    }
    cells.push_back(fmt::format("{:.1f}", flops(row) * 1e-9));
    cells.push_back(fmt::format("{:.0f} %", 100 * flops(row) / run.peak.at(row.threads)));
    if (libtorch) {
      const bool has = !row.libtorch_seconds.empty();
      cells.push_back(has ? format_seconds(median(row.libtorch_seconds)) : "-");
      cells.push_back(has ? fmt::format("{:.2f}x", median(row.libtorch_seconds) / seconds) : "-");
    }
    table.row(std::move(cells));
  }
  std::string text = table.text();
  for (const BenchRow& row : run.rows) {
    if (!row.steps.empty()) {
      text += step_table(row);
    }
  }
  text += fmt::format("\n{}, {}, {} cores, {} memory; medians of {} interleaved rounds\n",
                      run.machine.cpu.empty() ? "unknown CPU" : run.machine.cpu, run.machine.isa,
                      run.machine.cores, format_bytes(run.machine.memory_bytes), run.rounds);
  for (const auto& [threads, peak] : run.peak) {
    text += fmt::format("peak with {} thread{}: {:.0f} GFLOP/s f32, {:.1f} GB/s read (measured)\n",
                        threads, threads == 1 ? "" : "s", peak * 1e-9,
                        run.bandwidth.at(threads) * 1e-9);
  }
  return text;
}

Json bench_json(const BenchRun& run) {
  Json arms = Json::array();
  int most_threads = 1;
  for (const BenchRow& row : run.rows) {
    most_threads = std::max(most_threads, row.threads);
    const BenchRow& reference = reference_of(run, row);
    const std::string name =
        fmt::format("{} batch {} threads {}", row.model, row.batch, row.threads);
    const double seconds = median(row.seconds);
    Json metrics = {{"seconds", samples_json(row.seconds)},
                    {"seconds_per_sample", value_json(seconds / static_cast<double>(row.batch))},
                    {"time_ratio", value_json(seconds / median(reference.seconds))},
                    {"macs", value_json(row.macs)},
                    {"macs_ratio", value_json(reference.macs > 0 ? row.macs / reference.macs : 1)},
                    {"gflops", value_json(flops(row) * 1e-9)},
                    {"share_of_peak", value_json(flops(row) / run.peak.at(row.threads))},
                    {"parameters", value_json(static_cast<double>(row.parameters))},
                    {"weight_bytes", value_json(static_cast<double>(row.weight_bytes))},
                    {"arena_bytes", value_json(static_cast<double>(row.arena_bytes))}};
    Json arm = {{"name", name},           {"role", row.is_first ? "baseline" : "system"},
                {"model", row.path},      {"batch", row.batch},
                {"threads", row.threads}, {"runtime", "sluice"},
                {"metrics", metrics}};
    if (!row.steps.empty()) {
      Json steps = Json::array();
      for (const BenchStep& step : row.steps) {
        steps.push_back({{"path", step.path},
                         {"op", step.op},
                         {"kernel", step.kernel},
                         {"fused", step.fused},
                         {"macs", step.macs},
                         {"seconds", step.seconds}});
      }
      arm["steps"] = steps;
    }
    arms.push_back(std::move(arm));
    if (!row.libtorch_seconds.empty()) {
      Json torch_metrics = {
          {"seconds", samples_json(row.libtorch_seconds)},
          {"time_ratio_to_sluice", value_json(median(row.libtorch_seconds) / seconds)}};
      if (row.difference) {
        torch_metrics["largest_difference"] = value_json(*row.difference);
      }
      arms.push_back({{"name", name + " libtorch"},
                      {"role", "baseline"},
                      {"model", row.path},
                      {"batch", row.batch},
                      {"threads", row.threads},
                      {"runtime", "libtorch"},
                      {"metrics", torch_metrics}});
    }
  }
  return bench_report(
      "bench", run.command, most_threads, std::move(arms), limits_json(run.peak, run.bandwidth),
      Json::array({fmt::format("medians of {} interleaved rounds; random inputs", run.rounds)}));
}

}  // namespace sluice::cli
