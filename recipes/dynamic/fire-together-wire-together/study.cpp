#include "recipes/dynamic/fire-together-wire-together/study.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>

#include "sluice/base/random.h"
#include "sluice/lab/gate/regularizer.h"

namespace sluice::recipes::fire_together {
namespace {

constexpr int64_t kCompared = 1000;  // images whose masks are compared in pairs

}  // namespace

Study::Study(const Plan& plan, const data::ImageSet& data, c10::Device device, uint64_t seed)
    : plan_(plan),
      device_(device),
      seed_(seed),
      train_(data.train, data.mean, data.std, device),
      test_(data.test, data.mean, data.std, device),
      data_(data) {}

lab::TrainOptions Study::options(const lab::TrainOptions& base, int64_t epochs,
                                 const std::string& title) const {
  lab::TrainOptions result = base;
  result.steps = epochs * train_.batches_per_epoch(base.batch);
  result.seed = derive_seed(seed_, epochs == plan_.tune_epochs ? "tune" : "pretrain");
  result.title = title;
  return result;
}

lab::Model Study::pretrain() {
  lab::Model model = make_network(plan_.layout, data_, derive_seed(seed_, "init"));
  model.root->to(device_);
  lab::TrainOptions all = options(plan_.pretrain, plan_.pretrain_epochs, "pretrain");
  all.seed = derive_seed(seed_, "pretrain");
  lab::Trainer(model, train_, all).run();
  return model;
}

lab::Model Study::tune(const std::string& title, const lab::Model& model) {
  lab::Model result = lab::clone(model);
  lab::Trainer(result, train_, options(plan_.tune, plan_.tune_epochs, title)).run();
  return result;
}

lab::Model Study::wire(const std::string& title, const lab::Model& gated,
                       const lab::LabelRule& rule) {
  lab::TrainOptions all = options(plan_.tune, plan_.tune_epochs, title);
  all.groups = {plan_.predictors};
  const double until = plan_.predictors.until * double(all.steps);
  lab::MaskTeacher teacher(rule);
  lab::TrainHooks hooks;
  hooks.before_step = [&](int64_t step, lab::Context& context) {
    if (double(step) < until) context.watcher = &teacher.watcher();
  };
  hooks.extra_loss = [&](const lab::GateLog& log, int64_t step) {
    return double(step) < until ? teacher.loss(log) : at::Tensor();
  };
  lab::Model result = gated;  // a control's gates are no bricks of a file: not cloned
  lab::Trainer(result, train_, all, hooks).run();
  return result;
}

lab::Model Study::penalize(const std::string& title, const lab::Model& gated, double macs) {
  lab::TrainOptions all = options(plan_.tune, plan_.tune_epochs, title);
  all.groups = {plan_.predictors};
  const double until = plan_.predictors.until * double(all.steps);
  // The penalty grows by up to a twentieth a step as long as too much runs, and rests otherwise:
  // what an L1 norm closes it does not open again.
  constexpr double kGain = 0.05, kMost = 100;
  double strength = 1;
  Meter meter;
  lab::TrainHooks hooks;
  hooks.before_step = [&](int64_t, lab::Context& context) {
    meter = Meter();
    context.meter = &meter;
  };
  hooks.extra_loss = [&](const lab::GateLog& log, int64_t step) {
    if (double(step) >= until) return at::Tensor();
    const double excess = std::min(meter.macs_per_sample() / macs - 1, 1.0);
    strength = std::min(strength * std::exp(kGain * excess), kMost);
    if (excess <= 0) return at::Tensor();
    return strength * lab::l1_loss(lab::batch_means(log, nullptr));
  };
  lab::Model result = lab::clone(gated);
  lab::Trainer(result, train_, all, hooks).run();
  return result;
}

double Study::preview(const lab::Model& gated, const lab::LabelRule& rule) const {
  const int64_t count = std::min(plan_.estimated, train_.count());
  return lab::estimate_macs(gated, train_.range(0, count).inputs, rule).macs;
}

Measured Study::measure(lab::Model& model, const lab::LabelRule& rule) const {
  const torch::NoGradGuard no_grad;
  model.root->eval();
  lab::MaskTeacher teacher(rule);
  Meter meter;
  Measured result;
  std::vector<at::Tensor> masks, labels;
  double hits = 0, agreement = 0;
  constexpr int64_t kBatch = 500;
  for (int64_t first = 0; first < test_.count(); first += kBatch) {
    const lab::Batch part = test_.range(first, std::min(kBatch, test_.count() - first));
    lab::GateLog log;
    lab::Context context;
    context.meter = &meter;
    context.gate_log = &log;
    context.watcher = &teacher.watcher();
    const at::Tensor logits = model.forward(part.inputs, context);
    hits += (logits.argmax(1) == part.labels).sum().item<double>();
    if (rule) agreement += teacher.agreement(log) * double(part.labels.size(0));
    if (log.empty() || first >= kCompared) continue;
    std::vector<at::Tensor> layers;
    result.starts = {0};
    for (const lab::GateRecord& record : log.records()) {
      layers.push_back(record.decision);
      result.starts.push_back(result.starts.back() + double(record.decision.size(1)));
    }
    masks.push_back(at::cat(layers, 1).cpu());
    labels.push_back(part.labels.cpu());
  }
  const auto count = double(test_.count());
  result.accuracy = 100 * hits / count;
  result.agreement = 100 * agreement / count;
  result.macs = meter.macs_per_sample();
  if (!masks.empty()) {
    result.masks = at::cat(masks);
    result.labels = at::cat(labels);
  }
  return result;
}

MaskDistance mask_distance(const Measured& measured) {
  const at::Tensor m = measured.masks.to(at::kDouble);
  const at::Tensor size = m.sum(1);
  const at::Tensor both = m.mm(m.t());
  const at::Tensor any = size.unsqueeze(0) + size.unsqueeze(1) - both;
  const at::Tensor distance = 1 - both / any.clamp_min(1);
  const at::Tensor same = measured.labels.unsqueeze(0) == measured.labels.unsqueeze(1);
  const at::Tensor other = at::eye(m.size(0), at::kBool).logical_not();
  const auto mean = [&](const at::Tensor& chosen) {
    return distance.masked_select(chosen).mean().item<double>();
  };
  return {mean(same & other), mean(same.logical_not())};
}

}  // namespace sluice::recipes::fire_together
