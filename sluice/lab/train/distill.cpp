#include "sluice/lab/train/distill.h"

#include <chrono>
#include <cmath>

#include "sluice/base/progress.h"
#include "sluice/lab/brick/graph_network.h"
#include "sluice/lab/inspect/recorder.h"
#include "sluice/lab/pass/steps.h"
#include "sluice/lab/train/optimizer.h"

namespace sluice::lab {
namespace {

std::string output_loss(const DistillOptions& options, const Model& teacher) {
  std::string kind = options.output;
  if (kind.empty()) {
    const auto* graph = dynamic_cast<const GraphNetwork*>(teacher.root.get());
    kind = graph != nullptr && graph->gives_probabilities() ? "probabilities" : "kl";
    if (teacher.task.kind == "embed") kind = "cosine";
  }
  if (kind != "kl" && kind != "mse" && kind != "cosine" && kind != "probabilities") {
    fail(Code::config,
         "distillation: output: expected kl, mse, cosine or probabilities, found '{}'",
         kind.substr(0, 60));
  }
  return kind;
}

at::Tensor relative_square(const at::Tensor& student, const at::Tensor& teacher) {
  return (student - teacher).square().mean() / teacher.square().mean().clamp_min(1e-12);
}

at::Tensor compare(const std::string& kind, double temperature, const at::Tensor& student,
                   const at::Tensor& teacher) {
  if (student.sizes() != teacher.sizes()) {
    fail(Code::shape, "distillation: the student gives {}, the teacher {}",
         to_string(student.sizes()), to_string(teacher.sizes()));
  }
  if (kind == "mse") return relative_square(student, teacher);
  if (kind == "cosine") return 1 - at::cosine_similarity(student, teacher, -1).mean();
  // The logarithm of a distribution serves as its logits.
  const auto logits = [&](const at::Tensor& x) {
    return (kind == "probabilities" ? x.clamp_min(1e-12).log() : x) / temperature;
  };
  const at::Tensor expected = at::log_softmax(logits(teacher), -1);
  const at::Tensor found = at::log_softmax(logits(student), -1);
  return (expected.exp() * (expected - found)).sum(-1).mean() * temperature * temperature;
}

/// The rows that are text, where samples have lengths and the tensor a row per token.
at::Tensor rows_of(const at::Tensor& x, const DistillBatch& batch) {
  if (!batch.lengths.defined() || x.dim() != 3 || x.size(1) != batch.x.size(1)) return x;
  const at::Tensor inside =
      at::arange(x.size(1), batch.lengths.options()).unsqueeze(0) < batch.lengths.unsqueeze(1);
  return x.index({inside.to(x.device())});
}

/// Outputs of slots whose paths match, in the order of the paths.
std::vector<std::pair<std::string, at::Tensor>> matching(const Recorder& recorder) {
  return {recorder.records().begin(), recorder.records().end()};
}

}  // namespace

Distiller::Distiller(const Model& teacher, DistillOptions options)
    : teacher_(teacher), options_(std::move(options)), output_(output_loss(options_, teacher)) {
  if (!(options_.temperature > 0)) {
    fail(Code::config, "distillation: temperature: expected above 0, found {}",
         options_.temperature);
  }
}

DistillLoss Distiller::loss(Model& student, const DistillBatch& batch, GateLog* log) {
  std::vector<Recorder> taught, learnt;
  /// One recorder per pair, all fed by one watcher.
  struct Fan final : SlotWatcher {
    std::vector<Recorder>* recorders;
    void after(const std::string& path, const Brick& brick, const at::Tensor& x,
               at::Tensor& y) override {
      for (Recorder& each : *recorders) each.after(path, brick, x, y);
    }
  };
  for (const FeaturePair& pair : options_.features) {
    learnt.emplace_back(std::vector{pair.student});
    taught.emplace_back(std::vector{pair.teacher.empty() ? pair.student : pair.teacher});
  }
  const auto run = [&](Model& model, std::vector<Recorder>& recorders) {
    Fan fan;
    fan.recorders = &recorders;
    Context context;
    context.lengths = batch.lengths;
    if (&model == &student) {
      context.size = batch.size;
      context.gate_log = log;
    }
    if (!recorders.empty()) context.watcher = &fan;
    return model.forward(batch.x, context);
  };
  at::Tensor expected;
  {
    const at::NoGradGuard no_grad;
    const EvaluationMode evaluation(*teacher_.root);
    expected = run(teacher_, taught);
  }
  const at::Tensor found = run(student, learnt);
  DistillLoss result;
  const at::Tensor output =
      compare(output_, options_.temperature, rows_of(found, batch), rows_of(expected, batch));
  result.total = output * options_.output_weight;
  result.output = output.item<double>();
  for (size_t i = 0; i < options_.features.size(); ++i) {
    const FeaturePair& pair = options_.features[i];
    const auto a = matching(learnt[i]), b = matching(taught[i]);
    if (a.empty() || a.size() != b.size()) {
      fail(Code::usage, "distillation: '{}' names {} slots of the student, '{}' {} of the teacher",
           pair.student, a.size(), pair.teacher.empty() ? pair.student : pair.teacher, b.size());
    }
    at::Tensor sum;
    for (size_t j = 0; j < a.size(); ++j) {
      if (a[j].second.sizes() != b[j].second.sizes()) {
        fail(Code::shape, "distillation: {} of the student gives {}, {} of the teacher {}",
             a[j].first, to_string(a[j].second.sizes()), b[j].first,
             to_string(b[j].second.sizes()));
      }
      const at::Tensor one =
          relative_square(rows_of(a[j].second, batch), rows_of(b[j].second, batch));
      sum = sum.defined() ? sum + one : one;
    }
    sum = sum / static_cast<double>(a.size());
    result.features += sum.item<double>();
    result.total = result.total + sum * pair.weight;
  }
  return result;
}

namespace {

/// Parameters that one optimizer changes.
struct Part {
  NamedParameters parameters;
  double rate;
  std::unique_ptr<Optimizer> optimizer;
};

/// The gates under a budget, and the rest; those that are not empty.
std::vector<Part> parts_of(const NamedParameters& parameters, const GateBudget* budget,
                           const OptimizerOptions& options) {
  std::vector<Part> all(2);
  for (const auto& entry : parameters) {
    all[budget != nullptr && budget->owns(entry.first) ? 1 : 0].parameters.push_back(entry);
  }
  std::erase_if(all, [](const Part& part) { return part.parameters.empty(); });
  for (Part& part : all) {
    OptimizerOptions own = options;
    if (budget != nullptr && budget->owns(part.parameters.front().first))
      own.rate = budget->options().rate;
    part.rate = own.rate;
    part.optimizer = build_optimizer(own, part.parameters);
  }
  return all;
}

}  // namespace

TuneResult tune(Model& student, Distiller& distiller,
                const std::function<DistillBatch(int64_t step)>& batches,
                const TuneOptions& options) {
  if (options.steps < 1) fail(Code::config, "tune: steps: at least 1, found {}", options.steps);
  const NamedParameters parameters = trainable_parameters(*student.root);
  if (parameters.empty()) {
    fail(Code::usage, "tune: the network has no weights to train; dequantize it first");
  }
  std::optional<GateBudget> budget;
  if (options.gates) budget.emplace(*student.root, *options.gates);
  std::vector<Part> parts = parts_of(parameters, budget ? &*budget : nullptr, options.optimizer);
  Progress progress(options.title, options.title.empty() ? 0 : options.steps);
  const auto begin = std::chrono::steady_clock::now();
  const int64_t window = std::max<int64_t>(1, options.steps / 10);
  TuneResult result;
  student.root->train();
  for (int64_t step = 0; step < options.steps; ++step) {
    const double factor = schedule_factor(options.schedule, step, options.steps);
    for (Part& part : parts) part.optimizer->set_rate(part.rate * factor);
    student.root->zero_grad();
    const DistillBatch batch = batches(step);
    GateLog log;
    const DistillLoss loss = distiller.loss(student, batch, budget ? &log : nullptr);
    const double value = loss.total.item<double>();
    if (!std::isfinite(value)) {
      fail(Code::numeric, "tune: the loss of step {} is {}; try a lower rate than {}", step, value,
           options.optimizer.rate);
    }
    at::Tensor total = loss.total;
    std::string note = fmt::format("loss {:.4g}", value);
    if (budget) {
      const at::Tensor share = budget->open_share(log, batch.lengths);
      const auto open = share.item<double>();
      total = total + budget->loss(share, step, options.steps);
      budget->learn(open, step, options.steps);
      note += fmt::format(", open {:.1f}%", 100 * open);
    }
    total.backward();
    for (Part& part : parts) {
      if (options.clip > 0) clip_gradients(part.parameters, options.clip);
      part.optimizer->step();
    }
    if (options.after_step) options.after_step(step);
    if (step < window) result.first_loss += value / static_cast<double>(window);
    if (step >= options.steps - window) result.last_loss += value / static_cast<double>(window);
    if (!options.title.empty()) progress.update(step + 1, note);
  }
  student.root->eval();
  result.steps = options.steps;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

}  // namespace sluice::lab
