#include "recipes/dynamic/duo-llm/curves.h"

#include <torch/types.h>

#include <cmath>

#include "sluice/base/random.h"

namespace sluice::recipes::duo_llm {
namespace {

std::string at_budget(const char* metric, int64_t budget) {
  return fmt::format("{}_at_{}", metric, budget);
}

/// Where the big layers of the pattern with `budget` of them are.
std::vector<int64_t> placed(const std::string& rule, int64_t budget, int64_t layers) {
  std::vector<int64_t> digits(static_cast<size_t>(layers), kSmall);
  for (int64_t i = 0; i < budget; ++i) {
    int64_t layer = i;
    if (rule == "last") layer = layers - 1 - i;
    if (rule == "even") layer = (2 * i + 1) * layers / (2 * budget);
    digits[static_cast<size_t>(layer)] = kBig;
  }
  return digits;
}

/// `tries` patterns of the allowed ones, drawn with repetition.
at::Tensor drawn_patterns(const at::Tensor& allowed, int64_t tries, uint64_t seed) {
  const at::Tensor index = allowed.nonzero().flatten();
  return index.index_select(
      0, at::randint(index.numel(), {tries}, at::detail::createCPUGenerator(seed),
                     at::TensorOptions().dtype(at::kLong)));
}

Series line(const std::string& name, const std::vector<double>& losses) {
  Series series{name};
  for (size_t b = 0; b < losses.size(); ++b) {
    series.x.push_back(double(b));
    series.y.push_back(std::exp(losses[b]));
  }
  return series;
}

struct OracleLines {
  std::vector<double> tries, shuffled, wrong;
  std::vector<at::Tensor> usage;  // by budget, [layers]
};

void draw(RecipeRun& run, const DuoPlan& plan, const Tables& tables, const Curves& curves,
          const OracleLines& lines) {
  Figure quality;
  quality.title = "Perplexity against big layers a token";
  quality.x_label =
      "big layers of a token (oracle: the least of all such patterns, it reads the "
      "answer)";
  quality.y_label = "perplexity";
  quality.series = {line("first", curves.first),
                    line("last", curves.last),
                    line("evenly spaced", curves.even),
                    line("mean random", curves.mean_random),
                    line("best shared", curves.best_shared),
                    line("oracle", curves.oracle),
                    line("best of as many random tries", lines.tries),
                    line("oracle, exchanged between tokens", lines.shuffled)};
  run.report.figures.push_back({"perplexity", std::move(quality)});
  Figure heat;
  heat.kind = Figure::Kind::bars;
  heat.title = "Where the oracle spends its big layers";
  heat.x_label = "layer";
  heat.y_label = "tokens that use it, %";
  for (int64_t layer = 0; layer < plan.layers; ++layer)
    heat.categories.push_back(fmt::format("{}", layer));
  for (size_t b = 1; b + 1 < curves.oracle.size(); ++b) {
    Series series{fmt::format("{} big", b)};
    for (int64_t layer = 0; layer < plan.layers; ++layer)
      series.y.push_back(100 * lines.usage[b][layer].item<double>());
    heat.series.push_back(std::move(series));
  }
  run.report.figures.push_back({"oracle-layers", std::move(heat)});
  const lab::ChoiceTable& table = tables.test;
  const at::Tensor free = lab::best_patterns(table, at::ones({table.patterns()}, at::kBool));
  const at::Tensor big = table.count(kBig).index_select(0, free).to(at::kDouble);
  const at::Tensor by_place = big.view({-1, plan.context}).mean(0);
  Figure place;
  place.title = "Big layers the unlimited oracle takes, by place in the window";
  place.x_label = "token";
  place.y_label = "big layers";
  Series series{"oracle"};
  for (int64_t t = 0; t < plan.context; ++t) {
    series.x.push_back(double(t));
    series.y.push_back(by_place[t].item<double>());
  }
  place.series.push_back(std::move(series));
  run.report.figures.push_back({"oracle-places", std::move(place)});
}

}  // namespace

Tables make_tables(lab::Model& model, const DuoPlan& plan, const DuoText& text, uint64_t seed) {
  Tables tables;
  const auto table = [&](const Windows& windows, const at::Tensor& labels) {
    return lab::tree_losses(model, windows.ids, labels, kBig, plan.tree_batch);
  };
  tables.validation = table(text.validation, text.validation.labels);
  tables.test = table(text.test, text.test.labels);
  // Answers of other tokens; where that is the same word, the next one of the vocabulary.
  const at::Tensor right = text.test.labels.flatten();
  const at::Tensor order =
      lab::exchange_order(right.numel(), derive_seed(seed, "wrong")).to(right.device());
  at::Tensor wrong = right.index_select(0, order);
  wrong = (wrong + (wrong == right).to(at::kLong)).remainder(text.tokens.info().vocabulary);
  tables.wrong = table(text.test, wrong.view(text.test.labels.sizes()));
  return tables;
}

Curves report_patterns(RecipeRun& run, const DuoPlan& plan, const Tables& tables, uint64_t seed) {
  const lab::ChoiceTable &table = tables.test, &validation = tables.validation;
  Report& out = run.report;
  const at::Tensor shared = lab::shared_losses(table);
  const at::Tensor shared_validation = lab::shared_losses(validation);
  const at::Tensor big = table.count(kBig);
  const at::Tensor order = lab::exchange_order(table.rows(), derive_seed(seed, "exchange"));
  const auto loss_of = [&](int64_t pattern) { return shared[pattern].item<double>(); };
  Curves curves;
  OracleLines lines;
  double worst = 0, worst_shuffled = 0;
  for (int64_t b = 0; b <= plan.layers; ++b) {
    for (const auto& [rule, into] :
         {std::pair{"first", &curves.first}, std::pair{"last", &curves.last},
          std::pair{"even", &curves.even}})
      into->push_back(loss_of(table.pattern_of(placed(rule, b, plan.layers))));
    const at::Tensor allowed = big == b;
    const at::Tensor drawn =
        drawn_patterns(allowed, plan.random_patterns, derive_seed(seed, "random", uint64_t(b)));
    curves.mean_random.push_back(shared.index_select(0, drawn).mean().item<double>());
    const at::Tensor best = drawn[shared_validation.index_select(0, drawn).argmin()];
    curves.best_shared.push_back(loss_of(best.item<int64_t>()));
    const at::Tensor chosen = lab::best_patterns(table, allowed);
    curves.oracle.push_back(lab::mean_loss(table, chosen));
    lines.shuffled.push_back(lab::mean_loss(table, chosen.index_select(0, order)));
    lines.wrong.push_back(lab::mean_loss(table, lab::best_patterns(tables.wrong, allowed)));
    lines.tries.push_back(lab::best_of_random(table, allowed.sum().item<int64_t>(),
                                              derive_seed(seed, "tries", uint64_t(b))));
    lines.usage.push_back(lab::usage(table, chosen, kBig));
    if (b == 0 || b == plan.layers) continue;
    const auto report = [&](const char* arm, const char* role, const std::vector<double>& of) {
      out.add(arm, role, at_budget("perplexity", b), std::exp(of.back()));
    };
    report("oracle", "system", curves.oracle);
    report("first", "baseline", curves.first);
    report("last", "baseline", curves.last);
    report("even", "baseline", curves.even);
    report("mean-random", "baseline", curves.mean_random);
    report("best-of-100", "baseline", curves.best_shared);
    report("random-tries", "baseline", lines.tries);
    report("shuffled-oracle", "control", lines.shuffled);
    report("wrong-target-oracle", "control", lines.wrong);
    worst = std::max(worst, std::exp(curves.oracle.back() - curves.best_shared.back()));
    worst_shuffled =
        std::max(worst_shuffled, std::exp(lines.shuffled.back() - curves.best_shared.back()));
    out.add("shuffled-oracle", "control", at_budget("over_random", b),
            std::exp(lines.shuffled.back() - curves.mean_random.back()));
    out.add("wrong-target-oracle", "control", at_budget("over_random", b),
            std::exp(lines.wrong.back() - curves.mean_random.back()));
  }
  out.add("oracle", "system", "worst_over_shared", worst);
  out.add("shuffled-oracle", "control", "worst_over_shared", worst_shuffled);
  const int64_t all_big = table.pattern_of(placed("first", plan.layers, plan.layers));
  out.add("all-big", "baseline", "perplexity", std::exp(loss_of(all_big)));
  out.add("all-small", "baseline", "perplexity", std::exp(curves.first.front()));
  const at::Tensor any = at::ones({table.patterns()}, at::kBool);
  const at::Tensor free = lab::best_patterns(table, any);
  out.add("oracle", "system", "perplexity_free", std::exp(lab::mean_loss(table, free)));
  out.add("oracle", "system", "big_layers_free",
          big.index_select(0, free).to(at::kDouble).mean().item<double>());
  // Tokens that are hard and stay so, whatever runs.
  const at::Tensor reference = table.losses.select(1, all_big);
  const at::Tensor hopeless =
      (reference > reference.mean()).logical_and(lab::difficulty(table, all_big) < 0.1);
  out.add("oracle", "system", "hopeless_share", hopeless.to(at::kDouble).mean().item<double>());
  if (seed == run.seeds.front()) draw(run, plan, tables, curves, lines);
  return curves;
}

void report_router(RecipeRun& run, const std::string& arm, const char* role, int64_t budget,
                   const Curves* curves, const lab::ChoiceTable& table, lab::Model& model,
                   const Windows& test) {
  const double loss = lab::mean_loss(table, table.routed);
  const auto add = [&](const char* metric, double value) {
    run.report.add(arm, role, at_budget(metric, budget), value);
  };
  add("perplexity", std::exp(loss));
  add("own_perplexity", own_perplexity(model, test));
  add("big_layers",
      table.count(kBig).index_select(0, table.routed).to(at::kDouble).mean().item<double>());
  if (curves == nullptr) return;
  const auto b = static_cast<size_t>(budget);
  const double random = curves->mean_random[b], oracle = curves->oracle[b];
  add("gap_closed", (random - loss) / (random - oracle));
  add("over_best_of_100", std::exp(loss - curves->best_shared[b]));
  run.report.add("oracle", "system", at_budget("over_router", budget), std::exp(oracle - loss));
}

}  // namespace sluice::recipes::duo_llm
