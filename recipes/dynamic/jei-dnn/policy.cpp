#include "recipes/dynamic/jei-dnn/policy.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "sluice/lab/brick/exits.h"
#include "sluice/lab/inspect/calibration.h"

namespace sluice::recipes::jei_dnn {
namespace {

constexpr int kHalvings = 50;

/// Where a function that rises with x reaches `target`.
double solve(double low, double high, double target, const std::function<double(double)>& f) {
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = (low + high) / 2;
    (f(middle) < target ? low : high) = middle;
  }
  return (low + high) / 2;
}

at::Tensor as_tensor(const std::vector<double>& values, const at::Tensor& like) {
  return torch::tensor(values, torch::kDouble).to(like.device());
}

double mean_cost(const at::Tensor& chosen, const std::vector<double>& cost) {
  return as_tensor(cost, chosen).index_select(0, chosen).mean().item<double>();
}

double accuracy_of(const Answers& answers, const at::Tensor& chosen) {
  const at::Tensor said = answers.logits.argmax(-1).gather(1, chosen.unsqueeze(1)).squeeze(1);
  return 100 * (said == answers.labels).to(at::kDouble).mean().item<double>();
}

/// Shares proportional to q^k.
std::vector<double> geometric_shares(double q, size_t exits) {
  std::vector<double> shares;
  double sum = 0;
  for (size_t k = 0; k < exits; ++k) {
    shares.push_back(std::pow(q, double(k)));
    sum += shares.back();
  }
  for (double& share : shares) share /= sum;
  return shares;
}

/// Thresholds that let those shares leave, best scores first.
std::vector<double> thresholds_for(const at::Tensor& scores, const std::vector<double>& shares) {
  const auto count = static_cast<double>(scores.size(0));
  at::Tensor here = at::arange(scores.size(0), scores.options().dtype(at::kLong));
  std::vector<double> thresholds;
  for (int64_t k = 0; k < scores.size(1); ++k) {
    const at::Tensor mine = scores.select(1, k).index_select(0, here);
    const int64_t want = std::min<int64_t>(here.size(0), std::llround(shares[size_t(k)] * count));
    const at::Tensor sorted = std::get<0>(mine.sort(0, /*descending=*/true));
    thresholds.push_back(want == 0 ? INFINITY : sorted[want - 1].item<double>());
    here = here.index_select(0, (mine < thresholds.back()).nonzero().select(-1, 0));
  }
  return thresholds;
}

}  // namespace

at::Tensor exit_losses(const Answers& answers) {
  const at::Tensor log_p = at::log_softmax(answers.logits, -1);
  const at::Tensor index = answers.labels.view({-1, 1, 1}).expand({-1, answers.logits.size(1), 1});
  return -log_p.gather(2, index).squeeze(2);
}

at::Tensor cheapest_exit(const at::Tensor& losses, const std::vector<double>& cost, double lambda) {
  return (losses + lambda * as_tensor(cost, losses).to(losses.scalar_type())).argmin(1);
}

Outcome outcome(const Answers& answers, const at::Tensor& chosen) {
  const int64_t classes = answers.logits.size(-1), last = answers.exits() - 1;
  const at::Tensor index = chosen.view({-1, 1, 1}).expand({-1, 1, classes});
  const at::Tensor p = at::softmax(answers.logits, -1).gather(1, index).squeeze(1);
  Outcome result;
  const auto [confidence, said] = p.max(-1);
  result.chosen = chosen;
  result.confidence = confidence;
  result.right = said == answers.labels;
  result.accuracy = 100 * result.right.to(at::kDouble).mean().item<double>();
  result.cost = mean_cost(chosen, answers.cost);
  result.brier = lab::brier_score(p, answers.labels);
  const at::Tensor early = (chosen < last).nonzero().select(-1, 0);
  result.early_ece = lab::calibration_error(confidence.index_select(0, early),
                                            result.right.index_select(0, early));
  for (int64_t l = 0; l <= last; ++l) {
    result.shares.push_back((chosen == l).to(at::kDouble).mean().item<double>());
  }
  return result;
}

at::Tensor scores_of(const Answers& answers, Score score) {
  const at::Tensor early = answers.logits.narrow(1, 0, answers.exits() - 1);
  const at::Tensor statistics = lab::prediction_statistics(early);
  return score == Score::max_probability ? statistics.select(-1, 0) : -statistics.select(-1, 1);
}

at::Tensor by_threshold(const at::Tensor& scores, const std::vector<double>& thresholds) {
  const at::Tensor stays = scores.to(at::kDouble) < as_tensor(thresholds, scores);
  return stays.to(at::kLong).cumprod(1).sum(1);
}

std::vector<double> fit_thresholds(const Answers& validation, Score score, double target) {
  const at::Tensor scores = scores_of(validation, score);
  const auto early = static_cast<size_t>(scores.size(1));
  const double one =
      solve(scores.min().item<double>(), scores.max().item<double>() + 1e-6, target, [&](double t) {
        return mean_cost(by_threshold(scores, std::vector<double>(early, t)), validation.cost);
      });
  const std::vector<double> shared(early, one);
  const double log_q = solve(-8, 8, target, [&](double x) {
    const auto shares = geometric_shares(std::exp(x), validation.cost.size());
    double cost = 0;
    for (size_t k = 0; k < shares.size(); ++k) cost += shares[k] * validation.cost[k];
    return cost;
  });
  const auto geometric =
      thresholds_for(scores, geometric_shares(std::exp(log_q), validation.cost.size()));
  return accuracy_of(validation, by_threshold(scores, geometric)) >
                 accuracy_of(validation, by_threshold(scores, shared))
             ? geometric
             : shared;
}

at::Tensor random_exits(int64_t count, const std::vector<double>& cost, double target,
                        uint64_t seed) {
  const double stay = solve(0, 1, target, [&](double s) {
    double mean = 0, there = 1;
    for (size_t k = 0; k + 1 < cost.size(); ++k) {
      mean += there * (1 - s) * cost[k];
      there *= s;
    }
    return mean + there * cost.back();
  });
  std::mt19937_64 engine(seed);
  std::bernoulli_distribution stays(stay);
  std::vector<int64_t> chosen(static_cast<size_t>(count));
  for (int64_t& exit : chosen) {
    while (exit + 1 < static_cast<int64_t>(cost.size()) && stays(engine)) ++exit;
  }
  return torch::tensor(chosen);
}

}  // namespace sluice::recipes::jei_dnn
