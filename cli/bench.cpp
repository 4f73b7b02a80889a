// sluice bench: models against each other, against LibTorch on the same model, and against the
// machine's peak, all in one interleaved run.
#if SLUICE_HAS_ENGINE
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/bench_hook.h"
#include "cli/bench_kernels.h"
#include "cli/bench_report.h"
#include "cli/bench_text.h"
#include "cli/model_data.h"
#include "cli/output.h"
#include "cli/verb.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/text/text_model.h"

namespace sluice::cli {
namespace bench_verb {

struct Options {
  std::vector<std::string> models;
  std::vector<int64_t> batches{1, 64};
  std::vector<int> threads;
  bool nodes = false;
  bool without_libtorch = false;
  int rounds = 7;
  DecoderBenchOptions decoders;
};

int run_decoders(Options& options, const Globals& globals) {
  options.decoders.threads = options.threads;
  options.decoders.rounds = options.rounds;
  if (options.decoders.prompt == 0 && options.decoders.generate == 0)
    fail(Code::usage, "--pp 0 and --tg 0: nothing to measure");
  const DecoderBench result = bench_decoders(options.models, options.decoders, globals);
  if (globals.json) {
    print_json(decoder_bench_json(result));
  } else {
    print(decoder_bench_text(result));
  }
  return kSuccess;
}

/// One model prepared for one batch and thread count.
struct Entry {
  size_t model;
  engine::Session session;
  std::vector<float> input, output;
  LabForward lab;
};

/// The same values in every run: not constant, so that nothing is optimised for zeros.
std::vector<float> make_input(int64_t elements) {
  std::vector<float> values(static_cast<size_t>(elements));
  uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / static_cast<float>(1 << 23) - 1.0f;
  }
  return values;
}

/// Of a network that takes token ids: ids.
std::vector<float> make_input(const engine::Network& network, int64_t batch) {
  std::vector<float> values = make_input(batch * numel(network.input_shape()));
  if (network.bundle().task().kind != "embed") return values;
  const auto vocabulary = static_cast<float>(engine::vocabulary_of(network));
  for (float& value : values)
    value = std::min(std::floor((value + 1) / 2 * vocabulary), vocabulary - 1);
  return values;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  }
  return largest;
}

class Bench {
 public:
  Bench(const Options& options, const Globals& globals) : options_(options), globals_(globals) {
    for (const std::string& model : options.models) {
      networks_.push_back(engine::Network::open(model));
    }
  }

  BenchRun run() {
    BenchRun result;
    result.machine = describe_machine();
    result.command = globals_.command;
    result.rounds = options_.rounds;
    std::vector<int> threads = options_.threads;
    if (threads.empty()) {
      threads = {globals_.threads > 0 ? globals_.threads : result.machine.cores};
    }
    const int64_t total =
        static_cast<int64_t>(threads.size() * options_.batches.size()) * options_.rounds;
    Progress progress("bench", total, "rounds");
    for (const int count : threads) {
      result.peak[count] = measure_f32_peak(count);
      result.bandwidth[count] = measure_read_bandwidth(count);
      for (const int64_t batch : options_.batches) {
        run_cell(batch, count, result, progress);
      }
    }
    progress.finish();
    return result;
  }

 private:
  void run_cell(int64_t batch, int threads, BenchRun& result, Progress& progress) {
    std::vector<Entry> entries;
    entries.reserve(networks_.size());
    for (size_t i = 0; i < networks_.size(); ++i) {
      entries.push_back(prepare(i, batch, threads));
    }
    std::vector<std::function<void()>> functions;
    std::vector<std::vector<double>*> samples;
    const size_t first = result.rows.size();
    for (Entry& entry : entries) {
      result.rows.push_back(row_of(entry, batch, threads));
    }
    for (size_t i = 0; i < entries.size(); ++i) {
      Entry& entry = entries[i];
      functions.push_back([&entry] { entry.session.run(entry.input, entry.output); });
      samples.push_back(&result.rows[first + i].seconds);
    }
    for (size_t i = 0; i < entries.size(); ++i) {
      if (entries[i].lab.run) {
        functions.push_back(entries[i].lab.run);
        samples.push_back(&result.rows[first + i].libtorch_seconds);
      }
    }
    // A round at a time: the spread over rounds is part of the result.
    for (int round = 0; round < options_.rounds; ++round) {
      const std::vector<double> seconds = time_interleaved(functions, 1);
      for (size_t i = 0; i < samples.size(); ++i) {
        samples[i]->push_back(seconds[i]);
      }
      progress.update(++rounds_done_, fmt::format("batch {}, threads {}", batch, threads));
    }
    if (options_.nodes) {
      for (size_t i = 0; i < entries.size(); ++i) {
        time_nodes(entries[i], result.rows[first + i]);
      }
    }
  }

  Entry prepare(size_t index, int64_t batch, int threads) {
    const engine::Network& network = networks_[index];
    Entry entry{index,
                engine::Session(network, {.batch = batch, .threads = threads}),
                make_input(network, batch),
                std::vector<float>(static_cast<size_t>(batch * numel(network.output_shape()))),
                {}};
    if (lab_forward() != nullptr && !options_.without_libtorch) {
      entry.lab = lab_forward()(options_.models[index], entry.input, batch, threads);
    }
    return entry;
  }

  BenchRow row_of(Entry& entry, int64_t batch, int threads) {
    const engine::Network& network = networks_[entry.model];
    BenchRow row;
    row.model = short_name(options_.models[entry.model], options_.models);
    row.path = options_.models[entry.model];
    row.is_first = entry.model == 0;
    row.batch = batch;
    row.threads = threads;
    row.parameters = network.cost().params;
    row.weight_bytes = network.cost().weight_bytes;
    Meter meter;
    entry.session.run(entry.input, entry.output, {.meter = &meter});
    row.macs = meter.macs_per_sample();
    row.arena_bytes = entry.session.arena_bytes();
    if (!entry.lab.output.empty()) {
      row.difference = largest_difference(entry.output, entry.lab.output);
    }
    return row;
  }

  void time_nodes(Entry& entry, BenchRow& row) {
    const std::vector<engine::PlanStep> plan = entry.session.plan();
    std::vector<std::vector<double>> seconds(plan.size());
    for (int round = 0; round < options_.rounds; ++round) {
      const std::vector<double> once = entry.session.time_steps(entry.input, entry.output);
      for (size_t i = 0; i < plan.size(); ++i) {
        seconds[i].push_back(once[i]);
      }
    }
    for (size_t i = 0; i < plan.size(); ++i) {
      row.steps.push_back({plan[i].path, plan[i].op, plan[i].kernel, plan[i].fused,
                           plan[i].cost.macs, median(seconds[i])});
    }
  }

  const Options& options_;
  const Globals& globals_;
  std::vector<engine::Network> networks_;
  int64_t rounds_done_ = 0;
};

Action setup(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("MODEL", options->models, "Bundles; ratios are to the first one");
  app.add_option("--batch", options->batches, "Batch sizes")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 1 << 16))
      ->type_name("N,...")
      ->capture_default_str();
  app.add_option("--threads", options->threads, "Thread counts; all cores by default")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 1024))
      ->type_name("N,...");
  app.add_flag("--nodes", options->nodes, "Time of every step of the plan");
  app.add_option("--rounds", options->rounds, "Interleaved rounds; medians are over these")
      ->check(CLI::Range(1, 1000))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--pp", options->decoders.prompt, "Decoders: tokens of a prompt; 0: leave out")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--tg", options->decoders.generate,
                 "Decoders: tokens generated one by one; 0: leave out")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->type_name("N")
      ->capture_default_str();
  if (lab_forward() != nullptr) {
    app.add_flag("--no-libtorch", options->without_libtorch, "Do not time LibTorch beside");
  }
  Action kernels;
  const CLI::App* kernels_page = add_bench_kernels(app, kernels);
  return [options, kernels, kernels_page](const Globals& globals) {
    if (kernels_page->parsed()) {
      if (!options->models.empty()) {
        fail(Code::usage,
             "'kernels' takes no models, found '{}'; a file of that name is ./kernels. See: sluice "
             "bench --help",
             options->models.front());
      }
      return kernels(globals);
    }
    if (options->models.empty()) {
      fail(Code::usage, "MODEL is required. See: sluice bench --help");
    }
    const auto decoders = std::ranges::count_if(options->models, is_decoder);
    if (decoders == std::ssize(options->models)) return run_decoders(*options, globals);
    if (decoders > 0) {
      fail(Code::usage, "{} of {} models continue texts; measure those apart from the others",
           decoders, options->models.size());
    }
    const BenchRun result = Bench(*options, globals).run();
    if (globals.json) {
      print_json(bench_json(result));
    } else {
      print(bench_text(result));
    }
    return kSuccess;
  };
}

const bool registered =
    register_verb({"bench", "Speed of models or kernels, interleaved, beside rivals and the peak",
                   "sluice bench dense.safetensors sliced.safetensors --batch 1,64\n"
                   "sluice bench model.safetensors --nodes --threads 1\n"
                   "sluice bench qwen.safetensors qwen-int4.safetensors --pp 512 --tg 128\n"
                   "sluice bench kernels",
                   setup, /*own_threads=*/true});

}  // namespace bench_verb
}  // namespace sluice::cli
#endif
