#include "sluice/lab/pass/sparsify.h"

#include <algorithm>
#include <cmath>

#include "sluice/base/path_pattern.h"
#include "sluice/bundle/size_choice.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/sparse_linear.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/inspect/recorder.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {

Slot& slot_of(Model& model, const std::string& path) {
  return *walk(*model.root, path).front().slot;
}

namespace {

/// The projections of a body; gates that mask the inputs of the last one.
struct BodyKind {
  const char* kind;
  std::vector<const char*> projections;
  const char *last, *gate;
};
const std::vector<BodyKind>& body_kinds() {
  static const std::vector<BodyKind> kinds = {
      {"attention", {"q", "k", "v", "o"}, "o", "head_gate"},
      {"ffn", {"gate", "up", "down"}, "down", "neuron_gate"}};
  return kinds;
}

std::vector<std::string> find_projections(Model& model, const std::string& pattern) {
  std::vector<std::string> paths;
  for (const SlotRef& ref : walk(*model.root, pattern)) {
    if (ref.slot->empty()) continue;
    for (const BodyKind& body : body_kinds()) {
      if (ref.owner->kind() != body.kind) continue;
      const std::string& name = ref.slot->name();
      if (std::find(body.projections.begin(), body.projections.end(), name) ==
          body.projections.end()) {
        continue;
      }
      if (dynamic_cast<const Linear*>(ref.slot->get().get()) == nullptr) {
        fail(Code::unsupported, "{}: {} holds a {}; expected an ordinary linear layer{}",
             kSparsifyPass, ref.path, (**ref.slot).kind(),
             (**ref.slot).kind() == "quant_linear" ? " (dequantize it first)" : "");
      }
      if (name == body.last && !ref.owner->slot(body.gate).empty()) {
        fail(Code::unsupported, "{}: a {} masks the inputs of {}; slice-channels first",
             kSparsifyPass, body.gate, ref.path);
      }
      paths.push_back(ref.path);
    }
  }
  if (paths.empty()) {
    fail(Code::usage,
         "{}: no projection of an attention or feed-forward layer under '{}'; the network is a {}",
         kSparsifyPass, pattern, model.root->kind());
  }
  return paths;
}

}  // namespace

double require_sparsity(double sparsity) {
  if (!(sparsity >= 0 && sparsity < 1)) {
    fail(Code::config, "{}: sparsity: expected from 0 to below 1, found {}", kSparsifyPass,
         sparsity);
  }
  return sparsity;
}

at::Tensor column_norms(const Linear& layer) {
  return layer.weight.detach().to(at::kDouble).square().sum(0).sqrt().to(at::kFloat);
}

/// A transformer block (or, outside of one, the body itself) and which projections are in it.
struct ActivationSparsifier::Block {
  std::string path;
  std::vector<size_t> members;
};

std::vector<ActivationSparsifier::Block> ActivationSparsifier::blocks() const {
  std::vector<std::string> holders;
  for (const SlotRef& ref : walk(*model_.root)) {
    if (dynamic_cast<const TransformerBlock*>(ref.slot->get().get()) != nullptr) {
      holders.push_back(ref.path);
    }
  }
  std::vector<Block> result;
  for (size_t i = 0; i < paths_.size(); ++i) {
    std::string holder = paths_[i].substr(0, paths_[i].rfind('.'));
    for (const std::string& path : holders) {
      if (paths_[i].starts_with(path + ".")) holder = path;
    }
    if (result.empty() || result.back().path != holder) result.push_back({holder, {}});
    result.back().members.push_back(i);
  }
  return result;
}

ActivationSparsifier::ActivationSparsifier(const Model& model, const PassInput& input,
                                           SparsifyOptions options, const InputFactors& factors)
    : model_(clone(model)), input_(input), options_(std::move(options)) {
  model_.root->eval();
  paths_ = find_projections(model_, options_.slots);
  for (const std::string& path : paths_) {
    const auto& layer = slot_of(model_, path).as<Linear>();
    sizes_.push_back(static_cast<double>(layer.inputs() * layer.outputs()));
    at::Tensor own = factors ? factors(path, layer) : at::Tensor();
    if (own.defined()) factors_[path] = own.detach().to(at::kFloat);
  }
  histograms_ = input_histograms(model_, input_, kSparsify, paths_, factors_, options_.dense_first);
}

std::vector<double> ActivationSparsifier::uniform(double sparsity) const {
  return std::vector<double>(paths_.size(), require_sparsity(sparsity));
}

Selector ActivationSparsifier::selector(size_t index, int64_t inputs, double level) const {
  if (level <= 0) return {};
  if (!options_.exact) return Selector::above(histograms_.at(paths_[index]).quantile(level));
  // A level such as 0.65 is no exact double: 0.35 * 20 has to be 7 inputs, not 6.
  const double kept = std::floor((1 - level) * static_cast<double>(inputs) + 1e-6);
  return Selector::top(std::max<int64_t>(1, static_cast<int64_t>(kept)));
}

std::shared_ptr<SparseLinear> ActivationSparsifier::sparse(const Linear& layer, size_t index,
                                                           double level) const {
  const auto factor = factors_.find(paths_[index]);
  return SparseLinear::of(layer, selector(index, layer.inputs(), level),
                          factor == factors_.end() ? at::Tensor() : factor->second,
                          options_.dense_first);
}

Model ActivationSparsifier::at(std::span<const double> levels) const {
  if (levels.size() != paths_.size()) {
    fail(Code::usage, "{}: {} levels for {} projections", kSparsifyPass, levels.size(),
         paths_.size());
  }
  Model result = clone(model_);
  for (size_t i = 0; i < paths_.size(); ++i) {
    if (require_sparsity(levels[i]) == 0) continue;
    Slot& slot = slot_of(result, paths_[i]);
    slot.exchange(placed_like(sparse(slot.as<Linear>(), i, levels[i]), *slot));
  }
  return result;
}

Model ActivationSparsifier::at_sizes(const std::vector<std::vector<double>>& levels,
                                     const std::vector<double>& keep) const {
  if (!model_.sizes.empty()) {
    fail(Code::unsupported, "{}: the network has {} sizes already; pick-size keeps one of them",
         kSparsifyPass, model_.sizes.size());
  }
  SLUICE_CHECK(levels.size() == keep.size() && levels.size() > 1);
  Model result = clone(model_);
  for (size_t i = 0; i < paths_.size(); ++i) {
    Slot& slot = slot_of(result, paths_[i]);
    const auto& layer = slot.as<Linear>();
    std::vector<Selector> selectors;
    for (const auto& each : levels) {
      selectors.push_back(selector(i, layer.inputs(), require_sparsity(each[i])));
    }
    const auto replacement = sparse(layer, i, 0);
    replacement->set_sizes(std::move(selectors));
    slot.exchange(placed_like(replacement, *slot));
  }
  for (const double share : keep) {
    const bool all = share >= 1;
    result.sizes.push_back({all ? "dense" : fmt::format("keep{:.4g}", 100 * share), 0, {}});
  }
  return result;
}

std::vector<std::vector<double>> ActivationSparsifier::greedy(
    std::span<const double> targets) const {
  for (const double target : targets) require_sparsity(target);
  PassInput few = input_;
  const int64_t samples = std::min(options_.greedy_samples, input_.calibration.size(0));
  few.calibration = input_.calibration.narrow(0, 0, samples);
  few.batch = samples;
  std::vector<std::vector<double>> result(targets.size(), std::vector<double>(paths_.size(), 0));
  Model work = clone(model_);
  const at::NoGradGuard no_grad;
  for (const Block& block : blocks()) {
    at::Tensor into;
    for_each_calibration_batch(work, few, kSparsify, [&](const at::Tensor& x) {
      Recorder recorder({block.path}, Recorder::What::inputs);
      Context context;
      context.watcher = &recorder;
      work.root->forward(x, context);
      const auto found = recorder.records().find(block.path);
      if (found == recorder.records().end()) {
        fail(Code::usage, "{}: nothing went into {} on the calibration inputs", kSparsifyPass,
             block.path);
      }
      into = found->second;
    });
    // The block alone, its projections replaced once; only their selectors change from trial to
    // trial.
    const BrickPtr brick = clone(*slot_of(work, block.path).get());
    const auto output = [&] {
      Context context;
      const at::Tensor y = brick->forward(into, context);
      if (y.dim() != 3) return y;
      const int64_t rows = y.size(1);
      const auto tail = static_cast<int64_t>(std::ceil(double(rows) * options_.greedy_tail));
      const int64_t seen = std::clamp<int64_t>(tail, 1, rows);
      return y.narrow(1, rows - seen, seen);
    };
    const at::Tensor dense = output();
    std::vector<std::shared_ptr<SparseLinear>> layers;
    std::vector<double> sizes;
    for (const size_t i : block.members) {
      Slot& slot = *walk(*brick, paths_[i].substr(block.path.size() + 1)).front().slot;
      auto layer = sparse(slot.as<Linear>(), i, 0);
      slot.exchange(placed_like(layer, *slot));
      layers.push_back(std::move(layer));
      sizes.push_back(sizes_[i]);
    }
    const auto error = [&](std::span<const double> levels) {
      for (size_t m = 0; m < layers.size(); ++m) {
        layers[m]->set_select(selector(block.members[m], layers[m]->options().inputs, levels[m]));
      }
      return (output() - dense).norm().item<double>();
    };
    const auto levels = allocate_greedy(sizes, targets, error, options_.greedy);
    for (size_t t = 0; t < targets.size(); ++t) {
      for (size_t m = 0; m < layers.size(); ++m) result[t][block.members[m]] = levels[t][m];
    }
  }
  return result;
}

std::map<std::string, double> kept_shares(Model& model, const PassInput& input,
                                          const std::string& pass, int64_t size) {
  std::map<std::string, double> result;
  Meter meter;
  struct Rows final : SlotWatcher {
    std::map<std::string, double> full;  ///< MACs of the dense layer
    void after(const std::string& path, const Brick& brick, const at::Tensor& x,
               at::Tensor&) override {
      const auto* layer = dynamic_cast<const SparseLinear*>(&brick);
      if (layer == nullptr) return;
      full[path] += static_cast<double>(x.numel()) * static_cast<double>(layer->options().outputs);
    }
  } rows;
  const EvaluationMode evaluation(*model.root);
  for_each_calibration_batch(model, input, pass, [&](const at::Tensor& x) {
    Context context;
    context.meter = &meter;
    context.size = size;
    context.watcher = &rows;
    model.root->forward(x, context);
  });
  for (const Meter::Entry& entry : meter.entries()) {
    const auto full = rows.full.find(entry.path);
    if (full != rows.full.end())
      result[entry.path] = static_cast<double>(entry.macs) / full->second;
  }
  return result;
}

void measure_shares(Model& model, const PassInput& input, const std::string& pass) {
  const EvaluationMode evaluation(*model.root);
  std::vector<double> macs;
  const double rows =
      static_cast<double>(input.calibration.defined() ? input.calibration.numel() : 0);
  for (size_t size = 0; size < model.sizes.size(); ++size) {
    Meter meter;
    for_each_calibration_batch(model, input, pass, [&](const at::Tensor& x) {
      Context context;
      context.meter = &meter;
      context.size = static_cast<int64_t>(size);
      model.root->forward(x, context);
    });
    macs.push_back(static_cast<double>(meter.macs()));
  }
  for (size_t size = 0; size < model.sizes.size(); ++size) {
    model.sizes[size].quality[bundle::kCostShare] = std::min(1.0, macs[size] / macs.back());
    if (size + 1 < model.sizes.size()) model.sizes[size].quality[bundle::kCostRows] = rows;
  }
}

}  // namespace sluice::lab
