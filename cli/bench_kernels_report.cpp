#if SLUICE_HAS_ENGINE
#include "cli/bench_kernels_report.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "cli/bench_json.h"
#include "sluice/base/json.h"
#include "sluice/base/table.h"
#include "sluice/engine/measure/bars.h"
#include "sluice/engine/measure/limit_probe.h"

namespace sluice::cli {
namespace {

using engine::measure::Judgement;
using engine::measure::Limit;
using engine::measure::MeasuredCase;
using engine::measure::Measurement;
using engine::measure::Metric;
using engine::measure::Role;

std::string plural(int count, const char* word) {
  return fmt::format("{} {}{}", count, word, count == 1 ? "" : "s");
}

std::string kept_text(const MeasuredCase& c) {
  return c.conditional || c.kept < 1 ? fmt::format("{:g}", c.kept) : "-";
}

std::string case_name(const MeasuredCase& c) {
  std::string name = c.name();
  if (c.conditional) {
    name += fmt::format(" kept {:g}", c.kept);
  }
  return fmt::format("{} threads {}", name, c.threads);
}

std::string arm_name(const MeasuredCase& c, const Measurement& m) {
  return case_name(c) + ": " + m.name;
}

std::string rate_text(const MeasuredCase& c, const Measurement& m) {
  if (c.limit == Limit::read_bandwidth || m.operations <= 0) {
    return m.bytes > 0 ? fmt::format("{:.1f} GB/s", m.bytes / m.seconds.median * 1e-9) : "-";
  }
  return fmt::format("{:.0f} GOP/s", m.operations / m.seconds.median * 1e-9);
}

std::string bound_text(const engine::measure::Bar& bar) {
  return fmt::format("{} {:g}", bar.at_most ? "<=" : ">=", bar.bound);
}

std::string against_text(const Judgement& j) {
  if (j.bar->metric == Metric::share_of_limit) {
    return "of " + std::string(engine::measure::limit_name(j.measured->limit));
  }
  const std::string name = j.against->name;
  switch (j.bar->metric) {
    case Metric::time_over_proportional:
      return "of the kept share of " + name;
    case Metric::time_over_bytes:
      return "of the byte ratio to " + name;
    default:
      return "of the time of " + name;
  }
}

std::string tables(const KernelRun& run) {
  std::vector<std::string> kernels;
  for (const MeasuredCase& c : run.cases) {
    if (std::find(kernels.begin(), kernels.end(), c.kernel) == kernels.end()) {
      kernels.push_back(c.kernel);
    }
  }
  std::string text;
  for (const std::string& kernel : kernels) {
    Table table({"shape", "threads", "kept", "contender", "time", "25-75 %", "rate", "of limit",
                 "ours / this"});
    for (const MeasuredCase& c : run.cases) {
      if (c.kernel != kernel) {
        continue;
      }
      for (const Measurement& m : c.contenders) {
        const bool first = &m == &c.ours();
        table.row(
            {first ? c.shape : "", first ? std::to_string(c.threads) : "",
             first ? kept_text(c) : "", m.name, format_seconds(m.seconds.median),
             fmt::format("{}..{}", format_seconds(m.seconds.low), format_seconds(m.seconds.high)),
             rate_text(c, m), m.share ? fmt::format("{:.0f} %", 100 * *m.share) : "-",
             first ? "" : fmt::format("{:.3f}", m.ours_over_this)});
      }
    }
    text += kernel + "\n\n" + table.text() + "\n";
  }
  return text;
}

std::string verdicts(const std::vector<Judgement>& judgements) {
  if (judgements.empty()) {
    return "";
  }
  Table table({"bar", "case", "value", "", "bound", "verdict"});
  size_t met = 0;
  for (const Judgement& j : judgements) {
    met += j.met;
    table.row({j.bar->name, case_name(*j.measured), fmt::format("{:.3f}", j.value), against_text(j),
               bound_text(*j.bar), j.met ? "met" : "MISSED"});
  }
  return fmt::format("bars: {} of {} met\n\n{}\n", met, judgements.size(), table.text());
}

Json seconds_json(const engine::measure::Spread& s) {
  return {{"mean", s.mean},     {"std", s.deviation}, {"n", s.n},
          {"median", s.median}, {"p25", s.low},       {"p75", s.high}};
}

Json arm_json(const MeasuredCase& c, const Measurement& m) {
  const bool ours = &m == &c.ours();
  Json metrics = {{"seconds", seconds_json(m.seconds)}};
  if (m.share) {
    metrics["share_of_limit"] = value_json(*m.share);
  }
  if (m.difference && std::isfinite(*m.difference)) {
    metrics["difference"] = value_json(*m.difference);
  }
  if (!ours) {
    metrics["ours_over_this"] = value_json(m.ours_over_this);
  }
  if (ours && c.dense() != nullptr) {
    const double ratio = c.dense()->ours_over_this;
    metrics["time_over_dense"] = value_json(ratio);
    metrics["time_over_bytes"] = value_json(ratio / (m.bytes / c.dense()->bytes));
    if (c.conditional) {
      metrics["time_over_proportional"] = value_json(ratio / c.kept);
    }
  }
  if (ours && c.best_rival() != nullptr) {
    metrics["time_over_best_rival"] = value_json(c.best_rival()->ours_over_this);
  }
  Json arm = {{"name", arm_name(c, m)},
              {"role", ours ? "system" : "baseline"},
              {"kernel", c.kernel},
              {"shape", c.shape},
              {"threads", c.threads},
              {"kept", c.kept},
              {"conditional", c.conditional},
              {"contender", m.name},
              {"kind", ours                    ? "ours"
                       : m.role == Role::dense ? "dense"
                                               : "rival"},
              {"limit", engine::measure::limit_name(c.limit)},
              {"limit_rate", c.limit_rate},
              {"bytes", m.bytes},
              {"operations", m.operations},
              {"tolerance", m.tolerance},
              {"agrees", m.agrees()},
              {"metrics", metrics}};
  if (!m.note.empty()) {
    arm["note"] = m.note;
  }
  return arm;
}

Json bar_json(const Judgement& j) {
  const MeasuredCase& c = *j.measured;
  Json against = nullptr;
  if (j.bar->metric == Metric::time_ratio) {
    against = {{"arm", arm_name(c, *j.against)}, {"metric", "seconds"}};
  }
  return {{"name", j.bar->name},
          {"claim", j.bar->claim},
          {"arm", arm_name(c, c.ours())},
          {"metric", engine::measure::metric_name(j.bar->metric)},
          {"relation", j.bar->at_most ? "<=" : ">="},
          {"against", against},
          {"op", against.is_null() ? "value" : "ratio"},
          {"bound", j.bar->bound},
          {"value", j.value},
          {"met", j.met}};
}

std::vector<std::string> all_notes(const KernelRun& run) {
  std::vector<std::string> notes{
      fmt::format("medians of {} interleaved rounds; ratios and shares are taken within a round",
                  run.rounds),
      "weights rotate through copies of four times the last-level cache, except of convolutions"};
  if (run.quick) {
    notes.push_back("quick: tiny shapes; the times mean nothing");
  }
  std::set<std::string> seen;
  for (const MeasuredCase& c : run.cases) {
    for (const Measurement& m : c.contenders) {
      const std::string family = c.kernel.substr(0, c.kernel.find(' '));
      const std::string note = fmt::format("{}, {}: {}", family, m.name, m.note);
      if (!m.note.empty() && seen.insert(note).second) {
        notes.push_back(note);
      }
    }
  }
  for (const std::string& line : disagreements(run)) {
    notes.push_back(line);
  }
  notes.insert(notes.end(), run.notes.begin(), run.notes.end());
  return notes;
}

}  // namespace

std::vector<std::string> disagreements(const KernelRun& run) {
  std::vector<std::string> lines;
  for (const MeasuredCase& c : run.cases) {
    for (const Measurement& m : c.contenders) {
      if (!m.agrees()) {
        lines.push_back(
            fmt::format("{} differs from ours by {:.2g} of the largest output, more "
                        "than {:.2g}",
                        arm_name(c, m), *m.difference, m.tolerance));
      }
    }
  }
  return lines;
}

std::string kernels_text(const KernelRun& run) {
  std::string text = tables(run) + verdicts(engine::measure::judge(run.cases));
  text += fmt::format("{}, {}, {}\n", run.machine.cpu, run.machine.isa,
                      plural(run.machine.cores, "core"));
  for (const auto& [threads, limits] : run.limits) {
    std::string line;
    const auto add = [&line](double rate, const char* unit) {
      if (rate > 0) {
        line += fmt::format("{}{:.1f} {}", line.empty() ? "" : ", ", rate * 1e-9, unit);
      }
    };
    add(limits.read_bandwidth, "GB/s read");
    add(limits.f32_peak, "GFLOP/s f32");
    add(limits.int8_peak, "GOP/s int8");
    text += fmt::format("limits with {}: {}\n", plural(threads, "thread"), line);
  }
  for (const std::string& note : all_notes(run)) {
    text += "- " + note + "\n";
  }
  return text;
}

Json kernels_json(const KernelRun& run, const std::vector<std::string>& figures) {
  Json arms = Json::array(), bars = Json::array(), limits = Json::object();
  int threads = 1;
  for (const MeasuredCase& c : run.cases) {
    threads = std::max(threads, c.threads);
    for (const Measurement& m : c.contenders) {
      arms.push_back(arm_json(c, m));
    }
  }
  bool met = disagreements(run).empty();
  for (const Judgement& j : engine::measure::judge(run.cases)) {
    met = met && j.met;
    bars.push_back(bar_json(j));
  }
  for (const auto& [count, l] : run.limits) {
    limits[fmt::format("read_gb_per_second_threads_{}", count)] = l.read_bandwidth * 1e-9;
    limits[fmt::format("f32_gflops_threads_{}", count)] = l.f32_peak * 1e-9;
    limits[fmt::format("int8_gops_threads_{}", count)] = l.int8_peak * 1e-9;
  }
  Json report = bench_report("kernels", run.command, threads, std::move(arms), std::move(limits),
                             all_notes(run));
  report["scale"] = run.quick ? "tiny" : "small";
  report["rounds"] = run.rounds;
  report["bars"] = std::move(bars);
  report["figures"] = figures;
  report["verdict"] = met ? "met" : "missed";
  return report;
}

KernelRun kernels_from_json(const Json& report, const std::string& what) {
  KernelRun run;
  run.command = json_get<std::string>(report, "command", what);
  run.rounds = static_cast<int>(json_get<int64_t>(report, "rounds", what));
  run.quick = json_get<std::string>(report, "scale", what) == "tiny";
  const Json limits = json_get<Json>(report, "limits", what);
  const Json arms = json_get<Json>(report, "arms", what);
  for (const Json& arm : arms) {
    const std::string kind = json_get<std::string>(arm, "kind", what);
    if (kind == "ours" || run.cases.empty()) {
      MeasuredCase c;
      c.kernel = json_get<std::string>(arm, "kernel", what);
      c.shape = json_get<std::string>(arm, "shape", what);
      c.threads = static_cast<int>(json_get<int64_t>(arm, "threads", what));
      c.kept = json_get<double>(arm, "kept", what);
      c.conditional = json_get<bool>(arm, "conditional", what);
      c.limit_rate = json_get<double>(arm, "limit_rate", what);
      const std::string limit = json_get<std::string>(arm, "limit", what);
      for (const Limit l : {Limit::read_bandwidth, Limit::f32_peak, Limit::int8_peak}) {
        if (limit == engine::measure::limit_name(l)) {
          c.limit = l;
        }
      }
      run.cases.push_back(std::move(c));
      const std::string suffix = fmt::format("_threads_{}", run.cases.back().threads);
      KernelLimits& measured = run.limits[run.cases.back().threads];
      measured.read_bandwidth =
          1e9 * json_get_or<double>(limits, "read_gb_per_second" + suffix, 0, what);
      measured.f32_peak = 1e9 * json_get_or<double>(limits, "f32_gflops" + suffix, 0, what);
      measured.int8_peak = 1e9 * json_get_or<double>(limits, "int8_gops" + suffix, 0, what);
    }
    Measurement m;
    m.name = json_get<std::string>(arm, "contender", what);
    m.role = kind == "ours" ? Role::ours : kind == "dense" ? Role::dense : Role::rival;
    m.bytes = json_get<double>(arm, "bytes", what);
    m.operations = json_get<double>(arm, "operations", what);
    m.tolerance = json_get<double>(arm, "tolerance", what);
    m.note = json_get_or<std::string>(arm, "note", "", what);
    const Json metrics = json_get<Json>(arm, "metrics", what);
    const Json seconds = json_get<Json>(metrics, "seconds", what);
    m.seconds = {json_get<double>(seconds, "median", what),
                 json_get<double>(seconds, "p25", what),
                 json_get<double>(seconds, "p75", what),
                 json_get<double>(seconds, "mean", what),
                 json_get<double>(seconds, "std", what),
                 static_cast<int>(json_get<int64_t>(seconds, "n", what))};
    const auto mean_of = [&](const char* name) -> std::optional<double> {
      if (!metrics.contains(name)) {
        return std::nullopt;
      }
      return json_get<double>(metrics[name], "mean", what);
    };
    m.share = mean_of("share_of_limit");
    m.difference = mean_of("difference");
    m.ours_over_this = mean_of("ours_over_this").value_or(1);
    run.cases.back().contenders.push_back(std::move(m));
  }
  return run;
}

std::string kernels_file(const Json& report) {
  std::string text = "{\n";
  size_t left = report.size();
  for (const auto& [key, value] : report.items()) {
    text += "  " + Json(key).dump() + ": ";
    if (value.is_array() && !value.empty()) {
      text += "[\n";
      for (size_t i = 0; i < value.size(); ++i) {
        text += "    " + value[i].dump() + (i + 1 < value.size() ? ",\n" : "\n");
      }
      text += "  ]";
    } else {
      text += value.dump();
    }
    text += --left > 0 ? ",\n" : "\n";
  }
  return text + "}\n";
}

void merge_kernels(KernelRun& run, const KernelRun& before) {
  const auto same = [](const MeasuredCase& a, const MeasuredCase& b) {
    return a.kernel == b.kernel && a.shape == b.shape && a.threads == b.threads && a.kept == b.kept;
  };
  std::vector<MeasuredCase> merged;
  std::vector<bool> used(run.cases.size(), false);
  for (const MeasuredCase& old : before.cases) {
    const auto found = std::find_if(run.cases.begin(), run.cases.end(),
                                    [&](const MeasuredCase& c) { return same(c, old); });
    if (found == run.cases.end()) {
      merged.push_back(old);
    } else {
      used[static_cast<size_t>(found - run.cases.begin())] = true;
      merged.push_back(*found);
    }
  }
  for (size_t i = 0; i < run.cases.size(); ++i) {
    if (!used[i]) {
      merged.push_back(run.cases[i]);
    }
  }
  run.cases = std::move(merged);
  for (const auto& [threads, limits] : before.limits) {
    KernelLimits& now = run.limits[threads];
    const auto keep = [](double& value, double old) { value = value > 0 ? value : old; };
    keep(now.read_bandwidth, limits.read_bandwidth);
    keep(now.f32_peak, limits.f32_peak);
    keep(now.int8_peak, limits.int8_peak);
  }
  run.notes.push_back("measured in several runs of the same machine (--keep)");
}

std::vector<std::pair<std::string, Figure>> kernels_figures(const KernelRun& run) {
  std::vector<std::pair<std::string, Figure>> figures;
  std::set<int> thread_counts;
  for (const MeasuredCase& c : run.cases) {
    thread_counts.insert(c.threads);
  }
  Figure bars;
  bars.kind = Figure::Kind::bars;
  bars.title = "Matrix times vector, 4096 x 4096: share of the memory bandwidth";
  bars.x_label = "weight format";
  bars.y_label = "share of the read bandwidth of the same run";
  for (const int threads : thread_counts) {
    // What skips rows and columns of one product, and the rest: convolutions, widths, weights.
    std::array<Figure, 2> curves;
    Series share;
    share.name = plural(threads, "thread");
    for (const MeasuredCase& c : run.cases) {
      if (c.threads != threads) {
        continue;
      }
      if (c.conditional && c.dense() != nullptr) {
        const std::string name = c.name();
        Figure& curve =
            curves[c.kernel.starts_with("sparse-") || c.kernel.starts_with("gathered-gemv") ? 0
                                                                                            : 1];
        auto found = std::find_if(curve.series.begin(), curve.series.end(),
                                  [&](const Series& s) { return s.name == name; });
        if (found == curve.series.end()) {
          found = curve.series.insert(curve.series.end(), Series{name});
        }
        found->x.push_back(c.kept);
        found->y.push_back(c.dense()->ours_over_this);
      }
      if (c.kernel.starts_with("gemv ") && c.shape.ends_with("batch 1") && c.ours().share) {
        const std::string format = c.kernel.substr(5);
        if (std::find(bars.categories.begin(), bars.categories.end(), format) ==
            bars.categories.end()) {
          bars.categories.push_back(format);
        }
        share.y.push_back(*c.ours().share);
      }
    }
    for (size_t k = 0; k < curves.size(); ++k) {
      Figure& curve = curves[k];
      std::erase_if(curve.series, [](const Series& s) { return s.x.size() < 3; });
      if (curve.series.empty()) {
        continue;
      }
      curve.series.push_back({"proportional", {0, 1}, {0, 1}});
      curve.title = fmt::format("Time over kept {}, {}", k == 0 ? "inputs and neurons" : "share",
                                plural(threads, "thread"));
      curve.x_label = "kept fraction";
      curve.y_label = "time / time of the dense kernel";
      curve.names_beside = true;
      curve.width = 1200;
      curve.height = 460;
      figures.emplace_back(
          fmt::format("kernels-kept-{}threads-{}.svg", k == 0 ? "inputs-" : "", threads), curve);
    }
    if (!share.y.empty()) {
      bars.series.push_back(std::move(share));
    }
  }
  const bool complete = std::all_of(bars.series.begin(), bars.series.end(), [&](const Series& s) {
    return s.y.size() == bars.categories.size();
  });
  if (!bars.series.empty() && complete) {
    bars.width = 800;
    figures.emplace_back("kernels-gemv.svg", bars);
  }
  return figures;
}

}  // namespace sluice::cli
#endif
