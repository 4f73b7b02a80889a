#include "sluice/engine/kernel/expert_groups.h"

#include <algorithm>
#include <numeric>

#include "sluice/base/shape.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/reduce.h"
#include "sluice/engine/kernel/select.h"

namespace sluice::engine {
namespace {

static_assert(sizeof(int32_t) == sizeof(float));

/// Takes arrays of four-byte numbers one after another.
struct GroupArrays {
  int64_t end = 0;
  int64_t take(int64_t count) {
    const int64_t at = end;
    end = checked_add(end, align_up(checked_mul(count, 4, "expert scratch")), "expert scratch");
    return at;
  }
};

struct GroupPlaces {
  int64_t start, token, weight, places, choice, choice_weight, ranked, probability, end;
  GroupPlaces(int64_t rows, int64_t experts, int64_t top_k) {
    const int64_t slots = checked_mul(rows, top_k, "expert slots");
    GroupArrays arrays;
    start = arrays.take(experts + 1);
    token = arrays.take(slots);
    weight = arrays.take(slots);
    places = arrays.take(slots);
    choice = arrays.take(slots);
    choice_weight = arrays.take(slots);
    ranked = arrays.take(experts);
    probability = arrays.take(experts);
    end = arrays.end;
  }
};

}  // namespace

int64_t ExpertGroups::scratch_bytes(int64_t rows, int64_t experts, int64_t top_k) {
  return GroupPlaces(rows, experts, top_k).end;
}

ExpertGroups::ExpertGroups(std::byte* scratch, size_t r, size_t e, size_t k)
    : rows(r), experts(e), top_k(k) {
  const GroupPlaces at(static_cast<int64_t>(r), static_cast<int64_t>(e), static_cast<int64_t>(k));
  const auto integers = [&](int64_t place) { return reinterpret_cast<int32_t*>(scratch + place); };
  const auto floats = [&](int64_t place) { return reinterpret_cast<float*>(scratch + place); };
  start = integers(at.start);
  token = integers(at.token);
  weight = floats(at.weight);
  places = integers(at.places);
  choice_ = integers(at.choice);
  ranked_ = integers(at.ranked);
  choice_weight_ = floats(at.choice_weight);
  probability_ = floats(at.probability);
}

void ExpertGroups::route(const float* logits, bool softmax_over_all) {
  std::fill_n(start, experts + 1, 0);
  for (size_t t = 0; t < rows; ++t) {
    const float* from = logits + t * experts;
    select_top_k({from, experts, Rank::value}, top_k, ranked_);
    float* mine = choice_weight_ + t * top_k;
    if (softmax_over_all) {
      softmax(from, probability_, 1, experts);
      for (size_t i = 0; i < top_k; ++i) mine[i] = probability_[ranked_[i]];
    } else {
      for (size_t i = 0; i < top_k; ++i) mine[i] = from[ranked_[i]];
      softmax(mine, mine, 1, top_k);
    }
    for (size_t i = 0; i < top_k; ++i) {
      choice_[t * top_k + i] = ranked_[i];
      ++start[ranked_[i] + 1];
    }
  }
  for (size_t e = 0; e < experts; ++e) start[e + 1] += start[e];
  int32_t* next = ranked_;  // its work is done
  std::copy_n(start, experts, next);
  for (size_t t = 0; t < rows; ++t) {
    int32_t* mine = places + t * top_k;
    for (size_t i = 0; i < top_k; ++i) {
      const size_t slot = t * top_k + i;
      const int32_t place = next[choice_[slot]]++;
      token[place] = static_cast<int32_t>(t);
      weight[place] = choice_weight_[slot];
      mine[i] = place;
    }
    std::sort(mine, mine + top_k);
  }
}

void share_jobs(std::span<ExpertJob> jobs, int threads, int32_t* order, int64_t* loads) {
  // Reading an expert's weights costs about as much as two tokens, and two threads that compute
  // one together meet three times.
  constexpr int64_t kReading = 2, kSlack = 32;  // one part of so many
  const auto cost = [&](const ExpertJob& job) { return job.tokens() + kReading; };
  int64_t all = 0;
  for (const ExpertJob& job : jobs) all += cost(job);
  const int64_t part = (all + threads - 1) / threads, most = part + part / kSlack;
  std::fill_n(loads, threads, int64_t{0});
  std::iota(order, order + jobs.size(), 0);
  const auto job_at = [&](int32_t i) -> ExpertJob& { return jobs[static_cast<size_t>(i)]; };
  std::sort(order, order + jobs.size(), [&](int32_t a, int32_t b) {
    const int32_t left = job_at(a).tokens(), right = job_at(b).tokens();
    return left != right ? left > right : a < b;
  });
  for (size_t i = 0; i < jobs.size(); ++i) {
    ExpertJob& job = job_at(order[i]);
    int64_t* least = std::min_element(loads, loads + threads);
    job.owner = ExpertJob::kAll;
    if (*least + cost(job) > most) continue;
    *least += cost(job);
    job.owner = static_cast<int32_t>(least - loads);
  }
}

}  // namespace sluice::engine
