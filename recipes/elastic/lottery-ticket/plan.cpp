#include "recipes/elastic/lottery-ticket/plan.h"

#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"

namespace sluice::recipes::lottery_ticket {
namespace {

/// The paper's Conv-4: 64, 64, pool, 128, 128, pool, two hidden layers of 256; no norms.
lab::BrickPtr make_conv4(const data::ImageSet& data) {
  auto root = std::make_shared<lab::Sequential>();
  Shape shape = data.train.sample_shape;
  auto add = [&](const std::string& name, lab::BrickPtr brick) {
    shape = brick->output_shape(shape);
    root->append(name, std::move(brick));
  };
  int64_t layer = 1;
  for (const int64_t width : {64, 64, 128, 128}) {
    add(fmt::format("conv{}", layer),
        std::make_shared<lab::Conv2d>(
            lab::Conv2dOptions{.inputs = shape[0], .outputs = width, .kernel = 3, .padding = 1}));
    add(fmt::format("conv{}_relu", layer), std::make_shared<lab::Activation>("relu"));
    if (layer % 2 == 0)
      add(fmt::format("pool{}", layer / 2), std::make_shared<lab::Pool2d>("max", 2, 2));
    ++layer;
  }
  add("flatten", std::make_shared<lab::Flatten>());
  for (const int index : {1, 2}) {
    add(fmt::format("fc{}", index), std::make_shared<lab::Linear>(shape[0], 256));
    add(fmt::format("fc{}_relu", index), std::make_shared<lab::Activation>("relu"));
  }
  add("fc3", std::make_shared<lab::Linear>(shape[0], static_cast<int64_t>(data.labels.size())));
  return root;
}

}  // namespace

Plan read_plan(const Json& settings) {
  const std::string what = "lottery-ticket settings";
  Plan plan;
  plan.model = json_get<std::string>(settings, "model", what);
  plan.hidden = json_get<std::vector<int64_t>>(settings, "hidden", what);
  const auto optimizer = json_get<Json>(settings, "optimizer", what);
  plan.train.optimizer.kind = json_get<std::string>(optimizer, "kind", what);
  plan.train.optimizer.rate = json_get<double>(optimizer, "rate", what);
  plan.train.optimizer.weight_decay = json_get<double>(optimizer, "weight_decay", what);
  const auto schedule = json_get<Json>(settings, "schedule", what);
  plan.train.schedule.kind = json_get<std::string>(schedule, "kind", what);
  plan.train.schedule.warmup = json_get<double>(schedule, "warmup", what);
  plan.train.batch = json_get<int64_t>(settings, "batch", what);
  plan.train.title = "";
  plan.epochs = json_get<int64_t>(settings, "epochs", what);
  plan.long_epochs = json_get<int64_t>(settings, "long_epochs", what);
  plan.rounds = json_get<int64_t>(settings, "rounds", what);
  plan.rewind_step = json_get<int64_t>(settings, "rewind_step", what);
  plan.validate_every = json_get<int64_t>(settings, "validate_every", what);
  plan.validation = json_get<double>(settings, "validation", what);
  for (const auto& rate : json_get<Json>(settings, "rates", what))
    plan.rates.rates.emplace_back(rate.at(0).get<std::string>(), rate.at(1).get<double>());
  for (const auto& level : json_get<Json>(settings, "levels", what)) {
    plan.levels.push_back(
        {json_get<int64_t>(level, "round", what), json_get<std::string>(level, "name", what)});
    if (plan.levels.back().round < 1 || plan.levels.back().round > plan.rounds)
      fail(Code::config, "{}: level at round {} of {}", what, plan.levels.back().round,
           plan.rounds);
  }
  return plan;
}

lab::Model make_network(const Plan& plan, const data::ImageSet& data, uint64_t seed) {
  lab::Model model;
  if (plan.model == "conv4") {
    model.root = make_conv4(data);
    model.input_shape = data.train.sample_shape;
    model.task = {"classify", data.name, data.labels, data.mean, data.std};
    model.add_step({{"step", "make"}, {"model", "conv4"}, {"seed", seed}});
  } else {
    model = lab::make_model(plan.model, {{"hidden", plan.hidden}}, data, seed);
  }
  lab::initialize(*model.root, "glorot_normal", seed);
  return model;
}

}  // namespace sluice::recipes::lottery_ticket
