// sluice eval: quality and cost of one or several models on data, in one table. Texts: eval_text.
#if SLUICE_HAS_ENGINE
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cli/budget_curve.h"
#include "cli/eval_text.h"
#include "cli/model_data.h"
#include "cli/output.h"
#include "cli/verb.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/machine.h"
#include "sluice/base/table.h"
#include "sluice/engine/graph/evaluate.h"

namespace sluice::cli {
namespace eval_verb {

struct Options {
  std::vector<std::string> models;
  DataChoice data;
  int64_t batch = 250;
  std::optional<int64_t> budget_macs;
  CurveOptions curve;
  EvalTextOptions texts;
};

struct Row {
  std::string model, data;
  engine::Evaluation evaluation;
  Cost cost;
  uint64_t file_bytes = 0;
  double latency = 0;  ///< seconds, batch 1
};

/// Median seconds for one sample at a time, all models in one interleaved run.
void measure_latency(const std::vector<Subject>& subjects, int threads, std::vector<Row>& rows) {
  std::vector<engine::Session> sessions;
  std::vector<std::vector<float>> inputs, outputs;
  std::vector<std::function<void()>> functions;
  sessions.reserve(subjects.size());
  for (const Subject& subject : subjects) {
    const engine::Network& network = subject.network;
    sessions.emplace_back(network, engine::Session::Options{.batch = 1, .threads = threads});
    inputs.emplace_back(static_cast<size_t>(numel(network.input_shape())), 0.5f);
    outputs.emplace_back(static_cast<size_t>(numel(network.output_shape())));
  }
  for (size_t i = 0; i < subjects.size(); ++i) {
    functions.push_back(
        [&, i] { sessions[i].run(inputs[i], outputs[i], {.size = subjects[i].size}); });
  }
  const std::vector<double> seconds = time_interleaved(functions, 5, 0.01);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].latency = seconds[i];
  }
}

Json to_json(const Row& row) {
  return {{"model", row.model},
          {"data", row.data},
          {"accuracy", row.evaluation.accuracy},
          {"loss", row.evaluation.loss},
          {"samples", row.evaluation.count},
          {"macs_per_sample", row.evaluation.macs_per_sample},
          {"parameters", row.cost.params},
          {"weight_bytes", row.cost.weight_bytes},
          {"file_bytes", row.file_bytes},
          {"latency_seconds", row.latency}};
}

int evaluate_models(const Options& options, const Globals& globals) {
  // Everything that can be refused is refused before the first picture is classified.
  const std::vector<Subject> subjects = subjects_of(options.models, options.curve);
  std::map<std::string, LabelledData> sets;
  Budget budget;
  budget.macs_per_sample = options.budget_macs;
  for (const Subject& subject : subjects) {
    const bundle::Bundle& bundle = subject.network.bundle();
    const std::string& kind = bundle.task().kind;
    if (kind == "embed" || kind == "generate")
      fail(Code::usage, "{} takes text: give --{}", subject.model,
           kind == "embed" ? "retrieval DIR" : "text FILE");
    const std::string name = data_name(options.data, bundle);
    if (!sets.contains(name)) {
      sets.emplace(name, load_data(name, options.data));
    }
  }
  std::vector<Row> rows;
  for (const Subject& subject : subjects) {
    const engine::Network& network = subject.network;
    const bundle::Bundle& bundle = network.bundle();
    const LabelledData& data = sets.at(data_name(options.data, bundle));
    Row row;
    row.model = subject.model;
    row.data = data.name;
    row.evaluation = engine::evaluate(network,
                                      {.pixels = data.split.pixels,
                                       .labels = data.split.labels,
                                       .mean = bundle.task().mean,
                                       .std = bundle.task().std},
                                      options.batch, globals.threads, &budget, subject.size);
    row.cost = network.cost();
    row.file_bytes = bundle.file_bytes();
    rows.push_back(std::move(row));
  }
  measure_latency(subjects, globals.threads, rows);
  std::vector<double> costs;
  for (const Row& row : rows) costs.push_back(row.evaluation.macs_per_sample);
  const std::vector<double> shares = shares_of(subjects, costs);
  Json models = Json::array();
  for (const Row& row : rows) models.push_back(to_json(row));
  finish_curve(options.curve, subjects, shares,
               {"accuracy",
                {"accuracy", "loss"},
                "latency_seconds",
                "picture",
                rows.front().evaluation.count},
               models);

  if (globals.json) {
    print_json({{"split", options.data.split}, {"batch", options.batch}, {"models", models}});
    return kSuccess;
  }
  const bool one_set = sets.size() == 1;
  std::vector<std::string> header{"model",  "accuracy", "loss", "MACs",
                                  "params", "weights",  "file", "latency"};
  if (!one_set) {
    header.insert(header.begin() + 1, "data");
  }
  if (!shares.empty()) header.insert(header.begin() + 1, "cost");
  Table table(header);
  for (size_t i = 0; i < rows.size(); ++i) {
    const Row& row = rows[i];
    std::vector<std::string> cells{label_of(subjects, i),
                                   fmt::format("{:.2f} %", 100 * row.evaluation.accuracy),
                                   fmt::format("{:.4f}", row.evaluation.loss),
                                   format_macs(row.evaluation.macs_per_sample),
                                   format_count(row.cost.params),
                                   format_bytes(row.cost.weight_bytes),
                                   format_bytes(static_cast<int64_t>(row.file_bytes)),
                                   format_seconds(row.latency)};
    if (!one_set) {
      cells.insert(cells.begin() + 1, row.data);
    }
    if (!shares.empty()) cells.insert(cells.begin() + 1, fmt::format("{:.3f}", shares[i]));
    table.row(std::move(cells));
  }
  std::string text;
  if (one_set) {
    text = fmt::format("{}, {} split, {} pictures\n\n", rows[0].data, options.data.split,
                       rows[0].evaluation.count);
  }
  text += table.text();
  text += "\nMACs: metered, per picture. Latency: one picture at a time, median.\n";
  if (!shares.empty()) text += "Cost: MACs over those of the largest size.\n";
  print(text);
  return kSuccess;
}

Action setup(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("MODEL", options->models, "Bundles to compare")->required();
  app.add_option("--data", options->data.name,
                 "Data set; by default the one the model was trained on")
      ->type_name("NAME");
  app.add_option("--data-dir", options->data.directory, "Where its files are")->type_name("DIR");
  app.add_option("--split", options->data.split, "test or train")
      ->check(CLI::IsMember({"test", "train"}))
      ->type_name("SPLIT")
      ->capture_default_str();
  app.add_option("--limit", options->data.limit, "First N pictures only; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  app.add_option("--batch", options->batch, "Pictures, or texts, computed together")
      ->check(CLI::Range(1, 1 << 16))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--budget-macs", options->budget_macs,
                 "Refuse a model that needs more MACs per picture")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  add_curve_options(app, options->curve);
  add_eval_text_options(app, options->texts);
  return [options, &app](const Globals& globals) {
    if (!options->texts.wanted()) return evaluate_models(*options, globals);
    for (const char* name : {"--data", "--data-dir", "--split", "--limit"})
      if (app.count(name) > 0) fail(Code::usage, "{} belongs to pictures, not to texts", name);
    if (app.count("--batch") > 0) options->texts.batch = options->batch;
    options->texts.curve = options->curve;
    return evaluate_texts(options->models, options->texts, options->budget_macs, globals);
  };
}

const bool registered =
    register_verb({"eval", "Quality and cost of models on pictures or texts",
                   "sluice eval model.safetensors\n"
                   "sluice eval dense.safetensors sliced.safetensors --limit 2000\n"
                   "sluice eval qwen.safetensors qwen-int4.safetensors --text book.txt\n"
                   "sluice eval minilm.safetensors --retrieval glosses/\n"
                   "sluice eval sizes.safetensors --text book.txt --budget-curve --picture "
                   "curve.svg",
                   setup});

}  // namespace eval_verb
}  // namespace sluice::cli
#endif
