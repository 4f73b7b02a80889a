#include "sluice/lab/train/trainer.h"

#include <torch/torch.h>

#include <chrono>
#include <cmath>
#include <numbers>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/progress.h"
#include "sluice/base/random.h"
#include "sluice/lab/train/optimizer.h"
#include "sluice/lab/train/state_file.h"

namespace sluice::lab {
namespace {

constexpr int kCheckpointVersion = 1;
constexpr const char* kCheckpointKey = "sluice.checkpoint";

NamedParameters trainable_parameters(const Brick& root) {
  NamedParameters out;
  for (const auto& item : root.named_parameters())
    if (item.value().requires_grad()) out.emplace_back(item.key(), item.value());
  return out;
}

at::Generator make_step_generator(c10::Device device, uint64_t seed) {
  if (device.is_cpu()) return at::make_generator<at::CPUGeneratorImpl>(seed);
  auto generator = at::globalContext().defaultGenerator(device).clone();
  generator.set_current_seed(seed);
  return generator;
}

/// Everything that shapes the result; a checkpoint continues only under the same.
Json shaping_options(const TrainOptions& o, int64_t samples) {
  return {{"steps", o.steps},
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
}

void require_same_options(const Json& stored, const Json& present, const std::string& path,
                          const std::string& prefix = "") {
  for (const auto& [key, value] : present.items()) {
    const std::string name = prefix + key;
    if (!stored.is_object() || !stored.contains(key))
      fail(Code::format, "{}: the checkpoint's options lack '{}'", path, name);
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

/// Global norm clipping without waiting for the device.
void clip_gradients(const NamedParameters& parameters, double limit) {
  std::vector<at::Tensor> norms;
  for (const auto& [name, p] : parameters)
    if (p.grad().defined()) norms.push_back(p.grad().detach().norm());
  if (norms.empty()) return;
  const auto factor = (limit / (torch::stack(norms).norm() + 1e-6)).clamp_max(1.0);
  for (const auto& [name, p] : parameters)
    if (p.grad().defined()) p.grad().mul_(factor);
}

}  // namespace

double schedule_factor(const ScheduleOptions& options, int64_t step, int64_t steps) {
  if (!(options.warmup >= 0 && options.warmup < 1))
    fail(Code::config, "schedule warmup {}: a share of the steps in [0, 1)", options.warmup);
  if (!(options.floor >= 0 && options.floor <= 1))
    fail(Code::config, "schedule floor {}: a share of the peak rate in [0, 1]", options.floor);
  const auto warm = static_cast<int64_t>(std::llround(options.warmup * double(steps)));
  if (step < warm) return double(step + 1) / double(warm);
  const double t = double(step - warm) / double(std::max<int64_t>(1, steps - warm));
  if (options.kind == "cosine")
    return options.floor +
           (1 - options.floor) * 0.5 * (1 + std::cos(std::numbers::pi * std::min(1.0, t)));
  if (options.kind == "linear") return 1 - (1 - options.floor) * std::min(1.0, t);
  if (options.kind == "constant") return 1;
  if (options.kind == "step")
    return std::max(options.floor, 4 * step >= 3 * steps ? 0.01 : 2 * step >= steps ? 0.1 : 1.0);
  const std::string near = nearest_name(options.kind, {"cosine", "linear", "constant", "step"});
  fail(Code::config, "schedule '{}': known are cosine, linear, constant, step{}", options.kind,
       near.empty() ? "" : "; did you mean " + near + "?");
}

struct Trainer::State {
  Model& model;
  Feed& feed;
  TrainOptions options;
  TrainHooks hooks;
  NamedParameters parameters;
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  int64_t step = 0;
  double seconds = 0;
  std::vector<CurvePoint> curve;
  /// Of the steps since the last curve point; read only at the next one, so that a GPU is never
  /// waited for.
  std::vector<at::Tensor> losses, correct;
  /// Lives across the calls of run() that make up one training.
  std::unique_ptr<Progress> progress;
  std::string note;

  void take_step();
  void log_point();
  void require_finite(double value, int64_t at) const;
};

Trainer::Trainer(Model& model, Feed& feed, TrainOptions options, TrainHooks hooks)
    : state_(new State{
          model, feed, std::move(options), std::move(hooks), {}, {}, 0, 0, {}, {}, {}, {}, {}}) {
  const auto& o = state_->options;
  if (o.steps < 1) fail(Code::config, "training steps {}: at least 1", o.steps);
  if (o.batch < 1 || o.batch > feed.count())
    fail(Code::config, "batch {}: between 1 and the {} training samples", o.batch, feed.count());
  if (o.log_every < 1) fail(Code::config, "log_every {}: at least 1", o.log_every);
  if (!(o.label_smoothing >= 0 && o.label_smoothing < 1))
    fail(Code::config, "label smoothing {}: in [0, 1)", o.label_smoothing);
  schedule_factor(o.schedule, 0, o.steps);
  reset_optimizer();
}

Trainer::~Trainer() = default;

int64_t Trainer::step() const { return state_->step; }

void Trainer::reset_optimizer() {
  state_->parameters = trainable_parameters(*state_->model.root);
  state_->optimizer = make_optimizer(state_->options.optimizer, state_->parameters);
}

void Trainer::State::take_step() {
  auto& root = *model.root;
  root.train();
  GateLog log;
  Context context;
  context.generator =
      make_step_generator(device_of(root), derive_seed(options.seed, "noise", uint64_t(step)));
  if (hooks.extra_loss) context.gate_log = &log;
  if (hooks.before_step) hooks.before_step(step, context);
  set_rate(*optimizer,
           options.optimizer.rate * schedule_factor(options.schedule, step, options.steps));
  for (const auto& [name, p] : parameters)
    if (p.grad().defined()) p.mutable_grad() = at::Tensor();

  const Batch batch = feed.at_step(step, options.batch, options.seed);
  const auto logits = model.forward(batch.inputs, context);
  namespace F = torch::nn::functional;
  auto loss = F::cross_entropy(
      logits, batch.labels, F::CrossEntropyFuncOptions().label_smoothing(options.label_smoothing));
  if (hooks.extra_loss) {
    const auto extra = hooks.extra_loss(log, step);
    if (extra.defined()) loss = loss + extra;
  }
  if (loss.is_cpu()) require_finite(loss.item<double>(), step);
  loss.backward();
  if (hooks.after_backward) hooks.after_backward(step);
  if (options.clip > 0) clip_gradients(parameters, options.clip);
  optimizer->step();
  if (hooks.after_step) hooks.after_step(step);
  losses.push_back(loss.detach());
  correct.push_back((logits.detach().argmax(1) == batch.labels).sum());
  ++step;
}

void Trainer::State::require_finite(double value, int64_t at) const {
  if (std::isfinite(value)) return;
  fail(Code::numeric,
       "{}: the loss is {} at step {} of {}. Lower the rate ({}), set clip, or look at the inputs "
       "for values that are "
       "not finite.",
       options.title, value, at, options.steps, options.optimizer.rate);
}

void Trainer::State::log_point() {
  if (losses.empty()) return;
  const auto stacked = torch::stack(losses).to(torch::kCPU, torch::kDouble);
  const std::vector<double> values(stacked.data_ptr<double>(),
                                   stacked.data_ptr<double>() + stacked.numel());
  for (size_t i = 0; i < values.size(); ++i)
    require_finite(values[i], step - int64_t(values.size() - i));
  const double hits = torch::stack(correct).sum().item<double>();
  const auto n = static_cast<double>(values.size());
  curve.push_back(
      {step, stacked.sum().item<double>() / n, hits / (n * double(options.batch)),
       options.optimizer.rate * schedule_factor(options.schedule, step - 1, options.steps)});
  losses.clear();
  correct.clear();
}

TrainResult Trainer::run(int64_t until) {
  auto& s = *state_;
  const int64_t end = until < 0 ? s.options.steps : std::min(until, s.options.steps);
  const bool saves = !s.options.checkpoint.empty();
  if (!s.progress && !s.options.title.empty())
    s.progress = std::make_unique<Progress>(s.options.title, s.options.steps, "steps");
  int64_t saved = -1;
  auto save = [&] {
    save_checkpoint(s.options.checkpoint);
    saved = s.step;
    if (s.options.after_checkpoint) s.options.after_checkpoint(s.step);
  };
  while (s.step < end) {
    const auto start = std::chrono::steady_clock::now();
    s.take_step();
    if (s.step % s.options.log_every == 0 || s.step == s.options.steps) {
      s.log_point();
      const auto& last = s.curve.back();
      s.note = fmt::format("loss {:.4f}  accuracy {:.1f}%", last.loss, 100 * last.accuracy);
    }
    s.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (saves && s.options.checkpoint_every > 0 && s.step % s.options.checkpoint_every == 0) save();
    if (s.progress) s.progress->update(s.step, s.note);
  }
  if (saves && saved != s.step) save();
  if (s.progress && s.step == s.options.steps) {
    s.progress->finish(s.note);
    s.progress.reset();
  }
  return {s.curve, s.seconds, s.step};
}

void Trainer::save_checkpoint(const std::string& path) const {
  const auto& s = *state_;
  StateFile file;
  const auto named = named_state(*s.model.root);
  file.add_section("model.", {named.begin(), named.end()});
  file.add_section("optimizer.", optimizer_state(*s.optimizer, s.options.optimizer, s.parameters));
  if (s.hooks.save_extra) file.add_section("extra.", s.hooks.save_extra());
  if (!s.losses.empty()) {
    file.tensors["pending.loss"] = torch::stack(s.losses);
    file.tensors["pending.correct"] = torch::stack(s.correct);
  }
  Json curve = Json::array();
  for (const auto& p : s.curve) curve.push_back({p.step, p.loss, p.accuracy, p.rate});
  file.document = {
      {"version", kCheckpointVersion},  {"step", s.step},
      {"seconds", s.seconds},           {"options", shaping_options(s.options, s.feed.count())},
      {"spec", spec_of(*s.model.root)}, {"curve", curve}};
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
  load_optimizer_state(*s.optimizer, s.options.optimizer, s.parameters, file.section("optimizer."),
                       path);

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
  if (s.hooks.load_extra) s.hooks.load_extra(file.section("extra."));
}

LabEvaluation evaluate(Model& model, const Feed& feed, bool log_gates, int64_t batch) {
  torch::NoGradGuard no_grad;
  auto& root = *model.root;
  const bool was_training = root.is_training();
  root.eval();
  LabEvaluation out;
  std::vector<at::Tensor> predictions;
  at::Tensor loss, hits;
  std::map<std::string, at::Tensor> open;
  for (int64_t first = 0; first < feed.count(); first += batch) {
    const Batch part = feed.range(first, std::min(batch, feed.count() - first));
    GateLog log;
    Context context;
    if (log_gates) context.gate_log = &log;
    const auto logits = model.forward(part.inputs, context);
    const auto best = logits.argmax(1);
    predictions.push_back(best);
    namespace F = torch::nn::functional;
    const auto part_loss =
        F::cross_entropy(logits, part.labels, F::CrossEntropyFuncOptions().reduction(torch::kSum))
            .to(torch::kDouble);
    const auto part_hits = (best == part.labels).sum();
    loss = loss.defined() ? loss + part_loss : part_loss;
    hits = hits.defined() ? hits + part_hits : part_hits;
    for (const auto& record : log.records()) {
      // A constant mask may log one row for the whole batch.
      const auto rows = record.decision.expand({part.labels.size(0), record.decision.size(-1)});
      auto& sum = open[record.path];
      const auto part_sum = rows.sum(0).to(torch::kDouble);
      sum = sum.defined() ? sum + part_sum : part_sum;
    }
  }
  const auto n = static_cast<double>(feed.count());
  out.loss = loss.item<double>() / n;
  out.accuracy = hits.item<double>() / n;
  out.predictions = torch::cat(predictions).to(torch::kCPU);
  for (auto& [path, sum] : open) out.gate_means[path] = (sum / n).to(torch::kCPU, torch::kFloat);
  root.train(was_training);
  return out;
}

}  // namespace sluice::lab
