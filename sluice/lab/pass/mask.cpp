#include "sluice/lab/pass/mask.h"

#include <algorithm>
#include <cmath>

#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/graph_network.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"

namespace sluice::lab {
namespace {

std::map<std::string, at::Tensor> parameters_by_path(const Brick& root) {
  std::map<std::string, at::Tensor> result;
  for (const auto& item : root.named_parameters()) result.emplace(item.key(), item.value());
  return result;
}

// The parameter a mask belongs to.
at::Tensor masked(const std::map<std::string, at::Tensor>& parameters, const std::string& path,
                  const at::Tensor& mask) {
  const auto found = parameters.find(path);
  if (found == parameters.end()) {
    std::vector<std::string> names;
    for (const auto& [name, value] : parameters) names.push_back(name);
    const std::string near = nearest_name(path, names);
    fail(Code::missing, "mask of '{}': the network has no such parameter{}", path,
         near.empty() ? "" : fmt::format("; the nearest is '{}'", near));
  }
  if (found->second.sizes() != mask.sizes()) {
    fail(Code::shape, "mask of '{}': expected {}, found {}", path, to_string(found->second.sizes()),
         to_string(mask.sizes()));
  }
  return found->second;
}

struct Candidate {
  std::string path;
  double rate;
  at::Tensor weight;
  at::Tensor survives;  ///< [numel] bool, CPU
  at::Tensor score;     ///< [survivors] double, CPU, in index order
};

// Weights of linear layers and convolutions in slots, in slot order.
std::vector<std::pair<std::string, at::Tensor>> prunable(const Brick& root) {
  std::vector<std::pair<std::string, at::Tensor>> result;
  const auto add = [&](const Brick& brick, const std::string& path) {
    if (const auto* linear = dynamic_cast<const Linear*>(&brick)) {
      result.emplace_back(join_path(path, "weight"), linear->weight.detach());
    } else if (const auto* conv = dynamic_cast<const Conv2d*>(&brick)) {
      result.emplace_back(join_path(path, "weight"), conv->weight.detach());
    } else if (const auto* other = dynamic_cast<const GraphConv*>(&brick)) {
      result.emplace_back(join_path(path, "weight"), other->weight.detach());
    }
  };
  add(root, "");
  for (const SlotRef& ref : walk(const_cast<Brick&>(root))) {  // walk() only hands the slots out
    if (!ref.slot->empty()) add(**ref.slot, ref.path);
  }
  return result;
}

// Prunes the candidates of one pool together.
void prune_pool(const std::vector<Candidate*>& pool, MaskSet& masks) {
  std::vector<at::Tensor> scores;
  for (const Candidate* candidate : pool) scores.push_back(candidate->score);
  const at::Tensor all = at::cat(scores);
  const auto drop =
      static_cast<int64_t>(std::llround(pool.front()->rate * static_cast<double>(all.numel())));
  const at::Tensor keep = highest(all, all.numel() - drop);
  int64_t offset = 0;
  for (const Candidate* candidate : pool) {
    const int64_t survivors = candidate->score.numel();
    at::Tensor mask = candidate->survives.clone();
    mask.masked_scatter_(candidate->survives, keep.narrow(0, offset, survivors));
    offset += survivors;
    masks.set(candidate->path,
              mask.view(candidate->weight.sizes()).to(candidate->weight.options()));
  }
}

}  // namespace

at::Tensor highest(const at::Tensor& scores, int64_t count) {
  const at::Tensor order = std::get<1>(at::sort(scores, /*stable=*/true, 0, /*descending=*/true));
  at::Tensor mask = at::zeros_like(scores, at::kBool);
  mask.index_fill_(0, order.narrow(0, 0, count), true);
  return mask;
}

void MaskSet::apply(Brick& root) const {
  const at::NoGradGuard no_grad;
  const auto parameters = parameters_by_path(root);
  for (const auto& [path, mask] : masks_) {
    at::Tensor parameter = masked(parameters, path, mask);
    parameter.mul_(mask.to(parameter.options()));
  }
}

void MaskSet::apply_to_gradients(Brick& root) const {
  const at::NoGradGuard no_grad;
  const auto parameters = parameters_by_path(root);
  for (const auto& [path, mask] : masks_) {
    at::Tensor gradient = masked(parameters, path, mask).mutable_grad();
    if (gradient.defined()) gradient.mul_(mask.to(gradient.options()));
  }
}

double MaskSet::density() const {
  double kept = 0, total = 0;
  for (const auto& [path, mask] : masks_) {
    kept += mask.sum(at::kDouble).item<double>();
    total += static_cast<double>(mask.numel());
  }
  return total == 0 ? 1.0 : kept / total;
}

std::map<std::string, double> MaskSet::density_by_path() const {
  std::map<std::string, double> result;
  for (const auto& [path, mask] : masks_) {
    result[path] = mask.sum(at::kDouble).item<double>() /
                   static_cast<double>(std::max<int64_t>(1, mask.numel()));
  }
  return result;
}

PruneScore magnitude_score() {
  return [](const std::string&, const at::Tensor& weight) { return weight.abs(); };
}

PruneScore movement_score(std::map<std::string, at::Tensor> start) {
  return [start = std::move(start)](const std::string& path, const at::Tensor& weight) {
    const auto found = start.find(path);
    if (found == start.end()) fail(Code::missing, "movement score: no start value for '{}'", path);
    if (found->second.sizes() != weight.sizes()) {
      fail(Code::shape, "movement score: start value of '{}': expected {}, found {}", path,
           to_string(weight.sizes()), to_string(found->second.sizes()));
    }
    return (weight - found->second.to(weight.options())).abs();
  };
}

PruneScore random_score(uint64_t seed) {
  return [seed](const std::string& path, const at::Tensor& weight) {
    at::Tensor score = at::empty(weight.sizes(), at::kDouble);
    fill_uniform(score, 1.0, derive_seed(seed, path));
    return score;
  };
}

PruneScore guarded_score(PruneScore score, double share) {
  require_range(share, 0.0, 1.0, "share", "guarded_score");
  return [score = std::move(score), share](const std::string& path, const at::Tensor& weight) {
    constexpr double kAbove = 1e9;
    at::Tensor scores = score(path, weight).detach().to(at::kDouble).flatten();
    const auto guarded =
        static_cast<int64_t>(std::ceil(share * static_cast<double>(scores.numel()) - 1e-9));
    if (guarded > 0) {
      const at::Tensor best = std::get<1>(scores.topk(guarded));
      scores.index_add_(0, best, at::full({guarded}, kAbove, scores.options()));
    }
    return scores.view(weight.sizes());
  };
}

MaskSet prune_masks(const Brick& root, const MaskSet& current, const PruneRates& rates,
                    const PruneScore& score, PruneScope scope) {
  for (const auto& [pattern, rate] : rates.rates) {
    if (!(rate >= 0 && rate <= 1)) {
      fail(Code::config, "prune rate of '{}': expected 0 to 1, found {}", pattern, rate);
    }
  }
  MaskSet masks = current;
  std::vector<Candidate> candidates;
  for (const auto& [path, weight] : prunable(root)) {
    const auto rate = std::find_if(rates.rates.begin(), rates.rates.end(), [&](const auto& entry) {
      return path_matches(entry.first, path);
    });
    if (rate == rates.rates.end()) continue;
    const auto old = current.masks().find(path);
    at::Tensor survives;
    if (old == current.masks().end()) {
      survives = at::ones({weight.numel()}, at::kBool);
    } else {
      if (old->second.sizes() != weight.sizes()) {
        fail(Code::shape, "mask of '{}': expected {}, found {}", path, to_string(weight.sizes()),
             to_string(old->second.sizes()));
      }
      survives = (old->second != 0).flatten().to(at::kCPU);
    }
    const at::Tensor scores = score(path, weight).detach().to(at::kCPU, at::kDouble).flatten();
    if (scores.numel() != weight.numel() || at::isnan(scores).any().item<bool>()) {
      fail(Code::numeric, "prune score of '{}': expected {} numbers, found {}{}", path,
           weight.numel(), scores.numel(), scores.numel() == weight.numel() ? " with NaN" : "");
    }
    candidates.push_back({path, rate->second, weight, survives, scores.masked_select(survives)});
  }
  if (candidates.empty()) {
    fail(Code::usage,
         "no weight matches the prune rates; patterns are over parameter paths, such as "
         "'**.weight'");
  }
  if (scope == PruneScope::layer) {
    for (Candidate& candidate : candidates) prune_pool({&candidate}, masks);
  } else {
    std::map<double, std::vector<Candidate*>> pools;  // one ranking over all layers of a rate
    for (Candidate& candidate : candidates) pools[candidate.rate].push_back(&candidate);
    for (const auto& [rate, pool] : pools) prune_pool(pool, masks);
  }
  return masks;
}

MaskSet shuffle_masks(const MaskSet& masks, uint64_t seed) {
  MaskSet result;
  for (const auto& [path, mask] : masks.masks()) {
    at::Tensor keys = at::empty({mask.numel()}, at::kDouble);
    fill_uniform(keys, 1.0, derive_seed(seed, path));
    const at::Tensor order = keys.argsort().to(mask.device());
    result.set(path, mask.flatten().index_select(0, order).view(mask.sizes()).clone());
  }
  return result;
}

}  // namespace sluice::lab
