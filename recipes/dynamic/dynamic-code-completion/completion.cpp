// Greedy completions under the rules of the arms. Without a cache: every token's whole past is
// computed again, so that nothing but the definition decides; the engine has the cache.
#include <torch/types.h>

#include <algorithm>
#include <random>

#include "recipes/dynamic/dynamic-code-completion/study.h"
#include "sluice/base/error.h"
#include "sluice/base/random.h"
#include "sluice/base/text_overlap.h"

namespace sluice::recipes::dynamic_code_completion {
namespace {

constexpr int64_t kGoOn = static_cast<int64_t>(lab::ExitAction::go_on),
                  kExit = static_cast<int64_t>(lab::ExitAction::exit),
                  kStop = static_cast<int64_t>(lab::ExitAction::stop);

at::Tensor actions_of(const at::Tensor& leaves, int64_t action) {
  return at::full(leaves.sizes(), kGoOn, leaves.options().dtype(at::kLong))
      .masked_fill(leaves, action);
}

}  // namespace

lab::ExitDecoder::Decide decide_by(const lab::ExitDecoder& root, const Rule& rule,
                                   lab::Context& context, const Place& place) {
  switch (rule.kind) {
    case Rule::Kind::never:
      break;
    case Rule::Kind::controller:
    case Rule::Kind::stop: {
      const int64_t action = rule.kind == Rule::Kind::stop ? kStop : kExit;
      return [&root, &context, action, threshold = rule.threshold](int64_t, const at::Tensor& h,
                                                                   const at::Tensor&) {
        const at::Tensor p = at::softmax((*root.slot("controller")).forward(h, context), -1);
        return actions_of(p.select(-1, action) > static_cast<float>(threshold), action);
      };
    }
    case Rule::Kind::confidence:
      return [&root, &context, threshold = rule.threshold](int64_t layer, const at::Tensor& h,
                                                           const at::Tensor&) {
        const at::Tensor p = at::softmax(root.logits(layer, h, context), -1).amax(-1);
        return actions_of(p > static_cast<float>(threshold), kExit);
      };
    case Rule::Kind::fixed:
      return [layer = rule.layer](int64_t at, const at::Tensor& h, const at::Tensor&) {
        return at::full({h.size(0)}, at + 1 == layer ? kExit : kGoOn, h.options().dtype(at::kLong));
      };
    case Rule::Kind::rates:
      // A draw per token and layer: the same whenever the token is computed again.
      return [rates = rule.rates, seed = rule.seed, &place](int64_t layer, const at::Tensor& h,
                                                            const at::Tensor& rows) {
        const at::Tensor at = rows.cpu().contiguous();
        at::Tensor leaves = at::zeros({h.size(0)}, at::kBool);
        for (int64_t i = 0; i < h.size(0); ++i) {
          const int64_t row = at.data_ptr<int64_t>()[i];
          const auto sample = static_cast<uint64_t>(place.first + row / place.width),
                     token = static_cast<uint64_t>(row % place.width);
          std::mt19937_64 engine(derive_seed(derive_seed(seed, "sample", sample), "draw",
                                             token * 64 + static_cast<uint64_t>(layer)));
          leaves.data_ptr<bool>()[i] =
              std::bernoulli_distribution(rates.at(static_cast<size_t>(layer)))(engine);
        }
        return actions_of(leaves.to(h.device()), kExit);
      };
  }
  return [](int64_t, const at::Tensor& h, const at::Tensor&) {
    return at::full({h.size(0)}, kGoOn, h.options().dtype(at::kLong));
  };
}

Completions complete(const Plan& plan, const lab::ExitDecoder& root, const at::Tensor& windows,
                     const Rule& rule) {
  const torch::NoGradGuard no_grad;
  lab::Context context;
  Place place;
  const auto decide = decide_by(root, rule, context, place);
  const int64_t count = windows.size(0);
  at::Tensor ids = windows.narrow(1, 0, plan.prompt), layers;
  at::Tensor stopped = at::zeros({count}, windows.options().dtype(at::kBool));
  for (int64_t step = 0; step < plan.completion; ++step) {
    std::vector<at::Tensor> next;
    place = {0, ids.size(1)};
    for (const at::Tensor& part : ids.split(64)) {
      const auto said = root.run(part, plan.prompt, decide, context, rule.propagate);
      place.first += part.size(0);
      next.push_back(said.logits.select(1, -1).argmax(-1));
      if (step + 1 < plan.completion) continue;
      const int64_t late = part.size(1) - plan.prompt;
      const at::Tensor taken = said.layers.narrow(1, plan.prompt, late);
      layers = layers.defined() ? at::cat({layers, taken}) : taken;
      const int64_t first = layers.size(0) - part.size(0);
      stopped.narrow(0, first, part.size(0))
          .copy_(said.stopped.narrow(1, plan.prompt, late).any(1));
    }
    ids = at::cat({ids, at::cat(next).unsqueeze(1)}, 1);
  }
  Completions result;
  const at::Tensor found = ids.narrow(1, plan.prompt, plan.completion).cpu().contiguous(),
                   expected = windows.narrow(1, plan.prompt, plan.completion).cpu().contiguous();
  std::vector<std::pair<std::vector<int64_t>, std::vector<int64_t>>> pairs;
  const at::Tensor stops = stopped.cpu();
  for (int64_t i = 0; i < count; ++i) {
    const auto row = [&](const at::Tensor& of) {
      const int64_t* at = of.data_ptr<int64_t>() + i * plan.completion;
      return std::vector<int64_t>(at, at + plan.completion);
    };
    pairs.emplace_back(row(found), row(expected));
    result.found.push_back(pairs.back().first);
    result.expected.push_back(pairs.back().second);
    result.rouge += rouge_l(result.found.back(), result.expected.back()) / double(count);
    result.good.push_back(result.found.back() == result.expected.back());
    result.stopped.push_back(stops[i].item<bool>());
  }
  result.bleu = bleu(pairs);
  const at::Tensor wide = layers.to(at::kDouble);
  result.layers = wide.mean().item<double>();
  const at::Tensor by_token = wide.mean(0).cpu();
  for (int64_t t = 0; t < by_token.size(0); ++t)
    result.by_token.push_back(by_token[t].item<double>());
  for (int64_t layer = 1; layer < root.layers(); ++layer) {
    const double there = (layers >= layer).sum().item<double>(),
                 leave = (layers == layer).sum().item<double>();
    result.rates.push_back(there > 0 ? leave / there : 0);
  }
  return result;
}

double fit_threshold(const Plan& plan, const lab::ExitDecoder& root, const at::Tensor& windows,
                     Rule rule, double layers) {
  double low = 0, high = 1;  // more layers with a higher threshold
  for (int64_t i = 0; i < plan.fit_steps; ++i) {
    rule.threshold = (low + high) / 2;
    (complete(plan, root, windows, rule).layers < layers ? low : high) = rule.threshold;
  }
  return (low + high) / 2;
}

}  // namespace sluice::recipes::dynamic_code_completion
