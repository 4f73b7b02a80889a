// sluice tune: a network that surgery has hurt learns from the one it came from.
#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "cli/lab/lab_verb.h"
#include "cli/lab/picture_samples.h"
#include "cli/lab/text_samples.h"
#include "cli/output.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/base/table.h"
#include "sluice/lab/model/graph_model.h"
#include "sluice/lab/pass/mask.h"
#include "sluice/lab/pass/steps.h"
#include "sluice/lab/pass/subnet.h"
#include "sluice/lab/train/distill.h"

namespace sluice::cli {
namespace tune_verb {

struct Options {
  std::string input, output, teacher, text, pictures, device = "cpu";
  std::vector<std::string> features;  ///< as given; none: depends on the student
  std::vector<std::string> only;      ///< parameters that learn; none: all
  int64_t steps = 500, batch = 16, tokens = 64, lines = 100000;
  double rate = 1e-4, temperature = 1;
  std::optional<double> open;  ///< --gate-budget
  lab::GateBudgetOptions gates;
  uint64_t seed = 1;
};

/// Rows of the samples as a batch, no longer than its longest.
lab::DistillBatch pick(const TextSamples& samples, const at::Tensor& rows, c10::Device device) {
  lab::DistillBatch batch{samples.ids.index_select(0, rows), {}};
  if (samples.lengths.defined()) {
    batch.lengths = samples.lengths.index_select(0, rows);
    batch.x = batch.x.narrow(1, 0, batch.lengths.max().item<int64_t>());
    batch.lengths = batch.lengths.to(device);
  }
  batch.x = batch.x.to(device);
  return batch;
}

/// Weights that pruning has made zero stay zero: layers with more than a twentieth of zeros, but
/// not of nothing else: a fresh side path is no pruned one.
lab::MaskSet zeros_of(const lab::Model& model) {
  lab::MaskSet masks;
  for (const auto& item : model.root->named_parameters()) {
    const at::Tensor weight = item.value().detach();
    if (weight.dim() < 2) continue;
    const at::Tensor mask = (weight != 0).to(weight.scalar_type());
    const auto kept = mask.mean().item<double>();
    if (kept > 0 && kept < 0.95) masks.set(item.key(), mask);
  }
  return masks;
}

/// Parameters whose path matches none of the patterns do not learn; those a brick keeps from
/// learning anyway (the layer beside a side path) do not either.
void train_only(const lab::Model& model, const std::vector<std::string>& patterns) {
  int64_t weights = 0;
  for (const auto& item : model.root->named_parameters()) {
    const bool matches = std::ranges::any_of(
        patterns, [&](const std::string& pattern) { return path_matches(pattern, item.key()); });
    at::Tensor parameter = item.value();
    if (!matches) parameter.set_requires_grad(false);
    if (parameter.requires_grad()) weights += parameter.numel();
  }
  if (weights == 0) {
    fail(Code::usage, "--only {}: no parameter that learns has such a path (sluice inspect)",
         fmt::join(patterns, ", "));
  }
}

struct HeldOut {
  double output = 0, features = 0;
  lab::OpenedMacs opened;  ///< by the gates under a budget
};

/// Means over the samples, in evaluation mode; `size` as Context::size.
HeldOut held_out(lab::Model& student, lab::Distiller& distiller, const TextSamples& samples,
                 int64_t first, int64_t batch, c10::Device device,
                 const lab::GateBudget* budget = nullptr, int64_t size = -1) {
  const torch::NoGradGuard no_grad;
  const lab::EvaluationMode evaluation(*student.root);
  HeldOut sum;
  const int64_t count = samples.ids.size(0);
  for (int64_t at = first; at < count; at += batch) {
    const at::Tensor rows = at::arange(at, std::min(count, at + batch), at::kLong);
    lab::DistillBatch part = pick(samples, rows, device);
    part.size = size;
    lab::GateLog log;
    const lab::DistillLoss loss = distiller.loss(student, part, budget != nullptr ? &log : nullptr);
    if (budget != nullptr) sum.opened.add(budget->opened(log, part.lengths));
    const double share = double(rows.numel()) / double(count - first);
    sum.output += loss.output * share;
    sum.features += loss.features * share;
  }
  return sum;
}

/// Of every size of a nested student: how far its output is from the teacher's.
std::vector<double> size_losses(lab::Model& student, lab::Distiller& distiller,
                                const TextSamples& samples, int64_t first, int64_t batch,
                                c10::Device device) {
  std::vector<double> losses;
  for (size_t i = 0; i < student.sizes.size(); ++i) {
    losses.push_back(held_out(student, distiller, samples, first, batch, device, nullptr,
                              static_cast<int64_t>(i))
                         .output);
  }
  return losses;
}

/// What --gate-budget and its options ask for, on a network that has gates.
std::optional<lab::GateBudget> gate_budget(const Options& options, const lab::Model& student) {
  if (!options.open) return {};
  const auto refuse = [](const char* option, double found, const char* expected) {
    fail(Code::usage, "{} {}: expected {}", option, found, expected);
  };
  if (!(*options.open > 0 && *options.open <= 1))
    refuse("--gate-budget", *options.open, "a share above 0 and up to 1");
  for (const auto& [option, value] : {std::pair{"--gate-weight", options.gates.weight},
                                      std::pair{"--gate-rate", options.gates.rate}}) {
    if (!(std::isfinite(value) && value > 0)) refuse(option, value, "a number above 0");
  }
  if (!student.sizes.empty()) {
    fail(Code::usage,
         "--gate-budget: {} has {} sizes, a budget is of a network of one; tune before the pass "
         "that makes sizes (calibrate-gates, nest)",
         options.input, student.sizes.size());
  }
  lab::GateBudgetOptions wanted = options.gates;
  wanted.open = *options.open;
  try {
    return lab::GateBudget(*student.root, wanted);
  } catch (const Error& error) {
    fail(error.code(), "--gate-budget: {}: {}", options.input, error.what());
  }
}

int tune(Options options, const Globals& globals) {
  const c10::Device device = parse_device(options.device);
  lab::Model student = lab::load_any_model(options.input);
  const bool pictures = student.root->vocabulary() == 0;
  if (pictures == options.pictures.empty() || pictures == !options.text.empty()) {
    fail(Code::usage, "{} takes {}; give {} and nothing else to learn on", options.input,
         pictures ? "pictures" : "text", pictures ? "--pictures" : "--text");
  }
  // Sizes that end early have no outputs of the later blocks; other networks have no blocks.
  if (options.features.empty() && student.sizes.empty() && !pictures)
    options.features = {"blocks.*"};
  lab::Model teacher = lab::load_any_model(options.teacher);
  if (student.input_shape != teacher.input_shape && pictures) {
    fail(Code::shape, "{} takes {}, --teacher {} takes {}", options.input,
         to_string(student.input_shape), options.teacher, to_string(teacher.input_shape));
  }
  if (student.root->vocabulary() != teacher.root->vocabulary()) {
    fail(Code::shape, "{} has {} tokens, --teacher {} has {}", options.input,
         student.root->vocabulary(), options.teacher, teacher.root->vocabulary());
  }
  prepare_output(options.output);
  const bool encoder = student.task.kind != "generate";
  const int64_t tokens = std::min(options.tokens, student.input_shape[0]);
  const TextSamples samples =
      pictures  ? load_pictures(options.pictures, student, options.lines, "--pictures")
      : encoder ? load_lines(options.text, student, options.lines, tokens, "--text")
                : load_runs(options.text, student, options.lines, tokens, "--text");
  const int64_t count = samples.ids.size(0);
  const int64_t kept = std::clamp<int64_t>(count / 20, 1, 256), trained = count - kept;
  if (trained < options.batch) {
    fail(Code::usage, "{} {}: {} samples; {} are held out, and a batch takes {}",
         pictures ? "--pictures" : "--text", pictures ? options.pictures : options.text, count,
         kept, options.batch);
  }
  if (!options.only.empty()) train_only(student, options.only);
  const std::optional<lab::GateBudget> budget = gate_budget(options, student);
  const lab::GateBudget* gates = budget ? &*budget : nullptr;
  student.root->to(device);
  teacher.root->to(device);
  lab::DistillOptions distill;
  distill.temperature = options.temperature;
  for (const std::string& pattern : options.features) {
    if (!pattern.empty()) distill.features.push_back({pattern});
  }
  lab::Distiller distiller(teacher, distill);
  const HeldOut before =
      held_out(student, distiller, samples, trained, options.batch, device, gates);
  const auto before_sizes =
      size_losses(student, distiller, samples, trained, options.batch, device);
  const lab::MaskSet masks = zeros_of(student);
  // One size of a nested network an update, each as often as the others.
  const lab::SizeSampler sampler{"uniform", std::max<int64_t>(1, std::ssize(student.sizes)), 1,
                                 options.seed};
  lab::TuneOptions tune_options;
  tune_options.steps = options.steps;
  tune_options.optimizer.rate = options.rate;
  if (budget) tune_options.gates = budget->options();
  tune_options.title = globals.json ? "" : "tune";
  tune_options.after_step = [&](int64_t) { masks.apply(*student.root); };
  const lab::TuneResult result = lab::tune(
      student, distiller,
      [&](int64_t step) {
        const auto generator = at::make_generator<at::CPUGeneratorImpl>(
            derive_seed(options.seed, "tune", static_cast<uint64_t>(step)));
        lab::DistillBatch batch =
            pick(samples, at::randint(0, trained, {options.batch}, generator, at::kLong), device);
        if (!student.sizes.empty()) batch.size = sampler.at_step(step).front();
        return batch;
      },
      tune_options);
  const HeldOut after =
      held_out(student, distiller, samples, trained, options.batch, device, gates);
  const auto after_sizes = size_losses(student, distiller, samples, trained, options.batch, device);
  Json losses = {{"held_out", kept},
                 {"output", {{"before", before.output}, {"after", after.output}}},
                 {"features", {{"before", before.features}, {"after", after.features}}}};
  for (size_t i = 0; i < student.sizes.size(); ++i) {
    losses["sizes"].push_back(
        {{"name", student.sizes[i].name}, {"before", before_sizes[i]}, {"after", after_sizes[i]}});
  }
  if (budget) {
    const lab::GateBudgetOptions& wanted = budget->options();
    losses["gates"] = {
        {"count", budget->gates()},
        {"budget", wanted.open},
        {"weight", wanted.weight},
        {"rate", wanted.rate},
        {"open", {{"before", before.opened.share()}, {"after", after.opened.share()}}}};
  }
  student.add_step({{"step", "tune"},
                    {"steps", options.steps},
                    {"rate", options.rate},
                    {"batch", options.batch},
                    {"tokens", tokens},
                    {"samples", trained},
                    {"seed", options.seed},
                    {"features", options.features},
                    {"only", options.only},
                    {"report", losses}});
  lab::save_bundle(student, options.output);
  if (globals.json) {
    Json json = {{"input", options.input},   {"teacher", options.teacher},
                 {"output", options.output}, {"steps", options.steps},
                 {"samples", trained},       {"seconds", result.seconds}};
    if (budget) json["gates"] = losses["gates"];
    losses.erase("gates");
    json["loss"] = losses;
    print_json(json);
    return kSuccess;
  }
  Table table({"difference to the teacher", "before", "after"});
  table.row({student.task.kind == "embed" ? "output: 1 - cosine" : "output: KL divergence, nats",
             fmt::format("{:.4g}", before.output), fmt::format("{:.4g}", after.output)});
  for (size_t i = 0; i < student.sizes.size(); ++i) {
    table.row({"  size " + student.sizes[i].name, fmt::format("{:.4g}", before_sizes[i]),
               fmt::format("{:.4g}", after_sizes[i])});
  }
  if (!distill.features.empty()) {
    table.row({"features, relative squares", fmt::format("{:.4g}", before.features),
               fmt::format("{:.4g}", after.features)});
  }
  if (budget) {
    table.row({fmt::format("open of {} gates' MACs, budget {:.4g}", budget->gates(), *options.open),
               fmt::format("{:.1f}%", 100 * before.opened.share()),
               fmt::format("{:.1f}%", 100 * after.opened.share())});
  }
  print(fmt::format("{} steps of {} samples in {}; on {} samples held out\n\n{}\nwrote {}\n",
                    options.steps, options.batch, format_seconds(result.seconds), kept,
                    table.text(), options.output));
  return kSuccess;
}

Action setup(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("IN", options->input, "The network to tune")->required();
  app.add_option("--teacher", options->teacher, "The network it came from")
      ->required()
      ->type_name("FILE");
  app.add_option(
         "--text", options->text,
         "Text to learn on; of an encoder, a sample is a line, of a decoder a run of tokens")
      ->type_name("FILE");
  app.add_option("--pictures", options->pictures,
                 "Pictures to learn on, for a network that takes some: the PNG, PGM and PPM files "
                 "of a folder")
      ->type_name("FOLDER");
  app.add_option("-o,--output", options->output, "Bundle to write")->required()->type_name("FILE");
  app.add_option("--steps", options->steps, "Updates")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--batch", options->batch, "Samples an update")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--tokens", options->tokens, "Most tokens of a sample")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--limit", options->lines, "First N samples only")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--rate", options->rate, "Highest rate of AdamW")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--features", options->features,
                 "Slots whose outputs are drawn to the teacher's, too; '' for none. Without it "
                 "blocks.*, for a nested network none")
      ->type_name("PATTERN");
  app.add_option("--only", options->only,
                 "Parameters that learn, the others stay: '**.lora_*' after pass add-lora")
      ->type_name("PATTERN");
  auto* budget =
      app.add_option("--gate-budget", options->open,
                     "Train the gates, too (pass insert-gates): share of what they can skip that "
                     "they may open, counted in multiply-accumulates, 0 to 1")
          ->type_name("SHARE");
  app.add_option("--gate-weight", options->gates.weight,
                 "How hard the loss pulls towards --gate-budget")
      ->needs(budget)
      ->capture_default_str();
  app.add_option("--gate-rate", options->gates.rate, "Highest rate of the gates' AdamW")
      ->needs(budget)
      ->capture_default_str();
  app.add_option("--temperature", options->temperature, "Of a decoder's distributions")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seed", options->seed, "Of the choice of samples")->capture_default_str();
  app.add_option("--device", options->device, "cpu or cuda")->capture_default_str();
  return [options](const Globals& globals) {
    return with_libtorch(globals, [&] { return tune(*options, globals); });
  };
}

const bool registered =
    register_verb({"tune", "Recover quality after surgery: learn from the original network",
                   "sluice tune half.safetensors --teacher model.safetensors --text corpus.txt -o "
                   "tuned.safetensors",
                   setup});

}  // namespace tune_verb
}  // namespace sluice::cli
