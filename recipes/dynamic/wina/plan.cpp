#include "recipes/dynamic/wina/plan.h"

#include <torch/types.h>

#include <cmath>
#include <filesystem>

#include "recipes/text_settings.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/origin.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/embedding.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/norms.h"
#include "sluice/lab/train/token_feed.h"

namespace sluice::recipes::wina {
namespace {

/// `count` windows of the split, evenly over it: [count, context] int64.
at::Tensor text_windows(const data::TokenFile& file, data::TextSplit split, int64_t count,
                        int64_t context) {
  const int64_t ids = file.count(split), room = ids - context;
  if (room < 1) {
    fail(Code::config, "{}: {} tokens; a window takes {}", file.path(), ids, context);
  }
  at::Tensor windows = at::empty({count, context}, at::kLong);
  for (int64_t i = 0; i < count; ++i) {
    file.read(split, room * i / count,
              {windows.data_ptr<int64_t>() + i * context, static_cast<size_t>(context)});
  }
  return windows;
}

/// Random weights whose columns differ as those of trained networks do: the scales of norms are
/// spread log-normally.
lab::Model random_decoder(const Plan& plan, uint64_t seed) {
  lab::Model model = lab::make_model("decoder", plan.model, seed);
  const at::NoGradGuard no_grad;
  for (const lab::SlotRef& ref : lab::walk(*model.root)) {
    auto* norm = dynamic_cast<lab::RmsNorm*>(ref.slot->get().get());
    if (norm == nullptr) continue;
    at::Tensor logs = at::empty_like(norm->weight);
    lab::fill_normal(logs, 0.5, derive_seed(seed, "norm spread " + ref.path));
    norm->weight.copy_(logs.exp());
  }
  return model;
}

void train_decoder(const RecipeRun& run, const Plan& plan, uint64_t seed, Subject& subject) {
  lab::TrainOptions options = plan.train;
  options.seed = derive_seed(seed, "train");
  options.fingerprint =
      fmt::format("wina seed {} commit {} tokens {:016x} {}", seed, build_commit(),
                  subject.tokens->checksum(), run.settings.dump());
  options.checkpoint = (std::filesystem::path(run.options.work_directory) /
                        fmt::format("decoder-{:016x}.checkpoint",
                                    xxhash64(std::as_bytes(std::span(options.fingerprint)))))
                           .string();
  options.tokens_per_sample = plan.context;
  lab::TokenFeed feed(*subject.tokens, data::TextSplit::train, plan.context, run.options.device);
  lab::Trainer trainer(subject.model, feed, options);
  if (file_exists(options.checkpoint)) trainer.load_checkpoint(options.checkpoint);
  trainer.run();
  std::filesystem::remove(options.checkpoint);
}

}  // namespace

Plan read_plan(const Json& settings, const std::string& work_directory) {
  Plan plan;
  plan.trained = json_get<bool>(settings, "trained", kWhat);
  plan.model = json_get<Json>(settings, "model", kWhat);
  plan.context = json_get<int64_t>(plan.model, "context", kWhat);
  plan.sparsities = json_get<std::vector<double>>(settings, "sparsities", kWhat);
  plan.theorem_tokens = json_get<int64_t>(settings, "theorem_tokens", kWhat);
  plan.theorem_masks = json_get<int64_t>(settings, "theorem_masks", kWhat);
  plan.calibration_windows = json_get<int64_t>(settings, "calibration_windows", kWhat);
  plan.greedy_samples = json_get<int64_t>(settings, "greedy_samples", kWhat);
  plan.gemv = json_get<int64_t>(settings, "gemv", kWhat);
  plan.decoded_tokens = json_get<int64_t>(settings, "decoded_tokens", kWhat);
  plan.evaluated_tokens = json_get<int64_t>(settings, "evaluated_tokens", kWhat);
  plan.corpus = read_corpus(settings, work_directory, "text.tokens", kWhat);
  plan.train = read_text_training(settings, kWhat);
  plan.train.title = "wina: decoder";
  return plan;
}

Subject make_subject(const RecipeRun& run, const Plan& plan, uint64_t seed) {
  Subject subject;
  if (plan.trained) {
    subject.tokens = lab::prepare_tokens(plan.corpus);
    Json options = plan.model;
    options["vocab"] = subject.tokens->info().vocabulary;
    subject.model = lab::make_model("decoder", options, derive_seed(seed, "init"));
    subject.model.root->to(run.options.device);
    train_decoder(run, plan, seed, subject);
    subject.calibration.calibration = text_windows(*subject.tokens, data::TextSplit::train,
                                                   plan.calibration_windows, plan.context);
    subject.probe = text_windows(*subject.tokens, data::TextSplit::held_out, 8, plan.context);
  } else {
    subject.model = random_decoder(plan, derive_seed(seed, "init"));
    subject.model.root->to(run.options.device);
    subject.calibration.calibration = lab::probe_input(
        subject.model, plan.calibration_windows, derive_seed(seed, "calibration"), plan.context);
    subject.probe = lab::probe_input(subject.model, 8, derive_seed(seed, "probe"), plan.context);
  }
  subject.calibration.batch = 16;
  subject.model.root->eval();
  return subject;
}

std::string percent(double sparsity) {
  return fmt::format("{}", static_cast<int64_t>(std::lround(100 * sparsity)));
}

}  // namespace sluice::recipes::wina
