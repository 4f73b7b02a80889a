#include "sluice/engine/text/speculative.h"

#include <algorithm>

#include "sluice/base/error.h"

namespace sluice::engine {

int32_t draw_index(std::span<const double> weights, double u) {
  double total = 0;
  for (const double weight : weights) total += weight;
  double rest = u * total;
  int32_t last = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] <= 0) continue;
    last = static_cast<int32_t>(i);
    rest -= weights[i];
    if (rest < 0) break;
  }
  return last;
}

Verdict verify(int32_t proposed, std::span<const double> draft, std::span<const double> target,
               Sampler& sampler, std::vector<double>& residual) {
  const size_t token = static_cast<size_t>(proposed);
  if (target[token] >= draft[token] || sampler.uniform() * draft[token] < target[token])
    return {true, proposed};
  residual.resize(target.size());
  for (size_t i = 0; i < target.size(); ++i) residual[i] = std::max(0.0, target[i] - draft[i]);
  return {false, draw_index(residual, sampler.uniform())};
}

Drafter::Drafter(const Network& network, const Options& options)
    : session_(options.shared),
      block_(network.input_shape()[0]),
      width_(network.output_shape().back()),
      size_(options.size) {
  if (!session_) {
    own_.emplace(
        network,
        Session::Options{
            .batch = options.batch, .threads = options.threads, .sequences = true, .last_rows = 1});
    session_ = &*own_;
    if (session_->rewind_limit() < block_)
      fail(Code::unsupported,
           "{}: its sequences cannot go back behind a refused token (linear attention and carried "
           "values cannot); it cannot propose",
           network.bundle().path());
  }
  if (size_ >= session_->sizes())
    fail(Code::usage, "{}: size {} to propose with; it has {}", network.bundle().path(), size_,
         session_->sizes());
  rows_.resize(static_cast<size_t>(options.batch));
  wanted_.resize(rows_.size());
  logits_.resize(static_cast<size_t>(options.batch * width_));
}

void Drafter::propose(std::span<const Wish> wishes, std::span<Proposal> proposals) {
  for (Proposal& proposal : proposals) {
    proposal.tokens.clear();
    proposal.distributions.clear();
  }
  while (true) {
    input_.clear();
    bool any = false;
    for (size_t s = 0; s < wishes.size(); ++s) {
      const Wish& wish = wishes[s];
      const std::vector<int32_t>& proposed = proposals[s].tokens;
      rows_[s] = wanted_[s] = 0;
      if (std::ssize(proposed) >= wish.count) continue;
      const int64_t given = std::ssize(wish.tokens), all = given + std::ssize(proposed),
                    from = session_->position(static_cast<int64_t>(s));
      rows_[s] = std::min(all - from, block_);
      wanted_[s] = from + rows_[s] == all ? 1 : 0;
      for (int64_t i = from; i < from + rows_[s]; ++i)
        input_.push_back(static_cast<float>(i < given ? wish.tokens[static_cast<size_t>(i)]
                                                      : proposed[static_cast<size_t>(i - given)]));
      any = true;
    }
    if (!any) break;
    session_->run_tokens(input_, logits_, rows_,
                         {.meter = &meter_, .size = size_, .last = wanted_});
    size_t row = 0;
    for (size_t s = 0; s < wishes.size(); ++s) {
      if (wanted_[s] == 0) continue;
      const std::span<const float> here(logits_.data() + row++ * static_cast<size_t>(width_),
                                        static_cast<size_t>(width_));
      Proposal& proposal = proposals[s];
      Sampler& sampler = *wishes[s].sampler;
      seen_.assign(wishes[s].tokens.begin(), wishes[s].tokens.end());
      seen_.insert(seen_.end(), proposal.tokens.begin(), proposal.tokens.end());
      if (wishes[s].greedy) {
        proposal.tokens.push_back(sampler.next(here, seen_));
        continue;
      }
      sampler.distribution(here, seen_, proposal.distributions.emplace_back());
      proposal.tokens.push_back(draw_index(proposal.distributions.back(), sampler.uniform()));
    }
  }
  if (own_) return;
  for (size_t s = 0; s < wishes.size(); ++s)
    if (!proposals[s].tokens.empty())
      session_->rewind(static_cast<int64_t>(s), std::ssize(wishes[s].tokens) - 1);
}

void Drafter::keep(int64_t place, int64_t length) {
  if (own_) own_->rewind(place, std::min(length, own_->position(place)));
}

namespace {

constexpr double kFirstGuess = 0.7, kGuessWeight = 4;  // of acceptance, in tokens
constexpr double kFading = 0.95;                       // of what was seen, each time
constexpr int64_t kPatience = 16, kMostPatience = 128;

}  // namespace

DraftLength::DraftLength(int64_t most, double cost, double row)
    : most_(most),
      patience_(kPatience),
      cost_(cost),
      row_(row),
      accepted_(kFirstGuess * kGuessWeight),
      tried_(kGuessWeight) {}

int64_t DraftLength::next() {
  const double a = acceptance();
  int64_t best = 0;
  double most = 1, gain = 1, power = 1;
  for (int64_t n = 1; n <= most_; ++n) {
    power *= a;
    gain += power;
    const double rate = gain / (1 + static_cast<double>(n) * (cost_ + row_));
    if (rate > most) {
      most = rate;
      best = n;
    }
  }
  if (best > 0) {
    idle_ = 0;
    patience_ = kPatience;
  } else if (++idle_ > patience_) {
    idle_ = 0;
    patience_ = std::min(2 * patience_, kMostPatience);
    best = 1;
  }
  return best;
}

void DraftLength::learn(int64_t proposed, int64_t accepted) {
  if (proposed == 0) return;
  // Those behind the first refused one say nothing.
  const double seen = static_cast<double>(std::min(proposed, accepted + 1));
  accepted_ = accepted_ * kFading + static_cast<double>(accepted);
  tried_ = tried_ * kFading + seen;
}

}  // namespace sluice::engine
