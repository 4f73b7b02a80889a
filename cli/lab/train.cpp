// sluice train: a configuration in, a bundle out. A killed run continues with --resume to the same
// bytes.
#include <CLI/CLI.hpp>
#include <filesystem>

#include "cli/lab/lab_verb.h"
#include "cli/lab/train_config.h"
#include "cli/lab/train_text.h"
#include "cli/output.h"
#include "sluice/base/config.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"
#include "sluice/lab/train/consensus.h"
#include "sluice/lab/train/trainer.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/evaluate.h"
#endif

namespace sluice::cli {
namespace train_verb {

struct Options {
  std::string config, output, gated_output, from, device = "cpu", tokens, events, held_out_text;
  std::vector<std::string> assignments;
  bool resume = false, pack_only = false;
};

struct Quality {
  std::string split, by;
  double accuracy = 0, loss = 0;
  int64_t samples = 0;
};

Quality evaluate_lab(lab::Model& model, const data::Split& split, const std::string& name,
                     const data::ImageSet& set, c10::Device device) {
  const lab::Feed feed(split, set.mean, set.std, device);
  const lab::LabEvaluation evaluation = lab::evaluate(model, feed);
  return {name, "libtorch", evaluation.accuracy, evaluation.loss, split.count()};
}

/// Of the file that was written, by what will run it.
Quality evaluate_written(const std::string& path, lab::Model& model, const data::ImageSet& set,
                         int threads, c10::Device device) {
#if SLUICE_HAS_ENGINE
  const engine::Network network = engine::Network::open(path);
  const engine::Evaluation evaluation = engine::evaluate(
      network,
      {.pixels = set.test.pixels, .labels = set.test.labels, .mean = set.mean, .std = set.std}, 250,
      threads);
  return {"test", "engine", evaluation.accuracy, evaluation.loss, evaluation.count};
#else
  return evaluate_lab(model, set.test, "test", set, device);
#endif
}

Json to_json(const Quality& quality) {
  return {{"accuracy", quality.accuracy},
          {"loss", quality.loss},
          {"samples", quality.samples},
          {"by", quality.by}};
}

struct Trained {
  lab::Model model;
  std::optional<lab::Model> gated;
  lab::TrainResult result;
  Json freeze_report, sparse_report;
};

Trained train_model(const TrainConfig& config, lab::Model model, lab::Feed& feed, bool resume) {
  const bool present = file_exists(config.train.checkpoint);
  if (resume && !present) {
    log_line(
        fmt::format("no checkpoint {}: starting from the first step", config.train.checkpoint));
  }
  if (config.gates) {
    lab::ConsensusResult result =
        lab::train_consensus(model, feed, config.train, *config.gates, resume && present);
    return {std::move(result.model),
            std::move(result.gated),
            std::move(result.training),
            std::move(result.freeze_report),
            {}};
  }
  if (config.nest) {
    lab::ElasticResult result =
        lab::train_elastic(model, feed, config.train, *config.nest, resume && present);
    return {std::move(result.model), std::nullopt, std::move(result.training), {}, {}};
  }
  Trained trained{std::move(model), std::nullopt, {}, {}, {}};
  lab::TrainHooks hooks;
  std::optional<lab::SparseTraining> sparse;
  if (config.sparse) {
    sparse.emplace(trained.model, *config.sparse, config.train.steps, config.train.seed);
    sparse->attach(hooks);
  }
  lab::Trainer trainer(trained.model, feed, config.train, hooks);
  if (sparse) sparse->follow(trainer);
  if (resume && present) {
    trainer.load_checkpoint(config.train.checkpoint);
    log_line(fmt::format("continuing from step {} of {}", trainer.step(), config.train.steps));
  }
  trained.result = trainer.run();
  if (sparse) trained.sparse_report = sparse->report();
  return trained;
}

lab::Model make_model(const TrainConfig& config, const data::ImageSet& set,
                      const std::string& file) {
  try {
    return lab::make_model(config.model, config.model_options, set, config.train.seed);
  } catch (const Error& error) {
    fail(error.code(), "{} [model]: {}", file, error.what());
  }
}

/// The network of a bundle, to be trained further on `set`.
lab::Model load_start(const std::string& path, const data::ImageSet& set) {
  lab::Model model = lab::load_model(path);
  const Shape output = model.root->output_shape(model.input_shape);
  const Shape expected = {static_cast<int64_t>(set.labels.size())};
  if (model.input_shape != set.train.sample_shape || output != expected) {
    fail(Code::shape, "--from {}: it makes {} of {}; pictures of {} are {}, of {} classes", path,
         to_string(output), to_string(model.input_shape), set.name,
         to_string(set.train.sample_shape), set.labels.size());
  }
  model.task = {"classify", set.name, set.labels, set.mean, set.std};
  return model;
}

/// The accuracy of each size, into its table: on the validation split where there is one.
void measure_sizes(lab::Model& model, const data::Split& split, const data::ImageSet& set,
                   c10::Device device) {
  const lab::Feed feed(split, set.mean, set.std, device);
  for (size_t i = 0; i < model.sizes.size(); ++i) {
    const auto found = lab::evaluate(model, feed, false, 250, static_cast<int64_t>(i));
    model.sizes[i].quality = {{"accuracy", found.accuracy}, {"loss", found.loss}};
  }
}

int train(const Options& options, const Globals& globals) {
  Json document = read_toml_file(options.config);
  for (const std::string& assignment : options.assignments) {
    set_by_path(document, assignment);
    // Either of the two says how long to train: the one on the command line wins.
    if (assignment.starts_with("train.steps") && document["train"].contains("steps")) {
      document["train"].erase("epochs");
    } else if (assignment.starts_with("train.epochs")) {
      document["train"].erase("steps");
    }
  }
  const std::string output =
      options.output.empty()
          ? std::filesystem::path(options.config).stem().string() + ".safetensors"
          : options.output;
  if (is_text_config(document)) {
    if (!options.gated_output.empty())
      fail(Code::usage, "--gated: {} is of text, where nothing is gated", options.config);
    if (!options.from.empty())
      fail(Code::unsupported, "--from: {} is of text; sluice tune takes those", options.config);
    return train_text({document, options.config, output, options.device, options.tokens,
                       options.events, options.held_out_text, options.pack_only, options.resume},
                      globals);
  }
  for (const auto& [name, given] : {std::pair("--tokens", !options.tokens.empty()),
                                    std::pair("--events", !options.events.empty()),
                                    std::pair("--held-out-text", !options.held_out_text.empty()),
                                    std::pair("--pack-only", options.pack_only)}) {
    if (given) fail(Code::usage, "{}: {} is not of text ([data] text)", name, options.config);
  }
  TrainConfig config = parse_train_config(document, options.config, options.from.empty());
  const c10::Device device = parse_device(options.device);
  prepare_output(output);
  if (!options.gated_output.empty()) {
    if (!config.gates) {
      fail(Code::usage, "--gated: {} has no [gates] table, so nothing is gated", options.config);
    }
    prepare_output(options.gated_output);
  }

  const data::ImageSet set = data::load_image_set(config.data, config.load);
  auto [training, validation] =
      data::split_validation(set.train, config.validation, config.split_seed);
  lab::Feed feed(training, set.mean, set.std, device);
  const int64_t per_epoch = feed.batches_per_epoch(config.train.batch);
  if (per_epoch == 0) {
    fail(Code::config, "{} [train]: batch = {} is more than the {} training samples",
         options.config, config.train.batch, feed.count());
  }
  if (config.epochs > 0) {
    config.train.steps = std::max<int64_t>(1, std::llround(config.epochs * per_epoch));
  }
  config.train.title = (options.from.empty() ? config.model : options.from) + " on " + config.data;
  const bool remove_checkpoint = place_checkpoint(config.train, output);
  prepare_output(config.train.checkpoint);

  lab::Model fresh = options.from.empty() ? make_model(config, set, options.config)
                                          : load_start(options.from, set);
  if (!fresh.sizes.empty() && !config.nest) config.nest = lab::ElasticOptions{};
  fresh.root->to(device);
  Trained trained = train_model(config, std::move(fresh), feed, options.resume);
  lab::Model& model = trained.model;

  std::vector<Quality> qualities;
  Json step = {{"step", "train"}, {"config", config.record}, {"steps", config.train.steps}};
  if (validation.count() > 0) {
    qualities.push_back(evaluate_lab(model, validation, "validation", set, device));
    step["validation"] = {{"accuracy", qualities[0].accuracy}, {"loss", qualities[0].loss}};
  }
  if (config.sparse) step["sparse"] = trained.sparse_report;
  model.add_step(step);
  measure_sizes(model, validation.count() > 0 ? validation : set.test, set, device);
  lab::save_bundle(model, output);
  if (!options.gated_output.empty()) {
    trained.gated->add_step(step);
    lab::save_bundle(*trained.gated, options.gated_output);
  }
  qualities.push_back(evaluate_written(output, model, set, globals.threads, device));
  if (remove_checkpoint) {
    std::error_code ignored;
    std::filesystem::remove(config.train.checkpoint, ignored);
  }

  const Cost cost = model.cost();
  if (globals.json) {
    Json result = {{"output", output},
                   {"steps", config.train.steps},
                   {"seconds", trained.result.seconds},
                   {"parameters", cost.params},
                   {"macs", cost.macs}};
    for (const Quality& quality : qualities) {
      result[quality.split] = to_json(quality);
    }
    Json curve = Json::array();
    for (const lab::CurvePoint& point : trained.result.curve) {
      curve.push_back({{"step", point.step},
                       {"loss", point.loss},
                       {"accuracy", point.accuracy},
                       {"rate", point.rate}});
    }
    result["curve"] = curve;
    if (config.gates) {
      result["gates"] = trained.freeze_report;
    }
    if (config.sparse) result["sparse"] = trained.sparse_report;
    print_json(result);
    return kSuccess;
  }
  Table table({"split", "accuracy", "loss", "pictures", "computed by"});
  for (const Quality& quality : qualities) {
    table.row({quality.split, fmt::format("{:.2f} %", 100 * quality.accuracy),
               fmt::format("{:.4f}", quality.loss), std::to_string(quality.samples),
               quality.by == "engine" ? "engine, from the file" : "LibTorch"});
  }
  std::string text = table.text();
  if (config.gates) {
    text += fmt::format("\ngates: {}\n", one_line(trained.freeze_report));
  }
  if (config.sparse) text += "\n" + sparse_text(trained.sparse_report);
  text += fmt::format("\n{}: {} parameters, {} MACs a picture; {} steps in {}\n", output,
                      format_count(cost.params), format_count(cost.macs), config.train.steps,
                      format_seconds(trained.result.seconds));
  if (config.gates) {
    text += fmt::format("next: sluice transform {} -o small.safetensors --pass slice-channels\n",
                        output);
  }
  if (!model.sizes.empty()) {
    text += fmt::format("{} sizes; next: sluice inspect {} --sizes\n", model.sizes.size(), output);
  }
  print(text);
  return kSuccess;
}

Action setup(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("CONFIG", options->config, "TOML file; examples are in configs/")->required();
  app.add_option("-o,--output", options->output,
                 "Bundle to write; by default the name of CONFIG with .safetensors")
      ->type_name("FILE");
  app.add_option("--set", options->assignments, "Change a value of CONFIG; repeatable")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
  app.add_flag("--resume", options->resume, "Continue from the checkpoint of a killed run");
  app.add_option("--from", options->from,
                 "Pictures: start from this bundle in place of [model]; a nested one is trained "
                 "with its sizes")
      ->type_name("FILE");
  app.add_option("--gated", options->gated_output,
                 "With [gates]: also write the gated network as it was before the freeze")
      ->type_name("FILE");
  app.add_option("--tokens", options->tokens, "Text: train on this token file, without the text")
      ->type_name("FILE");
  app.add_flag("--pack-only", options->pack_only, "Text: write the token file and stop");
  app.add_option("--held-out-text", options->held_out_text,
                 "Text: also write the held-out documents there")
      ->type_name("FILE");
  app.add_option("--events", options->events, "Text: write curves for TensorBoard there")
      ->type_name("FOLDER");
  app.add_option("--device", options->device, "cpu, cuda or cuda:N")
      ->type_name("DEVICE")
      ->capture_default_str();
  return [options](const Globals& globals) {
    return with_libtorch(globals, [&] { return train(*options, globals); });
  };
}

const bool registered =
    register_verb({"train", "Train a network from a configuration",
                   "sluice train configs/blobs-tiny.toml -o tiny.safetensors\n"
                   "sluice train configs/resnet-fashion.toml --set train.epochs=1 --resume\n"
                   "sluice train configs/decoder-tiny.toml -o tiny.safetensors",
                   setup});

}  // namespace train_verb
}  // namespace sluice::cli
