#include "cli/lab/train_text.h"

#include <cmath>
#include <filesystem>
#include <optional>

#include "cli/lab/lab_verb.h"
#include "cli/lab/train_config.h"
#include "cli/output.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"
#include "sluice/base/text_plot.h"
#include "sluice/lab/pass/pass.h"
#include "sluice/lab/train/elastic.h"
#include "sluice/lab/train/event_file.h"
#include "sluice/lab/train/text_corpus.h"
#include "sluice/lab/train/token_feed.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::cli {
namespace {

struct TextConfig {
  lab::CorpusConfig corpus;
  std::string model;
  Json model_options;
  lab::TrainOptions train;
  int64_t validate_tokens = 0, context = 0;
  std::optional<lab::ElasticOptions> nest;
  std::optional<lab::SparseOptions> sparse;
  Json record;
};

TextConfig parse(const TextTraining& training, const std::string& output) {
  const Json& config = training.config;
  const std::string& what = training.config_path;
  json_require_known_keys(config, {"data", "tokenizer", "model", "train", "nest", "sparse"}, what);
  TextConfig result;
  const Json data = config_table(config, "data", what);
  const std::string data_what = what + " [data]";
  json_require_known_keys(data, {"text", "tokens", "held_out", "train_tokens", "held_out_tokens"},
                          data_what);
  lab::CorpusConfig& corpus = result.corpus;
  corpus.text = json_get_or<std::string>(data, "text", "", data_what);
  corpus.tokens = json_get_or<std::string>(data, "tokens", "", data_what);
  if (!training.tokens.empty()) {
    corpus.text.clear();
    corpus.tokens = training.tokens;
  }
  if (corpus.tokens.empty())
    corpus.tokens = std::filesystem::path(output).replace_extension(".tokens").string();
  corpus.held_out = config_between(0, 0.9, data, "held_out", corpus.held_out, data_what);
  corpus.train_tokens = config_at_least(0, data, "train_tokens", 0, data_what);
  corpus.held_out_tokens = config_at_least(0, data, "held_out_tokens", 0, data_what);

  const Json tokenizer = config_table(config, "tokenizer", what);
  json_require_known_keys(tokenizer, {"vocab"}, what + " [tokenizer]");
  corpus.vocabulary =
      config_at_least(1, tokenizer, "vocab", corpus.vocabulary, what + " [tokenizer]");

  Json model = config_table(config, "model", what);
  result.model = json_get<std::string>(model, "name", what + " [model]");
  result.context = config_at_least(1, model, "context", 256, what + " [model]");
  if (model.contains("vocab"))
    fail(Code::config, "{} [model]: vocab follows from the tokenizer; set it in [tokenizer]", what);
  model.erase("name");
  result.model_options = std::move(model);

  if (config.contains("nest")) {
    const Json nest = config_table(config, "nest", what);
    if (nest.contains("calibration")) {
      fail(Code::config, "{} [nest]: calibration is for batch norms, which models of text have not",
           what);
    }
    try {
      result.nest = lab::elastic_options(nest);
    } catch (const Error& error) {
      fail(error.code(), "{} [nest]: {}", what, error.what());
    }
  }

  result.sparse = read_sparse_table(config, what);
  Json train = config_table(config, "train", what);
  const std::string train_what = what + " [train]";
  lab::TrainOptions& options = result.train;
  options.micro_batch = config_at_least(0, train, "micro_batch", 0, train_what);
  options.validate_every = config_at_least(0, train, "validate_every", 0, train_what);
  result.validate_tokens = config_at_least(0, train, "validate_tokens", 0, train_what);
  const auto precision = json_get_or<std::string>(train, "precision", "f32", train_what);
  if (precision != "f32" && precision != "bf16")
    fail(Code::config, "{}: precision = '{}'; it has to be f32 or bf16", train_what, precision);
  options.bf16 = precision == "bf16";
  for (const char* key : {"micro_batch", "validate_every", "validate_tokens", "precision"})
    train.erase(key);
  if (train.contains("epochs"))
    fail(Code::config, "{}: text is counted in steps: give steps instead of epochs", train_what);
  read_train_table(train, train_what, options);
  result.record = config;
  for (const char* key : {"text", "tokens"}) result.record["data"].erase(key);
  for (const char* key : {"checkpoint", "checkpoint_every"}) result.record["train"].erase(key);
  return result;
}

lab::Model make_text_model(const TextConfig& config, const data::TokenFile& tokens,
                           const std::string& what) {
  Json options = config.model_options;
  options["vocab"] = tokens.info().vocabulary;
  try {
    lab::Model model = lab::make_model(config.model, options, config.train.seed);
    if (model.task.kind != "generate")
      fail(Code::config, "'{}' does not predict text; expected decoder", config.model);
    return model;
  } catch (const Error& error) {
    fail(error.code(), "{} [model]: {}", what, error.what());
  }
}

/// [nest]: the model with its sizes.
lab::Model nested(const lab::Model& model, const lab::ElasticOptions& options,
                  const std::string& what) {
  lab::PassInput input;
  input.options = options.nest;
  try {
    return lab::run_pass(model, "nest", input);
  } catch (const Error& error) {
    fail(error.code(), "{} [nest]: {}", what, error.what());
  }
}

/// What a checkpoint has to have been made from.
std::string fingerprint_of(const TextConfig& config, const data::TokenFile& tokens) {
  Json made = {{"model", config.model},
               {"options", config.model_options},
               {"tokens", fmt::format("{:016x}", tokens.checksum())}};
  if (config.record.contains("nest")) made["nest"] = config.record["nest"];
  if (config.sparse) made["sparse"] = config.record["sparse"];
  return made.dump();
}

struct Quality {
  double loss = 0;
  int64_t tokens = 0;
  double bits_per_byte = 0;
};

Quality held_out_quality(lab::Model& model, const data::TokenFile& tokens, int64_t context,
                         bool bf16) {
  const auto split = data::TextSplit::held_out;
  const lab::TextEvaluation evaluation = lab::evaluate_text(model, tokens, split, context, 0, bf16);
  const double bits = evaluation.loss * double(evaluation.tokens) / std::log(2.0);
  return {evaluation.loss, evaluation.tokens,
          bits / double(std::max<int64_t>(1, tokens.info().held_out_bytes))};
}

/// The table of sizes gets what each is worth on the held-out documents.
void measure_sizes(lab::Model& model, const data::TokenFile& tokens, int64_t context, bool bf16) {
  for (size_t i = 0; i < model.sizes.size(); ++i) {
    const double loss = lab::evaluate_text(model, tokens, data::TextSplit::held_out, context, 0,
                                           bf16, 16, static_cast<int64_t>(i))
                            .loss;
    model.sizes[i].quality = {{"loss", loss}, {"perplexity", std::exp(loss)}};
  }
}

std::string table_of_sizes(const lab::Model& model) {
  Table table({"size", "MACs", "held-out loss", "perplexity"});
  for (const bundle::SizeEntry& entry : model.sizes) {
    const auto quality = [&](const char* key) {
      const auto found = entry.quality.find(key);
      return found == entry.quality.end() ? std::string("-") : fmt::format("{:.4f}", found->second);
    };
    table.row({entry.name, format_count(entry.macs), quality("loss"), quality("perplexity")});
  }
  return table.text();
}

Json json_of_sizes(const lab::Model& model) {
  Json sizes = Json::array();
  for (const bundle::SizeEntry& entry : model.sizes)
    sizes.push_back({{"name", entry.name}, {"macs", entry.macs}, {"quality", entry.quality}});
  return sizes;
}

std::string curve_text(const lab::TrainResult& result) {
  Series training{"training loss"}, validation{"held-out loss"};
  for (const lab::CurvePoint& point : result.curve) {
    training.x.push_back(double(point.step));
    training.y.push_back(point.loss);
  }
  for (const lab::ValidationPoint& point : result.validation) {
    validation.x.push_back(double(point.step));
    validation.y.push_back(point.loss);
  }
  std::vector<Series> series{training};
  if (validation.x.size() > 1) series.push_back(validation);
  return text_plot(series);
}

Json describe(const data::TokenFile& tokens) {
  const data::TokenInfo& info = tokens.info();
  return {{"source", info.source},
          {"vocabulary", info.vocabulary},
          {"train_documents", info.train_documents},
          {"train_bytes", info.train_bytes},
          {"train_tokens", tokens.count(data::TextSplit::train)},
          {"held_out_documents", info.held_out_documents},
          {"held_out_bytes", info.held_out_bytes},
          {"held_out_tokens", tokens.count(data::TextSplit::held_out)}};
}

std::string table_of(const data::TokenFile& tokens) {
  const data::TokenInfo& info = tokens.info();
  Table table({"split", "documents", "text", "tokens", "bytes a token"});
  const auto row = [&](const char* name, int64_t documents, int64_t bytes, int64_t count) {
    table.row({name, std::to_string(documents), format_bytes(bytes), format_count(count),
               fmt::format("{:.2f}", count > 0 ? double(bytes) / double(count) : 0.0)});
  };
  row("training", info.train_documents, info.train_bytes, tokens.count(data::TextSplit::train));
  row("held out", info.held_out_documents, info.held_out_bytes,
      tokens.count(data::TextSplit::held_out));
  return table.text();
}

/// Process 0 makes the token file, the others wait for it.
data::TokenFile tokens_for_all(const lab::CorpusConfig& corpus, lab::ProcessGroup* processes,
                               c10::Device device) {
  std::optional<data::TokenFile> file;
  if (processes == nullptr || processes->rank() == 0) file = lab::prepare_tokens(corpus);
  if (processes != nullptr) {
    auto ready = torch::ones({1}, torch::TensorOptions().device(device));
    processes->sum(ready);
    ready.item<float>();
  }
  return file ? *file : data::TokenFile::open(corpus.tokens);
}

}  // namespace

bool is_text_config(const Json& config) {
  const auto data = config.find("data");
  return config.contains("tokenizer") || (data != config.end() && data->is_object() &&
                                          (data->contains("text") || data->contains("tokens")));
}

int train_text(const TextTraining& training, const Globals& globals) {
  const bool pack_only = training.pack_only;
  TextConfig config = parse(training, training.output);
  if (pack_only) {
    prepare_output(config.corpus.tokens);
    const data::TokenFile tokens = lab::prepare_tokens(config.corpus);
    if (!training.held_out_text.empty()) lab::write_held_out_text(tokens, training.held_out_text);
    if (globals.json) {
      Json result = describe(tokens);
      result["output"] = config.corpus.tokens;
      print_json(result);
    } else {
      print(table_of(tokens) + fmt::format("\n{}: {}, a vocabulary of {}\n", config.corpus.tokens,
                                           tokens.info().source, tokens.info().vocabulary));
    }
    return kSuccess;
  }
  const lab::Launch launch = lab::launch_from_environment();
  const std::string named = training.device == "cuda" && launch.size > 1
                                ? fmt::format("cuda:{}", launch.local_rank)
                                : training.device;
  const c10::Device device = parse_device(named);
  lab::TrainOptions& options = config.train;
  if (launch.size > 1) options.processes = lab::join_processes(launch, device);
  const bool first = launch.rank == 0;
  if (!first) set_progress_style(ProgressStyle::quiet);

  if (first) prepare_output(training.output);
  const bool remove_checkpoint = place_checkpoint(options, training.output);
  if (first) prepare_output(options.checkpoint);
  const data::TokenFile tokens = tokens_for_all(config.corpus, options.processes.get(), device);
  if (first && !training.held_out_text.empty())
    lab::write_held_out_text(tokens, training.held_out_text);
  lab::Model model = make_text_model(config, tokens, training.config_path);
  if (config.nest) model = nested(model, *config.nest, training.config_path);
  model.root->to(device);
  options.tokens_per_sample = config.context;
  options.fingerprint = fingerprint_of(config, tokens);
  options.title = config.model;
  const bool checks = tokens.count(data::TextSplit::held_out) > 1;

  std::optional<lab::EventFile> events;
  if (first && !training.events.empty()) events.emplace(training.events);
  lab::TrainHooks hooks;
  if (config.nest) lab::sample_sizes(hooks, model, *config.nest, options.seed);
  if (checks && options.validate_every > 0) {
    hooks.validate = [&] {
      return lab::evaluate_text(model, tokens, data::TextSplit::held_out, config.context,
                                config.validate_tokens, options.bf16)
          .loss;
    };
  }
  hooks.on_point = [&](const lab::CurvePoint& point, double tokens_per_second) {
    if (!events) return;
    events->scalar("loss/train", point.step, point.loss);
    events->scalar("accuracy/train", point.step, point.accuracy);
    events->scalar("rate", point.step, point.rate);
    events->scalar("tokens_per_second", point.step, tokens_per_second);
  };
  hooks.on_validation = [&](const lab::ValidationPoint& point) {
    if (events) events->scalar("loss/held_out", point.step, point.loss);
  };
  std::optional<lab::SparseTraining> sparse;
  if (config.sparse) {
    if (config.sparse->method == "soft" && launch.size > 1)
      fail(Code::unsupported, "{} [sparse]: method soft trains in one process; use rigl or set",
           training.config_path);
    sparse.emplace(model, *config.sparse, options.steps, options.seed);
    sparse->attach(hooks);
  }
  lab::TokenFeed feed(tokens, data::TextSplit::train, config.context, device);
  lab::Trainer trainer(model, feed, options, hooks);
  if (sparse) sparse->follow(trainer);
  if (training.resume && file_exists(options.checkpoint)) {
    trainer.load_checkpoint(options.checkpoint);
    log_line(fmt::format("continuing from step {} of {}", trainer.step(), options.steps));
  } else if (training.resume) {
    log_line(fmt::format("no checkpoint {}: starting from the first step", options.checkpoint));
  }
  const lab::TrainResult result = trainer.run();
  if (!first) return kSuccess;

  Json step = {{"step", "train"},
               {"config", config.record},
               {"steps", options.steps},
               {"tokens", describe(tokens)}};
  std::optional<Quality> quality;
  if (checks) {
    quality = held_out_quality(model, tokens, config.context, options.bf16);
    step["held_out"] = {{"loss", quality->loss}, {"perplexity", std::exp(quality->loss)}};
    measure_sizes(model, tokens, config.context, options.bf16);
  }
  if (sparse) step["sparse"] = sparse->report();
  model.add_step(step);
  model.task.data = tokens.info().source;
  model.task.stop_tokens = {tokens.info().separator};
  model.tokenizer = tokens.info().tokenizer_json;
  lab::save_bundle(model, training.output);
  if (remove_checkpoint) {
    std::error_code ignored;
    std::filesystem::remove(options.checkpoint, ignored);
  }

  const Cost cost = model.cost();
  const double seen = double(options.steps) * double(options.batch) * double(config.context);
  if (globals.json) {
    Json document = {{"output", training.output},  {"steps", options.steps},
                     {"seconds", result.seconds},  {"parameters", cost.params},
                     {"tokens", describe(tokens)}, {"tokens_seen", seen},
                     {"processes", launch.size}};
    if (quality)
      document["held_out"] = {{"loss", quality->loss},
                              {"perplexity", std::exp(quality->loss)},
                              {"bits_per_byte", quality->bits_per_byte},
                              {"tokens", quality->tokens},
                              {"by", "libtorch"}};
    Json curve = Json::array(), validation = Json::array();
    for (const lab::CurvePoint& point : result.curve)
      curve.push_back({{"step", point.step},
                       {"loss", point.loss},
                       {"accuracy", point.accuracy},
                       {"rate", point.rate}});
    for (const lab::ValidationPoint& point : result.validation)
      validation.push_back({{"step", point.step}, {"loss", point.loss}});
    if (!model.sizes.empty()) document["sizes"] = json_of_sizes(model);
    if (sparse) document["sparse"] = sparse->report();
    document["curve"] = curve;
    document["validation"] = validation;
    print_json(document);
    return kSuccess;
  }
  std::string text = curve_text(result) + "\n" + table_of(tokens);
  if (quality)
    text += fmt::format("\nheld out: loss {:.4f}, perplexity {:.2f}, {:.3f} bits a byte\n",
                        quality->loss, std::exp(quality->loss), quality->bits_per_byte);
  if (!model.sizes.empty()) text += "\n" + table_of_sizes(model);
  if (sparse) text += "\n" + sparse_text(sparse->report());
  text += fmt::format("\n{}: {} parameters; {} steps, {} tokens in {}, {} tokens/s\n",
                      training.output, format_count(cost.params), options.steps,
                      format_count(int64_t(seen)), format_seconds(result.seconds),
                      format_count(int64_t(seen / std::max(result.seconds, 1e-9))));
  print(text);
  return kSuccess;
}

}  // namespace sluice::cli
