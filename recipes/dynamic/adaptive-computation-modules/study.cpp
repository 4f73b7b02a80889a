#include "recipes/dynamic/adaptive-computation-modules/study.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "sluice/base/random.h"
#include "sluice/lab/inspect/recorder.h"
#include "sluice/lab/pass/pass.h"

namespace sluice::recipes::acm {
namespace {

constexpr int64_t kShown = 1000;  // images whose loads are kept

/// Of every patch: the share of its pixels that are not black. [images, tokens]
at::Tensor covered(const at::Tensor& pixels, int64_t patch, double black) {
  const at::Tensor lit = (pixels.amax(1, /*keepdim=*/true) > black + 1e-3).to(at::kFloat);
  return at::avg_pool2d(lit, {patch, patch}, {patch, patch}).flatten(1);
}

}  // namespace

Study::Study(const Plan& plan, const data::ImageSet& data, c10::Device device, uint64_t seed)
    : plan_(plan),
      data_(data),
      device_(device),
      seed_(seed),
      train_(data.train, data.mean, data.std, device),
      test_(data.test, data.mean, data.std, device) {}

int64_t Study::steps(double epochs, int64_t batch) const {
  return std::max<int64_t>(1, std::llround(epochs * double(train_.batches_per_epoch(batch))));
}

lab::Model Study::train_dense() {
  lab::Model model = lab::make_model("vit",
                                     {{"patch", plan_.patch},
                                      {"width", plan_.width},
                                      {"layers", plan_.layers},
                                      {"heads", plan_.heads},
                                      {"ffn", plan_.neurons},
                                      {"pooling", plan_.pooling}},
                                     data_, derive_seed(seed_, "init"));
  model.root->to(device_);
  lab::TrainOptions options = plan_.dense;
  options.steps = steps(plan_.dense_epochs, options.batch);
  options.seed = derive_seed(seed_, "dense");
  options.title = "dense";
  lab::Trainer(model, train_, options).run();
  return model;
}

lab::Model Study::modules(const lab::Model& dense, int64_t choice) const {
  lab::PassInput input;
  input.options = {{"learners", plan_.learners},
                   {"hidden", plan_.hidden},
                   {"choice", choice},
                   {"slots", kLayers},
                   {"seed", static_cast<int64_t>(derive_seed(seed_, "modules") >> 1)}};
  return lab::run_pass(dense, "acmize", input);
}

void Study::distill(const lab::Model& dense, lab::Model& model) {
  lab::LayerwiseOptions options = plan_.distill;
  options.steps = steps(plan_.distill_epochs, options.batch);
  options.seed = derive_seed(seed_, "distill");
  options.title = "phase 1";
  lab::train_layers(
      dense, model, kLayers, train_,
      [](lab::Brick& layer, const at::Tensor& x, const at::Tensor& y) {
        return lab::prefix_loss(dynamic_cast<const lab::PrefixMlp&>(layer), x, y);
      },
      options);
}

void Study::teach_gates(const lab::Model& dense, lab::Model& model) {
  lab::LayerwiseOptions options = plan_.gates;
  options.steps = steps(plan_.gate_epochs, options.batch);
  options.seed = derive_seed(seed_, "gates");
  options.title = "phase 2";
  lab::train_layers(
      dense, model, kLayers, train_,
      [gain = plan_.gain](lab::Brick& layer, const at::Tensor& x, const at::Tensor& y) {
        return lab::choice_loss(dynamic_cast<const lab::PrefixMlp&>(layer), x, y, gain);
      },
      options);
}

lab::Model Study::tune(const std::string& title, const lab::Model& model, double budget) {
  lab::Model result = lab::clone(model);
  lab::TrainOptions options = plan_.tune;
  options.steps = steps(plan_.tune_epochs, options.batch);
  options.seed = derive_seed(seed_, "tune");  // all arms see the same batches
  options.title = title;
  lab::TrainHooks hooks;
  if (budget > 0) {
    if (plan_.tune_gate_rate > 0) {
      lab::ParameterGroup gates{"**.gate.**", options.optimizer, options.schedule};
      gates.optimizer.rate = plan_.tune_gate_rate;
      options.groups = {gates};
    }
    hooks.extra_loss = [this, budget](const lab::GateLog& log, int64_t) {
      return plan_.budget_weight * lab::ordinal_budget_loss(log, budget) +
             plan_.entropy_weight * lab::ordinal_entropy_loss(log) +
             plan_.diversity_weight * lab::ordinal_diversity_loss(log);
    };
    const auto quiet = static_cast<int64_t>(plan_.quiet_from * double(options.steps));
    hooks.before_step = [&result, quiet](int64_t step, lab::Context&) {
      if (step != quiet) return;
      for (const lab::SlotRef& ref : lab::walk(*result.root)) {
        if (auto* gate = dynamic_cast<lab::OrdinalGate*>(ref.slot->get().get())) gate->set_noise(0);
      }
    };
  }
  lab::Trainer(result, train_, options, hooks).run();
  return result;
}

double Study::accuracy(lab::Model& model) const {
  return 100 * lab::evaluate(model, test_, false, 1000).accuracy;
}

Measured Study::measure(lab::Model& model) const {
  const torch::NoGradGuard no_grad;
  model.root->eval();
  Meter meter;
  Measured result;
  double hits = 0, back = 0, back_tokens = 0, front = 0, front_tokens = 0;
  at::Tensor histogram;
  std::vector<at::Tensor> shown;
  const double black = (0 - data_.mean) / data_.std;
  constexpr int64_t kBatch = 500;
  for (int64_t first = 0; first < test_.count(); first += kBatch) {
    const lab::Batch part = test_.range(first, std::min(kBatch, test_.count() - first));
    lab::GateLog log;
    lab::Context context;
    context.meter = &meter;
    context.gate_log = &log;
    const at::Tensor logits = model.forward(part.inputs, context);
    hits += (logits.argmax(1) == part.labels).sum().item<double>();
    at::Tensor load;
    std::vector<at::Tensor> counts;
    for (const lab::GateRecord& record : log.records()) {
      const at::Tensor choice = record.decision.argmax(-1).to(at::kFloat);  // [images, tokens]
      load = load.defined() ? load + choice : choice;
      counts.push_back(record.decision.flatten(0, 1).sum(0));
    }
    if (!load.defined()) continue;
    const at::Tensor all = at::stack(counts).to(at::kCPU, at::kDouble);
    histogram = histogram.defined() ? histogram + all : all;
    result.tokens = load.size(1);
    const at::Tensor cover = covered(part.inputs, plan_.patch, black);
    load = load.slice(1, load.size(1) - cover.size(1));  // a class token is no patch
    const at::Tensor empty = (cover == 0).to(at::kFloat), half = (cover >= 0.5).to(at::kFloat);
    back += (load * empty).sum().item<double>();
    back_tokens += empty.sum().item<double>();
    front += (load * half).sum().item<double>();
    front_tokens += half.sum().item<double>();
    if (first < kShown) shown.push_back(load.cpu());
  }
  result.accuracy = 100 * hits / double(test_.count());
  result.macs = meter.macs_per_sample();
  double modules = 0;
  for (const Meter::Entry& entry : meter.entries()) {
    if (entry.path.find(".ffn.") != std::string::npos) modules += double(entry.macs);
  }
  const double dense =
      2.0 * double(plan_.width * plan_.neurons * plan_.layers) * double(result.tokens);
  result.share = dense > 0 ? modules / double(test_.count()) / dense : 0;
  if (histogram.defined()) {
    result.histogram = histogram / histogram.sum(1, /*keepdim=*/true);
    result.background_share =
        (back / std::max(1.0, back_tokens)) / std::max(1e-9, front / std::max(1.0, front_tokens));
    result.loads = at::cat(shown);
  }
  return result;
}

std::vector<std::vector<double>> Study::prefix_errors(const lab::Model& dense,
                                                      lab::Model& model) const {
  const torch::NoGradGuard no_grad;
  lab::Model teacher = lab::clone(dense);
  teacher.root->eval();
  const at::Tensor x = test_.range(0, std::min<int64_t>(500, test_.count())).inputs;
  lab::Recorder inputs({kLayers}, lab::Recorder::What::inputs), outputs({kLayers});
  for (lab::Recorder* recorder : {&inputs, &outputs}) {
    lab::Context context;
    context.watcher = recorder;
    teacher.forward(x, context);
  }
  std::vector<std::vector<double>> errors;
  for (const lab::SlotRef& ref : lab::walk(*model.root, kLayers)) {
    const auto& mlp = ref.slot->as<lab::PrefixMlp>();
    const at::Tensor y = outputs.records().at(ref.path).flatten(0, 1);
    const at::Tensor h = mlp.prefixes(inputs.records().at(ref.path));
    errors.emplace_back();
    for (int64_t k = 0; k < h.size(0); ++k)
      errors.back().push_back(((h[k] - y).norm() / y.norm()).item<double>());
  }
  return errors;
}

lab::Model with_gates(const lab::Model& model,
                      const std::function<lab::BrickPtr(lab::BrickPtr)>& wrap) {
  lab::Model result = lab::clone(model);
  for (const lab::SlotRef& ref : lab::walk(*result.root, kLayers)) {
    lab::Slot& gate = (**ref.slot).slot("gate");
    gate.exchange(wrap(gate.get()));
  }
  return result;
}

// ---- gates that are controls ----

namespace {

std::shared_ptr<lab::ChoiceGate> as_gate(const lab::BrickPtr& brick) {
  auto gate = std::dynamic_pointer_cast<lab::ChoiceGate>(brick);
  SLUICE_CHECK(gate != nullptr);
  return gate;
}

[[noreturn]] void no_nodes(const lab::Brick& gate, const std::string& path) {
  fail(Code::unsupported, "{}: a {} is a control of the lab, the engine has no node for it", path,
       gate.kind());
}

/// What the gate would choose, unlogged: the log is to have what is run instead.
at::Tensor ask(lab::ChoiceGate& gate, const at::Tensor& x, const at::Tensor& macs,
               lab::Context& context) {
  lab::GateLog* const log = std::exchange(context.gate_log, nullptr);
  const at::Tensor g = gate.choose(x, macs, context);
  context.gate_log = log;
  return g;
}

at::Tensor logged(const at::Tensor& g, const at::Tensor& macs, lab::Context& context) {
  if (context.gate_log != nullptr) context.gate_log->add({context.path(), g, g, macs});
  return g;
}

}  // namespace

DealtGate::DealtGate(lab::BrickPtr gate, uint64_t seed)
    : gate_(as_gate(gate)), generator_(at::make_generator<at::CPUGeneratorImpl>(seed)) {
  register_module("inner", gate_);
}
Json DealtGate::attributes() const { return Json::object(); }
at::Tensor DealtGate::choose(const at::Tensor& x, const at::Tensor& macs, lab::Context& context) {
  const at::Tensor g = ask(*gate_, x, macs, context);
  const at::Tensor flat = g.reshape({-1, choices()});
  const at::Tensor order =
      at::randperm(flat.size(0), generator_, at::TensorOptions(at::kLong)).to(g.device());
  return logged(flat.index_select(0, order).view(g.sizes()), macs, context);
}
bundle::Value DealtGate::lower(bundle::Builder&, const bundle::Value&,
                               const std::string& path) const {
  no_nodes(*this, path);
}

HistogramGate::HistogramGate(lab::BrickPtr gate, at::Tensor shares, uint64_t seed)
    : gate_(as_gate(gate)),
      shares_(std::move(shares)),
      generator_(at::make_generator<at::CPUGeneratorImpl>(seed)) {
  register_module("inner", gate_);
}
Json HistogramGate::attributes() const { return Json::object(); }
at::Tensor HistogramGate::choose(const at::Tensor& x, const at::Tensor& macs,
                                 lab::Context& context) {
  ask(*gate_, x, macs, context);  // what it says is paid for and not heard
  const int64_t rows = x.numel() / x.size(-1);
  const at::Tensor drawn = at::multinomial(shares_, rows, /*replacement=*/true, generator_);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.pop_back();
  return logged(lab::one_hot(drawn.to(x.device()).view(sizes), choices(), x), macs, context);
}
bundle::Value HistogramGate::lower(bundle::Builder&, const bundle::Value&,
                                   const std::string& path) const {
  no_nodes(*this, path);
}

}  // namespace sluice::recipes::acm
