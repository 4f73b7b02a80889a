#include "sluice/engine/text/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "sluice/base/error.h"
#include "sluice/base/random.h"

namespace sluice::engine {
namespace {

constexpr double kMaxTemperature = 1000, kMinPenalty = 0.01, kMaxPenalty = 100;
constexpr size_t kFirstSorted = 256;

void require(bool fine, const char* name, double value, const char* expected) {
  if (!fine) fail(Code::usage, "{} {}: expected {}", name, value, expected);
}

/// The highest finite logit.
float check_logits(std::span<const float> logits) {
  float highest = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] < std::numeric_limits<float>::infinity()))
      fail(Code::numeric, "the logit of token {} is {}; expected a number", i, logits[i]);
    highest = std::max(highest, logits[i]);
  }
  if (!std::isfinite(highest))
    fail(Code::numeric, "none of {} logits is a number above -infinity: no token to choose",
         logits.size());
  return highest;
}

}  // namespace

void check_sampling(const Sampling& s) {
  require(s.temperature >= 0 && s.temperature <= kMaxTemperature, "temperature", s.temperature,
          "0 (the most probable token) to 1000");
  require(s.top_k >= 0, "top-k", static_cast<double>(s.top_k), "0 (all) or more");
  require(s.top_p > 0 && s.top_p <= 1, "top-p", s.top_p, "a number above 0, up to 1");
  require(s.min_p >= 0 && s.min_p <= 1, "min-p", s.min_p, "0 to 1");
  require(s.repetition_penalty >= kMinPenalty && s.repetition_penalty <= kMaxPenalty,
          "repetition penalty", s.repetition_penalty, "0.01 to 100; 1 is none");
}

Sampler::Sampler(const Sampling& sampling) : sampling_(sampling) { check_sampling(sampling); }

void Sampler::penalize(std::span<const int32_t> seen) {
  std::vector<int32_t> once(seen.begin(), seen.end());
  std::sort(once.begin(), once.end());
  once.erase(std::unique(once.begin(), once.end()), once.end());
  const float penalty = static_cast<float>(sampling_.repetition_penalty);
  for (const int32_t id : once) {
    if (id < 0 || static_cast<size_t>(id) >= logits_.size()) continue;
    float& logit = logits_[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
}

float Sampler::prepare(std::span<const float> logits, std::span<const int32_t> seen,
                       std::span<const float>& now) {
  float highest = check_logits(logits);
  const bool penalized = sampling_.repetition_penalty != 1 && !seen.empty();
  if (penalized || sampling_.temperature > 0) logits_.assign(logits.begin(), logits.end());
  if (penalized) {
    penalize(seen);
    highest = check_logits(logits_);
  }
  now = penalized ? std::span<const float>(logits_) : logits;
  return highest;
}

int32_t Sampler::next(std::span<const float> logits, std::span<const int32_t> seen) {
  std::span<const float> now;
  const float highest = prepare(logits, seen, now);
  if (sampling_.temperature == 0)
    return static_cast<int32_t>(std::find(now.begin(), now.end(), highest) - now.begin());
  return draw(highest);
}

void Sampler::distribution(std::span<const float> logits, std::span<const int32_t> seen,
                           std::vector<double>& probabilities) {
  std::span<const float> now;
  const float highest = prepare(logits, seen, now);
  probabilities.assign(logits.size(), 0.0);
  if (sampling_.temperature == 0) {
    probabilities[static_cast<size_t>(std::find(now.begin(), now.end(), highest) - now.begin())] =
        1;
    return;
  }
  const double total = weigh(highest);
  for (size_t i = 0; i < weights_.size(); ++i)
    probabilities[static_cast<size_t>(candidates_[i].id)] = weights_[i] / total;
}

double Sampler::uniform() {
  return static_cast<double>(derive_seed(sampling_.seed, "sample", draws_++) >> 11) * 0x1p-53;
}

/// How many of the sorted candidates top-p and min-p leave; at least one.
size_t Sampler::kept(double total) const {
  double sum = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (i > 0 && weights_[i] < sampling_.min_p * weights_[0]) return i;
    sum += weights_[i];
    if (sampling_.top_p < 1 && sum >= sampling_.top_p * total) return i + 1;
  }
  return candidates_.size();
}

double Sampler::weigh(float highest) {
  candidates_.clear();
  for (size_t i = 0; i < logits_.size(); ++i) {
    if (logits_[i] > -std::numeric_limits<float>::infinity())
      candidates_.push_back({logits_[i], static_cast<int32_t>(i)});
  }
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  const auto at = [&](size_t n) { return candidates_.begin() + static_cast<std::ptrdiff_t>(n); };
  if (sampling_.top_k > 0 && static_cast<size_t>(sampling_.top_k) < candidates_.size()) {
    std::nth_element(at(0), at(static_cast<size_t>(sampling_.top_k)), candidates_.end(), before);
    candidates_.resize(static_cast<size_t>(sampling_.top_k));
  }
  const double scale = 1 / sampling_.temperature;
  const auto weight_of = [&](const Candidate& c) {
    return std::exp((static_cast<double>(c.logit) - highest) * scale);
  };
  double total = 0;
  size_t count = candidates_.size();
  weights_.resize(count);
  if (sampling_.top_p < 1 || sampling_.min_p > 0) {
    for (const Candidate& c : candidates_) total += weight_of(c);
    // Few are ever wanted of a large vocabulary: sort so many as prove to be enough.
    for (size_t sorted = 0; sorted < count;) {
      const size_t more = std::min(count, std::max(kFirstSorted, 4 * sorted));
      std::partial_sort(at(sorted), at(more), candidates_.end(), before);
      double sum = 0;
      for (size_t i = 0; i < more; ++i) {
        weights_[i] = weight_of(candidates_[i]);
        sum += weights_[i];
      }
      sorted = more;
      if ((sampling_.top_p < 1 && sum >= sampling_.top_p * total) ||
          weights_[sorted - 1] < sampling_.min_p * weights_[0])
        break;
    }
    count = kept(total);
    total = 0;
    for (size_t i = 0; i < count; ++i) total += weights_[i];
  } else {
    for (size_t i = 0; i < count; ++i) total += weights_[i] = weight_of(candidates_[i]);
  }
  weights_.resize(count);
  return total;
}

int32_t Sampler::draw(float highest) {
  const double total = weigh(highest);
  const size_t count = weights_.size();
  double rest = uniform() * total;
  for (size_t i = 0; i + 1 < count; ++i) {
    rest -= weights_[i];
    if (rest < 0) return candidates_[i].id;
  }
  return candidates_[count - 1].id;
}

}  // namespace sluice::engine
