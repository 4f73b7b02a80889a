// S057 sortednet: many nested networks in one training (SortedNet, arXiv 2309.00255). One run
// trains, on the same data, batches and seeds: the nested network with sizes drawn at random for
// every update, the whole network alone (then sliced), networks of four of the sizes one by one,
// and the control whose sub-networks are random units instead of the leading ones.
#include "recipes/recipe.h"

#include <algorithm>
#include <cmath>

#include "recipes/elastic/sortednet/study.h"
#include "sluice/base/json.h"
#include "sluice/base/machine.h"

namespace sluice::recipes::sortednet {
namespace {

std::vector<double> ranks(const std::vector<double>& values) {
  std::vector<double> result;
  for (const double value : values) {
    double below = 0, same = 0;
    for (const double other : values) {
      below += other < value ? 1 : 0;
      same += other == value ? 1 : 0;
    }
    result.push_back(below + (same - 1) / 2);  // of equal ones: their mean
  }
  return result;
}

/// Rank correlation of cost and accuracy; 0 where all are equal.
double spearman(const std::vector<Point>& points) {
  std::vector<double> macs, accuracy;
  for (const Point& point : points) {
    macs.push_back(point.macs);
    accuracy.push_back(point.accuracy);
  }
  const auto a = ranks(macs), b = ranks(accuracy);
  const double middle = mean(a);
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - middle) * (b[i] - middle);
    aa += (a[i] - middle) * (a[i] - middle);
    bb += (b[i] - middle) * (b[i] - middle);
  }
  return aa * bb == 0 ? 0 : ab / std::sqrt(aa * bb);
}

const Point& find(const std::vector<Point>& points, const std::string& name) {
  for (const Point& point : points)
    if (point.name == name) return point;
  fail(Code::missing, "sortednet: no size '{}' was measured", name);
}

/// The sizes of full depth, narrowest first: the strict chain.
std::vector<Point> chain_of(const Plan& plan, const std::vector<Point>& points) {
  std::vector<Point> chain;
  for (size_t level = 0; level < plan.space.widths.size(); ++level) {
    lab::Subnet subnet = plan.space.full();
    subnet.levels.assign(plan.space.knobs.size(), static_cast<int64_t>(level));
    chain.push_back(find(points, plan.space.encode(subnet)));
  }
  return chain;
}

double mean_accuracy(const std::vector<Point>& points) {
  std::vector<double> values;
  for (const Point& point : points) values.push_back(point.accuracy);
  return mean(values);
}

void record(Report& report, const Plan& plan, const std::string& arm, const std::string& role,
            const std::vector<Point>& points) {
  const Point& whole = points.back();
  double worst = 100;
  for (const Point& point : points) {
    report.add(arm, role, "accuracy_" + point.name, point.accuracy);
    if (point.macs > 0.15 * whole.macs)
      worst = std::min(worst, 100 * point.accuracy / whole.accuracy);
  }
  const auto chain = chain_of(plan, points);
  report.add(arm, role, "accuracy_full", whole.accuracy);
  report.add(arm, role, "accuracy_chain", mean_accuracy(chain));
  report.add(arm, role, "accuracy_mean", mean_accuracy(points));
  report.add(arm, role, "worst_share", worst);
  report.add(arm, role, "spearman", spearman(points));
  for (size_t level = 0; level < chain.size(); ++level) {
    if (plan.space.widths[level] == 0.5)
      report.add(arm, role, "accuracy_half", chain[level].accuracy);
  }
}

Figure scatter(const Study& study) {
  Figure figure;
  figure.title = "Accuracy of every sub-network";
  figure.x_label = "MACs per image";
  figure.y_label = "test accuracy, %";
  figure.log_x = true;
  const auto add = [&](const std::string& name, const std::vector<Point>& points) {
    Series series{.name = name, .points = true};
    for (const Point& point : points) {
      series.x.push_back(point.macs);
      series.y.push_back(point.accuracy);
    }
    figure.series.push_back(std::move(series));
  };
  add("SortedNet", study.arms.at("sortednet"));
  add("trained separately", study.separate);
  add("random subsets", study.arms.at("random-subsets"));
  add("whole network, sliced", study.arms.at("full-only"));
  return figure;
}

void run(RecipeRun& run) {
  const Plan plan = read_plan(run.settings);
  data::LoadOptions load;
  load.train_limit = plan.train_limit;
  load.test_limit = plan.test_limit;
  const auto data = data::load_image_set(plan.data, load);
  run.report.data.push_back(fmt::format("{}: {} training, {} test images", plan.data,
                                        data.train.count(), data.test.count()));
  for (const uint64_t seed : run.seeds) {
    const Study study = run_study(plan, data, seed, run.options.device, run.options.work_directory);
    Report& report = run.report;
    record(report, plan, "sortednet", "system", study.arms.at("sortednet"));
    report.add("full-only", "baseline", "accuracy_full",
               study.arms.at("full-only").back().accuracy);
    report.add("separate", "baseline", "accuracy_chain", mean_accuracy(study.separate));
    for (const Point& point : study.separate)
      report.add("separate", "baseline", "accuracy_" + point.name, point.accuracy);
    if (plan.sandwich) record(report, plan, "sandwich", "baseline", study.arms.at("sandwich"));
    record(report, plan, "full-only-sliced", "control", study.arms.at("full-only"));
    record(report, plan, "random-subsets", "control", study.arms.at("random-subsets"));
    if (seed == run.seeds.front()) {
      for (const Point& point : study.arms.at("sortednet"))
        report.add("sortednet", "system", "macs_" + point.name, point.macs);
      report.figures.push_back({"accuracy", scatter(study)});
      measure_engine(run, study, data);
    }
  }
  run.report.notes.push_back(
      "accuracies: percent of the test split, at the last step; no size is chosen by them");
  run.report.notes.push_back(
      "worst_share: lowest accuracy among the sizes above 15% of the MACs, in percent of the whole "
      "network's; spearman: rank correlation of MACs and accuracy over all sizes; accuracy_chain: "
      "mean over the widths at full depth");
  run.report.notes.push_back(
      "every size of every arm has batch norm statistics of its own, measured on training images");
}

const bool registered = register_recipe("sortednet", run);

}  // namespace
}  // namespace sluice::recipes::sortednet
