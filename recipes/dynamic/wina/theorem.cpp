#include "recipes/dynamic/wina/theorem.h"

#include <torch/types.h>

#include <cmath>

#include "sluice/base/random.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/gate/selector.h"
#include "sluice/lab/inspect/recorder.h"

namespace sluice::recipes::wina {
namespace {

// Columns are orthogonal to the rounding of f32 weights; masks whose errors are equal but for that
// are equally good.
constexpr double kRounding = 1e-5;

struct Tally {
  double best = 0, count = 0, formula = 0;
};

/// Rows [count, inputs] of what goes into the layers of k and gate, by path.
std::map<std::string, at::Tensor> layer_inputs(lab::Model model, const at::Tensor& windows,
                                               int64_t count) {
  lab::Recorder recorder({"**.k", "**.gate"}, lab::Recorder::What::inputs);
  lab::Context context;
  context.watcher = &recorder;
  const at::NoGradGuard no_grad;
  model.root->eval();
  model.root->forward(lab::as_input(windows, model), context);
  std::map<std::string, at::Tensor> result;
  for (const auto& [path, values] : recorder.records()) {
    const at::Tensor rows = values.reshape({-1, values.size(-1)}).to(at::kCPU, at::kDouble);
    const int64_t step = std::max<int64_t>(1, rows.size(0) / count);
    result[path] = rows.slice(0, 0, step * count, step);
  }
  return result;
}

/// Norms of W times what the masks leave out of x: x [.., n], kept [.., n] of bool.
at::Tensor lost(const at::Tensor& weight, const at::Tensor& x, const at::Tensor& kept) {
  return at::matmul(x.expand(kept.sizes()).masked_fill(kept, 0), weight.t()).norm(2, -1);
}

void tally_layer(const Plan& plan, const lab::Linear& layer, const at::Tensor& inputs,
                 const std::vector<std::pair<std::string, at::Tensor>>& scores, uint64_t seed,
                 std::map<std::string, Tally>& tallies) {
  const at::Tensor weight = layer.weight.detach().to(at::kCPU, at::kDouble);
  const at::Tensor norms = weight.square().sum(0).sqrt();
  const int64_t n = weight.size(1);
  auto generator = at::detail::createCPUGenerator(seed);
  for (const double sparsity : plan.sparsities) {
    const auto k = static_cast<int64_t>(std::floor((1 - sparsity) * double(n) + 1e-6));
    const lab::Selector top = lab::Selector::top(k);
    const at::Tensor by_size = lost(weight, inputs, lab::select(inputs, top));
    at::Tensor least = by_size.clone();
    for (int64_t row = 0; row < inputs.size(0); ++row) {
      const at::Tensor noise =
          at::rand({plan.theorem_masks, n}, generator, at::TensorOptions().dtype(at::kFloat));
      const at::Tensor random = lost(weight, inputs[row].unsqueeze(0), lab::select(noise, top));
      least[row].copy_(at::minimum(least[row], random.min()));
    }
    for (const auto& [arm, factors] : scores) {
      const at::Tensor kept = lab::select(inputs, top, factors);
      const at::Tensor found = lost(weight, inputs, kept);
      const at::Tensor predicted = (inputs * norms).masked_fill(kept, 0).norm(2, -1);
      Tally& tally = tallies[arm];
      tally.best += (found <= least * (1 + kRounding)).sum().item<double>();
      tally.count += double(inputs.size(0));
      const at::Tensor off = (predicted - found).abs() / found.clamp_min(1e-30);
      tally.formula = std::max(tally.formula, off.max().item<double>());
    }
  }
}

}  // namespace

void measure_theorem(RecipeRun& run, const Plan& plan, const Subject& subject,
                     const lab::Model& turned, const lab::Model& folded, uint64_t seed) {
  std::map<std::string, Tally> tallies;
  const auto measure = [&](const lab::Model& model,
                           const std::vector<std::pair<std::string, Score>>& arms) {
    for (const auto& [path, inputs] :
         layer_inputs(lab::clone(model), subject.probe, plan.theorem_tokens)) {
      const auto& layer = lab::walk(*model.root, path).front().slot->as<lab::Linear>();
      std::vector<std::pair<std::string, at::Tensor>> scores;
      for (const auto& [arm, score] : arms) {
        const at::Tensor factors = factors_of(score, model, seed)(path, layer);
        scores.emplace_back(arm, factors.defined() ? factors.to(at::kCPU) : factors);
      }
      tally_layer(plan, layer, inputs, scores, derive_seed(seed, "theorem " + path), tallies);
    }
  };
  measure(turned, {{"wina", Score::wina},
                   {"teal", Score::magnitude},
                   {"permuted-norms", Score::permuted},
                   {"inverse-score", Score::inverse}});
  measure(folded, {{"wina-unrotated", Score::wina}});
  const std::map<std::string, std::string> roles = {{"wina", "system"},
                                                    {"teal", "baseline"},
                                                    {"permuted-norms", "control"},
                                                    {"inverse-score", "control"},
                                                    {"wina-unrotated", "baseline"}};
  for (const auto& [arm, tally] : tallies) {
    run.report.add(arm, roles.at(arm), "best_share", tally.best / tally.count);
    run.report.add(arm, roles.at(arm), "formula_error", tally.formula);
  }
}

}  // namespace sluice::recipes::wina
