// S104 vanillanet: trained deep, deployed shallow (VanillaNet, arXiv 2305.12972). Pairs of layers
// whose activation fades to the identity while training, then batch norms and pairs folded; against
// the deployed form trained as it is, a linear pair, plain relus, and a residual network.
#include "recipes/recipe.h"

#include <algorithm>
#include <cmath>

#include "recipes/elastic/vanillanet/latency.h"
#include "recipes/elastic/vanillanet/network.h"
#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/fading.h"
#include "sluice/lab/model/whole_floats.h"
#include "sluice/lab/pass/pass.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::vanillanet {
namespace {

const std::string kWhat = "recipe.toml";

struct Plan {
  std::string data;
  data::LoadOptions load;
  Layout layout;
  std::vector<int64_t> resnet_widths;
  int64_t resnet_blocks, epochs, fade_epochs;
  lab::TrainOptions train;
};

Plan read_plan(const Json& settings) {
  json_require_known_keys(settings,
                          {"data", "train_limit", "test_limit", "widths", "strides", "series",
                           "stem_stride", "resnet_widths", "resnet_blocks", "epochs", "fade_epochs",
                           "batch", "rate", "weight_decay", "seeds"},
                          kWhat);
  const auto integer = [&](const char* key) { return json_get<int64_t>(settings, key, kWhat); };
  const auto integers = [&](const char* key) {
    return json_get<std::vector<int64_t>>(settings, key, kWhat);
  };
  Plan plan;
  plan.data = json_get<std::string>(settings, "data", kWhat);
  plan.load.train_limit = json_get_or<int64_t>(settings, "train_limit", 0, kWhat);
  plan.load.test_limit = json_get_or<int64_t>(settings, "test_limit", 0, kWhat);
  plan.layout = {integers("widths"), integers("strides"), integer("series"),
                 integer("stem_stride")};
  plan.resnet_widths = integers("resnet_widths");
  plan.resnet_blocks = integer("resnet_blocks");
  plan.epochs = integer("epochs");
  plan.fade_epochs = integer("fade_epochs");
  if (plan.fade_epochs < 1 || plan.fade_epochs > plan.epochs) {
    fail(Code::config, "{}: fade_epochs = {}; expected 1 to the {} epochs", kWhat, plan.fade_epochs,
         plan.epochs);
  }
  plan.train.batch = integer("batch");
  plan.train.optimizer.kind = "adamw";
  plan.train.optimizer.rate = json_get<double>(settings, "rate", kWhat);
  plan.train.optimizer.weight_decay = json_get<double>(settings, "weight_decay", kWhat);
  return plan;
}

lab::PassInput options_of(Json options) {
  lab::PassInput input;
  input.options = std::move(options);
  return input;
}

lab::Model folded(const lab::Model& model, const std::string& fading = "faded") {
  const lab::Model norms = lab::run_pass(model, "fold-norm", options_of(Json::object()));
  return lab::run_pass(norms, "fold-linear", options_of({{"fading", fading}}));
}

/// Accuracy on test images over the epochs, with the share of the activation that has faded.
struct Curve {
  std::vector<double> epochs, accuracy, fade;
};

class Study {
 public:
  Study(RecipeRun& run, const Plan& plan, const data::ImageSet& data)
      : run_(run),
        plan_(plan),
        data_(data),
        train_(data.train, data.mean, data.std, run.options.device),
        test_(data.test, data.mean, data.std, run.options.device) {}

  /// `fade`: the amount at a step; unset: the network has nothing that fades.
  lab::Model train(const std::string& arm, lab::Model model, uint64_t seed,
                   const std::function<double(int64_t epoch)>& fade, Curve* curve = nullptr) {
    model.root->to(run_.options.device);
    const int64_t per_epoch = train_.batches_per_epoch(plan_.train.batch);
    lab::TrainOptions options = plan_.train;
    options.steps = plan_.epochs * per_epoch;
    options.seed = derive_seed(seed, "order");  // all arms see the same batches
    options.title = arm;
    lab::TrainHooks hooks;
    if (fade) {
      hooks.before_step = [&](int64_t step, lab::Context&) {
        if (step % per_epoch == 0) lab::set_fade(*model.root, fade(step / per_epoch));
      };
    }
    lab::Trainer trainer(model, train_, options, hooks);
    for (int64_t epoch = 1; epoch <= plan_.epochs; ++epoch) {
      trainer.run(epoch * per_epoch);
      if (curve == nullptr) continue;
      curve->epochs.push_back(double(epoch));
      curve->accuracy.push_back(accuracy(model));
      curve->fade.push_back(fade ? 100 * fade(epoch - 1) : 0);
    }
    return model;
  }

  double accuracy(lab::Model& model) {
    const lab::WholeFloats whole_floats;
    return 100 * lab::evaluate(model, test_, false, 1000).accuracy;
  }

  /// Relative difference of the outputs for test images.
  double difference(lab::Model& a, lab::Model& b) {
    const lab::WholeFloats whole_floats;
    const torch::NoGradGuard no_grad;
    const at::Tensor x = test_.range(0, std::min<int64_t>(256, test_.count())).inputs;
    lab::Context context;
    a.root->eval();
    b.root->eval();
    const at::Tensor y = a.forward(x, context);
    return ((b.forward(x, context) - y).norm() / y.norm()).item<double>();
  }

  void run_seed(uint64_t seed, bool first);

 private:
  RecipeRun& run_;
  const Plan& plan_;
  const data::ImageSet& data_;
  lab::Feed train_, test_;
};

/// 0 in the first epoch, 1 from `fade_epochs` on: what is left of the run trains the linear pairs.
double linear_fade(int64_t epoch, int64_t fade_epochs) {
  return std::min(1.0, double(epoch) / double(fade_epochs));
}

void Study::run_seed(uint64_t seed, bool first) {
  Report& report = run_.report;
  const uint64_t init = derive_seed(seed, "init");
  const auto fade = [&](int64_t epoch) { return linear_fade(epoch, plan_.fade_epochs); };
  const auto network = [&](bool deep) { return make_network(plan_.layout, deep, data_, init); };

  Curve curve, direct_curve;
  lab::Model deep = train("deep", network(true), seed, fade, &curve);
  lab::Model small = folded(deep);
  report.add("deep", "system", "accuracy", accuracy(small));
  report.add("deep", "system", "fold_difference", difference(deep, small));
  report.add("deep", "system", "fold_accuracy_change", std::abs(accuracy(small) - accuracy(deep)));
  report.add("deep", "system", "layers", double(layer_count(small)));
  report.add("deep-unfolded", "baseline", "accuracy", accuracy(deep));
  report.add("deep-unfolded", "baseline", "layers", double(layer_count(deep)));

  // The checker must see a fold that is wrong: the same network with half of its activation left.
  lab::Model half = lab::clone(deep);
  lab::set_fade(*half.root, 0.5);
  bool refused = false;
  try {
    folded(half, "any");
  } catch (const Error& error) {
    refused = error.code() == Code::internal;
  }
  lab::Model forced = lab::run_pass(half, "fold-norm", options_of(Json::object()));
  lab::PassInput any = options_of({{"fading", "any"}});
  lab::fold_linear(forced, any);
  report.add("half-faded", "control", "fold_difference", difference(half, forced));
  report.add("half-faded", "control", "refused", refused ? 1 : 0);
  report.add("half-faded", "control", "fold_accuracy_change",
             std::abs(accuracy(forced) - accuracy(half)));

  lab::Model direct = train("direct", network(false), seed, nullptr, &direct_curve);
  report.add("direct", "baseline", "accuracy", accuracy(direct));
  report.add("direct", "baseline", "layers", double(layer_count(direct)));

  lab::Model pair = train("linear-pair", network(true), seed, [](int64_t) { return 1.0; });
  report.add("linear-pair", "control", "accuracy", accuracy(pair));
  if (!first) return;

  Plan without = plan_;
  without.layout.series = 0;
  lab::Model plain =
      train("no-series", make_network(without.layout, true, data_, init), seed, fade);
  report.add("no-series", "baseline", "accuracy", accuracy(plain));

  lab::Model resnet = train(
      "resnet",
      lab::make_model("resnet", {{"widths", plan_.resnet_widths}, {"blocks", plan_.resnet_blocks}},
                      data_, init),
      seed, nullptr);
  report.add("resnet", "baseline", "accuracy", accuracy(resnet));
  report.add("resnet", "baseline", "layers", double(layer_count(resnet)));
  measure_latency(run_, deep, small, resnet);

  Figure figure;
  figure.title = "Accuracy while the activation fades";
  figure.x_label = "epoch";
  figure.y_label = "%";
  figure.series.push_back({"deep training, test accuracy", curve.epochs, curve.accuracy});
  figure.series.push_back(
      {"deployed form trained directly", direct_curve.epochs, direct_curve.accuracy});
  figure.series.push_back({"faded part of the activation", curve.epochs, curve.fade});
  report.figures.push_back({"fade", std::move(figure)});
}

void ablation(Report& report) {
  Figure figure;
  figure.kind = Figure::Kind::bars;
  figure.title = "What each part is worth";
  figure.y_label = "test accuracy, %";
  Series bars{.name = "accuracy"};
  double least = 100;
  for (const Arm& arm : report.arms) {
    const auto found = arm.metrics.find("accuracy");
    if (found == arm.metrics.end()) continue;
    double sum = 0;
    for (const double value : found->second) sum += value;
    figure.categories.push_back(arm.name);
    bars.y.push_back(sum / double(found->second.size()));
    least = std::min(least, bars.y.back());
  }
  figure.y_min = std::floor(least - 2);
  figure.y_max = 100;
  figure.series.push_back(std::move(bars));
  report.figures.push_back({"ablation", std::move(figure)});
}

void run(RecipeRun& run) {
  const Plan plan = read_plan(run.settings);
  const auto data = data::load_image_set(plan.data, plan.load);
  run.report.data.push_back(fmt::format("{}: {} training, {} test images", plan.data,
                                        data.train.count(), data.test.count()));
  Study study(run, plan, data);
  for (const uint64_t seed : run.seeds) study.run_seed(seed, seed == run.seeds.front());
  ablation(run.report);
  run.report.notes.push_back(
      "accuracy: percent of the test split after the last step; fold_difference: relative, of the "
      "outputs for 256 test images before and after folding; no-series and resnet: first seed "
      "only");
}

const bool registered = register_recipe("vanillanet", run);

}  // namespace
}  // namespace sluice::recipes::vanillanet
