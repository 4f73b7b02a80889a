// S054 fire-together-wire-together: per-image channel masks learned from the layer's own activity
// (arXiv 2110.08232). One run trains a dense network, previews what a mass ratio will cost, wires
// predictors at three ratios, and compares with fine-tuning, static filters, gates under an L1
// penalty, and masks that know nothing of the image.
#include "recipes/recipe.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "recipes/dynamic/fire-together-wire-together/speed.h"
#include "recipes/dynamic/fire-together-wire-together/study.h"
#include "sluice/base/random.h"

namespace sluice::recipes::fire_together {
namespace {

std::string percent(double mass) { return fmt::format("{:g}", 100 * mass); }

class Comparison {
 public:
  Comparison(RecipeRun& run, const Plan& plan, const data::ImageSet& data, uint64_t seed)
      : run_(run), plan_(plan), data_(data), study_(plan, data, run.options.device, seed) {}
  void run_all();

 private:
  struct Line {
    std::string arm;
    const char* role;
    std::vector<double> cuts, accuracies;
  };
  void add(const std::string& arm, const char* role, const std::string& metric, double value) {
    run_.report.add(arm, role, metric, value);
  }
  /// The accuracy and cut of one arm at one ratio; its names end with the ratio.
  void record(Line& line, double mass, const Measured& measured);
  lab::Model gated(Predictor kind = Predictor::labelled) const {
    return with_predictors(pretrained_, plan_.layout, kind, derive_seed(study_.seed(), "gates"));
  }
  void run_controls(double mass, lab::Model& wired, bool chosen, bool deepest);
  void draw(const std::vector<Line>& lines, const Series& estimates, const Measured& masks) const;
  bool first() const { return study_.seed() == run_.seeds.front(); }

  RecipeRun& run_;
  const Plan& plan_;
  const data::ImageSet& data_;
  Study study_;
  lab::Model pretrained_;
  double dense_macs_ = 0;
};

void Comparison::record(Line& line, double mass, const Measured& measured) {
  const double cut = 100 * (1 - measured.macs / dense_macs_);
  add(line.arm, line.role, "accuracy_" + percent(mass), measured.accuracy);
  add(line.arm, line.role, "cut_" + percent(mass), cut);
  line.cuts.push_back(cut);
  line.accuracies.push_back(measured.accuracy);
}

/// The same gates, but their thresholds are out of reach.
lab::Model never_closing(const lab::Model& model) {
  lab::Model result = lab::clone(model);
  const at::NoGradGuard no_grad;
  for (const auto& item : result.root->named_parameters()) {
    if (item.key().ends_with(".gate.score.linear.bias")) item.value().fill_(1e4);
  }
  return result;
}

void Comparison::run_controls(double mass, lab::Model& wired, bool chosen, bool deepest) {
  const lab::LabelRule rule = lab::heat_mass_label(mass);
  const uint64_t seed = study_.seed();
  {
    lab::Model random = lab::clone(wired);
    replace_gates(random, [&](lab::BrickPtr gate, const std::string& path) {
      return std::make_shared<RandomLikeGate>(std::move(gate), derive_seed(seed, "random " + path));
    });
    const Measured measured = study_.measure(random, rule);
    if (chosen) add("random", "control", "accuracy", measured.accuracy);
    if (deepest) add("random", "control", "accuracy_deepest", measured.accuracy);
  }
  if (!deepest) return;
  lab::Model shuffled = gated();
  replace_gates(shuffled, [](lab::BrickPtr gate, const std::string&) {
    return std::make_shared<NeighboursGate>(std::move(gate));
  });
  shuffled = study_.wire("shuffled inputs", shuffled, rule);
  const Measured other = study_.measure(shuffled, rule);
  const MaskDistance distance = mask_distance(other);
  add("shuffled-inputs", "control", "accuracy_deepest", other.accuracy);
  add("shuffled-inputs", "control", "agreement", other.agreement);
  add("shuffled-inputs", "control", "jaccard_excess", distance.excess());

  // Filter c learns the label of another filter, always the same one.
  const lab::LabelRule permuted = [rule, seed](const std::string& path, const at::Tensor& output) {
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(derive_seed(seed, path));
    const at::Tensor order =
        at::randperm(output.size(1), generator, at::TensorOptions(at::kLong)).to(output.device());
    return rule(path, output).index_select(1, order);
  };
  lab::Model wrong = study_.wire("permuted labels", gated(), permuted);
  const Measured crossed = study_.measure(wrong, rule);
  add("permuted-labels", "control", "accuracy_deepest", crossed.accuracy);
  add("permuted-labels", "control", "agreement", crossed.agreement);
}

void Comparison::run_all() {
  pretrained_ = study_.pretrain();
  dense_macs_ = double(pretrained_.cost().macs);
  std::vector<double> estimates;
  for (const double mass : plan_.masses)
    estimates.push_back(study_.preview(gated(), lab::heat_mass_label(mass)));
  // The ratio for a cut of half is taken from the preview, before anything is trained or tested.
  size_t chosen = 0;
  while (chosen + 1 < plan_.masses.size() && estimates[chosen] > 0.5 * dense_macs_) ++chosen;

  lab::Model dense = study_.tune("dense", pretrained_);
  const Measured tuned = study_.measure(dense);
  add("dense-tuned", "baseline", "accuracy", tuned.accuracy);
  add("dense-tuned", "baseline", "cut", 0);
  add("dense-tuned", "baseline", "macs", tuned.macs);

  std::vector<Line> lines = {
      {"ftwt", "system", {}, {}}, {"static", "baseline", {}, {}}, {"l1-gates", "baseline", {}, {}}};
  Series preview{.name = "ftwt", .points = true};
  double error = 0, agreement = 100;
  Measured shown;
  for (size_t i = 0; i < plan_.masses.size(); ++i) {
    const double mass = plan_.masses[i];
    const bool deepest = i + 1 == plan_.masses.size();
    const lab::LabelRule rule = lab::heat_mass_label(mass);
    lab::Model wired = study_.wire(fmt::format("ftwt {:g}", mass), gated(), rule);
    const Measured measured = study_.measure(wired, rule);
    record(lines[0], mass, measured);
    add("ftwt", "system", "agreement_" + percent(mass), measured.agreement);
    add("ftwt", "system", "estimated_cut_" + percent(mass), 100 * (1 - estimates[i] / dense_macs_));
    agreement = std::min(agreement, measured.agreement);
    error = std::max(error, std::abs(estimates[i] / measured.macs - 1));
    preview.x.push_back(estimates[i] / 1e6);
    preview.y.push_back(measured.macs / 1e6);
    if (i == chosen) {
      add("ftwt", "system", "mass", mass);
      add("ftwt", "system", "accuracy", measured.accuracy);
      add("ftwt", "system", "cut", lines[0].cuts.back());
      if (first()) measure_engine(run_, dense, wired, never_closing(wired), data_);
    }
    lab::Model few =
        study_.tune(fmt::format("static {:g}", mass), sliced_to(pretrained_, measured.macs));
    record(lines[1], mass, study_.measure(few));
    lab::Model penalized = study_.penalize(fmt::format("l1 gates {:g}", mass),
                                           gated(Predictor::from_task), measured.macs);
    record(lines[2], mass, study_.measure(penalized));
    if (deepest) {
      for (const Line& line : lines)
        add(line.arm, line.role, "accuracy_deepest", line.accuracies.back());
      const MaskDistance distance = mask_distance(measured);
      add("ftwt", "system", "jaccard_within", distance.within);
      add("ftwt", "system", "jaccard_between", distance.between);
      add("ftwt", "system", "jaccard_excess", distance.excess());
      shown = measured;
    }
    if (i == chosen || deepest) run_controls(mass, wired, i == chosen, deepest);
  }
  add("ftwt", "system", "estimate_error", 100 * error);
  add("ftwt", "system", "agreement", agreement);
  if (first()) {
    lines.push_back({"dense-tuned", "baseline", {0}, {tuned.accuracy}});
    draw(lines, preview, shown);
  }
}

void Comparison::draw(const std::vector<Line>& lines, const Series& estimates,
                      const Measured& masks) const {
  Figure curve;
  curve.title = "Accuracy of what is left";
  curve.x_label = "MACs left out, %";
  curve.y_label = "test accuracy, %";
  for (const Line& line : lines)
    curve.series.push_back({.name = line.arm, .x = line.cuts, .y = line.accuracies});
  curve.series.back().points = true;
  run_.report.figures.push_back({"accuracy", std::move(curve)});

  Figure scatter;
  scatter.title = "The preview against what was measured after training";
  scatter.x_label = "estimated, million MACs";
  scatter.y_label = "measured, million MACs";
  const auto [low, high] = std::minmax_element(estimates.x.begin(), estimates.x.end());
  scatter.series = {estimates, {.name = "equal", .x = {*low, *high}, .y = {*low, *high}}};
  run_.report.figures.push_back({"preview", std::move(scatter)});

  Figure bars;
  bars.kind = Figure::Kind::bars;
  bars.title = fmt::format("Filters kept for three images, r = {:g}", plan_.masses.back());
  bars.x_label = "gated convolution";
  bars.y_label = "filters";
  for (size_t layer = 0; layer + 1 < masks.starts.size(); ++layer)
    bars.categories.push_back(fmt::format("{}", layer + 1));
  // The first image of each of the first three classes that come up.
  std::vector<int64_t> classes;
  for (int64_t i = 0; i < masks.labels.size(0) && classes.size() < 3; ++i) {
    const auto label = masks.labels[i].item<int64_t>();
    if (std::count(classes.begin(), classes.end(), label) > 0) continue;
    classes.push_back(label);
    Series series{.name = data_.labels[size_t(label)]};
    for (size_t layer = 0; layer + 1 < masks.starts.size(); ++layer) {
      const auto begin = int64_t(masks.starts[layer]), end = int64_t(masks.starts[layer + 1]);
      series.y.push_back(masks.masks[i].narrow(0, begin, end - begin).sum().item<double>());
    }
    bars.series.push_back(std::move(series));
  }
  run_.report.figures.push_back({"filters", std::move(bars)});
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
      "cut_R, accuracy_R: MACs left out and test accuracy, in percent, with the label's mass at "
      "R%; "
      "cut and accuracy: at the mildest mass whose preview leaves out half; accuracy_deepest: at "
      "the last mass; agreement: the least of all masses for ftwt, at the last one for controls; "
      "estimate_error: largest of all masses, percent of what was measured; jaccard_excess: "
      "distance of masks between classes over that within one, minus 1");
}

const bool registered = register_recipe("fire-together-wire-together", run);

}  // namespace
}  // namespace sluice::recipes::fire_together
