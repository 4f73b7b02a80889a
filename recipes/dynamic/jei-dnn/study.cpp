#include "recipes/dynamic/jei-dnn/study.h"

#include <torch/types.h>

#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/init.h"

namespace sluice::recipes::jei_dnn {
namespace {

const std::string kWhat = "recipe.toml";
constexpr int64_t kBatch = 1000;  // of passes without gradients

}  // namespace

Plan read_plan(const Json& settings) {
  json_require_known_keys(settings,
                          {"data",       "train_limit",     "test_limit",     "widths",
                           "blocks",     "backbone_epochs", "backbone_batch", "backbone_rate",
                           "validation", "warm_epochs",     "patience",       "epochs",
                           "phase",      "batch",           "refine",         "rate",
                           "final_rate", "weight_decay",    "target_cost",    "lambdas",
                           "seeds"},
                          kWhat);
  const auto integer = [&](const char* key) { return json_get<int64_t>(settings, key, kWhat); };
  const auto number = [&](const char* key) { return json_get<double>(settings, key, kWhat); };
  Plan plan;
  plan.data = json_get<std::string>(settings, "data", kWhat);
  plan.load.train_limit = json_get_or<int64_t>(settings, "train_limit", 0, kWhat);
  plan.load.test_limit = json_get_or<int64_t>(settings, "test_limit", 0, kWhat);
  plan.widths = json_get<std::vector<int64_t>>(settings, "widths", kWhat);
  plan.blocks = integer("blocks");
  plan.backbone_epochs = integer("backbone_epochs");
  plan.backbone_batch = integer("backbone_batch");
  plan.backbone_rate = number("backbone_rate");
  plan.validation = number("validation");
  plan.warm_epochs = integer("warm_epochs");
  plan.patience = integer("patience");
  plan.epochs = integer("epochs");
  plan.phase = integer("phase");
  plan.batch = integer("batch");
  plan.refine = integer("refine");
  plan.rate = number("rate");
  plan.final_rate = number("final_rate");
  plan.weight_decay = number("weight_decay");
  plan.target_cost = number("target_cost");
  plan.lambdas = json_get<std::vector<double>>(settings, "lambdas", kWhat);
  if (plan.lambdas.size() < 2)
    fail(Code::config, "{}: lambdas: expected at least 2, found {}", kWhat, plan.lambdas.size());
  return plan;
}

Splits split(const Plan& plan, const data::ImageSet& data, uint64_t seed) {
  auto [train, validation] =
      data::split_validation(data.train, plan.validation, derive_seed(seed, "validation"));
  return {std::move(train), std::move(validation)};
}

lab::Model train_backbone(const Plan& plan, const data::ImageSet& data, const data::Split& train,
                          uint64_t seed, c10::Device device) {
  lab::Model nested = lab::make_model("resnet", {{"widths", plan.widths}, {"blocks", plan.blocks}},
                                      data, derive_seed(seed, "init"));
  // Stages are of no use here: an exit may be behind any block.
  auto root = std::make_shared<lab::Sequential>();
  int64_t block = 0;
  for (const auto& slot : nested.root->slots()) {
    if (!slot->name().starts_with("stage")) {
      root->append(slot->name(), slot->get());
      continue;
    }
    for (const auto& inner : (**slot).slots())
      root->append(fmt::format("block{}", ++block), inner->get());
  }
  lab::Model model = nested;
  model.root = root;
  model.root->to(device);
  lab::Feed feed(train, data.mean, data.std, device);
  lab::TrainOptions options;
  options.batch = plan.backbone_batch;
  options.steps = plan.backbone_epochs * feed.batches_per_epoch(plan.backbone_batch);
  options.seed = derive_seed(seed, "order");
  options.optimizer.rate = plan.backbone_rate;
  options.title = "backbone";
  lab::Trainer(model, feed, options).run();
  model.root->eval();
  for (at::Tensor& parameter : model.root->parameters()) parameter.requires_grad_(false);
  return model;
}

std::shared_ptr<lab::Sequential> exit_pool(const Shape& shape) {
  auto pool = std::make_shared<lab::Sequential>();
  // About 3 x 3 means of a large map, 2 x 2 of a small one.
  const int64_t kernel = shape[1] >= 14 ? 5 : 4, stride = kernel - 1;
  if (shape[1] >= kernel && shape[2] >= kernel) {
    pool->append("pool", std::make_shared<lab::Pool2d>("avg", kernel, stride));
  } else {
    pool->append("pool", std::make_shared<lab::Pool2d>("global_avg"));
  }
  pool->append("flatten", std::make_shared<lab::Flatten>());
  return pool;
}

Features make_features(const Plan&, lab::Model& backbone, const data::ImageSet& data,
                       const data::Split& split, c10::Device device) {
  const torch::NoGradGuard no_grad;
  const lab::Feed feed(split, data.mean, data.std, device);
  std::vector<std::vector<at::Tensor>> pooled;
  std::vector<at::Tensor> last, labels;
  for (int64_t first = 0; first < feed.count(); first += kBatch) {
    const lab::Batch batch = feed.range(first, std::min(kBatch, feed.count() - first));
    lab::Context context;
    at::Tensor y = batch.inputs;
    size_t exit = 0;
    for (const auto& slot : backbone.root->slots()) {
      y = slot->forward(y, context);
      if (!slot->name().starts_with("block")) continue;
      if (pooled.size() <= exit) pooled.emplace_back();
      const Shape shape(y.sizes().begin() + 1, y.sizes().end());
      pooled[exit++].push_back(exit_pool(shape)->forward(y, context));
    }
    last.push_back(y);
    labels.push_back(batch.labels);
  }
  pooled.pop_back();  // behind the last block is the backbone's own head
  Features features;
  for (const auto& parts : pooled) features.pooled.push_back(at::cat(parts));
  features.last = at::cat(last);
  features.labels = at::cat(labels);
  return features;
}

lab::Model make_chain(const lab::Model& backbone, const Heads& heads, const Gates& gates,
                      const std::string& rule) {
  auto chain = std::make_shared<lab::ExitChain>(rule);
  auto head = std::make_shared<lab::Sequential>();
  Shape shape = backbone.input_shape;
  size_t exit = 0;
  for (const auto& slot : backbone.root->slots()) {
    shape = slot->output_shape(shape);
    const bool block = slot->name().starts_with("block");
    if (!block && slot->name() != "stem") {
      head->append(slot->name(), lab::clone(**slot));
      continue;
    }
    chain->append(slot->name(), lab::clone(**slot));
    if (!block || exit == heads.size()) continue;
    auto early = exit_pool(shape);
    early->append("fc", lab::clone(*heads[exit]));
    chain->append_exit(early, lab::clone(*gates[exit]));
    ++exit;
  }
  chain->append("head", head);
  chain->check_slots();
  lab::Model model;
  model.root = chain;
  model.input_shape = backbone.input_shape;
  model.task = backbone.task;
  model.root->to(lab::device_of(*backbone.root));
  model.root->eval();
  model.root->output_shape(model.input_shape);
  return model;
}

std::vector<double> exit_costs(const lab::Model& backbone, const lab::Model& chain) {
  std::vector<double> result;
  const auto& exits = dynamic_cast<const lab::ExitChain&>(*chain.root);
  for (const int64_t macs : exits.exit_macs(chain.input_shape))
    result.push_back(double(macs) / double(backbone.cost().macs));
  return result;
}

Heads fresh_heads(const Features& features, uint64_t seed) {
  Heads heads;
  for (size_t l = 0; l < features.pooled.size(); ++l) {
    auto head = std::make_shared<lab::Linear>(features.pooled[l].size(1), features.last.size(1));
    const torch::NoGradGuard no_grad;
    lab::fill_uniform(head->weight, 1 / std::sqrt(double(head->inputs())),
                      derive_seed(seed, "head", l));
    head->bias.zero_();
    head->to(features.last.device());
    heads.push_back(std::move(head));
  }
  return heads;
}

Gates fresh_gates(size_t count, uint64_t seed, c10::Device device) {
  Gates gates;
  for (size_t l = 0; l < count; ++l) {
    auto gate = std::make_shared<lab::ExitGate>();
    const torch::NoGradGuard no_grad;
    lab::fill_uniform(gate->weight, 0.5, derive_seed(seed, "gate", l));
    gate->bias.zero_();
    gate->to(device);
    gates.push_back(std::move(gate));
  }
  return gates;
}

Gates threshold_gates(Score score, const std::vector<double>& thresholds) {
  Gates gates;
  for (const double threshold : thresholds) {
    auto gate = std::make_shared<lab::ExitGate>();
    const torch::NoGradGuard no_grad;
    const bool entropy = score == Score::entropy;
    gate->weight.zero_();
    gate->weight[0][entropy ? 1 : 0] = entropy ? -1 : 1;
    // Nobody may leave where the threshold is infinite: probabilities end at 1, entropies at 0.
    gate->bias.fill_(std::isfinite(threshold) ? -threshold : -2.0);
    gates.push_back(std::move(gate));
  }
  return gates;
}

Heads copy_of(const Heads& heads) {
  Heads copies;
  for (const auto& head : heads)
    copies.push_back(std::dynamic_pointer_cast<lab::Linear>(lab::clone(*head)));
  return copies;
}

Answers answers(const Features& features, const Heads& heads, const std::vector<double>& cost) {
  const torch::NoGradGuard no_grad;
  std::vector<at::Tensor> logits;
  lab::Context context;
  for (size_t l = 0; l < heads.size(); ++l)
    logits.push_back(heads[l]->forward(features.pooled[l], context));
  logits.push_back(features.last);
  return {at::stack(logits, 1), features.labels, cost};
}

at::Tensor gate_values(const Answers& answers, const Gates& gates) {
  const torch::NoGradGuard no_grad;
  lab::Context context;
  std::vector<at::Tensor> values;
  for (size_t l = 0; l < gates.size(); ++l)
    values.push_back(gates[l]->forward(answers.logits.select(1, int64_t(l)), context));
  return at::sigmoid(at::cat(values, 1));
}

}  // namespace sluice::recipes::jei_dnn
