#include "recipes/elastic/matformer/study.h"

#include <torch/types.h>

#include <numeric>

#include "recipes/text_settings.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/pass/pass.h"
#include "sluice/lab/train/token_feed.h"

namespace sluice::recipes::matformer {
namespace {

const std::string kWhat = "matformer settings";

lab::PassInput options_of(Json options) {
  lab::PassInput input;
  input.options = std::move(options);
  return input;
}

/// Documents of a Markov chain in which three tokens may follow each.
data::TokenFile synthetic_text(int64_t vocabulary, int64_t tokens, const std::string& path) {
  data::TokenInfo info;
  info.vocabulary = vocabulary;
  info.source = "a Markov chain";
  data::TokenWriter writer(info);
  uint64_t state = 1;
  const int64_t length = 256;
  for (int64_t document = 0; document * length < tokens; ++document) {
    std::vector<int32_t> ids = {1};
    while (std::ssize(ids) < length) {
      state = derive_seed(state, "next");
      const uint64_t next = (static_cast<uint64_t>(ids.back()) * 7 + state % 3) %
                            static_cast<uint64_t>(vocabulary - 1);
      ids.push_back(static_cast<int32_t>(next + 1));
    }
    writer.add(document % 4 == 3 ? data::TextSplit::held_out : data::TextSplit::train, ids,
               ids.size(), "chain");
  }
  writer.write(path);
  return data::TokenFile::open(path);
}

}  // namespace

Plan read_plan(const Json& settings, const std::string& work_directory) {
  json_require_known_keys(
      settings,
      {"synthetic", "text", "vocab", "held_out", "train_tokens", "evaluated_tokens", "model",
       "widths", "budgets", "prompts", "prompt_tokens", "generated_tokens", "draft_tokens",
       "decoded_tokens", "train", "seeds"},
      kWhat);
  const auto integer = [&](const char* key) { return json_get<int64_t>(settings, key, kWhat); };
  Plan plan;
  plan.synthetic = json_get<bool>(settings, "synthetic", kWhat);
  plan.model = json_get<Json>(settings, "model", kWhat);
  plan.context = json_get<int64_t>(plan.model, "context", kWhat);
  plan.widths = json_get<std::vector<double>>(settings, "widths", kWhat);
  plan.evaluated_tokens = integer("evaluated_tokens");
  plan.budgets = integer("budgets");
  plan.prompts = integer("prompts");
  plan.prompt_tokens = integer("prompt_tokens");
  plan.generated_tokens = integer("generated_tokens");
  plan.draft_tokens = integer("draft_tokens");
  plan.decoded_tokens = integer("decoded_tokens");
  plan.corpus = read_corpus(settings, work_directory, "text.tokens", kWhat);
  plan.train = read_text_training(settings, kWhat);
  return plan;
}

Study run_study(const RecipeRun& run, const Plan& plan, uint64_t seed) {
  const c10::Device device = run.options.device;
  Study study{plan.synthetic ? synthetic_text(plan.corpus.vocabulary, 4096, plan.corpus.tokens)
                             : lab::prepare_tokens(plan.corpus),
              {},
              {},
              {},
              {}};
  Json options = plan.model;
  options["vocab"] = study.tokens.info().vocabulary;
  const auto whole = json_get<int64_t>(plan.model, "ffn", kWhat);
  const auto fresh = [&](double share) {
    lab::SubnetSpace space;
    space.widths = plan.widths;
    options["ffn"] = space.units(share, whole, "ffn");
    return lab::make_model("decoder", options, derive_seed(seed, "init"));
  };
  const auto train = [&](lab::Model& model, const std::string& title, const char* sampling) {
    lab::TrainOptions training = plan.train;
    training.seed = derive_seed(seed, "order");  // all see the same batches
    training.title = "matformer: " + title;
    training.tokens_per_sample = plan.context;
    lab::TrainHooks hooks;
    if (sampling != nullptr) {
      const lab::SizeSampler sampler{sampling, std::ssize(model.sizes), 1,
                                     derive_seed(seed, "sampler")};
      hooks.sizes = [sampler](int64_t step) { return sampler.at_step(step); };
    }
    model.root->to(device);
    lab::TokenFeed feed(study.tokens, data::TextSplit::train, plan.context, device);
    lab::Trainer(model, feed, training, std::move(hooks)).run();
    model.root->eval();
  };
  const lab::Model start =
      lab::run_pass(fresh(1), "nest", options_of({{"widths", plan.widths}, {"order", "none"}}));
  study.matlm = lab::clone(start);
  train(study.matlm, "nested", "all");
  study.sampled = lab::clone(start);
  train(study.sampled, "nested, one size a step", "uniform");
  study.sliced = lab::clone(start);
  train(study.sliced, "whole", nullptr);
  for (const double width : plan.widths) {
    if (width == 1) {  // the one that was trained whole
      study.separate.push_back(lab::run_pass(study.sliced, "pick-size",
                                             options_of({{"size", start.sizes.back().name}})));
      continue;
    }
    study.separate.push_back(fresh(width));
    train(study.separate.back(), percent(width) + "% alone", nullptr);
  }
  return study;
}

double loss_of(lab::Model& model, const Study& study, const Plan& plan, int64_t size) {
  return lab::evaluate_text(model, study.tokens, data::TextSplit::held_out, plan.context,
                            plan.evaluated_tokens, false, 32, size)
      .loss;
}

at::Tensor held_out_windows(const Study& study, int64_t count, int64_t tokens) {
  const int64_t room = study.tokens.count(data::TextSplit::held_out) - tokens;
  if (room < 1) fail(Code::config, "{}: the held-out part is too short", study.tokens.path());
  at::Tensor windows = at::empty({count, tokens}, at::kLong);
  for (int64_t i = 0; i < count; ++i) {
    study.tokens.read(data::TextSplit::held_out, room * i / count,
                      {windows.data_ptr<int64_t>() + i * tokens, static_cast<size_t>(tokens)});
  }
  return windows;
}

double consistency(lab::Model& a, int64_t size_a, lab::Model& b, int64_t size_b, const Study& study,
                   const Plan& plan) {
  const at::NoGradGuard no_grad;
  const int64_t count = std::max<int64_t>(1, plan.evaluated_tokens / plan.context);
  const at::Tensor windows = held_out_windows(study, count, plan.context);
  const c10::Device device = lab::device_of(*a.root);
  int64_t same = 0;
  for (int64_t first = 0; first < count; first += 32) {
    const at::Tensor x = windows.narrow(0, first, std::min<int64_t>(32, count - first)).to(device);
    const auto choice = [&](lab::Model& model, int64_t size) {
      lab::Context context;
      context.size = size;
      return model.forward(x, context).argmax(-1);
    };
    same += (choice(a, size_a) == choice(b, size_b)).sum().item<int64_t>();
  }
  return double(same) / double(windows.numel());
}

lab::Model with_random_neurons(const lab::Model& nested, uint64_t seed) {
  lab::Model result = lab::clone(nested);
  const at::NoGradGuard no_grad;
  const auto reorder = [](at::Tensor& tensor, int64_t dim, const at::Tensor& order) {
    if (tensor.defined()) tensor.copy_(tensor.index_select(dim, order.to(tensor.device())));
  };
  for (const lab::SlotRef& ref : lab::walk(*result.root, "**.ffn.up")) {
    auto& up = ref.slot->as<lab::NestedLinear>();
    auto& down = ref.owner->slot("down").as<lab::NestedLinear>();
    std::vector<int64_t> shuffled(static_cast<size_t>(up.outputs()));
    std::iota(shuffled.begin(), shuffled.end(), int64_t{0});
    for (uint64_t i = shuffled.size(); i > 1; --i)
      std::swap(shuffled[i - 1], shuffled[derive_seed(seed, ref.path, i) % i]);
    const at::Tensor order = torch::tensor(shuffled);
    reorder(up.weight, 0, order);
    reorder(up.bias, 0, order);
    reorder(down.weight, 1, order);
    if (lab::Slot& gate = ref.owner->slot("gate"); !gate.empty()) {
      reorder(gate.as<lab::NestedLinear>().weight, 0, order);
      reorder(gate.as<lab::NestedLinear>().bias, 0, order);
    }
  }
  return result;
}

std::string percent(double width) { return fmt::format("{:g}", 100 * width); }

}  // namespace sluice::recipes::matformer
