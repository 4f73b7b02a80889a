#include "recipes/dynamic/fire-together-wire-together/plan.h"

#include "sluice/base/json.h"

namespace sluice::recipes::fire_together {

Plan read_plan(const Json& settings) {
  const std::string what = "recipe.toml";
  json_require_known_keys(
      settings,
      {"data",          "train_limit", "test_limit", "holdout",          "widths",
       "pools",         "blocks",      "embedding",  "masses",           "pretrain_epochs",
       "pretrain_rate", "tune_epochs", "rate",       "predictor_rate",   "weight_decay",
       "schedule",      "milestones",  "softmax",    "predictors_until", "batch",
       "estimated",     "seeds"},
      what);
  const auto integer = [&](const char* key, int64_t fallback) {
    return json_get_or<int64_t>(settings, key, fallback, what);
  };
  Plan plan;
  plan.data = json_get<std::string>(settings, "data", what);
  plan.load.train_limit = integer("train_limit", 0);
  plan.load.test_limit = integer("test_limit", 0);
  plan.holdout = json_get_or<double>(settings, "holdout", 0.0, what);
  plan.layout.widths = json_get<std::vector<int64_t>>(settings, "widths", what);
  plan.layout.pools = json_get_or<std::vector<int64_t>>(settings, "pools", {}, what);
  plan.layout.blocks = integer("blocks", 0);
  plan.layout.embedding = integer("embedding", plan.layout.embedding);
  plan.masses = json_get<std::vector<double>>(settings, "masses", what);
  for (size_t i = 0; i < plan.masses.size(); ++i) {
    if (!(plan.masses[i] > 0 && plan.masses[i] <= 1) ||
        (i > 0 && plan.masses[i] >= plan.masses[i - 1]))
      fail(Code::config, "{}: masses: expected falling numbers in (0, 1]", what);
  }
  if (plan.masses.empty()) fail(Code::config, "{}: masses: expected at least one", what);
  plan.pretrain_epochs = integer("pretrain_epochs", plan.pretrain_epochs);
  plan.tune_epochs = integer("tune_epochs", plan.tune_epochs);
  plan.estimated = integer("estimated", plan.estimated);
  plan.pretrain.batch = plan.tune.batch = integer("batch", 128);
  const double decay = json_get<double>(settings, "weight_decay", what);
  plan.pretrain.optimizer = {"sgd", json_get<double>(settings, "pretrain_rate", what), 0.9, decay};
  plan.tune.optimizer = {"sgd", json_get<double>(settings, "rate", what), 0.9, decay};
  plan.tune.schedule.kind = json_get<std::string>(settings, "schedule", what);
  plan.tune.schedule.warmup = 0;
  plan.tune.schedule.milestones =
      json_get_or<std::vector<double>>(settings, "milestones", {}, what);
  plan.layout.softmax = json_get<bool>(settings, "softmax", what);
  plan.predictors.pattern = "**.gate.**";
  plan.predictors.optimizer = {"sgd", json_get<double>(settings, "predictor_rate", what), 0.9, 0};
  plan.predictors.schedule = {"constant", 0, 0};
  plan.predictors.until = json_get<double>(settings, "predictors_until", what);
  return plan;
}

}  // namespace sluice::recipes::fire_together
