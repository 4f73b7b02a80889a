#include "recipes/dynamic/dynamic-code-completion/study.h"

#include <torch/types.h>

#include <algorithm>

#include "recipes/made_up_text.h"
#include "recipes/text_settings.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/random.h"
#include "sluice/data/directory.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/train/optimizer.h"
#include "sluice/lab/train/token_feed.h"

namespace sluice::recipes::dynamic_code_completion {
namespace {

const std::string kWhat = "dynamic-code-completion settings";
constexpr double kDecay = 0.01;

lab::NamedParameters parameters_below(const lab::Brick& brick) {
  lab::NamedParameters result;
  for (const auto& item : brick.named_parameters()) result.emplace_back(item.key(), item.value());
  return result;
}

/// Steps of AdamW on what `loss` says of a batch of windows; the decoder does not change.
void train_on(const RecipeRun& run, const Plan& plan, const data::TokenFile& tokens,
              lab::Brick& trained, const std::string& title, int64_t steps, double rate,
              uint64_t seed, const std::function<at::Tensor(const lab::Batch&, int64_t)>& loss) {
  lab::OptimizerOptions options;
  options.kind = "adamw";
  options.weight_decay = kDecay;
  options.rate = rate;
  const auto parameters = parameters_below(trained);
  const auto optimizer = lab::build_optimizer(options, parameters);
  lab::TokenFeed feed(tokens, data::TextSplit::train, plan.context, run.options.device);
  Progress progress("dynamic-code-completion: " + title, steps);
  for (int64_t step = 0; step < steps; ++step) {
    optimizer->set_rate(rate * lab::schedule_factor({}, step, steps));
    for (const auto& [name, parameter] : parameters) {
      at::Tensor tensor = parameter;
      if (tensor.grad().defined()) tensor.mutable_grad().zero_();
    }
    loss(feed.at_step(step, plan.train.batch, seed), step).backward();
    optimizer->step();
    progress.update(step + 1);
  }
}

/// Outputs of all layers, without gradients.
std::vector<at::Tensor> states_of(const lab::ExitDecoder& root, const at::Tensor& ids) {
  const torch::NoGradGuard no_grad;
  lab::Context context;
  return root.states(ids, context);
}

/// [B, T] from 1 (0: none) of states and the ids that follow.
at::Tensor first_right_of(const lab::ExitDecoder& root, const std::vector<at::Tensor>& states,
                          const at::Tensor& next) {
  const torch::NoGradGuard no_grad;
  lab::Context context;
  at::Tensor first = at::zeros_like(next);
  for (size_t i = states.size(); i-- > 0;) {
    const auto layer = static_cast<int64_t>(i);
    const at::Tensor right = root.logits(layer, states[i], context).argmax(-1) == next;
    first.masked_fill_(right, layer + 1);
  }
  return first;
}

}  // namespace

Plan read_plan(const Json& s, const std::string& work) {
  Plan plan;
  const auto integer = [&](const char* key) { return json_get<int64_t>(s, key, kWhat); };
  const auto number = [&](const char* key) { return json_get<double>(s, key, kWhat); };
  plan.model = json_get<Json>(s, "model", kWhat);
  plan.context = json_get<int64_t>(plan.model, "context", kWhat);
  plan.prompt = integer("prompt");
  plan.completion = integer("completion");
  plan.cuts = integer("cuts");
  plan.studied_windows = integer("studied_windows");
  plan.head_steps = integer("head_steps");
  plan.controller_steps = integer("controller_steps");
  plan.head_rate = number("head_rate");
  plan.controller_rate = number("controller_rate");
  plan.exit_thresholds = json_get<std::vector<double>>(s, "exit_thresholds", kWhat);
  plan.stop_thresholds = json_get<std::vector<double>>(s, "stop_thresholds", kWhat);
  plan.rouge_loss = number("rouge_loss");
  plan.good_lost = number("good_lost");
  plan.fit_cuts = integer("fit_cuts");
  plan.fit_steps = integer("fit_steps");
  plan.timed_cuts = integer("timed_cuts");
  plan.rounds = integer("rounds");
  plan.random_text = json_get<bool>(s, "random_text", kWhat);
  plan.corpus = read_corpus(s, work, "code.tokens", kWhat);
  plan.train = read_text_training(s, kWhat);
  plan.train.tokens_per_sample = plan.context;
  plan.train.title = "dynamic-code-completion: decoder";
  if (plan.prompt + plan.completion > plan.context)
    fail(Code::config, "{}: prompt and completion of {} tokens in a context of {}", kWhat,
         plan.prompt + plan.completion, plan.context);
  return plan;
}

data::TokenFile tokens_of(const Plan& plan, const RecipeRun& run) {
  lab::CorpusConfig corpus = plan.corpus;
  if (plan.random_text) corpus.text = made_up_text(run.options.work_directory, kMadeUpCode, 40, 50);
  return lab::prepare_tokens(corpus);
}

at::Tensor windows_of(const data::TokenFile& file, Half half, int64_t count, int64_t width) {
  const int64_t middle = file.count(data::TextSplit::held_out) / 2, room = middle - width;
  if (room < 1)
    fail(Code::config, "{}: {} tokens in half of the held-out texts; a window takes {}",
         file.path(), middle, width);
  const int64_t first = half == Half::test ? middle : 0;
  at::Tensor windows = at::empty({count, width}, at::kLong);
  for (int64_t i = 0; i < count; ++i) {
    file.read(data::TextSplit::held_out, first + room * i / count,
              {windows.data_ptr<int64_t>() + i * width, static_cast<size_t>(width)});
  }
  return windows;
}

lab::Model train_decoder(const RecipeRun& run, const Plan& plan, const data::TokenFile& tokens,
                         uint64_t seed) {
  Json options = plan.model;
  options["vocab"] = tokens.info().vocabulary;
  lab::Model model = lab::make_model("decoder", options, derive_seed(seed, "init"));
  model.root->to(run.options.device);
  lab::TrainOptions train = plan.train;
  train.seed = derive_seed(seed, "train");
  lab::TokenFeed feed(tokens, data::TextSplit::train, plan.context, run.options.device);
  lab::Trainer(model, feed, train).run();
  model.root->eval();
  for (at::Tensor& parameter : model.root->parameters()) parameter.requires_grad_(false);
  return model;
}

void train_heads(const RecipeRun& run, const Plan& plan, const data::TokenFile& tokens,
                 lab::Model& model, uint64_t seed) {
  const auto& root = root_of(model);
  train_on(
      run, plan, tokens, *root.slot("exits"), "heads", plan.head_steps, plan.head_rate,
      derive_seed(seed, "heads"), [&](const lab::Batch& batch, int64_t) {
        const auto states = states_of(root, batch.inputs);
        lab::Context context;
        at::Tensor loss;
        for (int64_t layer = 0; layer + 1 < root.layers(); ++layer) {
          const at::Tensor said = root.logits(layer, states[static_cast<size_t>(layer)], context);
          const at::Tensor one = at::cross_entropy_loss(said.flatten(0, 1), batch.labels.flatten());
          loss = loss.defined() ? loss + one : one;
        }
        return loss;
      });
}

void train_controller(const RecipeRun& run, const Plan& plan, const data::TokenFile& tokens,
                      lab::Model& model, uint64_t seed, bool shuffled) {
  const auto& root = root_of(model);
  lab::Brick& controller = *root.slot("controller");
  const std::string title = shuffled ? "controller, shuffled labels" : "controller";
  train_on(run, plan, tokens, controller, title, plan.controller_steps, plan.controller_rate,
           derive_seed(seed, "controller"), [&](const lab::Batch& batch, int64_t step) {
             const auto states = states_of(root, batch.inputs);
             at::Tensor first = first_right_of(root, states, batch.labels).flatten();
             if (shuffled) {
               auto generator = at::make_generator<at::CPUGeneratorImpl>(
                   derive_seed(seed, "shuffle", static_cast<uint64_t>(step)));
               first = first.index_select(
                   0, at::randperm(first.size(0), generator, at::TensorOptions().dtype(at::kLong))
                          .to(first.device()));
             }
             lab::Context context;
             at::Tensor loss;
             double weights = 0;
             for (int64_t layer = 1; layer < root.layers(); ++layer) {
               // stop 0: right nowhere; exit 1: right by this layer; go on 2: right later.
               const at::Tensor label =
                   at::where(first == 0, at::zeros_like(first), (first > layer).to(at::kLong) + 1);
               const at::Tensor said = controller.forward(
                   states[static_cast<size_t>(layer - 1)].flatten(0, 1), context);
               const at::Tensor one = at::cross_entropy_loss(said, label) * double(layer);
               loss = loss.defined() ? loss + one : one;
               weights += double(layer);
             }
             return loss / weights;
           });
}

at::Tensor first_right(const lab::ExitDecoder& root, const at::Tensor& windows) {
  std::vector<at::Tensor> parts;
  for (const at::Tensor& part : windows.split(16)) {
    const int64_t width = part.size(1) - 1;
    parts.push_back(
        first_right_of(root, states_of(root, part.narrow(1, 0, width)), part.narrow(1, 1, width)));
  }
  return at::cat(parts);
}

}  // namespace sluice::recipes::dynamic_code_completion
