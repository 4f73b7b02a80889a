#include "recipes/elastic/sortednet/study.h"

#include <numeric>
#include <random>

#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/lab/pass/pass.h"

namespace sluice::recipes::sortednet {
namespace {

const std::string kWhat = "recipe.toml";

lab::PassInput options_of(Json options) {
  lab::PassInput input;
  input.options = std::move(options);
  return input;
}

lab::Model fresh(const Plan& plan, const data::ImageSet& data, double share, uint64_t seed) {
  std::vector<int64_t> widths;
  for (const int64_t width : plan.widths)
    widths.push_back(plan.space.units(share, width, "widths"));
  if (plan.model == "mlp") return lab::make_model("mlp", {{"hidden", widths}}, data, seed);
  return lab::make_model("resnet", {{"widths", widths}, {"blocks", plan.blocks}}, data, seed);
}

/// Random subsets of the units of every width, as many as the size that runs would have: in place
/// of the leading ones, other ones each time.
class RandomSubsets {
 public:
  RandomSubsets(const Plan& plan, const lab::Model& model, uint64_t seed, c10::Device device)
      : plan_(plan), model_(model), seed_(seed), device_(device) {}

  void choose(int64_t step, lab::Context& context) {
    draw_ = step == step_ ? draw_ + 1 : 0;
    step_ = step;
    std::mt19937_64 engine(derive_seed(derive_seed(seed_, "subset", static_cast<uint64_t>(step)),
                                       "draw", static_cast<uint64_t>(draw_)));
    const auto& name = model_.sizes.at(static_cast<size_t>(context.size)).name;
    const double share =
        plan_.space.widths.at(static_cast<size_t>(plan_.space.decode(name).levels.front()));
    masks_.clear();
    for (const int64_t width : plan_.widths) {
      std::vector<float> mask(static_cast<size_t>(width), 0.0f);
      std::fill_n(mask.begin(), plan_.space.units(share, width, "widths"), 1.0f);
      for (size_t i = mask.size(); i > 1; --i) std::swap(mask[i - 1], mask[engine() % i]);
      masks_[width] = torch::tensor(mask).to(device_);
    }
    context.unit_masks = &masks_;
  }

 private:
  const Plan& plan_;
  const lab::Model& model_;
  uint64_t seed_;
  c10::Device device_;
  int64_t step_ = -1, draw_ = 0;
  std::map<int64_t, at::Tensor> masks_;
};

}  // namespace

Plan read_plan(const Json& settings) {
  json_require_known_keys(settings,
                          {"data", "model", "widths", "blocks", "train_limit", "test_limit",
                           "calibration", "shares", "depths", "steps", "batch", "rate",
                           "weight_decay", "clip", "sampling", "draws", "sandwich", "seeds"},
                          kWhat);
  const auto integer = [&](const char* key, int64_t fallback) {
    return json_get_or<int64_t>(settings, key, fallback, kWhat);
  };
  Plan plan;
  plan.data = json_get<std::string>(settings, "data", kWhat);
  plan.model = json_get<std::string>(settings, "model", kWhat);
  plan.widths = json_get<std::vector<int64_t>>(settings, "widths", kWhat);
  plan.blocks = integer("blocks", plan.blocks);
  plan.train_limit = integer("train_limit", 0);
  plan.test_limit = integer("test_limit", 0);
  plan.calibration = integer("calibration", plan.calibration);
  plan.space.widths = json_get<std::vector<double>>(settings, "shares", kWhat);
  plan.space.depths = json_get_or<std::vector<int64_t>>(settings, "depths", {}, kWhat);
  plan.space.check();
  plan.train.steps = json_get<int64_t>(settings, "steps", kWhat);
  plan.train.batch = integer("batch", 128);
  plan.train.optimizer.rate = json_get<double>(settings, "rate", kWhat);
  plan.train.optimizer.weight_decay = json_get_or<double>(settings, "weight_decay", 5e-4, kWhat);
  plan.train.clip = json_get_or<double>(settings, "clip", 0.0, kWhat);
  plan.sampler.kind = json_get_or<std::string>(settings, "sampling", "uniform", kWhat);
  plan.sampler.draws = integer("draws", 2);
  plan.sampler.sizes = static_cast<int64_t>(plan.space.uniform().size());
  plan.sampler.check();
  plan.sandwich = json_get_or<bool>(settings, "sandwich", false, kWhat);
  return plan;
}

Study run_study(const Plan& plan, const data::ImageSet& data, uint64_t seed, c10::Device device,
                const std::string& directory) {
  lab::Feed train(data.train, data.mean, data.std, device);
  const int64_t calibration = std::min<int64_t>(plan.calibration, data.train.count());
  const auto train_model = [&](lab::Model& model, const std::string& title,
                               lab::TrainHooks hooks = {}) {
    lab::TrainOptions options = plan.train;
    options.seed = derive_seed(seed, "order");  // all arms see the same batches
    options.title = title;
    lab::Trainer(model, train, options, std::move(hooks)).run();
  };
  const auto with_statistics = [&](const lab::Model& model) {
    lab::PassInput input;
    input.calibration = train.range(0, calibration).inputs;
    return lab::run_pass(model, "reestimate-norm", input);
  };

  const lab::Model start = lab::run_pass(fresh(plan, data, 1, derive_seed(seed, "init")), "nest",
                                         options_of({{"widths", plan.space.widths},
                                                     {"depths", plan.space.depths},
                                                     {"scope", "all"},
                                                     {"order", "none"}}));
  const auto place = [&](lab::Model model) {
    model.root->to(device);
    return model;
  };
  Study study;
  const auto sampled = [&](const lab::SizeSampler& kind) {
    lab::SizeSampler sampler = kind;
    sampler.seed = derive_seed(seed, "sampler");
    lab::TrainHooks hooks;
    hooks.sizes = [sampler](int64_t step) { return sampler.at_step(step); };
    return hooks;
  };
  const auto finish = [&](const std::string& arm, const lab::Model& trained) {
    lab::Model measured = with_statistics(trained);
    study.arms[arm] = measure(measured, data, device, directory);
    for (size_t i = 0; i < measured.sizes.size(); ++i) {
      measured.sizes[i].quality["accuracy"] = study.arms[arm][i].accuracy / 100;
    }
    return measured;
  };

  lab::Model nested = place(lab::clone(start));
  train_model(nested, "sortednet", sampled(plan.sampler));
  study.nested = finish("sortednet", nested);

  lab::Model whole = place(lab::clone(start));
  train_model(whole, "full-only");
  whole = finish("full-only", whole);

  lab::Model random = place(lab::clone(start));
  RandomSubsets subsets(plan, random, seed, device);
  lab::TrainHooks hooks = sampled(plan.sampler);
  hooks.before_step = [&](int64_t step, lab::Context& context) { subsets.choose(step, context); };
  train_model(random, "random-subsets", std::move(hooks));
  finish("random-subsets", random);

  if (plan.sandwich) {
    lab::SizeSampler rule = plan.sampler;
    rule.kind = "sandwich";
    rule.draws = 3;
    lab::Model model = place(lab::clone(start));
    train_model(model, "sandwich", sampled(rule));
    finish("sandwich", model);
  }

  for (const double share : plan.space.widths) {
    if (share == 1) {  // that is the network of full-only
      const std::string name = plan.space.encode(plan.space.full());
      study.alone.push_back(lab::run_pass(whole, "pick-size", options_of({{"size", name}})));
    } else {
      lab::Model model = place(fresh(plan, data, share, derive_seed(seed, "init")));
      train_model(model, fmt::format("separate {:g}%", 100 * share));
      study.alone.push_back(
          lab::run_pass(with_statistics(model), "fold-norm", options_of(Json::object())));
    }
    Point point = measure(study.alone.back(), data, device, directory).front();
    point.name = fmt::format("w{:g}", 100 * share);
    study.separate.push_back(point);
  }
  return study;
}

}  // namespace sluice::recipes::sortednet
