#include "sluice/lab/train/consensus.h"

#include <torch/types.h>

#include <cmath>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/pass/pass.h"
#include "sluice/lab/train/state_file.h"

namespace sluice::lab {
namespace {

void check_options(const ConsensusOptions& o) {
  if (o.granularity != "channel" && o.granularity != "block")
    fail(Code::config, "consensus granularity '{}': channel or block", o.granularity);
  if (!(o.kept > 0 && o.kept <= 1))
    fail(Code::config, "consensus kept {}: a share in (0, 1]", o.kept);
  if (!(o.warmup >= 0 && o.ramp >= 0 && o.frozen > 0 && o.warmup + o.ramp + o.frozen <= 1))
    fail(Code::config,
         "consensus schedule warmup {} + ramp {} + frozen {}: shares of the steps that sum to at "
         "most 1, frozen > 0",
         o.warmup, o.ramp, o.frozen);
  if (!(o.budget_weight >= 0 && o.polarization_weight >= 0))
    fail(Code::config, "consensus weights {} and {}: must be >= 0", o.budget_weight,
         o.polarization_weight);
  if (o.calibration < 1)
    fail(Code::config, "consensus calibration {}: at least one sample", o.calibration);
  if (!(o.mean_decay >= 0 && o.mean_decay < 1))
    fail(Code::config, "consensus mean_decay {}: in [0, 1)", o.mean_decay);
  if (o.mask_rule != "consensus" && o.mask_rule != "random")
    fail(Code::config, "consensus mask_rule '{}': consensus or random", o.mask_rule);
}

Json options_json(const ConsensusOptions& o) {
  return {{"granularity", o.granularity},
          {"kept", o.kept},
          {"budget_weight", o.budget_weight},
          {"polarization_weight", o.polarization_weight},
          {"warmup", o.warmup},
          {"ramp", o.ramp},
          {"frozen", o.frozen},
          {"calibration", o.calibration},
          {"mean_decay", o.mean_decay},
          {"mask_rule", o.mask_rule}};
}

/// As many open units per layer as before, at random places; single units (block gates) change
/// places among each other.
void randomize_masks(Brick& root, uint64_t seed) {
  std::vector<ConstantMask*> single;
  uint64_t index = 0;
  auto shuffle = [&](const at::Tensor& values) {
    auto generator =
        at::make_generator<at::CPUGeneratorImpl>(derive_seed(seed, "random-mask", index++));
    return values.index_select(
        0, torch::randperm(values.size(0), generator, torch::kInt64).to(values.device()));
  };
  for (const auto& ref : walk(root)) {
    auto* gate = dynamic_cast<ConstantMask*>(ref.slot->get().get());
    if (gate == nullptr) continue;
    if (gate->units() == 1) {
      single.push_back(gate);
    } else {
      gate->mask.copy_(shuffle(gate->mask));
    }
  }
  if (single.empty()) return;
  std::vector<at::Tensor> values;
  for (auto* gate : single) values.push_back(gate->mask);
  const auto shuffled = shuffle(torch::cat(values));
  for (size_t i = 0; i < single.size(); ++i)
    single[i]->mask.copy_(shuffled.narrow(0, int64_t(i), 1));
}

/// {"step", "kept": {path: share}, "means": [..]} of any per-gate values in [0, 1].
Json history_entry(int64_t step, const std::map<std::string, at::Tensor>& means) {
  Json kept = Json::object(), all = Json::array();
  for (const auto& [path, mean] : means) {
    const auto values = mean.detach().to(torch::kCPU, torch::kFloat).contiguous();
    kept[path] = values.mean().item<double>();
    for (int64_t i = 0; i < values.numel(); ++i) all.push_back(values.data_ptr<float>()[i]);
  }
  return {{"step", step}, {"kept", kept}, {"means", all}};
}

std::map<std::string, at::Tensor> mask_values(Brick& root) {
  std::map<std::string, at::Tensor> out;
  for (const auto& ref : walk(root))
    if (const auto* mask = dynamic_cast<const ConstantMask*>(ref.slot->get().get()))
      out[ref.path] = mask->mask;
  return out;
}

/// What a run knows beyond model and optimizer.
struct Run {
  const ConsensusOptions& options;
  int64_t steps, freeze_step, warm_steps, every;
  GateMeans averages;
  bool frozen = false;
  Model work, gated;
  Json freeze_report, history = Json::array();

  Run(const ConsensusOptions& o, int64_t total)
      : options(o),
        steps(total),
        freeze_step(std::llround((1 - o.frozen) * double(total))),
        warm_steps(std::llround(o.warmup * double(total))),
        every(std::max<int64_t>(1, total / 20)),
        averages(o.mean_decay) {}

  double ramp_at(int64_t step) const {
    const double length = options.ramp * double(steps);
    if (length < 1) return 1;
    return std::clamp(double(step - warm_steps) / length, 0.0, 1.0);
  }

  at::Tensor loss(const GateLog& log, int64_t step) {
    if (frozen || log.empty()) return {};
    const auto means = batch_means(log, &averages);
    const double ramp = ramp_at(step);
    auto total = budget_loss(means, options.kept) * (ramp * options.budget_weight);
    if (options.polarization_weight > 0)
      total = total + polarization_loss(means) * (ramp * options.polarization_weight);
    return total;
  }

  ExtraState save() const {
    ExtraState extra;
    extra["consensus"] = json_to_tensor({{"options", options_json(options)},
                                         {"frozen", frozen},
                                         {"freeze_report", freeze_report},
                                         {"history", history},
                                         {"provenance", work.provenance}});
    for (const auto& [path, mean] : averages.means()) extra["means." + path] = mean;
    if (frozen)
      for (const auto& [name, tensor] : named_state(*gated.root)) extra["gated." + name] = tensor;
    return extra;
  }

  void load(const ExtraState& extra, c10::Device device) {
    const auto found = extra.find("consensus");
    if (found == extra.end())
      fail(Code::format, "the checkpoint is of an ordinary training run, not of a consensus run");
    const auto document = json_from_tensor(found->second, "extra.consensus");
    const auto stored = json_get<Json>(document, "options", "extra.consensus");
    const auto present = options_json(options);
    for (const auto& [key, value] : present.items())
      if (!stored.contains(key) || stored.at(key) != value)
        fail(Code::config, "the checkpoint was made with consensus {} = {}, this run has {}", key,
             stored.value(key, Json()).dump(), value.dump());
    frozen = json_get<bool>(document, "frozen", "extra.consensus");
    freeze_report = json_get<Json>(document, "freeze_report", "extra.consensus");
    history = json_get<Json>(document, "history", "extra.consensus");
    std::map<std::string, at::Tensor> means, before;
    for (const auto& [name, tensor] : extra) {
      if (name.starts_with("means.")) means[name.substr(6)] = tensor.to(device);
      if (name.starts_with("gated.")) before[name.substr(6)] = tensor;
    }
    averages.restore(std::move(means));
    if (frozen) load_state(*gated.root, before);
    gated.provenance = work.provenance;
    work.provenance = json_get<Json>(document, "provenance", "extra.consensus");
  }
};

}  // namespace

ConsensusOptions consensus_options(const Json& json) {
  const std::string what = "consensus options";
  json_require_known_keys(json,
                          {"granularity", "kept", "budget_weight", "polarization_weight", "warmup",
                           "ramp", "frozen", "calibration", "mean_decay", "mask_rule"},
                          what);
  ConsensusOptions o;
  o.granularity = json_get_or(json, "granularity", o.granularity, what);
  o.kept = json_get_or(json, "kept", o.kept, what);
  o.budget_weight = json_get_or(json, "budget_weight", o.budget_weight, what);
  o.polarization_weight = json_get_or(json, "polarization_weight", o.polarization_weight, what);
  o.warmup = json_get_or(json, "warmup", o.warmup, what);
  o.ramp = json_get_or(json, "ramp", o.ramp, what);
  o.frozen = json_get_or(json, "frozen", o.frozen, what);
  o.calibration = json_get_or(json, "calibration", o.calibration, what);
  o.mean_decay = json_get_or(json, "mean_decay", o.mean_decay, what);
  o.mask_rule = json_get_or(json, "mask_rule", o.mask_rule, what);
  check_options(o);
  return o;
}

ConsensusResult train_consensus(const Model& model, Feed& feed, const TrainOptions& train,
                                const ConsensusOptions& options, bool resume) {
  check_options(options);
  Run run(options, train.steps);
  PassInput insert;
  insert.options = {{"slots", "**"},
                    {"granularity", options.granularity},
                    {"seed", static_cast<int64_t>(train.seed)}};
  run.work = run_pass(model, "insert-gates", insert);
  run.gated = clone(run.work);
  c10::Device device = c10::kCPU;
  for (const auto& parameter : run.work.root->parameters()) device = parameter.device();

  TrainHooks hooks;
  hooks.before_step = [&](int64_t step, Context& context) {
    context.gates_forced_open = step < run.warm_steps;
  };
  hooks.extra_loss = [&](const GateLog& log, int64_t step) { return run.loss(log, step); };
  hooks.after_step = [&](int64_t step) {
    if (!run.frozen && (step + 1) % run.every == 0 && !run.averages.means().empty())
      run.history.push_back(history_entry(step + 1, run.averages.means()));
  };
  hooks.save_extra = [&] { return run.save(); };
  hooks.load_extra = [&](const ExtraState& extra) { run.load(extra, device); };
  Trainer trainer(run.work, feed, train, hooks);
  if (resume && !train.checkpoint.empty() && file_exists(train.checkpoint))
    trainer.load_checkpoint(train.checkpoint);

  if (!run.frozen) {
    trainer.run(run.freeze_step);
    run.gated = clone(run.work);
    PassInput input;
    input.batch = train.batch;
    input.calibration = feed.range(0, std::min(options.calibration, feed.count())).inputs;
    run.work = run_pass(run.work, "freeze-gates", input);
    run.freeze_report = run.work.provenance.back().value("report", Json::object());
    if (options.mask_rule == "random") randomize_masks(*run.work.root, train.seed);
    // Statistics were taken with gates that still differed between samples; 200 batches are plenty.
    input.calibration =
        feed.range(0, std::min(input.calibration.size(0), 200 * train.batch)).inputs;
    run.work = run_pass(run.work, "reestimate-norm", input);
    run.frozen = true;
    run.history.push_back(history_entry(run.freeze_step, mask_values(*run.work.root)));
    trainer.reset_optimizer();
  }
  auto training = trainer.run();
  run.work.root->eval();
  run.gated.root->eval();
  return {std::move(run.work), std::move(run.gated), std::move(training),
          std::move(run.freeze_report), std::move(run.history)};
}

}  // namespace sluice::lab
