// sluice quickstart: train a dense network and a gated one, cut the gated one down, run all on the
// engine, and show in one table and one page what was gained.
#include <CLI/CLI.hpp>
#include <filesystem>

#include "cli/interrupt.h"
#include "cli/lab/lab_verb.h"
#include "cli/output.h"
#include "recipes/dynamic/consensus-subnetwork/study.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/html.h"
#include "sluice/base/json.h"
#include "sluice/base/machine.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"

namespace sluice::cli {
namespace quickstart_verb {

namespace consensus = recipes::consensus_subnetwork;

struct Options {
  std::string out = "runs/quickstart", data = "fashion-mnist", device = "cpu";
  int64_t steps = 320, width = 24, blocks = 2;
  double kept = 0.48;
  uint64_t seed = 1;
};

std::string percent(double value, int digits = 1) {
  return fmt::format("{:.{}f} %", 100 * value, digits);
}

std::string milliseconds(const std::optional<double>& seconds) {
  return seconds ? fmt::format("{:.3f}", 1e3 * *seconds) : "-";
}

std::string ratio(const std::optional<double>& value, const std::optional<double>& base) {
  return value && base ? fmt::format("{:.2f}", *value / *base) : "-";
}

Table comparison(const consensus::Study& study) {
  const consensus::StudyArm& dense = study.arm("dense");
  Table table({"network", "accuracy %", "parameters", "MACs/image", "x dense", "bundle",
               "ms batch 1", "x dense", "ms batch 64", "x dense"});
  for (const consensus::StudyArm& arm : study.arms) {
    table.row({arm.name, fmt::format("{:.2f}", 100 * arm.accuracy), format_count(arm.parameters),
               format_count(static_cast<int64_t>(arm.macs)),
               fmt::format("{:.2f}", arm.macs / dense.macs), format_bytes(arm.bytes),
               milliseconds(arm.latency_batch1), ratio(arm.latency_batch1, dense.latency_batch1),
               milliseconds(arm.latency_batch64),
               ratio(arm.latency_batch64, dense.latency_batch64)});
  }
  return table;
}

/// What the freeze did to the predictions: the reason why polarization is there.
Table consensus_table(const consensus::Study& study) {
  Table table({"gated network", "mean 4m(1-m)", "predictions changed by the freeze",
               "accuracy lost by the freeze"});
  for (const consensus::StudyArm& arm : study.arms) {
    if (!arm.consensus_gap) continue;
    table.row({arm.name, fmt::format("{:.4f}", *arm.consensus_gap), percent(*arm.freeze_flips, 2),
               fmt::format("{:.2f} points", 100 * *arm.freeze_loss)});
  }
  return table;
}

std::string machine_line(const Machine& machine) {
  return fmt::format("{}, {}, {} cores", machine.cpu, machine.isa, machine.cores);
}

void write_page(const consensus::Study& study, const Machine& machine, const Options& options,
                double seconds, const std::string& path) {
  const consensus::StudyArm& dense = study.arm("dense");
  const consensus::StudyArm& small = study.arm("consensus");
  HtmlReport page("Sluice quickstart",
                  fmt::format("{} on {}; {} training steps each; {:.0f} s in all", options.data,
                              machine_line(machine), options.steps, seconds));
  page.paragraph(
      "One training run with gates on every hidden channel. A budget loss asks for about half of "
      "the multiply-accumulates, a "
      "polarization loss asks that all images agree on the same channels. The agreed channels are "
      "frozen, the others cut out, "
      "the norms folded, and what is left is an ordinary smaller network.");
  page.fact(percent(small.macs / dense.macs, 0),
            "of the dense network's MACs, metered while running");
  if (small.latency_batch64 && dense.latency_batch64) {
    page.fact(percent(*small.latency_batch64 / *dense.latency_batch64, 0),
              "of its latency at batch 64");
    page.fact(percent(*small.latency_batch1 / *dense.latency_batch1, 0),
              "of its latency for one image");
  }
  page.fact(fmt::format("{:+.2f}", 100 * (small.accuracy - dense.accuracy)),
            "points of test accuracy");
  page.heading("The four networks");
  page.table(comparison(study));
  page.paragraph(
      "Latencies: the engine, one thread, median of interleaved rounds. MACs: counted by the "
      "engine's meter.");
  page.heading("What the gates agreed on");
  for (const auto& [name, figure] : consensus::study_figures(study))
    page.picture(render_svg(figure), figure.title);
  page.table(consensus_table(study));
  page.paragraph(
      "The control is trained with the same budget but without polarization: its gates still "
      "depend on the image, so that "
      "freezing them changes what the network says.");
  page.write(path);
}

Json arm_json(const consensus::StudyArm& arm) {
  Json json = {{"name", arm.name},          {"role", arm.role},
               {"accuracy", arm.accuracy},  {"parameters", arm.parameters},
               {"macs", arm.macs},          {"bytes", arm.bytes},
               {"bundle", arm.bundle_path}, {"train_seconds", arm.train_seconds}};
  const auto set = [&](const char* key, const std::optional<double>& value) {
    if (value) json[key] = *value;
  };
  set("latency_batch1_seconds", arm.latency_batch1);
  set("latency_batch64_seconds", arm.latency_batch64);
  set("latency_batch1_all_cores_seconds", arm.latency_batch1_all);
  set("latency_batch64_all_cores_seconds", arm.latency_batch64_all);
  set("consensus_gap", arm.consensus_gap);
  set("freeze_flips", arm.freeze_flips);
  set("freeze_loss", arm.freeze_loss);
  return json;
}

int quickstart(const Options& options, const Globals& globals) {
  const auto start = std::chrono::steady_clock::now();
  consensus::StudyOptions study_options;
  study_options.model = {
      {"width", options.width}, {"blocks", options.blocks}, {"stages", 3}, {"stem_stride", 2}};
  study_options.data_name = options.data;
  study_options.device = parse_device(options.device);
  study_options.train.steps = options.steps;
  study_options.consensus.kept = options.kept;
  study_options.seed = options.seed;
  study_options.directory = options.out;
  study_options.random_mask = false;
  make_directories(options.out);
  clean_up_on_interrupt(options.out);
  const std::string page = options.out + "/report.html";
  prepare_output(page);

  const consensus::Study study = consensus::run_study(study_options);
  const Machine machine = describe_machine();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  write_page(study, machine, options, seconds, page);
  if (globals.json) {
    Json arms = Json::array();
    for (const consensus::StudyArm& arm : study.arms) arms.push_back(arm_json(arm));
    print_json({{"data", options.data},
                {"steps", options.steps},
                {"seconds", seconds},
                {"machine", {{"cpu", machine.cpu}, {"isa", machine.isa}, {"cores", machine.cores}}},
                {"engine_parity", study.engine_parity},
                {"arms", arms},
                {"report", page}});
    return kSuccess;
  }
  print(fmt::format("\n{}\n{}\n", comparison(study).text(), consensus_table(study).text()));
  print(fmt::format(
      "{}, {} test images; latencies on one thread, median of interleaved rounds; engine and lab "
      "agree to {:.1e}\n"
      "{}; {:.0f} s in all\n\nreport  {}\nbundles {}/*.safetensors\nnext    sluice inspect {}\n",
      options.data, data::load_image_set(options.data).test.count(), study.engine_parity,
      machine_line(machine), seconds, page, options.out, study.arm("consensus").bundle_path));
  return kSuccess;
}

Action setup(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("--out", options->out, "Where bundles and the report go")
      ->type_name("DIR")
      ->capture_default_str();
  app.add_option("--data", options->data, "Data set")->type_name("NAME")->capture_default_str();
  app.add_option("--steps", options->steps, "Training steps of each network")
      ->check(CLI::Range(20, 1000000))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--kept", options->kept, "Share of the gated MACs to keep")
      ->check(CLI::Range(0.05, 1.0))
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--width", options->width, "Channels of the first stage")
      ->check(CLI::Range(4, 256))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--blocks", options->blocks, "Residual blocks per stage")
      ->check(CLI::Range(1, 20))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--seed", options->seed, "Seed of weights and order")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--device", options->device, "cpu, cuda or cuda:N")
      ->type_name("DEVICE")
      ->capture_default_str();
  return [options](const Globals& globals) {
    return with_libtorch(globals, [&] { return quickstart(*options, globals); });
  };
}

const bool registered =
    register_verb({"quickstart", "See a network get smaller and faster, in minutes",
                   "sluice quickstart\nsluice quickstart --kept 0.3 --out runs/third", setup});

}  // namespace quickstart_verb
}  // namespace sluice::cli
