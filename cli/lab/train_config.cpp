#include "cli/lab/train_config.h"

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/table.h"

namespace sluice::cli {

Json config_table(const Json& config, const std::string& key, const std::string& what) {
  const auto found = config.find(key);
  if (found == config.end()) {
    return Json::object();
  }
  if (!found->is_object()) {
    fail(Code::config, "{}: '{}' has to be a table: [{}]", what, key, key);
  }
  return *found;
}

int64_t config_at_least(int64_t least, const Json& object, const char* key, int64_t fallback,
                        const std::string& what) {
  const int64_t value = json_get_or<int64_t>(object, key, fallback, what);
  if (value < least) {
    fail(Code::config, "{}: {} = {}; it has to be at least {}", what, key, value, least);
  }
  return value;
}

double config_between(double low, double high, const Json& object, const char* key, double fallback,
                      const std::string& what) {
  const double value = json_get_or<double>(object, key, fallback, what);
  if (!(value >= low && value <= high)) {
    fail(Code::config, "{}: {} = {}; it has to be between {} and {}", what, key, value, low, high);
  }
  return value;
}

namespace {

void read_data(const Json& data, const std::string& what, TrainConfig& result) {
  json_require_known_keys(
      data, {"name", "directory", "train_limit", "test_limit", "validation", "split_seed"}, what);
  result.data = json_get<std::string>(data, "name", what);
  result.load.directory = json_get_or<std::string>(data, "directory", "", what);
  result.load.train_limit = config_at_least(0, data, "train_limit", 0, what);
  result.load.test_limit = config_at_least(0, data, "test_limit", 0, what);
  result.validation = config_between(0, 0.9, data, "validation", result.validation, what);
  result.split_seed = static_cast<uint64_t>(config_at_least(0, data, "split_seed", 1, what));
}

}  // namespace

void read_train_table(const Json& train, const std::string& what, lab::TrainOptions& options,
                      double* epochs) {
  json_require_known_keys(train,
                          {"steps", "epochs", "batch", "seed", "label_smoothing", "clip",
                           "checkpoint", "checkpoint_every", "log_every", "optimizer", "schedule"},
                          what);
  if (train.contains("steps") == train.contains("epochs")) {
    fail(Code::config, "{}: give either steps or epochs{}", what,
         train.contains("steps") ? ", not both" : "");
  }
  if (train.contains("epochs")) {
    *epochs = config_between(1e-3, 1e6, train, "epochs", 0, what);
  } else {
    options.steps = config_at_least(1, train, "steps", 0, what);
  }
  options.batch = config_at_least(1, train, "batch", options.batch, what);
  options.seed = static_cast<uint64_t>(config_at_least(0, train, "seed", 1, what));
  options.label_smoothing = config_between(0, 0.99, train, "label_smoothing", 0, what);
  options.clip = config_between(0, 1e9, train, "clip", 0, what);
  options.checkpoint = json_get_or<std::string>(train, "checkpoint", "", what);
  options.checkpoint_every = config_at_least(0, train, "checkpoint_every", 0, what);
  options.log_every = config_at_least(1, train, "log_every", options.log_every, what);

  const std::string optimizer_what = what + " optimizer";
  const Json optimizer = config_table(train, "optimizer", what);
  json_require_known_keys(optimizer,
                          {"kind", "rate", "momentum", "beta2", "weight_decay", "decay_all"},
                          optimizer_what);
  lab::OptimizerOptions& o = options.optimizer;
  o.kind = json_get_or<std::string>(optimizer, "kind", o.kind, optimizer_what);
  o.rate = config_between(1e-12, 1e6, optimizer, "rate", o.kind == "sgd" ? o.rate : 1e-3,
                          optimizer_what);
  o.momentum = config_between(0, 1, optimizer, "momentum", o.momentum, optimizer_what);
  o.beta2 = config_between(0, 1, optimizer, "beta2", o.beta2, optimizer_what);
  o.weight_decay = config_between(0, 10, optimizer, "weight_decay", o.weight_decay, optimizer_what);
  o.decay_all = json_get_or<bool>(optimizer, "decay_all", o.decay_all, optimizer_what);

  const std::string schedule_what = what + " schedule";
  const Json schedule = config_table(train, "schedule", what);
  json_require_known_keys(schedule, {"kind", "warmup", "floor"}, schedule_what);
  lab::ScheduleOptions& s = options.schedule;
  s.kind = json_get_or<std::string>(schedule, "kind", s.kind, schedule_what);
  s.warmup = config_between(0, 1, schedule, "warmup", s.warmup, schedule_what);
  s.floor = config_between(0, 1, schedule, "floor", s.floor, schedule_what);
}

bool place_checkpoint(lab::TrainOptions& options, const std::string& output) {
  const bool ours = options.checkpoint.empty();
  if (ours) {
    options.checkpoint = output + ".checkpoint";
  }
  if (options.checkpoint_every == 0) {
    options.checkpoint_every = std::max<int64_t>(1, options.steps / 10);
  }
  return ours;
}

namespace {

lab::ConsensusOptions read_gates(const Json& gates, const std::string& what) {
  try {
    return lab::consensus_options(gates);
  } catch (const Error& error) {
    fail(error.code(), "{}: {}", what, error.what());
  }
}

}  // namespace

std::optional<lab::SparseOptions> read_sparse_table(const Json& config, const std::string& what) {
  if (!config.contains("sparse")) return std::nullopt;
  for (const char* other : {"gates", "nest"}) {
    if (config.contains(other))
      fail(Code::config, "{}: [sparse] and [{}] are two ways; give one", what, other);
  }
  try {
    return lab::sparse_options(config_table(config, "sparse", what));
  } catch (const Error& error) {
    fail(error.code(), "{} [sparse]: {}", what, error.what());
  }
}

std::string sparse_text(const Json& report) {
  Table table({"weights", "kept"});
  for (const auto& [path, density] : report.at("layers").items())
    table.row({path, fmt::format("{:.2f} %", 100 * density.get<double>())});
  return table.text() +
         fmt::format("\n{}: {:.2f} % of these weights kept, masks changed {} times\n",
                     report.at("method").get<std::string>(),
                     100 * report.at("density").get<double>(), report.at("updates").get<int64_t>());
}

TrainConfig parse_train_config(const Json& config, const std::string& what, bool with_model) {
  json_require_known_keys(config, {"data", "model", "train", "gates", "nest", "sparse"}, what);
  for (const std::string required : {"data", "model", "train"}) {
    if (!config.contains(required) && (with_model || required != "model")) {
      fail(Code::config, "{}: the table [{}] is missing; see the examples in configs/", what,
           required);
    }
  }
  TrainConfig result;
  read_data(config_table(config, "data", what), what + " [data]", result);
  if (with_model) {
    Json model = config_table(config, "model", what);
    result.model = json_get<std::string>(model, "name", what + " [model]");
    model.erase("name");
    result.model_options = std::move(model);
  }
  read_train_table(config_table(config, "train", what), what + " [train]", result.train,
                   &result.epochs);
  if (config.contains("gates")) {
    result.gates = read_gates(config_table(config, "gates", what), what + " [gates]");
  }
  if (config.contains("nest")) {
    try {
      result.nest = lab::elastic_options(config_table(config, "nest", what));
    } catch (const Error& error) {
      fail(error.code(), "{} [nest]: {}", what, error.what());
    }
    if (result.gates) fail(Code::config, "{}: [gates] and [nest] are two ways; give one", what);
  }
  result.sparse = read_sparse_table(config, what);
  if (result.sparse) result.train.fingerprint = Json({{"sparse", config["sparse"]}}).dump();
  result.record = config;
  if (!with_model) result.record.erase("model");
  result.record["data"].erase("directory");
  result.record["train"].erase("checkpoint");
  result.record["train"].erase("checkpoint_every");
  return result;
}

}  // namespace sluice::cli
