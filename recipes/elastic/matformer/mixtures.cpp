// Mix'n'Match: sizes per layer that were never trained.
#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "recipes/elastic/matformer/study.h"
#include "sluice/base/machine.h"
#include "sluice/base/random.h"

namespace sluice::recipes::matformer {
namespace {

constexpr double kTolerance = 0.01;  // nats above the line that still count as on it

using Levels = std::vector<int64_t>;

/// Levels that never fall with depth and rise by one granularity at most from layer to layer, not
/// all the same: the mixtures of the rule.
std::vector<Levels> rule_mixtures(size_t layers, int64_t widths) {
  std::vector<Levels> result;
  for (int64_t first = 0; first < widths; ++first) {
    for (uint64_t rises = 1; rises < uint64_t{1} << (layers - 1); ++rises) {
      Levels levels = {first};
      for (size_t i = 0; i + 1 < layers; ++i)
        levels.push_back(levels.back() + static_cast<int64_t>(rises >> i & 1));
      if (levels.back() < widths) result.push_back(std::move(levels));
    }
  }
  return result;
}

/// The loss that the straight line through the trained sizes has at a cost.
double on_line(const std::vector<std::pair<double, double>>& trained, double macs) {
  for (size_t i = 1; i < trained.size(); ++i) {
    const auto& [x0, y0] = trained[i - 1];
    const auto& [x1, y1] = trained[i];
    if (macs <= x1 || i + 1 == trained.size()) return y0 + (y1 - y0) * (macs - x0) / (x1 - x0);
  }
  return trained.back().second;
}

struct Result {
  Series points;
  double share = 0, loss = 0, excess = 0;
};

class Mixtures {
 public:
  Mixtures(const Plan& plan, const Study& study, uint64_t seed)
      : plan_(plan), study_(study), seed_(seed) {
    space_.widths = plan.widths;
    space_.knobs = lab::block_knobs(study.matlm);
    const auto trained = losses(study.matlm, uniform());
    for (const auto& [levels, found] : trained) line_.push_back(found);
    std::sort(line_.begin(), line_.end());
    choose();
  }

  /// At each budget: levels in the order of the rule, from the last layer to the first, or
  /// shuffled.
  std::vector<Levels> rule() const { return chosen_; }
  std::vector<Levels> decreasing() const {
    std::vector<Levels> result = chosen_;
    for (Levels& levels : result) std::reverse(levels.begin(), levels.end());
    return result;
  }
  std::vector<Levels> shuffled() const {
    std::vector<Levels> result = chosen_;
    for (size_t i = 0; i < result.size(); ++i) {
      std::mt19937_64 engine(derive_seed(seed_, "shuffled mixture", i));
      // Another order than the rule's: its levels are not all the same.
      do {
        for (size_t k = result[i].size(); k > 1; --k)
          std::swap(result[i][k - 1], result[i][engine() % k]);
      } while (std::is_sorted(result[i].begin(), result[i].end()));
    }
    return result;
  }

  Result measure(const lab::Model& nested, const std::vector<Levels>& mixtures,
                 const std::string& name) const {
    const auto found = losses(nested, mixtures);
    Result result;
    result.points.name = name;
    result.points.points = true;
    for (const Levels& levels : mixtures) {
      const auto& [macs, loss] = found.at(levels);
      const double excess = loss - on_line(line_, macs);
      result.share += excess <= kTolerance ? 1 : 0;
      result.loss += loss;
      result.excess += excess;
      result.points.x.push_back(macs / 1e6);
      result.points.y.push_back(loss);
    }
    for (double* sum : {&result.share, &result.loss, &result.excess})
      *sum /= double(mixtures.size());
    return result;
  }

  const std::vector<std::pair<double, double>>& line() const { return line_; }

  /// Widths between the trained ones, the same in all layers: mean excess over the line.
  double between() const {
    lab::Model model = lab::clone(study_.matlm);
    lab::SubnetSpace fine;
    fine.widths = plan_.widths;
    for (size_t i = 1; i < plan_.widths.size(); ++i)
      fine.widths.push_back((plan_.widths[i - 1] + plan_.widths[i]) / 2);
    std::sort(fine.widths.begin(), fine.widths.end());
    lab::set_sizes(model, fine, fine.uniform());
    double sum = 0;
    for (size_t i = 1; i < model.sizes.size(); i += 2) {
      const double loss = loss_of(model, study_, plan_, static_cast<int64_t>(i));
      sum += loss - on_line(line_, double(model.sizes[i].macs));
    }
    return sum / double(model.sizes.size() / 2);
  }

 private:
  std::vector<Levels> uniform() const {
    std::vector<Levels> result;
    for (const lab::Subnet& subnet : space_.uniform()) result.push_back(subnet.levels);
    return result;
  }

  /// (MACs, loss) of each mixture; the whole network is always a size and not always asked for.
  std::map<Levels, std::pair<double, double>> losses(const lab::Model& nested,
                                                     const std::vector<Levels>& mixtures) const {
    std::set<Levels> unique(mixtures.begin(), mixtures.end());
    unique.insert(space_.full().levels);
    std::vector<lab::Subnet> subnets;
    for (const Levels& levels : unique) subnets.push_back({levels, 0});
    lab::Model model = lab::clone(nested);
    lab::set_sizes(model, space_, subnets);
    std::map<Levels, std::pair<double, double>> result;
    for (size_t i = 0; i < model.sizes.size(); ++i) {
      const Levels levels = space_.decode(model.sizes[i].name).levels;
      if (std::find(mixtures.begin(), mixtures.end(), levels) == mixtures.end()) continue;
      result[levels] = {double(model.sizes[i].macs),
                        loss_of(model, study_, plan_, static_cast<int64_t>(i))};
    }
    return result;
  }

  /// For each random budget the mixture of the rule that uses most of it, of equal ones the one
  /// that rises least.
  void choose() {
    const auto all = rule_mixtures(space_.knobs.size(), std::ssize(plan_.widths));
    // MACs are a sum over layers: what the trained sizes cost tells that of any mixture.
    const double layers = double(space_.knobs.size());
    const auto cost = [&](const Levels& levels) {
      double sum = 0;
      for (const int64_t level : levels) sum += line_[static_cast<size_t>(level)].first / layers;
      return sum;
    };
    std::mt19937_64 engine(derive_seed(seed_, "budgets"));
    double least = line_.back().first;
    for (const Levels& levels : all) least = std::min(least, cost(levels));
    while (std::ssize(chosen_) < plan_.budgets) {
      const double u = double(engine() >> 11) * 0x1p-53;
      const double budget = least + u * (line_.back().first - least);
      const Levels* best = nullptr;
      for (const Levels& levels : all) {
        if (cost(levels) > budget + 0.5) continue;
        const auto slope = [](const Levels& of) { return of.back() - of.front(); };
        const double gain = best == nullptr ? 1 : cost(levels) - cost(*best);
        if (gain > 0.5 || (std::abs(gain) <= 0.5 && slope(levels) < slope(*best))) best = &levels;
      }
      if (best != nullptr) chosen_.push_back(*best);
    }
  }

  const Plan& plan_;
  const Study& study_;
  uint64_t seed_;
  lab::SubnetSpace space_;
  std::vector<std::pair<double, double>> line_;  ///< (MACs, loss) of the trained sizes
  std::vector<Levels> chosen_;
};

}  // namespace

void measure_mixtures(RecipeRun& run, const Plan& plan, const Study& study, uint64_t seed) {
  const Mixtures mixtures(plan, study, seed);
  Figure figure;
  figure.title = "Loss of sizes and mixtures";
  figure.x_label =
      "million MACs per run of " + std::to_string(study.matlm.input_shape[0]) + " tokens";
  figure.y_label = "held-out loss, nats";
  Series trained{"trained sizes"};
  for (const auto& [macs, loss] : mixtures.line()) {
    trained.x.push_back(macs / 1e6);
    trained.y.push_back(loss);
  }
  figure.series.push_back(std::move(trained));
  const auto add = [&](const std::string& arm, const char* role, const Result& result) {
    run.report.add(arm, role, "mixtures_on_line", result.share);
    run.report.add(arm, role, "mixture_loss", result.loss);
    run.report.add(arm, role, "mixture_excess", result.excess);
    figure.series.push_back(result.points);
  };
  add("matlm", "system", mixtures.measure(study.matlm, mixtures.rule(), "wider with depth"));
  add("shuffled-mixtures", "baseline",
      mixtures.measure(study.matlm, mixtures.shuffled(), "in random order"));
  add("decreasing", "control",
      mixtures.measure(study.matlm, mixtures.decreasing(), "narrower with depth"));
  const lab::Model random = with_random_neurons(study.matlm, derive_seed(seed, "neurons"));
  const Result of_random = mixtures.measure(random, mixtures.rule(), "random neurons");
  run.report.add("random-neurons", "control", "mixtures_on_line", of_random.share);
  run.report.add("random-neurons", "control", "mixture_loss", of_random.loss);
  run.report.add("matlm", "system", "untrained_width_excess", mixtures.between());
  if (seed == run.seeds.front()) run.report.figures.push_back({"mixtures", std::move(figure)});
}

}  // namespace sluice::recipes::matformer
