#include "recipes/text_settings.h"

#include <filesystem>

#include "sluice/base/error.h"
#include "sluice/base/json.h"

namespace sluice::recipes {

lab::CorpusConfig read_corpus(const Json& settings, const std::string& folder,
                              std::string_view name, std::string_view what) {
  lab::CorpusConfig corpus;
  corpus.text = json_get<std::string>(settings, "text", what);
  corpus.vocabulary = json_get<int64_t>(settings, "vocab", what);
  corpus.held_out = json_get<double>(settings, "held_out", what);
  corpus.train_tokens = json_get<int64_t>(settings, "train_tokens", what);
  corpus.tokens = (std::filesystem::path(folder) / name).string();
  return corpus;
}

lab::TrainOptions read_text_training(const Json& settings, std::string_view what) {
  const Json train = json_get<Json>(settings, "train", what);
  json_require_known_keys(train,
                          {"steps", "batch", "rate", "weight_decay", "beta2", "warmup", "floor",
                           "optimizer", "precision", "checkpoint_every"},
                          what);
  const auto number = [&](const char* key, double otherwise) {
    return json_get_or<double>(train, key, otherwise, what);
  };
  const auto precision = json_get_or<std::string>(train, "precision", "f32", what);
  if (precision != "f32" && precision != "bf16")
    fail(Code::config, "{}: train.precision: expected f32 or bf16, found '{}'", what, precision);
  lab::TrainOptions options;
  options.steps = json_get<int64_t>(train, "steps", what);
  options.batch = json_get<int64_t>(train, "batch", what);
  options.optimizer.kind = json_get_or<std::string>(train, "optimizer", "adamw", what);
  options.optimizer.rate = json_get<double>(train, "rate", what);
  options.optimizer.weight_decay = json_get<double>(train, "weight_decay", what);
  options.optimizer.beta2 = number("beta2", 0.98);
  options.schedule.warmup = number("warmup", 0.05);
  options.schedule.floor = number("floor", 0.05);
  options.clip = 1.0;
  options.bf16 = precision == "bf16";
  options.checkpoint_every = json_get_or<int64_t>(train, "checkpoint_every", 0, what);
  return options;
}

}  // namespace sluice::recipes
