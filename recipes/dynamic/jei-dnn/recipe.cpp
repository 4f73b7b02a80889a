// S005 jei-dnn: exits and exit gates trained together (JEI-DNN, arXiv 2310.09163), on a frozen
// residual network; against thresholds on confidence and entropy over the same network, with
// heads trained once for all samples.
#include "recipes/recipe.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "recipes/dynamic/jei-dnn/speed.h"
#include "recipes/dynamic/jei-dnn/study.h"
#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/lab/inspect/calibration.h"

namespace sluice::recipes::jei_dnn {
namespace {

const std::string kMax = "max-probability", kEntropy = "entropy";

/// Everything of one seed.
class Study {
 public:
  Study(RecipeRun& run, const Plan& plan, const data::ImageSet& data, uint64_t seed)
      : run_(run), plan_(plan), data_(data), seed_(seed), device_(run.options.device) {
    const Splits splits = split(plan, data, seed);
    backbone_ = train_backbone(plan, data, splits.train, seed, device_);
    train_ = make_features(plan, backbone_, data, splits.train, device_);
    validation_ = make_features(plan, backbone_, data, splits.validation, device_);
    test_ = make_features(plan, backbone_, data, data.test, device_);
    warm_ = fresh_heads(train_, derive_seed(seed, "heads"));
    const Gates gates = fresh_gates(warm_.size(), seed, device_);
    cost_ = exit_costs(backbone_, make_chain(backbone_, warm_, gates, "mass"));
    warm_up(plan, train_, validation_, warm_, seed);
  }

  void run();

 private:
  struct Trained {
    Joint joint;
    double expected_cost;  ///< on validation data
    Outcome test;
  };
  Trained train(const JointOptions& options) {
    Trained result;
    result.joint = train_jointly(plan_, train_, validation_, warm_, cost_, options, seed_);
    const auto chosen = [&](const Features& features) {
      const Answers said = answers(features, result.joint.heads, cost_);
      return outcome(said, lab::chosen_exit(gate_values(said, result.joint.gates)));
    };
    result.expected_cost = chosen(validation_).cost;
    result.test = chosen(test_);
    return result;
  }
  /// The heads of the warm-up with thresholds that cost as much on validation data.
  Outcome thresholds(Score score, double cost, std::vector<double>* fitted = nullptr) const {
    const auto found = fit_thresholds(answers(validation_, warm_, cost_), score, cost);
    if (fitted != nullptr) *fitted = found;
    const Answers said = answers(test_, warm_, cost_);
    return outcome(said, by_threshold(scores_of(said, score), found));
  }
  Outcome oracle(double lambda) const {
    const Answers said = answers(test_, warm_, cost_);
    return outcome(said, cheapest_exit(exit_losses(said), cost_, lambda));
  }
  Outcome random(double cost) const {
    const Answers said = answers(test_, warm_, cost_);
    return outcome(said, random_exits(test_.labels.size(0), cost_, cost, derive_seed(seed_, "exit"))
                             .to(test_.labels.device()));
  }
  std::vector<Trained> sweep();
  /// Metrics of an arm, beside what thresholds do at its cost.
  void record(const std::string& arm, const std::string& role, const Outcome& found,
              double expected_cost);
  void draw(const std::vector<Trained>& trained, const Trained& half);

  RecipeRun& run_;
  const Plan& plan_;
  const data::ImageSet& data_;
  uint64_t seed_;
  c10::Device device_;
  lab::Model backbone_;
  Features train_, validation_, test_;
  Heads warm_;
  std::vector<double> cost_;
  double full_accuracy_ = 0;
};

/// The five prices, then others between them (or beyond) until validation images cost the target.
std::vector<Study::Trained> Study::sweep() {
  std::vector<Trained> all;
  for (const double lambda : plan_.lambdas) all.push_back(train({.lambda = lambda}));
  for (int64_t i = 0; i < plan_.refine; ++i) {
    // Cost falls with the price: nearest above and below the target.
    const Trained *above = nullptr, *below = nullptr;
    for (const Trained& each : all) {
      if (each.expected_cost >= plan_.target_cost) {
        if (above == nullptr || each.expected_cost < above->expected_cost) above = &each;
      } else if (below == nullptr || each.expected_cost > below->expected_cost) {
        below = &each;
      }
    }
    double lambda;
    if (above == nullptr) {
      lambda = below->joint.lambda / 2;
    } else if (below == nullptr) {
      lambda = above->joint.lambda * 2;
    } else {
      const double share = (above->expected_cost - plan_.target_cost) /
                           (above->expected_cost - below->expected_cost);
      lambda = above->joint.lambda * std::pow(below->joint.lambda / above->joint.lambda, share);
    }
    all.push_back(train({.lambda = lambda}));
    if (std::abs(all.back().expected_cost - plan_.target_cost) <= 0.01) break;
  }
  return all;
}

void Study::record(const std::string& arm, const std::string& role, const Outcome& found,
                   double expected_cost) {
  const Outcome by_max = thresholds(Score::max_probability, expected_cost),
                by_entropy = thresholds(Score::entropy, expected_cost);
  Report& report = run_.report;
  report.add(arm, role, "accuracy", found.accuracy);
  report.add(arm, role, "cost", found.cost);
  report.add(arm, role, "brier", found.brier);
  report.add(arm, role, "early_ece", 100 * found.early_ece);
  report.add(arm, role, "gain_over_thresholds",
             found.accuracy - std::max(by_max.accuracy, by_entropy.accuracy));
  report.add(arm, role, "ece_of_thresholds",
             by_max.early_ece > 0 ? found.early_ece / by_max.early_ece : 1);
}

void Study::run() {
  Report& report = run_.report;
  const Answers said = answers(test_, warm_, cost_);
  const Outcome full =
      outcome(said, at::full_like(test_.labels, static_cast<int64_t>(cost_.size()) - 1));
  full_accuracy_ = full.accuracy;
  report.add("full", "baseline", "accuracy", full.accuracy);
  report.add("full", "baseline", "brier", full.brier);
  report.add("full", "baseline", "gain_over_thresholds", 0);
  for (size_t l = 0; l + 1 < cost_.size(); ++l) {
    const Outcome fixed = outcome(said, at::full_like(test_.labels, int64_t(l)));
    report.add("heads", "baseline", fmt::format("accuracy_exit{}", l + 1), fixed.accuracy);
    report.add("heads", "baseline", fmt::format("cost_exit{}", l + 1), cost_[l]);
  }

  const std::vector<Trained> trained = sweep();
  const Trained& half =
      *std::min_element(trained.begin(), trained.end(), [&](const Trained& a, const Trained& b) {
        return std::abs(a.expected_cost - plan_.target_cost) <
               std::abs(b.expected_cost - plan_.target_cost);
      });
  const double cost = half.expected_cost, lambda = half.joint.lambda;
  record("jei", "system", half.test, cost);
  report.add("jei", "system", "lambda", lambda);
  for (size_t l = 0; l < half.joint.mass.size(); ++l)
    report.add("jei", "system", fmt::format("mass_exit{}", l + 1), half.joint.mass[l]);

  std::vector<double> max_thresholds, entropy_thresholds;
  record(kMax, "baseline", thresholds(Score::max_probability, cost, &max_thresholds), cost);
  record(kEntropy, "baseline", thresholds(Score::entropy, cost, &entropy_thresholds), cost);
  record("random", "control", random(cost), cost);
  const Trained permuted = train({.lambda = lambda, .permuted = true});
  record("permuted-labels", "control", permuted.test, permuted.expected_cost);
  report.add("permuted-labels", "control", "over_random",
             permuted.test.accuracy - random(permuted.expected_cost).accuracy);
  const Trained unweighted = train({.lambda = lambda, .weighted = false});
  record("unweighted", "control", unweighted.test, unweighted.expected_cost);
  const Outcome oracle = this->oracle(lambda);
  report.add("oracle", "baseline", "accuracy", oracle.accuracy);
  report.add("oracle", "baseline", "cost", oracle.cost);

  if (seed_ != run_.seeds.front()) return;
  const auto chain = [&](const Heads& heads, const Gates& gates, const char* rule) {
    return make_chain(backbone_, heads, gates, rule);
  };
  const std::vector<Deployed> deployed = {
      {"jei", "system", chain(half.joint.heads, half.joint.gates, "mass"), cost},
      {kMax, "baseline",
       chain(warm_, threshold_gates(Score::max_probability, max_thresholds), "threshold"), cost},
      {kEntropy, "baseline",
       chain(warm_, threshold_gates(Score::entropy, entropy_thresholds), "threshold"), cost}};
  measure(run_, backbone_, deployed, data_);
  draw(trained, half);
}

Series reliability_line(const std::string& name, const Outcome& found, int64_t exit) {
  const at::Tensor here = (found.chosen == exit).nonzero().select(-1, 0);
  Series series{.name = name};
  for (const auto& bin : lab::reliability(found.confidence.index_select(0, here),
                                          found.right.index_select(0, here))) {
    series.x.push_back(bin.confidence);
    series.y.push_back(bin.accuracy);
  }
  return series;
}

void Study::draw(const std::vector<Trained>& unordered, const Trained& half) {
  std::vector<Trained> trained = unordered;
  std::sort(trained.begin(), trained.end(),
            [](const Trained& a, const Trained& b) { return a.joint.lambda < b.joint.lambda; });
  Figure curve;
  curve.title = "Accuracy over cost";
  curve.x_label = "mean cost, share of the whole network";
  curve.y_label = "test accuracy, %";
  Series jei{"JEI"}, by_max{"max probability"}, by_entropy{"entropy"}, by_chance{"random exits"},
      best{"oracle (sees the label)"};
  const auto add = [](Series& series, const Outcome& found) {
    series.x.push_back(found.cost);
    series.y.push_back(found.accuracy);
  };
  for (const Trained& each : trained) {
    add(jei, each.test);
    add(by_max, thresholds(Score::max_probability, each.expected_cost));
    add(by_entropy, thresholds(Score::entropy, each.expected_cost));
    add(by_chance, random(each.expected_cost));
    add(best, oracle(each.joint.lambda));
  }
  curve.series = {jei, by_max, by_entropy, by_chance, best};
  curve.series.push_back(
      {.name = "whole network", .x = {1.0}, .y = {full_accuracy_}, .points = true});
  run_.report.figures.push_back({"accuracy-cost", std::move(curve)});

  Figure shares;
  shares.kind = Figure::Kind::bars;
  shares.title = "Who leaves where";
  shares.x_label = "lambda";
  shares.y_label = "share of the test images that has left, %";
  for (const Trained& each : trained)
    shares.categories.push_back(fmt::format("{:.2g}", each.joint.lambda));
  for (size_t l = 0; l < cost_.size(); ++l) {
    Series series{.name = fmt::format("by exit {}", l + 1)};
    for (const Trained& each : trained) {
      double left = 0;
      for (size_t k = 0; k <= l; ++k) left += each.test.shares[k];
      series.y.push_back(100 * left);
    }
    shares.series.push_back(std::move(series));
  }
  run_.report.figures.push_back({"shares", std::move(shares)});

  Figure diagram;
  diagram.title = "Reliability of the answers given at exit 2";
  diagram.x_label = "confidence";
  diagram.y_label = "share that is right";
  diagram.series.push_back({.name = "as confident as right", .x = {0, 1}, .y = {0, 1}});
  const auto line = [&](const char* name, const Outcome& found) {
    Series series = reliability_line(name, found, 1);
    if (!series.x.empty()) diagram.series.push_back(std::move(series));
  };
  line("max probability", thresholds(Score::max_probability, half.expected_cost));
  line("JEI", half.test);
  run_.report.figures.push_back({"reliability", std::move(diagram)});
}

void run(RecipeRun& run) {
  const Plan plan = read_plan(run.settings);
  const auto data = data::load_image_set(plan.data, plan.load);
  run.report.data.push_back(fmt::format("{}: {} training, {} test images", plan.data,
                                        data.train.count(), data.test.count()));
  for (const uint64_t seed : run.seeds) Study(run, plan, data, seed).run();
  run.report.notes.push_back(
      "cost: mean MACs per test image, heads and gates included, in shares of the network without "
      "exits; lambda and thresholds are chosen on validation images cut from the training split");
  run.report.notes.push_back(
      "early_ece: expected calibration error in percent of the answers given before the last exit, "
      "15 bins of equal count; ece_of_thresholds: in shares of that of max-probability thresholds "
      "at the arm's own validation cost; gain_over_thresholds: points of accuracy above the better "
      "of both threshold rules at that cost");
  run.report.notes.push_back(
      "metered_cost: the first seed's network, in the engine where there is one");
}

const bool registered = register_recipe("jei-dnn", run);

}  // namespace
}  // namespace sluice::recipes::jei_dnn
