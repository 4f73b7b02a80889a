// S088 dynamic-code-completion: after every layer of a decoder a controller says stop, exit or go
// on (Sun et al., arXiv 2401.09964). Completions of Python source against the whole decoder, exits
// at a fixed layer and exits by the head's confidence.
#include "recipes/recipe.h"

#include <torch/types.h>

#include <algorithm>

#include "recipes/dynamic/dynamic-code-completion/study.h"
#include "sluice/base/json.h"
#include "sluice/base/random.h"

namespace sluice::recipes::dynamic_code_completion {
namespace {

using Kind = Rule::Kind;

/// [B, T]: the controller's largest probability of stop over all layers but the last, with every
/// token at whole depth.
at::Tensor stop_scores(const lab::ExitDecoder& root, const at::Tensor& ids) {
  const torch::NoGradGuard no_grad;
  std::vector<at::Tensor> parts;
  for (const at::Tensor& part : ids.split(16)) {
    lab::Context context;
    const auto states = root.states(part, context);
    at::Tensor most;
    for (size_t i = 0; i + 1 < states.size(); ++i) {
      const at::Tensor p =
          at::softmax((*root.slot("controller")).forward(states[i], context), -1).select(-1, 0);
      most = most.defined() ? at::maximum(most, p) : p;
    }
    parts.push_back(most);
  }
  return at::cat(parts);
}

/// What stopping above a threshold would do.
struct Stops {
  double lift = 0;       ///< precision over the share of all tokens that come out wrong
  double precision = 0;  ///< of the tokens that stop, those after which the decoder would be wrong
  double recall = 0;     ///< of those that no layer gets right
  double rate = 0;
  double good_lost = 0;  ///< of the completions that are right to the last token
};

class Study {
 public:
  Study(RecipeRun& run, const Plan& plan, uint64_t seed)
      : run_(run), plan_(plan), seed_(seed), tokens_(tokens_of(plan, run)) {
    const auto windows = [&](Half half, int64_t count, int64_t width) {
      return windows_of(tokens_, half, count, width).to(run.options.device);
    };
    const int64_t width = plan.prompt + plan.completion;
    validation_ = windows(Half::validation, plan.cuts, width);
    test_ = windows(Half::test, plan.cuts, width);
    validation_text_ = windows(Half::validation, plan.studied_windows, plan.context);
    test_text_ = windows(Half::test, plan.studied_windows, plan.context);
  }
  void run();

 private:
  void study_layers();
  double choose_exit_threshold();
  void compare(double threshold);
  void study_stops();
  Stops stops(const lab::ExitDecoder& root, Half half, double threshold) const;
  void record(const std::string& arm, const std::string& role, const Completions& found);
  Completions completed(const lab::Model& model, const at::Tensor& windows, Rule rule) const {
    return complete(plan_, root_of(model), windows, rule);
  }

  RecipeRun& run_;
  const Plan& plan_;
  uint64_t seed_;
  data::TokenFile tokens_;
  at::Tensor validation_, test_, validation_text_, test_text_;
  lab::Model decoder_, model_, shuffled_;
  Completions full_validation_, full_test_;
  Series sec_line_{"controller"}, confidence_line_{"confidence"}, fixed_line_{"fixed layer"};
};

void Study::record(const std::string& arm, const std::string& role, const Completions& found) {
  Report& report = run_.report;
  const auto layers = double(root_of(model_).layers());
  report.add(arm, role, "rouge_l", 100 * found.rouge);
  report.add(arm, role, "bleu", 100 * found.bleu);
  report.add(arm, role, "layers", found.layers);
  report.add(arm, role, "skipped", 100 * (1 - found.layers / layers));
  report.add(arm, role, "rouge_loss",
             full_test_.rouge > 0 ? 100 * (1 - found.rouge / full_test_.rouge) : 0);
}

void Study::study_layers() {
  Report& report = run_.report;
  const auto& root = root_of(model_);
  const at::Tensor first = first_right(root, test_text_);
  const auto share = [](const at::Tensor& of) {
    return 100 * of.to(at::kDouble).mean().item<double>();
  };
  Series cumulative{"right by this layer"};
  double sum = 0, before = 0, most_rise = -100;
  for (int64_t layer = 1; layer <= root.layers(); ++layer) {
    const double here = share(first == layer);
    report.add("heads", "baseline", fmt::format("first_right_{}", layer), here);
    if (layer > 1) most_rise = std::max(most_rise, here - before);
    before = here;
    sum += here;
    cumulative.x.push_back(double(layer));
    cumulative.y.push_back(sum);
  }
  const double right = share(first > 0);
  report.add("heads", "baseline", "never_right", 100 - right);
  report.add("heads", "baseline", "layer1_share", sum > 0 ? share(first == 1) / right : 0);
  report.add("heads", "baseline", "largest_rise", most_rise);
  // A head that knows frequencies only: right whenever the commonest token comes.
  const at::Tensor next = test_text_.narrow(1, 1, test_text_.size(1) - 1);
  const at::Tensor counts = at::bincount(next.flatten(), {}, root.vocabulary());
  const at::Tensor common = next == counts.argmax();
  report.add("unigram", "control", "layer1_share",
             right > 0 ? share(common.logical_and(first > 0)) / right : 0);
  if (seed_ != run_.seeds.front()) return;
  Figure figure;
  figure.title = "At which layer a token is first right";
  figure.x_label = "layer";
  figure.y_label = "tokens, %";
  figure.series = {std::move(cumulative)};
  report.figures.push_back({"first-right", std::move(figure)});
}

/// On validation completions: the one that skips most and loses no more ROUGE-L than allowed.
double Study::choose_exit_threshold() {
  double best = plan_.exit_thresholds.back(), least = double(root_of(model_).layers());
  for (const double threshold : plan_.exit_thresholds) {
    const auto found =
        completed(model_, validation_, {.kind = Kind::controller, .threshold = threshold});
    sec_line_.x.push_back(found.layers);
    sec_line_.y.push_back(100 * found.rouge);
    if (found.rouge < full_validation_.rouge * (1 - plan_.rouge_loss) || found.layers > least)
      continue;
    least = found.layers;
    best = threshold;
  }
  return best;
}

void Study::compare(double threshold) {
  Report& report = run_.report;
  const Rule sec{.kind = Kind::controller, .threshold = threshold};
  const auto found = completed(model_, test_, sec);
  record("sec", "system", found);
  report.add("sec", "system", "exit_threshold", threshold);
  const at::Tensor fit = validation_.narrow(0, 0, std::min(plan_.fit_cuts, validation_.size(0)));
  const auto fitted = completed(model_, fit, sec);

  Rule confidence{.kind = Kind::confidence};
  confidence.threshold = fit_threshold(plan_, root_of(model_), fit, confidence, fitted.layers);
  record("confidence", "baseline", completed(model_, test_, confidence));
  Rule shuffled{.kind = Kind::controller};
  shuffled.threshold = fit_threshold(plan_, root_of(shuffled_), fit, shuffled, fitted.layers);
  record("shuffled-labels", "control", completed(shuffled_, test_, shuffled));
  record("random", "control",
         completed(model_, test_,
                   {.kind = Kind::rates,
                    .rates = completed(model_, validation_, sec).rates,
                    .seed = derive_seed(seed_, "random")}));
  Rule alone = sec;
  alone.propagate = false;
  const auto without = completed(model_, test_, alone);
  record("no-propagation", "control", without);
  for (int64_t layer = 1; layer < root_of(model_).layers(); ++layer) {
    const auto fixed = completed(model_, test_, {.kind = Kind::fixed, .layer = layer});
    record(fmt::format("fixed-{}", layer), "baseline", fixed);
    fixed_line_.x.push_back(fixed.layers);
    fixed_line_.y.push_back(100 * fixed.rouge);
  }
  if (seed_ != run_.seeds.front()) return;

  for (const double each : {0.3, 0.5, 0.7, 0.9}) {
    const auto point =
        completed(model_, validation_, {.kind = Kind::confidence, .threshold = each});
    confidence_line_.x.push_back(point.layers);
    confidence_line_.y.push_back(100 * point.rouge);
  }
  Figure pareto;
  pareto.title = "Completions over depth";
  pareto.x_label = "mean layers of a token";
  pareto.y_label = "ROUGE-L, %";
  pareto.series = {sec_line_, confidence_line_, fixed_line_};
  pareto.series.push_back({.name = "all layers",
                           .x = {double(root_of(model_).layers())},
                           .y = {100 * full_validation_.rouge},
                           .points = true});
  report.figures.push_back({"pareto", std::move(pareto)});

  Figure text;
  text.kind = Figure::Kind::bars;
  text.title = "Layers of each token of a completion";
  text.x_label = "token of the completion, from the second";
  text.y_label = "mean layers";
  Series bars{"controller"};
  for (size_t t = 0; t < found.by_token.size(); ++t) {
    text.categories.push_back(fmt::format("{}", t + 2));
    bars.y.push_back(found.by_token[t]);
  }
  text.series = {std::move(bars)};
  report.figures.push_back({"tokens", std::move(text)});

  lab::Model exits = lab::clone(model_);
  dynamic_cast<lab::ExitDecoder&>(*exits.root).options.exit_threshold = threshold;
  measure_speed(run_, plan_, decoder_, exits, test_, found);
}

Stops Study::stops(const lab::ExitDecoder& root, Half half, double threshold) const {
  const at::Tensor& text = half == Half::test ? test_text_ : validation_text_;
  const int64_t width = text.size(1) - 1;
  const at::Tensor first = first_right(root, text);
  const at::Tensor stopped = stop_scores(root, text.narrow(1, 0, width)) > threshold;
  const torch::NoGradGuard no_grad;
  lab::Context context;
  const auto states = root.states(text.narrow(1, 0, width), context);
  const at::Tensor wrong =
      root.logits(root.layers() - 1, states.back(), context).argmax(-1) != text.narrow(1, 1, width);
  const auto share = [](const at::Tensor& of) { return of.to(at::kDouble).mean().item<double>(); };
  Stops result;
  result.rate = share(stopped);
  const double base = share(wrong), never = share(first == 0);
  if (result.rate > 0) result.precision = share(stopped.logical_and(wrong)) / result.rate;
  if (base > 0) result.lift = result.precision / base;
  if (never > 0) result.recall = share(stopped.logical_and(first == 0)) / never;

  const Completions& full = half == Half::test ? full_test_ : full_validation_;
  const at::Tensor& windows = half == Half::test ? test_ : validation_;
  std::vector<int64_t> said;
  for (const auto& each : full.found) said.insert(said.end(), each.begin(), each.end());
  const at::Tensor found = torch::tensor(said).view({-1, plan_.completion}).to(windows.device());
  const at::Tensor ids = at::cat({windows.narrow(1, 0, plan_.prompt), found}, 1);
  const at::Tensor ends =
      (stop_scores(root, ids).narrow(1, plan_.prompt, plan_.completion - 1) > threshold)
          .any(1)
          .cpu();
  int64_t good = 0, lost = 0;
  for (size_t i = 0; i < full.good.size(); ++i) {
    if (!full.good[i]) continue;
    ++good;
    lost += ends[static_cast<int64_t>(i)].item<bool>() ? 1 : 0;
  }
  if (good > 0) result.good_lost = double(lost) / double(good);
  return result;
}

void Study::study_stops() {
  for (const bool control : {false, true}) {
    const auto& root = root_of(control ? shuffled_ : model_);
    double best = plan_.stop_thresholds.back(), most = 0;
    for (const double threshold : plan_.stop_thresholds) {
      const Stops found = stops(root, Half::validation, threshold);
      if (found.good_lost > plan_.good_lost || found.lift <= most) continue;
      most = found.lift;
      best = threshold;
    }
    const Stops found = stops(root, Half::test, best);
    const std::string arm = control ? "stop-shuffled-labels" : "sec-stop",
                      role = control ? "control" : "system";
    Report& report = run_.report;
    report.add(arm, role, "stop_threshold", best);
    report.add(arm, role, "stop_lift", found.lift);
    report.add(arm, role, "stop_precision", 100 * found.precision);
    report.add(arm, role, "stop_recall", 100 * found.recall);
    report.add(arm, role, "stop_rate", 100 * found.rate);
    report.add(arm, role, "good_lost", 100 * found.good_lost);
  }
}

void Study::run() {
  decoder_ = train_decoder(run_, plan_, tokens_, seed_);
  model_ = lab::with_exits(decoder_, {.stop_token = tokens_.info().separator},
                           derive_seed(seed_, "exits"));
  for (at::Tensor& parameter : model_.root->parameters()) parameter.requires_grad_(false);
  for (const char* trained : {"exits", "controller"})
    for (at::Tensor& parameter : (*model_.root->slot(trained)).parameters())
      parameter.requires_grad_(true);
  train_heads(run_, plan_, tokens_, model_, seed_);
  shuffled_ = lab::clone(model_);
  train_controller(run_, plan_, tokens_, model_, seed_, false);
  train_controller(run_, plan_, tokens_, shuffled_, seed_, true);

  study_layers();
  full_validation_ = completed(model_, validation_, {});
  full_test_ = completed(model_, test_, {});
  record("full", "baseline", full_test_);
  double good = 0;
  for (const bool each : full_test_.good) good += each ? 1 : 0;
  run_.report.add("full", "baseline", "all_right", 100 * good / double(full_test_.good.size()));
  compare(choose_exit_threshold());
  study_stops();
}

void run(RecipeRun& run) {
  const Plan plan = read_plan(run.settings, run.options.work_directory);
  run.report.data.push_back(plan.random_text ? "made-up code" : plan.corpus.text);
  for (const uint64_t seed : run.seeds) Study(run, plan, seed).run();
  run.report.notes.push_back(
      "completions: greedy, after cut points of held-out files; the first token comes from the "
      "prompt, which takes the whole depth, the others may leave; layers and skipped are means "
      "over these. Thresholds are chosen on the first half of the held-out files, all numbers are "
      "of the second");
  run.report.notes.push_back(
      "rouge_loss: percent of the whole decoder's ROUGE-L over token ids; stop_lift: precision of "
      "stops over the share of all tokens that come out wrong, with the text given; good_lost: "
      "percent of the whole decoder's completely right completions that would have been stopped");
  run.report.notes.push_back(
      "us_alone, us_batched: prompts left out, controller and state propagation included");
}

const bool registered = register_recipe("dynamic-code-completion", run);

}  // namespace
}  // namespace sluice::recipes::dynamic_code_completion
