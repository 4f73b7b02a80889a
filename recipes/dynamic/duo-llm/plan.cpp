#include "recipes/dynamic/duo-llm/plan.h"

#include <torch/types.h>

#include <cmath>

#include "recipes/made_up_text.h"
#include "recipes/text_settings.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/train/token_feed.h"

namespace sluice::recipes::duo_llm {
namespace {

const std::string kSettings = "duo-llm settings";

/// `count` windows, evenly over held-out ids [first, end).
Windows windows_of(const data::TokenFile& tokens, int64_t first, int64_t end, int64_t count,
                   int64_t context, c10::Device device) {
  const int64_t room = end - first - context - 1;
  if (room < 0) {
    fail(Code::config, "{}: {} held-out tokens; a window takes {}", tokens.path(),
         tokens.count(data::TextSplit::held_out), 2 * (context + 1));
  }
  at::Tensor all = at::empty({count, context + 1}, at::kLong);
  for (int64_t i = 0; i < count; ++i) {
    tokens.read(data::TextSplit::held_out, first + room * i / count,
                {all.data_ptr<int64_t>() + i * (context + 1), static_cast<size_t>(context + 1)});
  }
  all = all.to(device);
  return {all.narrow(1, 0, context).contiguous(), all.narrow(1, 1, context).contiguous()};
}

lab::TrainOptions router_options(const DuoPlan& plan, bool all_weights) {
  lab::TrainOptions options = plan.train;
  options.steps = plan.router.steps;
  options.optimizer.rate = all_weights ? plan.router.rate_all : plan.router.rate;
  options.optimizer.weight_decay = 0;
  return options;
}

void shift_bias(lab::Model& model, double by) {
  const at::NoGradGuard no_grad;
  for (const lab::ChoiceRef& ref : lab::choices_of(*model.root))
    ref.choice->router().as<lab::Linear>().bias[kBig] += by;
}

/// The shift at which tokens take `budget` big layers on average, by bisection.
void meet_budget(lab::Model& model, const Windows& windows, double budget) {
  double low = -64, high = 64, now = 0;
  for (int round = 0; round < 16; ++round) {
    if (big_layers(model, windows) > budget) {
      high = now;
    } else {
      low = now;
    }
    const double next = round == 0 ? (high == now ? -1 : 1) : 0.5 * (low + high);
    shift_bias(model, next - now);
    now = next;
  }
}

}  // namespace

DuoPlan read_duo_plan(const Json& s, const std::string& work) {
  DuoPlan plan;
  const auto integer = [&](const Json& from, const char* key) {
    return json_get<int64_t>(from, key, kSettings);
  };
  const auto number = [&](const Json& from, const char* key) {
    return json_get<double>(from, key, kSettings);
  };
  plan.model = json_get<Json>(s, "model", kSettings);
  plan.layers = integer(plan.model, "layers");
  plan.context = integer(plan.model, "context");
  plan.small = integer(s, "small");
  plan.skip = json_get<bool>(s, "skip", kSettings);
  plan.budgets = json_get<std::vector<int64_t>>(s, "budgets", kSettings);
  for (const int64_t budget : plan.budgets) {
    if (budget < 1 || budget >= plan.layers) {
      fail(Code::config, "{}: budgets: expected 1 to {} big layers, found {}", kSettings,
           plan.layers - 1, budget);
    }
  }
  plan.oracle_tokens = integer(s, "oracle_tokens");
  plan.random_patterns = integer(s, "random_patterns");
  plan.tree_batch = integer(s, "tree_batch");
  plan.decoded_tokens = integer(s, "decoded_tokens");
  plan.random_text = json_get<bool>(s, "random_text", kSettings);
  plan.corpus = read_corpus(s, work, "text.tokens", kSettings);
  plan.train = read_text_training(s, kSettings);
  plan.train.tokens_per_sample = plan.context;
  const Json router = json_get<Json>(s, "router", kSettings);
  plan.router = {integer(router, "steps"), number(router, "rate"), number(router, "rate_all"),
                 number(router, "weight"), number(router, "warm"), number(router, "cold")};
  return plan;
}

DuoText duo_text(const RecipeRun& run, const DuoPlan& plan) {
  lab::CorpusConfig corpus = plan.corpus;
  if (plan.random_text)
    corpus.text = made_up_text(run.options.work_directory, kMadeUpEnglish, 30, 40);
  DuoText text{lab::prepare_tokens(corpus), {}, {}};
  const int64_t ids = text.tokens.count(data::TextSplit::held_out);
  const int64_t count = std::max<int64_t>(1, plan.oracle_tokens / plan.context);
  text.validation = windows_of(text.tokens, 0, ids / 2, count, plan.context, run.options.device);
  text.test = windows_of(text.tokens, ids / 2, ids, count, plan.context, run.options.device);
  return text;
}

lab::Model duo_model(const DuoPlan& plan, int64_t vocabulary, uint64_t seed) {
  Json options = plan.model;
  options["vocab"] = vocabulary;
  lab::Model model = lab::make_model("decoder", options, derive_seed(seed, "init"));
  const auto width = json_get<int64_t>(plan.model, "width", kSettings);
  const double into_stream = plan.init_std / std::sqrt(2.0 * double(plan.layers));
  const at::NoGradGuard no_grad;
  for (const lab::SlotRef& ref : lab::walk(*model.root, "blocks.*.ffn")) {
    const auto big = std::dynamic_pointer_cast<lab::Ffn>(ref.slot->get());
    SLUICE_CHECK(big != nullptr);
    auto choice = std::make_shared<lab::Choice>(plan.skip ? 3 : 2);
    choice->option(kBig).exchange(big);
    choice->option(kSmall).exchange(
        lab::make_ffn(width, plan.small, big->activation(), big->gated(), false));
    for (const lab::SlotRef& inner : lab::walk(*choice->option(kSmall))) {
      if (inner.slot->empty()) continue;
      auto& layer = inner.slot->as<lab::Linear>();
      lab::fill_normal(layer.weight, inner.slot->name() == "down" ? into_stream : plan.init_std,
                       derive_seed(seed, ref.path + " small " + inner.path));
    }
    ref.slot->exchange(choice);
  }
  return model;
}

void train_random_routes(const RecipeRun& run, const DuoPlan& plan, const DuoText& text,
                         lab::Model& model, uint64_t seed) {
  model.root->to(run.options.device);
  lab::set_routes(*model.root, lab::Route::random());
  lab::TrainOptions options = plan.train;
  options.seed = derive_seed(seed, "train");
  options.title = "duo-llm: random routes";
  lab::TokenFeed feed(text.tokens, data::TextSplit::train, plan.context, run.options.device);
  lab::Trainer(model, feed, options).run();
  lab::set_routes(*model.root, {});
  model.root->eval();
}

lab::Model train_routers(const RecipeRun& run, const DuoPlan& plan, const DuoText& text,
                         const lab::Model& model, int64_t budget, bool all_weights, uint64_t seed) {
  lab::Model result = lab::clone(model);
  result.root->train();
  for (at::Tensor p : result.root->parameters()) p.set_requires_grad(all_weights);
  const auto width = json_get<int64_t>(plan.model, "width", kSettings);
  for (const lab::ChoiceRef& ref : lab::choices_of(*result.root)) {
    auto router = std::make_shared<lab::Linear>(width, ref.choice->options());
    {
      const at::NoGradGuard no_grad;
      lab::fill_normal(router->weight, plan.init_std, derive_seed(seed, ref.path + " router"));
      router->bias.zero_();
    }
    router->to(run.options.device);
    ref.choice->router().exchange(router);
  }
  lab::TrainOptions options = router_options(plan, all_weights);
  options.seed = derive_seed(seed, "train routers");
  options.title = fmt::format("duo-llm: routers, {} big{}", budget, all_weights ? ", all" : "");
  lab::TrainHooks hooks;
  hooks.before_step = [&](int64_t step, lab::Context&) {
    const double t = double(step) / double(std::max<int64_t>(1, options.steps - 1));
    const double temperature = plan.router.warm * std::pow(plan.router.cold / plan.router.warm, t);
    lab::set_routes(*result.root, lab::Route::soft(temperature));
  };
  const double target = double(budget) / double(plan.layers);
  hooks.extra_loss = [&](const lab::GateLog& log, int64_t) {
    return lab::choice_budget_loss(log, kBig, target) * plan.router.weight;
  };
  lab::TokenFeed feed(text.tokens, data::TextSplit::train, plan.context, run.options.device);
  lab::Trainer(result, feed, options, hooks).run();
  lab::set_routes(*result.root, {});
  for (at::Tensor p : result.root->parameters()) p.set_requires_grad(true);
  result.root->eval();
  meet_budget(result, text.validation, double(budget));
  return result;
}

double big_layers(lab::Model& model, const Windows& windows) {
  lab::GateLog log;
  lab::Context context;
  context.gate_log = &log;
  const at::NoGradGuard no_grad;
  model.forward(windows.ids, context);
  double sum = 0;
  for (const lab::GateRecord& record : log.records())
    sum += record.decision.select(-1, kBig).to(at::kDouble).mean().item<double>();
  return sum;
}

double own_perplexity(lab::Model& model, const Windows& windows) {
  lab::Context context;
  const at::NoGradGuard no_grad;
  const at::Tensor logits = model.forward(windows.ids, context);
  return std::exp(
      at::cross_entropy_loss(logits.flatten(0, 1), windows.labels.flatten()).item<double>());
}

}  // namespace sluice::recipes::duo_llm
