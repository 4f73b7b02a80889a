#include "sluice/lab/train/trainer.h"

#include <torch/types.h>

#include <cmath>
#include <numbers>

#include "sluice/base/file.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/base/table.h"
#include "sluice/lab/train/precision.h"
#include "sluice/lab/train/trainer_state.h"

namespace sluice::lab {
namespace {

at::Generator make_step_generator(c10::Device device, uint64_t seed) {
  if (device.is_cpu()) return at::make_generator<at::CPUGeneratorImpl>(seed);
  auto generator = at::globalContext().defaultGenerator(device).clone();
  generator.set_current_seed(seed);
  return generator;
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
  if (options.kind == "step") {
    double factor = 1;
    for (const double at :
         options.milestones.empty() ? std::vector<double>{0.5, 0.75} : options.milestones)
      if (double(step) >= at * double(steps)) factor *= 0.1;
    return std::max(options.floor, factor);
  }
  const std::string near = nearest_name(options.kind, {"cosine", "linear", "constant", "step"});
  fail(Code::config, "schedule '{}': known are cosine, linear, constant, step{}", options.kind,
       near.empty() ? "" : "; did you mean " + near + "?");
}

Trainer::Trainer(Model& model, BatchSource& feed, TrainOptions options, TrainHooks hooks)
    : state_(new State{model, feed, std::move(options), std::move(hooks)}) {
  const auto& o = state_->options;
  if (o.steps < 1) fail(Code::config, "training steps {}: at least 1", o.steps);
  feed.check_batch(o.batch);
  const int64_t processes = state_->process_count();
  if (o.batch % processes != 0)
    fail(Code::config, "batch {}: has to be a multiple of the {} processes", o.batch, processes);
  if (o.micro_batch < 0) fail(Code::config, "micro_batch {}: at least 0", o.micro_batch);
  if (o.log_every < 1) fail(Code::config, "log_every {}: at least 1", o.log_every);
  if (o.validate_every < 0) fail(Code::config, "validate_every {}: at least 0", o.validate_every);
  if (!(o.label_smoothing >= 0 && o.label_smoothing < 1))
    fail(Code::config, "label smoothing {}: in [0, 1)", o.label_smoothing);
  if (o.bf16 && !device_of(*model.root).is_cuda())
    fail(Code::config, "bf16 training needs a CUDA device; on the CPU use f32");
  schedule_factor(o.schedule, 0, o.steps);
  for (const ParameterGroup& group : o.groups) {
    schedule_factor(group.schedule, 0, o.steps);
    if (!(group.until >= 0 && group.until <= 1))
      fail(Code::config, "until of parameters '{}': {}; a share of the steps in [0, 1]",
           group.pattern, group.until);
  }
  reset_optimizer();
  if (o.processes) {
    const torch::NoGradGuard no_grad;
    for (auto& [name, tensor] : named_state(*model.root)) {
      auto same = tensor.detach().contiguous();
      o.processes->broadcast(same);
      if (!same.is_same(tensor)) tensor.detach().copy_(same);
    }
  }
}

Trainer::~Trainer() = default;

int64_t Trainer::step() const { return state_->step; }

void Trainer::reset_optimizer() {
  state_->parameters = trainable_parameters(*state_->model.root);
  const TrainOptions& o = state_->options;
  state_->optimizer = o.groups.empty() ? build_optimizer(o.optimizer, state_->parameters)
                                       : build_grouped_optimizer(o, state_->parameters);
}

std::map<std::string, at::Tensor> Trainer::moments() const { return state_->optimizer->state(); }

std::pair<at::Tensor, at::Tensor> Trainer::State::run_part() {
  auto& root = *model.root;
  const int64_t part = options.batch / process_count();
  const int64_t begin = options.processes ? part * options.processes->rank() : 0;
  const Batch batch = feed.at_step(step, options.batch, options.seed, begin, part);
  labels_per_sample = double(batch.labels.numel()) / double(part);
  uint64_t noise = derive_seed(options.seed, "noise", uint64_t(step));
  if (begin > 0) noise = derive_seed(noise, "process", uint64_t(begin));
  const auto generator = make_step_generator(device_of(root), noise);
  const int64_t micro = options.micro_batch > 0 ? std::min(options.micro_batch, part) : part;
  const std::vector<int64_t> sizes = hooks.sizes ? hooks.sizes(step) : std::vector<int64_t>{-1};
  if (sizes.empty()) fail(Code::config, "step {}: no size to train", step);
  at::Tensor total, hits;
  for (int64_t first = 0; first < part; first += micro) {
    const int64_t rows = std::min(micro, part - first);
    const auto labels = batch.labels.narrow(0, first, rows).flatten();
    at::Tensor right;
    for (const int64_t size : sizes) {
      GateLog log;
      Context context;
      context.generator = generator;
      context.size = size;
      if (hooks.extra_loss) context.gate_log = &log;
      if (hooks.before_step) hooks.before_step(step, context);
      at::Tensor logits;
      {
        const Autocast cast(options.bf16);
        logits = model.forward(batch.inputs.narrow(0, first, rows), context);
      }
      if (logits.dim() == 3) logits = logits.flatten(0, 1);  // [batch, T, V]
      constexpr int64_t kIgnored = -100;  // a label that counts for nothing, LibTorch's default
      auto loss =
          at::cross_entropy_loss(options.bf16 ? logits.to(torch::kFloat) : logits, labels, {},
                                 at::Reduction::Mean, kIgnored, options.label_smoothing);
      if (hooks.extra_loss) {
        const auto extra = hooks.extra_loss(log, step);
        if (extra.defined()) loss = loss + extra;
      }
      if (rows != options.batch) loss = loss * (double(rows) / double(options.batch));
      if (sizes.size() > 1) loss = loss / double(sizes.size());
      if (loss.is_cpu() && process_count() == 1) require_finite(loss.item<double>(), step);
      loss.backward();
      right = (logits.detach().argmax(1) == labels).sum();
      total = total.defined() ? total + loss.detach() : loss.detach();
    }
    hits = hits.defined() ? hits + right : right;
  }
  return {total, hits};
}

void Trainer::State::sum_over_processes(at::Tensor& loss, at::Tensor& hits) {
  // One message: everything in one run of numbers, with a count of the processes that have a
  // gradient for each parameter. One that none has (a gate that was closed) stays without, so that
  // the optimizer skips it as in a run of one process.
  std::vector<float> present;
  for (const auto& [name, p] : parameters) present.push_back(p.grad().defined() ? 1.0f : 0.0f);
  const auto count = static_cast<int64_t>(present.size());
  std::vector<at::Tensor> parts{loss.reshape(1), hits.to(loss.scalar_type()).reshape(1),
                                torch::tensor(present).to(loss.device(), loss.scalar_type())};
  for (const auto& [name, p] : parameters)
    parts.push_back(p.grad().defined() ? p.grad().reshape(-1)
                                       : torch::zeros({p.numel()}, p.options()));
  const torch::NoGradGuard no_grad;
  auto all = torch::cat(parts);
  options.processes->sum(all);
  loss = all[0].clone();
  hits = all[1].to(torch::kInt64);
  const auto having = all.narrow(0, 2, count).cpu();
  int64_t at = 2 + count;
  for (int64_t i = 0; i < count; ++i) {
    auto& p = parameters[static_cast<size_t>(i)].second;
    const auto sum = all.narrow(0, at, p.numel()).view(p.sizes());
    at += p.numel();
    if (p.grad().defined())
      p.grad().copy_(sum);
    else if (having[i].item<float>() > 0)
      p.mutable_grad() = sum.clone();
  }
  if (loss.is_cpu()) require_finite(loss.item<double>(), step);
}

void Trainer::State::take_step() {
  model.root->train();
  optimizer->set_rate(options.optimizer.rate *
                      schedule_factor(options.schedule, step, options.steps));
  optimizer->begin_step(step);
  for (const auto& [name, p] : parameters)
    if (p.grad().defined()) p.mutable_grad() = at::Tensor();
  auto [loss, hits] = run_part();
  if (process_count() > 1) sum_over_processes(loss, hits);
  if (hooks.after_backward) hooks.after_backward(step);
  if (options.clip > 0) clip_gradients(parameters, options.clip);
  optimizer->step();
  if (hooks.after_step) hooks.after_step(step);
  losses.push_back(loss);
  correct.push_back(hits);
  ++step;
}

std::string Trainer::State::culprit() const {
  const auto finite = [](const at::Tensor& t) { return at::isfinite(t).all().item<bool>(); };
  double largest = 0;
  std::string name_of_largest;
  for (const auto& [name, p] : parameters) {
    const auto values = p.detach();
    if (!finite(values)) return fmt::format("parameter {} is not finite", name);
    const double most = values.numel() == 0 ? 0 : values.abs().max().item<double>();
    if (most >= largest) {
      largest = most;
      name_of_largest = name;
    }
  }
  for (const auto& [name, p] : parameters)
    if (p.grad().defined() && !finite(p.grad()))
      return fmt::format("the gradient of {} is not finite", name);
  return fmt::format("all parameters are finite, the largest value is {:.3g} in {}", largest,
                     name_of_largest);
}

void Trainer::State::require_finite(double value, int64_t at) const {
  if (std::isfinite(value)) return;
  const std::string kept = options.checkpoint.empty() || !file_exists(options.checkpoint)
                               ? ""
                               : fmt::format(" {} keeps the last good state.", options.checkpoint);
  fail(Code::numeric,
       "{}: the loss is {} at step {} of {}; {}.{} Lower the rate ({}), set clip, or look at the "
       "inputs for values that are not finite.",
       options.title.empty() ? "training" : options.title, value, at, options.steps, culprit(),
       kept, options.optimizer.rate);
}

void Trainer::State::require_finite_state() const {
  if (!losses.empty()) {
    const auto values = torch::stack(losses).to(torch::kCPU, torch::kDouble);
    for (int64_t i = 0; i < values.numel(); ++i)
      require_finite(values[i].item<double>(), step - values.numel() + i);
  }
  std::vector<at::Tensor> finite;
  for (const auto& [name, p] : parameters) finite.push_back(at::isfinite(p.detach()).all());
  if (!torch::stack(finite).all().item<bool>())
    fail(Code::numeric, "{}: after step {} of {} {}; no checkpoint of that is written",
         options.title.empty() ? "training" : options.title, step - 1, options.steps, culprit());
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
      {step, stacked.sum().item<double>() / n,
       hits / (n * double(options.batch) * labels_per_sample),
       options.optimizer.rate * schedule_factor(options.schedule, step - 1, options.steps)});
  losses.clear();
  correct.clear();

  const auto now = std::chrono::steady_clock::now();
  const CurvePoint& point = curve.back();
  note = fmt::format("loss {:.4f}  accuracy {:.1f}%", point.loss, 100 * point.accuracy);
  if (options.tokens_per_sample > 0) {
    const double passed = std::chrono::duration<double>(now - point_time).count();
    const auto tokens = double((step - point_step) * options.batch * options.tokens_per_sample);
    tokens_per_second = passed > 0 ? tokens / passed : 0;
    note = fmt::format("loss {:.4f}  {} tokens/s", point.loss,
                       format_count(static_cast<int64_t>(tokens_per_second)));
  }
  if (!validation.empty()) note += fmt::format("  validation {:.4f}", validation.back().loss);
  point_time = now;
  point_step = step;
  if (hooks.on_point && first_process()) hooks.on_point(point, tokens_per_second);
}

void Trainer::State::validate() {
  if (!hooks.validate || !first_process()) return;
  const auto start = std::chrono::steady_clock::now();
  const bool training = model.root->is_training();
  validation.push_back({step, hooks.validate()});
  model.root->train(training);
  if (hooks.on_validation) hooks.on_validation(validation.back());
  point_time += std::chrono::steady_clock::now() - start;  // tokens per second are of training
}

TrainResult Trainer::run(int64_t until) {
  auto& s = *state_;
  const auto& o = s.options;
  const int64_t end = until < 0 ? o.steps : std::min(until, o.steps);
  const bool saves = !o.checkpoint.empty() && s.first_process();
  if (!s.progress && !o.title.empty() && s.first_process())
    s.progress = std::make_unique<Progress>(o.title, o.steps, "steps");
  int64_t saved = -1;
  auto save = [&] {
    s.require_finite_state();
    save_checkpoint(o.checkpoint);
    saved = s.step;
    if (o.after_checkpoint) o.after_checkpoint(s.step);
  };
  s.point_time = std::chrono::steady_clock::now();
  s.point_step = s.step;
  while (s.step < end) {
    const auto start = std::chrono::steady_clock::now();
    try {
      s.take_step();
    } catch (const Error& error) {
      // The step changed nothing yet but perhaps running statistics.
      if (error.code() != Code::io || s.process_count() == 1 || !saves ||
          !s.model.root->buffers().empty())
        throw;
      save();
      fail(Code::io, "{}. {} holds the state after step {} of {}: continue with --resume",
           error.what(), o.checkpoint, s.step, o.steps);
    }
    if (s.step % o.log_every == 0 || s.step == o.steps) s.log_point();
    if (s.step == o.steps || (o.validate_every > 0 && s.step % o.validate_every == 0)) s.validate();
    s.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (saves && o.checkpoint_every > 0 && s.step % o.checkpoint_every == 0) save();
    if (s.progress) s.progress->update(s.step, s.note);
  }
  if (saves && saved != s.step) save();
  if (s.progress && s.step == o.steps) {
    s.progress->finish(s.note);
    s.progress.reset();
  }
  return {s.curve, s.validation, s.seconds, s.step};
}

}  // namespace sluice::lab
