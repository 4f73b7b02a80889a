// S102 stitchable-networks: trained networks of several sizes made one that runs at every size in
// between (SN-Net, arXiv 2302.06586). One run trains the anchors, stitches them with least-squares
// maps and with random ones, and as a control stitches anchors whose blocks are out of order; all
// are trained on over the same paths and batches.
#include "recipes/recipe.h"

#include <algorithm>

#include "recipes/elastic/stitchable-networks/study.h"
#include "sluice/base/machine.h"

namespace sluice::recipes::stitchable_networks {
namespace {

/// Between which anchors a path's cost lies, and how far: 0 at the smaller, 1 at the larger. Some
/// paths cost more than the larger one.
struct Place {
  const Point *small, *large;
  double along;
};

Place place_of(const Point& point, const std::vector<Point>& anchors) {
  const auto from = static_cast<size_t>(point.name[1] - '0');  // "a0b2-a1b3"
  const Point &small = anchors.at(from), &large = anchors.at(from + 1);
  return {&small, &large, (point.macs - small.macs) / (large.macs - small.macs)};
}

Points stitched_points(const Points& points) {
  Points result;
  for (const Point& point : points)
    if (is_stitched(point.name)) result.push_back(point);
  return result;
}

double mean_accuracy(const Points& points) {
  std::vector<double> values;
  for (const Point& point : points) values.push_back(point.accuracy);
  return mean(values);
}

/// Percent of the stitched paths that are at most `slack` points below the line between the two
/// anchors, as these were trained alone; beyond the larger one the line is level.
double share_on_line(const Points& points, const std::vector<Point>& anchors, double slack) {
  int64_t good = 0;
  for (const Point& point : points) {
    const Place at = place_of(point, anchors);
    const double t = std::clamp(at.along, 0.0, 1.0);
    const double line = at.small->accuracy + t * (at.large->accuracy - at.small->accuracy);
    good += point.accuracy >= line - slack ? 1 : 0;
  }
  return 100.0 * double(good) / double(points.size());
}

/// The most of the accuracy between two anchors, in percent, that a path gains within half of the
/// MACs between them. 0 where the larger anchor is not better.
double best_half_way(const Points& points, const std::vector<Point>& anchors) {
  double best = 0;
  for (const Point& point : points) {
    const Place at = place_of(point, anchors);
    const double gap = at.large->accuracy - at.small->accuracy;
    if (at.along > 0.5 || gap <= 0) continue;
    best = std::max(best, 100 * (point.accuracy - at.small->accuracy) / gap);
  }
  return best;
}

/// The largest loss of accuracy of an anchor, as a negative number of points.
double worst_anchor_change(const Points& points, const std::vector<Point>& anchors) {
  double worst = 0;
  bool first = true;
  for (const Point& point : points) {
    if (is_stitched(point.name)) continue;
    const auto index = static_cast<size_t>(point.name[1] - '0');
    const double change = point.accuracy - anchors.at(index).accuracy;
    worst = first ? change : std::min(worst, change);
    first = false;
  }
  return worst;
}

void record(Report& report, const Study& study, const Family& family) {
  const auto& anchors = study.anchors;
  for (const Point& anchor : anchors) {
    report.add(family.prefix + "anchors", "baseline", "accuracy_" + anchor.name, anchor.accuracy);
    report.add(family.prefix + "anchors", "baseline", "macs_" + anchor.name, anchor.macs);
  }
  const std::map<std::string, std::string> roles = {{"stitched", "system"},
                                                    {"stitched-untrained", "baseline"},
                                                    {"random-untrained", "baseline"},
                                                    {"random-init", "control"},
                                                    {"shuffled", "control"}};
  for (const auto& [arm, role] : roles) {
    const Points& all = study.arms.at(arm);
    const Points between = stitched_points(all);
    const auto add = [&](const std::string& metric, double value) {
      report.add(family.prefix + arm, role, metric, value);
    };
    add("accuracy_stitched", mean_accuracy(between));
    add("share_on_line", share_on_line(between, anchors, 0.5));
    add("best_half_way", best_half_way(between, anchors));
    add("worst_anchor_change", worst_anchor_change(all, anchors));
    for (const Point& point : all)
      if (!is_stitched(point.name)) add("accuracy_" + point.name, point.accuracy);
  }
}

Figure cloud(const Study& study) {
  Figure figure;
  figure.title = "Every path through the stitched network";
  figure.x_label = "MACs per image";
  figure.y_label = "test accuracy, %";
  figure.log_x = true;
  const auto add = [&](const std::string& name, const Points& points) {
    Series series{.name = name, .points = true};
    for (const Point& point : points) {
      series.x.push_back(point.macs);
      series.y.push_back(point.accuracy);
    }
    figure.series.push_back(std::move(series));
  };
  add("stitched, trained", stitched_points(study.arms.at("stitched")));
  add("stitched by least squares, not trained",
      stitched_points(study.arms.at("stitched-untrained")));
  add("stitched at random, trained", stitched_points(study.arms.at("random-init")));
  add("anchors alone", study.anchors);
  return figure;
}

Figure residuals(const Study& study) {
  Figure figure;
  figure.kind = Figure::Kind::bars;
  figure.title = "What the least-squares maps leave";
  figure.y_label = "share of the variance";
  figure.width = 1200;
  Series bars{.name = "residual"};
  for (const auto& [name, value] : study.residuals) {
    figure.categories.push_back(name);
    bars.y.push_back(value);
  }
  figure.series.push_back(std::move(bars));
  return figure;
}

void run(RecipeRun& run) {
  const Plan plan = read_plan(run.settings);
  const auto data = data::load_image_set(plan.data, plan.load);
  run.report.data.push_back(fmt::format("{}: {} training, {} test images", plan.data,
                                        data.train.count(), data.test.count()));
  for (const uint64_t seed : run.seeds) {
    for (const Family& family : plan.families) {
      const Study study =
          run_study(plan, family, data, seed, run.options.device, run.options.work_directory);
      record(run.report, study, family);
      if (seed != run.seeds.front()) continue;
      const std::string arm = family.prefix + "stitched";
      for (size_t i = 0; i < study.stitched.sizes.size(); ++i) {
        const Point& point = study.arms.at("stitched")[i];
        run.report.add(arm, "system", "path_accuracy_" + point.name, point.accuracy);
        run.report.add(arm, "system", "path_macs_" + point.name, point.macs);
      }
      run.report.figures.push_back({family.prefix + "paths", cloud(study)});
      run.report.figures.push_back({family.prefix + "residuals", residuals(study)});
      measure_engine(run, study.stitched, data, arm);
    }
  }
  run.report.notes.emplace_back(
      "a0b2-a1b3: out of block 2 of anchor 0 into block 3 of anchor 1 (counted from 0); "
      "accuracies: "
      "percent of the test split after the last step, no path is chosen by them; path_*: first "
      "seed");
  run.report.notes.emplace_back(
      "share_on_line: percent of the stitched paths at most 0.5 points below the line (in MACs) "
      "between their anchors as trained alone, level beyond the larger one; best_half_way: the "
      "most of the accuracy between two anchors, in percent, that a path has within half of the "
      "MACs between them; worst_anchor_change: points that an anchor gained or, below 0, lost");
  run.report.notes.emplace_back(
      "us_batch*: microseconds per image in the engine, one thread, first seed, median of 15 "
      "interleaved rounds; all paths run in one session from one file");
}

const bool registered = register_recipe("stitchable-networks", run);

}  // namespace
}  // namespace sluice::recipes::stitchable_networks
