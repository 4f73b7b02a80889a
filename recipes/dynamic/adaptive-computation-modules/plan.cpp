#include "recipes/dynamic/adaptive-computation-modules/plan.h"

#include "sluice/base/json.h"

namespace sluice::recipes::acm {

Plan read_plan(const Json& settings) {
  const std::string what = "recipe.toml";
  json_require_known_keys(settings,
                          {"data",
                           "train_limit",
                           "test_limit",
                           "holdout",
                           "pooling",
                           "patch",
                           "width",
                           "layers",
                           "heads",
                           "neurons",
                           "learners",
                           "hidden",
                           "budgets",
                           "uniform",
                           "gain",
                           "dense_epochs",
                           "distill_epochs",
                           "gate_epochs",
                           "tune_epochs",
                           "batch",
                           "dense_rate",
                           "distill_rate",
                           "gate_rate",
                           "tune_rate",
                           "distill_batch",
                           "weight_decay",
                           "budget_weight",
                           "entropy_weight",
                           "diversity_weight",
                           "quiet_from",
                           "tune_gate_rate",
                           "seeds"},
                          what);
  const auto integer = [&](const char* key, int64_t fallback) {
    return json_get_or<int64_t>(settings, key, fallback, what);
  };
  const auto number = [&](const char* key) { return json_get<double>(settings, key, what); };
  Plan plan;
  plan.data = json_get<std::string>(settings, "data", what);
  plan.load.train_limit = integer("train_limit", 0);
  plan.load.test_limit = integer("test_limit", 0);
  plan.holdout = json_get_or<double>(settings, "holdout", 0.0, what);
  plan.pooling = json_get<std::string>(settings, "pooling", what);
  plan.patch = integer("patch", plan.patch);
  plan.width = integer("width", plan.width);
  plan.layers = integer("layers", plan.layers);
  plan.heads = integer("heads", plan.heads);
  plan.neurons = integer("neurons", plan.neurons);
  plan.learners = integer("learners", plan.learners);
  plan.hidden = integer("hidden", plan.hidden);
  plan.budgets = json_get<std::vector<double>>(settings, "budgets", what);
  plan.uniform = json_get<std::vector<int64_t>>(settings, "uniform", what);
  if (plan.budgets.empty() || plan.uniform.size() != plan.budgets.size())
    fail(Code::config, "{}: {} budgets and {} of uniform; expected as many, at least one", what,
         plan.budgets.size(), plan.uniform.size());
  plan.gain = number("gain");
  plan.dense_epochs = number("dense_epochs");
  plan.distill_epochs = number("distill_epochs");
  plan.gate_epochs = number("gate_epochs");
  plan.tune_epochs = number("tune_epochs");
  plan.dense.batch = plan.tune.batch = integer("batch", 128);
  plan.dense.optimizer = {"adamw", number("dense_rate"), 0.9, number("weight_decay")};
  plan.dense.clip = 1;
  plan.tune.optimizer = {"adam", number("tune_rate"), 0.9, 0};
  plan.tune.clip = 1;
  plan.distill.batch = plan.gates.batch = integer("distill_batch", 64);
  plan.distill.optimizer.rate = number("distill_rate");
  plan.distill.schedule = {"cosine", 0, 1e-6 / number("distill_rate")};
  plan.distill.parameters = {"up.*", "down.*"};
  plan.gates.optimizer.rate = number("gate_rate");
  plan.gates.schedule = {"cosine", 0, 0};
  plan.gates.parameters = {"gate.**"};
  plan.budget_weight = number("budget_weight");
  plan.entropy_weight = number("entropy_weight");
  plan.diversity_weight = number("diversity_weight");
  plan.quiet_from = number("quiet_from");
  plan.tune_gate_rate = number("tune_gate_rate");
  return plan;
}

}  // namespace sluice::recipes::acm
