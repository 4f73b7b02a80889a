#include "recipes/elastic/stitchable-networks/study.h"

#include <random>

#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/lab/pass/subnet.h"

namespace sluice::recipes::stitchable_networks {
namespace {

const std::string kWhat = "recipe.toml";

Family read_transformers(const Json& settings) {
  const auto widths = json_get<std::vector<int64_t>>(settings, "widths", kWhat);
  const auto heads = json_get<std::vector<int64_t>>(settings, "heads", kWhat);
  Family family;
  family.model = "vit";
  family.steps = json_get<std::vector<int64_t>>(settings, "steps", kWhat);
  family.rate = json_get<double>(settings, "rate", kWhat);
  if (heads.size() != widths.size() || family.steps.size() != widths.size()) {
    fail(Code::config, "{}: {} widths, {} heads, {} steps; expected one each for every anchor",
         kWhat, widths.size(), heads.size(), family.steps.size());
  }
  for (size_t i = 0; i < widths.size(); ++i) {
    family.options.push_back({{"patch", json_get<int64_t>(settings, "patch", kWhat)},
                              {"layers", json_get<int64_t>(settings, "layers", kWhat)},
                              {"width", widths[i]},
                              {"heads", heads[i]}});
  }
  return family;
}

Family read_convolutions(const Json& json) {
  const std::string what = kWhat + ": cnn";
  json_require_known_keys(json, {"widths", "blocks", "stages", "stem_stride", "steps", "rate"},
                          what);
  Family family;
  family.prefix = "cnn-";
  family.model = "resnet";
  family.rate = json_get<double>(json, "rate", what);
  for (const int64_t width : json_get<std::vector<int64_t>>(json, "widths", what)) {
    family.steps.push_back(json_get<int64_t>(json, "steps", what));
    family.options.push_back({{"width", width},
                              {"blocks", json_get<int64_t>(json, "blocks", what)},
                              {"stages", json_get<int64_t>(json, "stages", what)},
                              {"stem_stride", json_get<int64_t>(json, "stem_stride", what)}});
  }
  return family;
}

lab::Model train_anchor(const Plan& plan, const Family& family, size_t index, lab::Feed& feed,
                        const data::ImageSet& data, uint64_t seed, c10::Device device) {
  lab::Model model = lab::make_model(family.model, family.options[index], data,
                                     derive_seed(seed, family.prefix + "anchor", index));
  model.root->to(device);
  lab::TrainOptions options = plan.train;
  options.steps = family.steps[index];
  options.optimizer.rate = family.rate;
  options.seed = derive_seed(seed, "order");
  options.title = fmt::format("{}anchor {}", family.prefix, index);
  lab::Trainer(model, feed, options).run();
  // Statistics of a batch would mix those of all paths; folded, a convolution has none.
  if (family.model == "resnet") model = lab::run_pass(model, "fold-norm", {});
  return model;
}

/// The same blocks in another order, each network's own.
lab::Model shuffled(const lab::Model& anchor, uint64_t seed) {
  lab::Model model = lab::clone(anchor);
  std::vector<lab::Slot*> slots;
  for (const lab::SlotRef& ref : lab::walk(*model.root, "**")) {
    const std::string kind = ref.slot->empty() ? "" : (**ref.slot).kind();
    // Of a residual network only those that keep their shape can change places.
    const bool block = kind == "transformer_block" ||
                       (kind == "residual_block" && (**ref.slot).slot("shortcut").empty());
    if (block) slots.push_back(ref.slot);
  }
  std::map<std::string, std::vector<lab::Slot*>> groups;  // blocks of one shape
  for (lab::Slot* slot : slots) groups[lab::spec_of(**slot).dump()].push_back(slot);
  std::mt19937_64 engine(seed);
  for (auto& [shape, group] : groups) {
    std::vector<lab::BrickPtr> bricks;
    for (const lab::Slot* slot : group) bricks.push_back(slot->get());
    for (size_t i = bricks.size(); i > 1; --i) {  // a cycle: no block stays where it was
      std::swap(bricks[i - 1], bricks[engine() % (i - 1)]);
    }
    for (size_t i = 0; i < group.size(); ++i) group[i]->exchange(bricks[i]);
  }
  return model;
}

}  // namespace

bool is_stitched(const std::string& name) { return name.find('-') != std::string::npos; }

Plan read_plan(const Json& settings) {
  json_require_known_keys(
      settings, {"data",         "train_limit",  "test_limit",      "patch",       "layers",
                 "widths",       "heads",        "steps",           "rate",        "cnn",
                 "stitch_steps", "stitch_batch", "untrained_limit", "stitch_rate", "window",
                 "fit_samples",  "batch",        "weight_decay",    "clip",        "seeds"},
      kWhat);
  Plan plan;
  plan.data = json_get<std::string>(settings, "data", kWhat);
  plan.load.train_limit = json_get_or<int64_t>(settings, "train_limit", 0, kWhat);
  plan.load.test_limit = json_get_or<int64_t>(settings, "test_limit", 0, kWhat);
  plan.families.push_back(read_transformers(settings));
  if (settings.contains("cnn")) plan.families.push_back(read_convolutions(settings.at("cnn")));
  plan.stitch_steps = json_get<int64_t>(settings, "stitch_steps", kWhat);
  plan.stitch_rate = json_get<double>(settings, "stitch_rate", kWhat);
  plan.stitch_batch = json_get<int64_t>(settings, "stitch_batch", kWhat);
  plan.untrained_limit = json_get<int64_t>(settings, "untrained_limit", kWhat);
  plan.fit_samples = json_get<int64_t>(settings, "fit_samples", kWhat);
  plan.stitch.window = json_get<int64_t>(settings, "window", kWhat);
  plan.train.batch = json_get<int64_t>(settings, "batch", kWhat);
  plan.train.optimizer.kind = "adamw";
  plan.train.optimizer.weight_decay = json_get<double>(settings, "weight_decay", kWhat);
  plan.train.clip = json_get<double>(settings, "clip", kWhat);
  return plan;
}

Study run_study(const Plan& plan, const Family& family, const data::ImageSet& data, uint64_t seed,
                c10::Device device, const std::string& directory) {
  lab::Feed train(data.train, data.mean, data.std, device);
  Study study;
  std::vector<lab::Model> anchors;
  for (size_t i = 0; i < family.options.size(); ++i) {
    anchors.push_back(train_anchor(plan, family, i, train, data, seed, device));
    study.anchors.push_back(measure(anchors.back(), data, device, directory).front());
    study.anchors.back().name = fmt::format("a{}", i);
  }
  const auto stitched = [&](const std::vector<lab::Model>& parts, bool fitted) {
    lab::StitchOptions options = plan.stitch;
    options.seed = derive_seed(seed, "stitches");
    lab::Model model = lab::stitch(parts, options);
    if (fitted) {
      lab::PassInput input;
      input.calibration = train.range(0, std::min(plan.fit_samples, train.count())).inputs;
      auto residuals = lab::fit_stitches(model, input);
      if (study.residuals.empty()) study.residuals = std::move(residuals);
    }
    return model;
  };
  const auto train_paths = [&](lab::Model& model, const std::string& title) {
    lab::SizeSampler sampler;  // one path an update, drawn evenly: the same ones for every arm
    sampler.draws = 1;
    sampler.sizes = static_cast<int64_t>(model.sizes.size());
    sampler.seed = derive_seed(seed, "paths");
    lab::TrainHooks hooks;
    hooks.sizes = [sampler](int64_t step) { return sampler.at_step(step); };
    lab::TrainOptions options = plan.train;
    options.steps = plan.stitch_steps;
    options.batch = plan.stitch_batch;
    options.optimizer.rate = plan.stitch_rate;
    options.seed = derive_seed(seed, "stitching order");
    options.title = family.prefix + title;
    lab::Trainer(model, train, options, std::move(hooks)).run();
    study.arms[title] = measure(model, data, device, directory);
  };
  data::ImageSet few = data;
  few.test.labels.resize(static_cast<size_t>(std::min(plan.untrained_limit, data.test.count())));
  few.test.pixels.resize(few.test.labels.size() *
                         static_cast<size_t>(numel(data.test.sample_shape)));
  lab::Model model = stitched(anchors, true);
  study.arms["stitched-untrained"] = measure(model, few, device, directory);
  train_paths(model, "stitched");
  for (size_t i = 0; i < model.sizes.size(); ++i) {
    model.sizes[i].quality["accuracy"] = study.arms["stitched"][i].accuracy / 100;
  }
  study.stitched = std::move(model);

  lab::Model random = stitched(anchors, false);
  study.arms["random-untrained"] = measure(random, few, device, directory);
  train_paths(random, "random-init");

  std::vector<lab::Model> disordered;
  for (size_t i = 0; i < anchors.size(); ++i) {
    disordered.push_back(shuffled(anchors[i], derive_seed(seed, "shuffle", i)));
  }
  lab::Model shuffled_model = stitched(disordered, true);
  train_paths(shuffled_model, "shuffled");
  return study;
}

}  // namespace sluice::recipes::stitchable_networks
