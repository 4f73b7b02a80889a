// Checkpoints of a Trainer.
#include <torch/types.h>

#include "sluice/base/json.h"
#include "sluice/lab/train/state_file.h"
#include "sluice/lab/train/trainer_state.h"

namespace sluice::lab {
namespace {

constexpr int kCheckpointVersion = 1;
constexpr const char* kCheckpointKey = "sluice.checkpoint";

/// Everything that shapes the result; a checkpoint continues only under the same.
Json shaping_options(const TrainOptions& o, int64_t samples) {
  Json options = {
      {"steps", o.steps},
      {"batch", o.batch},
      {"seed", o.seed},
      {"samples", samples},
      {"optimizer",
       {{"kind", o.optimizer.kind},
        {"rate", o.optimizer.rate},
        {"momentum", o.optimizer.momentum},
        {"weight_decay", o.optimizer.weight_decay},
        {"decay_all", o.optimizer.decay_all}}},
      {"schedule",
       {{"kind", o.schedule.kind}, {"warmup", o.schedule.warmup}, {"floor", o.schedule.floor}}},
      {"label_smoothing", o.label_smoothing},
      {"clip", o.clip},
      {"log_every", o.log_every}};
  // Only where they matter, so that older checkpoints stay valid.
  if (o.optimizer.beta2 != OptimizerOptions().beta2)
    options["optimizer"]["beta2"] = o.optimizer.beta2;
  if (!o.schedule.milestones.empty()) options["schedule"]["milestones"] = o.schedule.milestones;
  for (const ParameterGroup& group : o.groups) {
    const auto& [kind, rate, momentum, decay, decay_all, beta2] = group.optimizer;
    const auto& schedule = group.schedule;
    options["groups"].push_back({{"pattern", group.pattern},
                                 {"optimizer", {kind, rate, momentum, decay, decay_all, beta2}},
                                 {"schedule", {schedule.kind, schedule.warmup, schedule.floor}},
                                 {"milestones", schedule.milestones},
                                 {"until", group.until}});
  }
  if (o.bf16) options["bf16"] = true;
  if (!o.fingerprint.empty()) options["fingerprint"] = o.fingerprint;
  return options;
}

void require_same_options(const Json& stored, const Json& present, const std::string& path,
                          const std::string& prefix = "") {
  for (const auto& [key, value] : present.items()) {
    const std::string name = prefix + key;
    if (!stored.is_object() || !stored.contains(key))
      fail(Code::config,
           "{}: the checkpoint was made without '{}', this run has {}. Continue with the same "
           "options or start anew without the checkpoint.",
           path, name, value.dump());
    if (value.is_object()) {
      require_same_options(stored.at(key), value, path, name + ".");
    } else if (stored.at(key) != value) {
      fail(Code::config,
           "{}: the checkpoint was made with {} = {}, this run has {}. Continue with the same "
           "options or start anew "
           "without the checkpoint.",
           path, name, stored.at(key).dump(), value.dump());
    }
  }
}

}  // namespace

void Trainer::save_checkpoint(const std::string& path) const {
  const auto& s = *state_;
  StateFile file;
  const auto named = named_state(*s.model.root);
  file.add_section("model.", {named.begin(), named.end()});
  file.add_section("optimizer.", s.optimizer->state());
  if (s.hooks.save_extra) file.add_section("extra.", s.hooks.save_extra());
  if (!s.losses.empty()) {
    file.tensors["pending.loss"] = torch::stack(s.losses);
    file.tensors["pending.correct"] = torch::stack(s.correct);
  }
  Json curve = Json::array(), validation = Json::array();
  for (const auto& p : s.curve) curve.push_back({p.step, p.loss, p.accuracy, p.rate});
  for (const auto& p : s.validation) validation.push_back({p.step, p.loss});
  file.document = {
      {"version", kCheckpointVersion},  {"step", s.step},
      {"seconds", s.seconds},           {"options", shaping_options(s.options, s.feed.count())},
      {"spec", spec_of(*s.model.root)}, {"curve", curve},
      {"validation", validation}};
  write_state_file(path, kCheckpointKey, file);
}

void Trainer::load_checkpoint(const std::string& path) {
  auto& s = *state_;
  const auto file = read_state_file(path, kCheckpointKey, "a checkpoint", kCheckpointVersion);
  const auto& document = file.document;
  require_same_options(json_get<Json>(document, "options", path),
                       shaping_options(s.options, s.feed.count()), path);
  const auto step = json_get<int64_t>(document, "step", path);
  if (step < 0 || step > s.options.steps)
    fail(Code::format, "{}: step {} of a run of {}", path, step, s.options.steps);
  std::vector<CurvePoint> curve;
  for (const auto& p : json_get<Json>(document, "curve", path)) {
    if (!p.is_array() || p.size() != 4 || !p[0].is_number_integer() || !p[1].is_number() ||
        !p[2].is_number() || !p[3].is_number())
      fail(Code::format, "{}: curve: expected [step, loss, accuracy, rate], found {}", path,
           p.dump());
    curve.push_back(
        {p[0].get<int64_t>(), p[1].get<double>(), p[2].get<double>(), p[3].get<double>()});
  }

  std::vector<ValidationPoint> validation;
  for (const auto& p : json_get_or<Json>(document, "validation", Json::array(), path)) {
    if (!p.is_array() || p.size() != 2 || !p[0].is_number_integer() || !p[1].is_number())
      fail(Code::format, "{}: validation: expected [step, loss], found {}", path, p.dump());
    validation.push_back({p[0].get<int64_t>(), p[1].get<double>()});
  }

  const auto device = device_of(*s.model.root);
  const auto spec = json_get<Json>(document, "spec", path);
  if (spec != spec_of(*s.model.root)) {
    s.model.root = make_brick(spec);
    s.model.root->to(device);
  }
  const auto stored = file.section("model.");
  const auto present = named_state(*s.model.root);
  if (stored.size() != present.size())
    fail(Code::format, "{}: {} model tensors, the described model has {}", path, stored.size(),
         present.size());
  load_state(*s.model.root, stored);
  reset_optimizer();
  s.optimizer->load_state(file.section("optimizer."), path);

  const auto pending = file.section("pending.");
  s.losses.clear();
  s.correct.clear();
  if (!pending.empty()) {
    const auto loss = pending.find("loss"), correct = pending.find("correct");
    if (loss == pending.end() || correct == pending.end() || loss->second.dim() != 1 ||
        loss->second.sizes() != correct->second.sizes())
      fail(Code::format,
           "{}: tensors 'pending.loss' and 'pending.correct' must be two lists of equal length",
           path);
    for (int64_t i = 0; i < loss->second.size(0); ++i) {
      s.losses.push_back(loss->second[i].to(device));
      s.correct.push_back(correct->second[i].to(device));
    }
  }
  s.step = step;
  s.seconds = json_get<double>(document, "seconds", path);
  s.curve = std::move(curve);
  s.validation = std::move(validation);
  if (s.hooks.load_extra) s.hooks.load_extra(file.section("extra."));
}

}  // namespace sluice::lab
