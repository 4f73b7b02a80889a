#include "recipes/elastic/sorted-llama/study.h"

#include <torch/types.h>

#include "recipes/text_settings.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/data/directory.h"
#include "sluice/lab/pass/pass.h"

namespace sluice::recipes::sorted_llama {
namespace {

const std::string kWhat = "sorted-llama settings";

lab::PassInput options_of(Json options) {
  lab::PassInput input;
  input.options = std::move(options);
  return input;
}

}  // namespace

Plan read_plan(const Json& settings) {
  json_require_known_keys(settings,
                          {"synthetic", "model", "depths", "half", "words", "pretrain_steps",
                           "train", "risks", "margin", "spoken_words", "draft_tokens", "seeds"},
                          kWhat);
  const auto integer = [&](const Json& from, const char* key) {
    return json_get<int64_t>(from, key, kWhat);
  };
  Plan plan;
  plan.synthetic = json_get<bool>(settings, "synthetic", kWhat);
  plan.model = json_get<Json>(settings, "model", kWhat);
  plan.model["vocab"] = kVocabulary;
  plan.depths = json_get<std::vector<int64_t>>(settings, "depths", kWhat);
  plan.half = integer(settings, "half");
  plan.words = integer(settings, "words");
  plan.pretrain_steps = integer(settings, "pretrain_steps");
  plan.risks = json_get<std::vector<double>>(settings, "risks", kWhat);
  plan.margin = json_get<double>(settings, "margin", kWhat);
  plan.spoken_words = integer(settings, "spoken_words");
  plan.draft_tokens = json_get<std::vector<int64_t>>(settings, "draft_tokens", kWhat);
  plan.train = read_text_training(settings, kWhat);
  return plan;
}

Study run_study(const RecipeRun& run, const Plan& plan, uint64_t seed) {
  const c10::Device device = run.options.device;
  const auto context = json_get<int64_t>(plan.model, "context", kWhat);
  Study study;
  study.words = split_words(
      plan.synthetic ? synthetic_words(400) : data::load_cmudict(data::data_directory("cmudict")),
      context, plan.words);
  const auto options = [&](const std::string& title, int64_t steps) {
    lab::TrainOptions training = plan.train;
    training.steps = steps;
    training.seed = derive_seed(seed, "order");  // all arms see the same words
    training.title = "sorted-llama: " + title;
    return training;
  };
  WordFeed whole(study.words.train, false, device), answers(study.words.train, true, device);

  // As usual: the next id of whole entries, at the last layer alone.
  lab::Model base = lab::make_model("decoder", plan.model, derive_seed(seed, "init"));
  base = lab::run_pass(base, "nest", options_of({{"widths", {1}}, {"depths", plan.depths}}));
  base.root->to(device);
  {
    lab::TrainOptions training = options("pretraining", plan.pretrain_steps);
    training.seed = derive_seed(seed, "pretraining");
    lab::Trainer(base, whole, training).run();
  }
  study.sft = lab::clone(base);
  lab::Trainer(study.sft, answers, options("SFT", plan.train.steps)).run();

  lab::RepeatedLabels repeated(answers, std::ssize(plan.depths));
  const auto at_all_depths = [&](const lab::BrickPtr& root, bool own_heads,
                                 const std::string& title) {
    lab::Model all;
    all.root = std::make_shared<lab::AllDepths>(root, plan.depths, own_heads);
    all.input_shape = base.input_shape;
    lab::Trainer(all, repeated, options(title, plan.train.steps)).run();
    return all.root;
  };
  study.sft_ict = at_all_depths(study.sft.root, true, "SFT + ICT");
  study.soft = lab::clone(base);
  at_all_depths(study.soft.root, false, "SoFT");

  study.extracted =
      lab::run_pass(base, "pick-size", options_of({{"size", fmt::format("w100-d{}", plan.half)}}));
  lab::Trainer(study.extracted, answers, options("extracted", plan.train.steps)).run();
  for (lab::Model* model : {&study.sft, &study.soft, &study.extracted}) model->root->eval();
  study.sft_ict->eval();
  return study;
}

double Evaluation::exact_match(const at::Tensor& choices) const {
  const at::Tensor right = (choices == truth).to(at::kCPU).contiguous();
  const bool* flags = right.data_ptr<bool>();
  double matched = 0;
  for (const auto& [first, end] : words)
    matched += std::all_of(flags + first, flags + end, [](bool r) { return r; }) ? 1 : 0;
  return 100 * matched / double(words.size());
}

double Evaluation::accuracy(const at::Tensor& choices) const {
  return 100 * (choices == truth).to(at::kDouble).mean().item<double>();
}

Evaluation evaluate(lab::Brick& root, int64_t depths, const Words& words, c10::Device device) {
  const at::NoGradGuard no_grad;
  constexpr int64_t kBatch = 256;
  Evaluation result;
  std::vector<at::Tensor> confidences, choices, truths;
  int64_t tokens = 0;
  for (int64_t first = 0; first < std::ssize(words); first += kBatch) {
    std::vector<const data::Pronunciation*> part;
    for (int64_t i = first; i < std::min(first + kBatch, std::ssize(words)); ++i) {
      part.push_back(&words[static_cast<size_t>(i)]);
      const auto count = std::ssize(words[static_cast<size_t>(i)].phonemes) + 1;
      result.words.emplace_back(tokens, tokens + count);
      tokens += count;
    }
    const lab::Batch batch = batch_of(part, true, device);
    lab::Context context;
    at::Tensor logits = root.forward(batch.inputs, context);  // [B, depths * T, V]
    logits = logits.view({batch.inputs.size(0), depths, batch.inputs.size(1), -1}).transpose(1, 2);
    // Row by row, so that the tokens of a word stay together.
    const at::Tensor counted = batch.labels >= 0;
    const lab::DepthTable table = lab::depth_table(logits.index({counted}).contiguous());
    confidences.push_back(table.confidence.cpu());
    choices.push_back(table.choice.cpu());
    truths.push_back(batch.labels.index({counted}).cpu());
  }
  result.table = {at::cat(confidences), at::cat(choices)};
  result.truth = at::cat(truths);
  SLUICE_CHECK(result.truth.size(0) == tokens);
  return result;
}

}  // namespace sluice::recipes::sorted_llama
