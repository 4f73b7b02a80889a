#if SLUICE_HAS_ENGINE
#include "cli/bench_kernels.h"

#include <fmt/core.h>
#include <malloc.h>
#include <sys/mman.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <set>

#include "cli/bench_kernels_report.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/engine/kernel/instruction_set.h"

namespace sluice::cli {
namespace {

namespace measure = engine::measure;

struct Options {
  std::string only, out, isa;
  std::vector<int> threads;
  int rounds = 9;
  bool quick = false, keep = false, list = false, require_met = false;
};

std::vector<measure::KernelCase> chosen_cases(const Options& options,
                                              const measure::CaseOptions& how) {
  std::vector<measure::KernelCase> cases = measure::all_cases(how);
  std::erase_if(cases, [&](const measure::KernelCase& c) {
    return !measure::name_matches(options.only, c.kernel + " " + c.shape);
  });
  if (cases.empty()) {
    fail(Code::usage,
         "no kernel matches '{}': a pattern is how \"kernel shape\" begins, with * for anything; "
         "see: sluice bench kernels --list",
         options.only);
  }
  return cases;
}

/// Freed memory stays with the process, in huge pages where the system gives them, as the probe of
/// the bandwidth has them: every case needs hundreds of megabytes, and taking them from the system
/// anew costs more than measuring.
void keep_memory() {
#if defined(__GLIBC__)
  constexpr size_t kBytes = size_t{3} << 30, kHuge = size_t{2} << 20;
  ::mallopt(M_MMAP_MAX, 0);
  ::mallopt(M_TRIM_THRESHOLD, -1);
  void* const memory = std::malloc(kBytes);  // address space: nothing is touched
  if (memory != nullptr) {
    const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + kHuge - 1) / kHuge * kHuge;
    ::madvise(reinterpret_cast<void*>(first), kBytes - kHuge, MADV_HUGEPAGE);
    std::free(memory);
  }
#endif
}

int list(const std::vector<measure::KernelCase>& cases, const Globals& globals) {
  Json names = Json::array();
  std::string text;
  std::set<std::string> seen;
  for (const measure::KernelCase& c : cases) {
    const std::string name = c.kernel + " " + c.shape;
    if (seen.insert(name).second) {
      names.push_back(name);
      text += name + "\n";
    }
  }
  if (globals.json) {
    print_json({{"cases", names}});
  } else {
    print(text);
  }
  return kSuccess;
}

/// What the probes showed between the contenders.
std::map<int, KernelLimits> limits_of(const std::vector<measure::MeasuredCase>& cases) {
  std::map<int, std::map<measure::Limit, std::vector<double>>> rates;
  for (const measure::MeasuredCase& c : cases) {
    if (c.limit_rate > 0) {
      rates[c.threads][c.limit].push_back(c.limit_rate);
    }
  }
  std::map<int, KernelLimits> limits;
  for (const auto& [threads, by_limit] : rates) {
    const auto typical = [&by_limit](measure::Limit limit) {
      const auto found = by_limit.find(limit);
      return found == by_limit.end() ? 0.0 : median(found->second);
    };
    limits[threads] = {typical(measure::Limit::read_bandwidth), typical(measure::Limit::f32_peak),
                       typical(measure::Limit::int8_peak)};
  }
  return limits;
}

KernelRun run_cases(const std::vector<measure::KernelCase>& cases, const Options& options,
                    const measure::CaseOptions& how, const Globals& globals) {
  KernelRun run;
  run.machine = describe_machine();
  run.command = globals.command;
  run.rounds = options.rounds;
  run.quick = options.quick;
  measure::TimingOptions timing;
  timing.rounds = options.rounds;
  if (options.quick) {
    timing.min_seconds = 1e-5;
  } else {
    keep_memory();
  }
  const measure::ProbeMemory memory(measure::cold_bytes(how));
  Progress progress("kernels", static_cast<int64_t>(cases.size()) * options.rounds, "rounds");
  int64_t done = 0;
  for (const measure::KernelCase& c : cases) {
    const std::string note = fmt::format("{} {}, threads {}", c.kernel, c.shape, c.threads);
    run.cases.push_back(
        measure::measure_case(c, timing, memory, [&](int) { progress.update(++done, note); }));
  }
  progress.finish();
  run.limits = limits_of(run.cases);
  return run;
}

void write_results(KernelRun& run, const Options& options, Json& document) {
  std::vector<std::string> names;
  const auto figures = kernels_figures(run);
  try {
    for (const auto& [name, figure] : figures) {
      write_text_file(options.out + "/" + name, render_svg(figure));
      names.push_back(name);
    }
  } catch (const Error& error) {
    if (error.code() != Code::missing) {
      throw;
    }
    log_line(fmt::format("no pictures: {}", error.what()));
  }
  document = kernels_json(run, names);
  write_text_file(options.out + "/kernels.json", kernels_file(document));
}

/// LibTorch reads its limits from the environment, when it is first used.
void limit_instructions() {
  engine::limit_to_avx2();
  ::setenv("ATEN_CPU_CAPABILITY", "avx2", 1);
  ::setenv("ONEDNN_MAX_CPU_ISA", "AVX2", 1);
  ::setenv("MKL_ENABLE_INSTRUCTIONS", "AVX2", 1);
}

int bench_kernels(const Options& options, const Globals& globals) {
  if (!options.isa.empty()) {
    limit_instructions();
  }
  measure::CaseOptions how;
  how.quick = options.quick;
  how.threads = options.threads;
  if (how.threads.empty()) {
    how.threads = {1};
    const int cores = describe_machine().cores;
    if (cores > 1) {
      how.threads.push_back(cores);
    }
  }
  const std::vector<measure::KernelCase> cases = chosen_cases(options, how);
  if (options.list) {
    return list(cases, globals);
  }
  if (options.keep && options.out.empty()) {
    fail(Code::usage, "--keep keeps the cases of DIR/kernels.json: give --out DIR as well");
  }
  KernelRun before;
  if (!options.out.empty()) {
    make_directories(options.out);
    clean_up_on_interrupt(options.out);
    const std::string path = options.out + "/kernels.json";
    if (options.keep && file_exists(path)) {
      before = kernels_from_json(read_json_file(path), path);
    }
  }
  KernelRun run = run_cases(cases, options, how, globals);
  const bool keeps = !before.cases.empty();
  if (keeps) {
    merge_kernels(run, before);
  }
  Json document = kernels_json(run, {});
  if (!options.out.empty()) {
    write_results(run, options, document);
  }
  if (globals.json) {
    print_json(document);
  } else {
    print(kernels_text(run));
    if (!options.out.empty()) {
      print(fmt::format("wrote {}/kernels.json\n", options.out));
    }
  }
  if (!disagreements(run).empty()) {
    return kFailure;
  }
  return options.require_met && document["verdict"] != "met" ? kFailure : kSuccess;
}

}  // namespace

CLI::App* add_bench_kernels(CLI::App& bench, Action& action) {
  CLI::App* app = bench.add_subcommand(
      "kernels", "The engine's kernels beside libraries and the limits of this machine");
  auto options = std::make_shared<Options>();
  app->add_option("--only", options->only, "Cases whose name begins so; * is anything")
      ->type_name("PATTERN,...");
  app->add_option("--threads", options->threads, "Thread counts; 1 and all cores by default")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 1024))
      ->type_name("N,...");
  app->add_option("--rounds", options->rounds, "Interleaved rounds; medians are over these")
      ->check(CLI::Range(1, 1000))
      ->type_name("N")
      ->capture_default_str();
  app->add_option("--isa", options->isa,
                  "Compute and judge as on a processor with these vector instructions alone")
      ->check(CLI::IsMember({"avx2"}))
      ->type_name("avx2");
  app->add_option("--out", options->out, "Writes kernels.json and pictures there")
      ->type_name("DIR");
  app->add_flag("--keep", options->keep,
                "Keep what DIR/kernels.json has of cases that this run leaves out");
  app->add_flag("--list", options->list, "Print the names of the cases");
  app->add_flag("--quick", options->quick, "Tiny shapes: shows that all runs, not how fast");
  app->add_flag("--require-met", options->require_met, "Exit 1 when a bar is missed");
  app->footer(
      "Example:\n"
      "  sluice bench kernels\n"
      "  sluice bench kernels --only 'gemv i4,sparse-ffn' --threads 1,2\n"
      "  sluice bench kernels --isa avx2 --only 'gemv *'\n"
      "  sluice bench kernels --out docs/results");
  action = [options](const Globals& globals) { return bench_kernels(*options, globals); };
  return app;
}

}  // namespace sluice::cli
#endif
