// S012 lottery-ticket: iterative magnitude pruning with rewind (Frankle & Carbin 2019, arXiv
// 1803.03635; late rewinding: arXiv 1912.05671). One run trains, on the same data and seeds: the
// rounds of iterative pruning (round 0 is the dense baseline), one-shot pruning to the same
// densities, and two controls, the ticket's mask with re-drawn weights and a shuffled mask with the
// original ones.
#include "recipes/recipe.h"

#include <torch/types.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "recipes/elastic/lottery-ticket/latency.h"
#include "recipes/elastic/lottery-ticket/plan.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/machine.h"
#include "sluice/base/origin.h"
#include "sluice/base/progress.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/train/iterative_prune.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::lottery_ticket {
namespace {

/// One arm's numbers at one density, of one seed.
struct Point {
  double density = 1, accuracy = 0, final_accuracy = 0, validation_accuracy = 0, steps = 0;

  Json json() const {
    return {{"density", density},
            {"accuracy", accuracy},
            {"final_accuracy", final_accuracy},
            {"validation_accuracy", validation_accuracy},
            {"steps", steps}};
  }
  static Point from(const Json& j) {
    auto value = [&](const char* key) { return json_get<double>(j, key, "lottery-ticket state"); };
    return {value("density"), value("accuracy"), value("final_accuracy"),
            value("validation_accuracy"), value("steps")};
  }
};

/// Rounds (or levels) of one arm, per seed.
using Curve = std::map<int64_t, std::vector<Point>>;

struct Feeds {
  lab::Feed train, validation, test;
};

class Study {
 public:
  Study(RecipeRun& run, const Plan& plan, const data::ImageSet& data)
      : run_(run),
        plan_(plan),
        data_(data),
        progress_("lottery-ticket",
                  int64_t(run.seeds.size()) * (plan.rounds + 2 + 3 * int64_t(plan.levels.size())),
                  "trainings") {}

  void run_seed(uint64_t seed);
  Curve& curve(const std::string& arm) { return curves_[arm]; }
  void finish() { progress_.finish(); }

 private:
  Point train_masked(lab::Model& model, const lab::MaskSet& masks, uint64_t seed,
                     int64_t first_step, int64_t epochs, Feeds& feeds,
                     const std::function<void()>& at_rewind_step = {});

  RecipeRun& run_;
  const Plan& plan_;
  const data::ImageSet& data_;
  std::map<std::string, Curve> curves_;
  Progress progress_;
  int64_t trainings_ = 0;
};

/// Trains `model`, whose masked weights are zero, with a fresh optimizer. Accuracy is that of the
/// parameters with the lowest validation loss (the paper's early stopping); the model ends with the
/// last step's parameters, which pruning looks at. `first_step` > 0: a rewound network trains for
/// the rest of the steps.
Point Study::train_masked(lab::Model& model, const lab::MaskSet& masks, uint64_t seed,
                          int64_t first_step, int64_t epochs, Feeds& feeds,
                          const std::function<void()>& at_rewind_step) {
  lab::TrainOptions options = plan_.train;
  options.seed = seed;
  options.steps = epochs * feeds.train.batches_per_epoch(options.batch) - first_step;
  if (options.steps < 1) fail(Code::config, "rewind_step {} leaves no step to train", first_step);
  lab::TrainHooks hooks;
  hooks.after_backward = [&](int64_t) { masks.apply_to_gradients(*model.root); };
  hooks.after_step = [&](int64_t) { masks.apply(*model.root); };
  lab::Trainer trainer(model, feeds.train, options, hooks);

  Point point;
  point.density = masks.density();
  double lowest = std::numeric_limits<double>::infinity();
  lab::Snapshots stopped;
  if (at_rewind_step && plan_.rewind_step > 0) {
    trainer.run(plan_.rewind_step);
    at_rewind_step();
  }
  while (trainer.step() < options.steps) {
    // Multiples of validate_every, counted from the first step of the unrewound run.
    const int64_t total = trainer.step() + first_step;
    trainer.run((total / plan_.validate_every + 1) * plan_.validate_every - first_step);
    const auto validation = lab::evaluate(model, feeds.validation, false, 1000);
    if (validation.loss < lowest) {
      lowest = validation.loss;
      point.steps = static_cast<double>(trainer.step() + first_step);
      point.validation_accuracy = 100 * validation.accuracy;
      stopped.take("best", *model.root);
    }
  }
  for (const auto& [path, mask] : masks.masks()) {
    for (const auto& item : model.root->named_parameters())
      if (item.key() == path)
        SLUICE_CHECK((item.value().detach() * (1 - mask)).abs().sum().item<double>() == 0);
  }
  point.final_accuracy = 100 * lab::evaluate(model, feeds.test, false, 1000).accuracy;
  lab::Snapshots last;
  last.take("last", *model.root);
  stopped.restore("best", *model.root);
  point.accuracy = 100 * lab::evaluate(model, feeds.test, false, 1000).accuracy;
  last.restore("last", *model.root);
  progress_.update(++trainings_);
  return point;
}

void Study::run_seed(uint64_t seed) {
  const auto device = run_.options.device;
  auto [rest, validation] =
      data::split_validation(data_.train, plan_.validation, derive_seed(seed, "validation"));
  Feeds feeds{{rest, data_.mean, data_.std, device},
              {validation, data_.mean, data_.std, device},
              {data_.test, data_.mean, data_.std, device}};
  auto model = make_network(plan_, data_, derive_seed(seed, "init"));
  model.root->to(device);

  lab::IterativePruneOptions options;
  options.rounds = plan_.rounds;
  options.rates = plan_.rates;
  options.rewind_to = plan_.rewind_step > 0 ? "late" : "init";
  options.fingerprint = fmt::format("seed {} commit {} device {} {}", seed, build_commit(),
                                    device.str(), run_.settings.dump());
  // Only a killed run of exactly this kind is continued; a finished one removes the file.
  options.state_file = (std::filesystem::path(run_.options.work_directory) /
                        fmt::format("iterative-prune-{:016x}.safetensors",
                                    xxhash64(std::as_bytes(std::span(options.fingerprint)))))
                           .string();
  lab::Snapshots snapshots;
  const auto rounds = lab::iterative_prune(
      model, options,
      [&](lab::Model& m, const lab::MaskSet& masks, int64_t round, lab::Snapshots& taken) {
        const int64_t first = round > 0 ? plan_.rewind_step : 0;
        std::function<void()> at_rewind;
        if (round == 0) at_rewind = [&] { taken.take("late", *m.root); };
        const auto point = train_masked(m, masks, derive_seed(seed, "ticket", uint64_t(round)),
                                        first, plan_.epochs, feeds, at_rewind);
        if (round == 0) taken.take("trained", *m.root);
        if (round == plan_.levels.back().round) taken.take("smallest", *m.root);
        return point.json();
      },
      snapshots);
  for (const auto& round : rounds)
    curves_["ticket"][round.round].push_back(Point::from(round.result));
  curves_["dense"][0].push_back(Point::from(rounds[0].result));

  // One-shot pruning looks at the dense network as trained, as the first round did.
  auto dense = lab::clone(model);
  snapshots.restore("trained", *dense.root);
  const auto all = lab::full_masks(*dense.root, plan_.rates);

  // A ticket's mask has seen many trainings: is what it gains over dense more than a longer
  // training gives?
  auto longer = lab::clone(model);
  snapshots.restore("init", *longer.root);
  curves_["dense-long"][0].push_back(
      train_masked(longer, all, derive_seed(seed, "dense-long"), 0, plan_.long_epochs, feeds));

  for (const auto& level : plan_.levels) {
    const auto index = static_cast<uint64_t>(level.round);
    const auto& ticket = rounds[index].masks;
    auto once = plan_.rates;
    for (auto& [pattern, rate] : once.rates) rate = 1 - std::pow(1 - rate, double(level.round));
    const auto one_shot =
        lab::prune_masks(*dense.root, all, once, lab::magnitude_score(), lab::PruneScope::layer);

    auto train_arm = [&](const std::string& arm, const lab::MaskSet& masks, bool redraw) {
      auto network = lab::clone(model);
      if (redraw) {
        lab::initialize(*network.root, "glorot_normal", derive_seed(seed, "reinit", index));
      } else {
        snapshots.restore(options.rewind_to, *network.root);
      }
      masks.apply(*network.root);
      // Re-drawn weights have no step to be rewound to: they train for all steps.
      curves_[arm][level.round].push_back(
          train_masked(network, masks, derive_seed(seed, arm, index),
                       redraw ? 0 : plan_.rewind_step, plan_.epochs, feeds));
    };
    train_arm("one-shot", one_shot, false);
    train_arm("random-reinit", ticket, true);
    train_arm("shuffled-mask", lab::shuffle_masks(ticket, derive_seed(seed, "shuffle", index)),
              false);
  }

  if (seed == run_.seeds.front()) {
    snapshots.restore("smallest", *model.root);
    measure_latency(run_, dense, model, plan_.levels.back().name);
  }
  std::filesystem::remove(options.state_file);
}

const char* role_of(const std::string& arm) {
  if (arm == "ticket") return "system";
  return arm == "dense" || arm == "dense-long" || arm == "one-shot" ? "baseline" : "control";
}

std::vector<double> column(const std::vector<Point>& points, double Point::*field) {
  std::vector<double> out;
  for (const auto& point : points) out.push_back(point.*field);
  return out;
}

double mean_of(const std::vector<Point>& points, double Point::*field) {
  return mean(column(points, field));
}

/// The density with the best validation accuracy (mean over seeds, never test data) and what it
/// gains over dense: the larger of points / 0.1 and share of steps saved / 0.1, both from means
/// over seeds.
void record_best(Report& report, const std::string& arm, const Curve& curve,
                 const std::vector<Point>& dense) {
  const std::vector<Point>* best = nullptr;
  for (const auto& [round, points] : curve)
    if (round > 0 && (best == nullptr || mean_of(points, &Point::validation_accuracy) >
                                             mean_of(*best, &Point::validation_accuracy)))
      best = &points;
  for (const auto& point : *best) {
    report.add(arm, role_of(arm), "accuracy_best", point.accuracy);
    report.add(arm, role_of(arm), "steps_best", point.steps);
    report.add(arm, role_of(arm), "density_best", point.density);
  }
  const double points = mean_of(*best, &Point::accuracy) - mean_of(dense, &Point::accuracy);
  const double saved = 1 - mean_of(*best, &Point::steps) / mean_of(dense, &Point::steps);
  report.add(arm, role_of(arm), "c_gain", std::max(points / 0.1, saved / 0.1));
}

void record(Report& report, const Plan& plan, Study& study) {
  const auto& dense = study.curve("dense").at(0);
  for (const std::string arm : {"dense", "dense-long"}) {
    for (const auto& point : study.curve(arm).at(0)) {
      report.add(arm, role_of(arm), "accuracy", point.accuracy);
      report.add(arm, role_of(arm), "final_accuracy", point.final_accuracy);
      report.add(arm, role_of(arm), "error", 100 - point.accuracy);
      report.add(arm, role_of(arm), "steps", point.steps);
    }
  }
  for (const std::string arm : {"ticket", "one-shot", "random-reinit", "shuffled-mask"}) {
    for (const auto& [round, points] : study.curve(arm)) {
      const auto* level = plan.level_of(round);
      if (level == nullptr) continue;
      for (const auto& point : points) {
        auto add = [&](const char* metric, double value) {
          report.add(arm, role_of(arm), fmt::format("{}_at_{}", metric, level->name), value);
        };
        add("accuracy", point.accuracy);
        add("final_accuracy", point.final_accuracy);
        add("error", 100 - point.accuracy);
        add("density", point.density);
        add("steps", point.steps);
      }
    }
    record_best(report, arm, study.curve(arm), dense);
  }
}

Series series(const std::string& name, const Curve& curve, double Point::*field) {
  Series out;
  out.name = name;
  for (const auto& [round, points] : curve) {
    const auto values = column(points, field);
    const double middle = mean(values), spread = stddev(values);
    out.x.push_back(100 * mean_of(points, &Point::density));
    out.y.push_back(middle);
    if (points.size() > 1) {
      out.low.push_back(middle - spread);
      out.high.push_back(middle + spread);
    }
  }
  return out;
}

Figure figure(Study& study, const std::string& title, const std::string& y_label,
              double Point::*field) {
  Figure out;
  out.title = title;
  out.x_label = "weights left, %";
  out.y_label = y_label;
  out.log_x = true;
  for (const std::string arm : {"ticket", "one-shot", "random-reinit", "shuffled-mask"})
    out.series.push_back(series(arm, study.curve(arm), field));
  const double left = out.series[0].x.back();
  for (const std::string arm : {"dense", "dense-long"}) {
    if (arm == "dense-long" && field == &Point::steps) continue;  // another length: off the scale
    const double middle = mean_of(study.curve(arm).at(0), field);
    out.series.push_back({arm, {left, 100}, {middle, middle}, {}, {}});
  }
  return out;
}

void run(RecipeRun& run) {
  const Plan plan = read_plan(run.settings);
  const std::string name = json_get<std::string>(run.settings, "data", plan.what);
  data::LoadOptions load;
  load.train_limit = json_get_or<int64_t>(run.settings, "train_limit", 0, plan.what);
  load.test_limit = json_get_or<int64_t>(run.settings, "test_limit", 0, plan.what);
  const auto data = data::load_image_set(name, load);
  run.report.data.push_back(
      fmt::format("{}: {} training (of which {:.0f}% validation), {} test images", name,
                  data.train.count(), 100 * plan.validation, data.test.count()));

  Study study(run, plan, data);
  for (const uint64_t seed : run.seeds) study.run_seed(seed);
  study.finish();
  record(run.report, plan, study);
  run.report.figures.push_back({"accuracy", figure(study, "Accuracy against weights left",
                                                   "test accuracy, %", &Point::accuracy)});
  run.report.figures.push_back(
      {"steps", figure(study, "Steps to the lowest validation loss", "steps", &Point::steps)});
  run.report.notes.push_back(
      "accuracy: test accuracy in percent of the parameters with the lowest validation loss; "
      "final_accuracy: after the "
      "last step; the validation split is cut from the training data");
  run.report.notes.push_back(
      fmt::format("dense-long: the dense network trained for {} epochs instead of {}",
                  plan.long_epochs, plan.epochs));
  run.report.notes.push_back(
      "_best: the density with the best mean validation accuracy; c_gain: the larger of (points "
      "above dense / 0.1) and "
      "(share of steps saved / 0.1), from means over seeds");
}

const bool registered = register_recipe("lottery-ticket", run);

}  // namespace
}  // namespace sluice::recipes::lottery_ticket
