// S084 wina: activation sparsity without training (arXiv 2505.19427). A projection reads only the
// inputs whose size times the norm of their column is largest. One run trains a small decoder and
// measures, on the same held-out text: the dense model, WINA, TEAL (size alone), random masks, and
// the controls, with and without the rotation that makes columns orthogonal, with uniform and
// greedy budgets.
#include "recipes/recipe.h"

#include <torch/types.h>

#include <cmath>

#include "recipes/dynamic/wina/arms.h"
#include "recipes/dynamic/wina/speed.h"
#include "recipes/dynamic/wina/theorem.h"
#include "sluice/base/progress.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/train/token_feed.h"

namespace sluice::recipes::wina {
namespace {

class WinaStudy {
 public:
  WinaStudy(RecipeRun& run, const Plan& plan, uint64_t seed)
      : run_(run), plan_(plan), seed_(seed), subject_(make_subject(run, plan, seed)) {}
  void run_all();

 private:
  void prove_equal(const lab::Model& turned);
  void compare_perplexities(const lab::Model& turned, const lab::Model& folded);
  void measure(const std::string& arm, const char* role, lab::Model model, double sparsity);
  double perplexity(lab::Model& model);
  void draw_norms(const lab::Model& turned, const lab::Model& folded);
  bool first() const { return seed_ == run_.seeds.front(); }

  RecipeRun& run_;
  const Plan& plan_;
  const uint64_t seed_;
  Subject subject_;
  double dense_ = 0;
};

lab::PassInput rotation_by_columns() {
  lab::PassInput input;
  input.options = {{"by", "columns"}};
  return input;
}

double WinaStudy::perplexity(lab::Model& model) {
  const lab::TextEvaluation evaluation = lab::evaluate_text(
      model, *subject_.tokens, data::TextSplit::held_out, plan_.context, plan_.evaluated_tokens);
  return std::exp(evaluation.loss);
}

void WinaStudy::measure(const std::string& arm, const char* role, lab::Model model,
                        double sparsity) {
  const double found = perplexity(model);
  run_.report.add(arm, role, "perplexity_at_" + percent(sparsity), found);
  run_.report.add(arm, role, "increase_at_" + percent(sparsity), found - dense_);
}

void WinaStudy::prove_equal(const lab::Model& turned) {
  lab::Model before = lab::clone(subject_.model), after = lab::clone(turned);
  const at::NoGradGuard no_grad;
  lab::Context a, b;
  const at::Tensor x = lab::as_input(subject_.probe, before);
  const at::Tensor difference = (before.forward(x, a) - after.forward(x, b)).abs();
  run_.report.add("wina", "system", "logit_difference", difference.max().item<double>());
}

// Deviation over mean of the column norms of k and gate, and all of them for a picture.
void WinaStudy::draw_norms(const lab::Model& turned, const lab::Model& folded) {
  Figure figure;
  figure.kind = Figure::Kind::histogram;
  figure.title = "Column norms of k and gate over their layer's mean";
  figure.x_label = "norm / mean";
  figure.y_label = "columns";
  const std::pair<const char*, const lab::Model*> models[] = {{"as trained", &folded},
                                                              {"rotated", &turned}};
  for (const auto& [name, model] : models) {
    Series series{name};
    double spread = 0, layers = 0;
    for (const char* pattern : {"**.k", "**.gate"}) {
      for (const lab::SlotRef& ref : lab::walk(*model->root, pattern)) {
        const at::Tensor norms =
            lab::column_norms(ref.slot->as<lab::Linear>()).to(at::kCPU, at::kDouble);
        const at::Tensor relative = (norms / norms.mean()).contiguous();
        spread += relative.std(/*unbiased=*/false).item<double>();
        ++layers;
        series.y.insert(series.y.end(), relative.data_ptr<double>(),
                        relative.data_ptr<double>() + relative.numel());
      }
    }
    const bool rotated = model == &turned;
    run_.report.add(rotated ? "wina" : "wina-unrotated", rotated ? "system" : "baseline",
                    "norm_spread", spread / layers);
    figure.series.push_back(std::move(series));
  }
  if (first()) run_.report.figures.push_back({"column-norms", std::move(figure)});
}

void WinaStudy::compare_perplexities(const lab::Model& turned, const lab::Model& folded) {
  {
    lab::Model dense = lab::clone(subject_.model);
    dense_ = perplexity(dense);
    run_.report.add("dense", "baseline", "perplexity", dense_);
  }
  struct Line {
    std::string arm;
    const char* role;
    const lab::Model* model;
    Score score;
    bool greedy, exact;
  };
  const std::vector<Line> lines = {
      {"wina", "system", &turned, Score::wina, true, true},
      {"teal", "baseline", &turned, Score::magnitude, true, true},
      {"wina-keys-and-gates", "baseline", &turned, Score::keys_and_gates, true, true},
      {"wina-uniform", "baseline", &turned, Score::wina, false, true},
      {"teal-uniform", "baseline", &turned, Score::magnitude, false, true},
      {"wina-shared", "baseline", &turned, Score::shared, false, true},
      {"wina-threshold", "baseline", &turned, Score::wina, true, false},
      {"wina-unrotated", "baseline", &folded, Score::wina, true, true},
      {"teal-unrotated", "baseline", &folded, Score::magnitude, true, true},
      {"wina-unrotated-uniform", "baseline", &folded, Score::wina, false, true},
      {"teal-unrotated-uniform", "baseline", &folded, Score::magnitude, false, true},
  };
  Progress progress("wina: arms", static_cast<int64_t>(lines.size()) + 1, "arms");
  std::vector<std::vector<double>> system_levels;
  for (size_t l = 0; l < lines.size(); ++l) {
    const Line& line = lines[l];
    const auto sparsifier =
        make_sparsifier(subject_, *line.model, plan_, line.score, seed_, line.exact);
    std::vector<std::vector<double>> levels;
    if (!line.exact) {
      levels = system_levels;  // the threshold instead of top-k is all that differs
    } else if (line.greedy) {
      levels = sparsifier.greedy(plan_.sparsities);
    } else {
      for (const double p : plan_.sparsities) levels.push_back(sparsifier.uniform(p));
    }
    std::vector<lab::Model> models;
    for (size_t i = 0; i < levels.size(); ++i) {
      models.push_back(sparsifier.at(levels[i]));
      measure(line.arm, line.role, models.back(), plan_.sparsities[i]);
    }
    if (line.arm == "wina") {
      system_levels = levels;
      if (first()) measure_decoding(run_, plan_, folded, models, subject_.probe);
    }
    progress.update(static_cast<int64_t>(l + 1));
  }
  const double most = plan_.sparsities.back();
  const std::vector<double>& levels = system_levels.back();
  for (const auto& [arm, score] :
       {std::pair{"permuted-norms", Score::permuted}, std::pair{"inverse-score", Score::inverse}}) {
    const auto sparsifier = make_sparsifier(subject_, turned, plan_, score, seed_);
    measure(arm, "control", sparsifier.at(levels), most);
  }
  const auto sparsifier = make_sparsifier(subject_, turned, plan_, Score::wina, seed_);
  const auto shuffled =
      shuffled_levels(levels, sparsifier.sizes(), derive_seed(seed_, "shuffled budget"));
  measure("shuffled-budget", "control", sparsifier.at(shuffled), most);
  measure("random", "control", randomly_masked(turned, sparsifier.paths(), levels, seed_), most);
  progress.finish();
}

void WinaStudy::run_all() {
  const lab::Model turned = lab::run_pass(subject_.model, "rotate-residual", rotation_by_columns());
  const lab::Model folded = lab::run_pass(subject_.model, "fold-norm", {});
  prove_equal(turned);
  measure_theorem(run_, plan_, subject_, turned, folded, seed_);
  draw_norms(turned, folded);
  if (plan_.trained) compare_perplexities(turned, folded);
  if (first() && plan_.gemv > 0) measure_gemv(run_, plan_, seed_);
}

void draw_curves(Report& report, const Plan& plan) {
  Figure quality;
  quality.title = "Perplexity against inputs left out";
  quality.x_label = "inputs left out, %";
  quality.y_label = "perplexity";
  for (const char* name :
       {"wina", "teal", "wina-uniform", "teal-uniform", "wina-unrotated", "teal-unrotated"}) {
    const Arm* arm = report.find(name);
    if (arm == nullptr) continue;
    Series series{name};
    for (const double sparsity : plan.sparsities) {
      const auto found = arm->metrics.find("perplexity_at_" + percent(sparsity));
      if (found == arm->metrics.end()) continue;
      double sum = 0;
      for (const double value : found->second) sum += value;
      series.x.push_back(100 * sparsity);
      series.y.push_back(sum / double(found->second.size()));
    }
    if (!series.x.empty()) quality.series.push_back(std::move(series));
  }
  if (!quality.series.empty()) report.figures.push_back({"perplexity", std::move(quality)});
  const Arm *wina = report.find("wina"), *dense = report.find("dense");
  if (wina == nullptr || dense == nullptr || !dense->metrics.contains("time_alone")) return;
  Figure speed;
  speed.title = "Decoding in the engine, one thread";
  speed.x_label = "inputs left out, %";
  speed.y_label = "share of the dense network's";
  for (const auto& [metric, name] : {std::pair{"time_alone", "time, one text"},
                                     std::pair{"time_batched", "time, texts together"},
                                     std::pair{"macs_alone", "MACs, one text"},
                                     std::pair{"macs_batched", "MACs, texts together"}}) {
    Series series{.name = name};
    for (const double sparsity : plan.sparsities) {
      series.x.push_back(100 * sparsity);
      series.y.push_back(
          wina->metrics.at(fmt::format("{}_at_{}", metric, percent(sparsity))).front());
    }
    speed.series.push_back(std::move(series));
  }
  report.figures.push_back({"speed", std::move(speed)});
}

void run(RecipeRun& run) {
  const Plan plan = read_plan(run.settings, run.options.work_directory);
  for (const uint64_t seed : run.seeds) WinaStudy(run, plan, seed).run_all();
  if (plan.trained) {
    const data::TokenFile tokens = data::TokenFile::open(plan.corpus.tokens);
    run.report.data.push_back(
        fmt::format("{} ({}): {} training tokens, {} of {} held-out tokens", plan.corpus.text,
                    tokens.info().source, tokens.count(data::TextSplit::train),
                    plan.evaluated_tokens, tokens.count(data::TextSplit::held_out)));
  } else {
    run.report.data.push_back("random tokens and weights");
  }
  draw_curves(run.report, plan);
  run.report.notes.push_back(
      "increase_at_P: perplexity above that of the dense model with P% of the inputs left out; "
      "best_share: share of inputs for which the arm's mask loses no more than 1000 random ones "
      "and "
      "that of |x|; norm_spread: deviation of column norms over their mean");
}

const bool registered = register_recipe("wina", run);

}  // namespace
}  // namespace sluice::recipes::wina
