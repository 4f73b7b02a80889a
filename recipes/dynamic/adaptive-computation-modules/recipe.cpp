// S004 adaptive-computation-modules: every token uses as much of every layer as it needs (arXiv
// 2312.10193). One run trains a small vision transformer, replaces its feed-forward networks by
// modules of four learners, distils, teaches and tunes them at three budgets, and compares with the
// same number of learners for every token and with choices that know nothing of the token.
#include "recipes/recipe.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "recipes/dynamic/adaptive-computation-modules/speed.h"
#include "sluice/base/random.h"

namespace sluice::recipes::acm {
namespace {

std::string percent(double share) { return fmt::format("{:g}", 100 * share); }

struct Curve {
  std::vector<double> shares, accuracies;
  void add(const Measured& measured) {
    shares.push_back(100 * measured.share);
    accuracies.push_back(measured.accuracy);
  }
};

class Comparison {
 public:
  Comparison(RecipeRun& run, const Plan& plan, const data::ImageSet& data, uint64_t seed)
      : run_(run),
        plan_(plan),
        data_(data),
        study_(plan, data, run.options.device, seed),
        seed_(seed) {}
  void run_all();

 private:
  void add(const std::string& arm, const char* role, const std::string& metric, double value) {
    run_.report.add(arm, role, metric, value);
  }
  void record(const std::string& arm, const char* role, double budget, const Measured& measured) {
    add(arm, role, "accuracy_" + percent(budget), measured.accuracy);
    add(arm, role, "share_" + percent(budget), 100 * measured.share);
    if (measured.histogram.defined() && arm != "uniform")
      add(arm, role, "background_share_" + percent(budget), measured.background_share);
    curves_[arm].add(measured);
  }
  void run_controls(const lab::Model& tuned, double budget, const Measured& measured);
  void draw_errors(const std::vector<std::vector<double>>& errors);
  void draw_curves(double dense_accuracy);
  void draw_loads(const Measured& measured, double budget);
  bool first() const { return seed_ == run_.seeds.front(); }

  RecipeRun& run_;
  const Plan& plan_;
  const data::ImageSet& data_;
  Study study_;
  uint64_t seed_;
  std::map<std::string, Curve> curves_;
};

void Comparison::run_controls(const lab::Model& tuned, double budget, const Measured& measured) {
  uint64_t index = 0;
  lab::Model dealt = with_gates(tuned, [&](lab::BrickPtr gate) {
    return std::make_shared<DealtGate>(std::move(gate), derive_seed(seed_, "dealt", ++index));
  });
  record("dealt-choices", "control", budget, study_.measure(dealt));
  int64_t layer = 0;
  lab::Model random = with_gates(tuned, [&](lab::BrickPtr gate) {
    const at::Tensor shares = measured.histogram[layer++];
    return std::make_shared<HistogramGate>(std::move(gate), shares,
                                           derive_seed(seed_, "random", uint64_t(layer)));
  });
  record("random-choices", "control", budget, study_.measure(random));
}

void Comparison::run_all() {
  lab::Model dense = study_.train_dense();
  const double dense_accuracy = study_.accuracy(dense);
  add("dense", "baseline", "accuracy", dense_accuracy);
  add("dense", "baseline", "macs", double(dense.cost().macs));

  lab::Model distilled = study_.modules(dense);
  study_.distill(dense, distilled);
  if (first()) draw_errors(study_.prefix_errors(dense, distilled));
  lab::Model taught = lab::clone(distilled);
  study_.teach_gates(dense, taught);
  const Measured before = study_.measure(taught);
  add("acm", "system", "accuracy_before_tuning", before.accuracy);
  add("acm", "system", "share_before_tuning", 100 * before.share);

  double least_margin = 1e9;
  for (size_t i = 0; i < plan_.budgets.size(); ++i) {
    const double budget = plan_.budgets[i];
    lab::Model tuned = study_.tune(fmt::format("phase 3, budget {:g}", budget), taught, budget);
    const Measured measured = study_.measure(tuned);
    record("acm", "system", budget, measured);
    add("acm", "system", "budget_error_" + percent(budget),
        100 * std::abs(measured.share / budget - 1));

    const int64_t k = plan_.uniform[i];
    lab::Model same = with_gates(distilled, [&](const lab::BrickPtr&) {
      return std::make_shared<lab::ConstantChoice>(plan_.learners + 1, k);
    });
    same = study_.tune(fmt::format("uniform {}", k), same, 0);
    const Measured uniform = study_.measure(same);
    record("uniform", "baseline", budget, uniform);
    least_margin = std::min(least_margin, measured.accuracy - uniform.accuracy);
    run_controls(tuned, budget, measured);
    if (std::abs(budget - 0.5) < 1e-9 && first()) {
      draw_loads(measured, budget);
      measure_engine(run_, dense, tuned, data_);
    }
  }
  add("acm", "system", "least_margin", least_margin);

  // Without phase 1: fresh learners, gates taught on them, the same fine-tuning.
  const double budget = plan_.budgets.front();
  lab::Model fresh = study_.modules(dense);
  study_.teach_gates(dense, fresh);
  fresh = study_.tune("no phase 1", fresh, budget);
  record("no-phase-1", "control", budget, study_.measure(fresh));
  if (first()) draw_curves(dense_accuracy);
}

void Comparison::draw_errors(const std::vector<std::vector<double>>& errors) {
  Figure figure;
  figure.title = "Error of the first learners after phase 1";
  figure.x_label = "learners";
  figure.y_label = "relative error";
  for (size_t layer = 0; layer < errors.size(); ++layer) {
    Series series{.name = fmt::format("layer {}", layer)};
    for (size_t k = 0; k < errors[layer].size(); ++k) {
      series.x.push_back(double(k));
      series.y.push_back(errors[layer][k]);
    }
    add("acm", "system", fmt::format("error_after_phase_1_layer{}", layer), series.y.back());
    figure.series.push_back(std::move(series));
  }
  run_.report.figures.push_back({"prefixes", std::move(figure)});
}

void Comparison::draw_curves(double dense_accuracy) {
  Figure figure;
  figure.title = "What a budget costs";
  figure.x_label = "feed-forward MACs, % of dense";
  figure.y_label = "test accuracy, %";
  for (const char* arm : {"acm", "uniform", "random-choices", "dealt-choices", "no-phase-1"}) {
    const Curve& curve = curves_.at(arm);
    figure.series.push_back({.name = arm,
                             .x = curve.shares,
                             .y = curve.accuracies,
                             .points = curve.shares.size() == 1});
  }
  figure.series.push_back({.name = "dense", .x = {100}, .y = {dense_accuracy}, .points = true});
  run_.report.figures.push_back({"accuracy", std::move(figure)});
}

/// Three images beside each other, a mark per token, by how many learners it used.
void Comparison::draw_loads(const Measured& measured, double budget) {
  Figure figure;
  figure.title = fmt::format("Learners used by the tokens of three images, budget {:g}", budget);
  figure.x_label = "column of patches";
  figure.y_label = "row of patches, from the top";
  const int64_t most = plan_.learners * plan_.layers;
  const auto side = static_cast<int64_t>(std::lround(std::sqrt(double(measured.loads.size(1)))));
  constexpr int64_t kBins = 4;
  for (int64_t bin = 0; bin < kBins; ++bin) {
    const double low = double(most * bin) / kBins, high = double(most * (bin + 1)) / kBins;
    Series series{.name = fmt::format("{:g} to {:g} of {}", low, high, most), .points = true};
    for (int64_t image = 0; image < std::min<int64_t>(3, measured.loads.size(0)); ++image) {
      for (int64_t token = 0; token < measured.loads.size(1); ++token) {
        const double load = measured.loads[image][token].item<double>();
        if (load < low || (load >= high && bin + 1 < kBins)) continue;
        series.x.push_back(double(image * (side + 1) + token % side));
        series.y.push_back(double(-(token / side)));
      }
    }
    if (!series.x.empty()) figure.series.push_back(std::move(series));
  }
  run_.report.figures.push_back({"loads", std::move(figure)});
}

void run(RecipeRun& run) {
  const Plan plan = read_plan(run.settings);
  auto data = data::load_image_set(plan.data, plan.load);
  if (plan.holdout > 0) {  // for choosing settings: the test split is not looked at
    std::tie(data.train, data.test) = data::split_validation(data.train, plan.holdout, /*seed=*/1);
    run.report.notes.push_back("measured on held-out training images, not on the test split");
  }
  run.report.data.push_back(fmt::format("{}: {} training, {} test images", plan.data,
                                        data.train.count(), data.test.count()));
  for (const uint64_t seed : run.seeds) Comparison(run, plan, data, seed).run_all();
  run.report.notes.push_back(
      "accuracy_B, share_B: percent of the test split, and of the dense feed-forward MACs "
      "(metered, "
      "gates included), at budget B%; background_share: mean learners of patches without a garment "
      "over those of patches covered by half or more; least_margin: the smallest difference to "
      "uniform-k of all budgets; accuracies are those of the last step");
}

const bool registered = register_recipe("adaptive-computation-modules", run);

}  // namespace
}  // namespace sluice::recipes::acm
