// prune: zeroes weights (they stay zero in the tensors) or masks channels (slice-channels then
// removes them).
#include <cmath>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/pass/mask.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

const std::string kWhat = "pass prune";

struct PruneOptions {
  double rate;
  bool random, global, channels;
  std::string slots;
  uint64_t seed;
};

bool second_of(const Json& options, const char* key, const std::string& first,
               const std::string& second) {
  const auto value = json_get_or<std::string>(options, key, first, kWhat);
  if (value != first && value != second) {
    fail(Code::config, "{}: {}: expected '{}' or '{}', found '{}'", kWhat, key, first, second,
         value.substr(0, 60));
  }
  return value == second;
}

PruneOptions read_options(const Json& options) {
  json_require_known_keys(options, {"rate", "score", "scope", "granularity", "slots", "seed"},
                          kWhat);
  PruneOptions result;
  result.rate = json_get_or<double>(options, "rate", 0.5, kWhat);
  if (!(result.rate >= 0 && result.rate <= 1)) {
    fail(Code::config, "{}: rate: expected 0 to 1, found {}", kWhat, result.rate);
  }
  result.random = second_of(options, "score", "magnitude", "random");
  result.global = second_of(options, "scope", "layer", "global");
  result.channels = second_of(options, "granularity", "weight", "channel");
  result.slots = json_get_or<std::string>(options, "slots", "**", kWhat);
  result.seed = static_cast<uint64_t>(json_get_or<int64_t>(options, "seed", 0, kWhat));
  return result;
}

// ---- weights ----

Json prune_weights(Model& model, const PruneOptions& options) {
  // Weights that are zero already count as pruned: a second run takes its share of the survivors.
  MaskSet current;
  PruneRates rates;
  for (const SlotRef& ref : walk(*model.root, options.slots)) {
    at::Tensor weight;
    if (const auto* linear = dynamic_cast<const Linear*>(ref.slot->get().get())) {
      weight = linear->weight;
    } else if (const auto* conv = dynamic_cast<const Conv2d*>(ref.slot->get().get())) {
      weight = conv->weight;
    } else {
      continue;
    }
    const std::string path = join_path(ref.path, "weight");
    current.set(path, (weight.detach() != 0).to(weight.scalar_type()));
    rates.rates.emplace_back(path, options.rate);
  }
  if (rates.rates.empty()) {
    fail(Code::usage, "{}: no linear layer or convolution under '{}'", kWhat, options.slots);
  }
  const MaskSet masks = prune_masks(*model.root, current, rates,
                                    options.random ? random_score(options.seed) : magnitude_score(),
                                    options.global ? PruneScope::global : PruneScope::layer);
  masks.apply(*model.root);
  Json layers = Json::object();
  for (const auto& [path, density] : masks.density_by_path()) layers[path] = density;
  return {{"granularity", "weight"}, {"density", masks.density()}, {"layers", std::move(layers)}};
}

// ---- channels ----

struct Group {
  BrickRef owner;
  ChannelGroup group;
  at::Tensor open;   ///< [channels] bool, CPU: before
  at::Tensor score;  ///< [channels] double, CPU
};

std::vector<Group> find_groups(Model& model, const PruneOptions& options) {
  std::vector<Group> result;
  for (const BrickRef& ref : all_bricks(model)) {
    for (const ChannelGroup& group : ref.brick->channel_groups()) {
      if (!matches_any(options.slots, ref.path, group.producers)) continue;
      const std::string path = join_path(ref.path, group.name);
      const at::Tensor mask = ref.brick->channel_mask(group);
      if (!mask.defined() && !group.gate.empty() && !ref.brick->slot(group.gate).empty()) {
        fail(Code::state, "{}: {} has a per-sample gate; run freeze-gates first", kWhat, path);
      }
      Group found{ref, group, at::ones({group.channels}, at::kBool), {}};
      if (mask.defined()) found.open = (mask != 0).to(at::kCPU);
      if (options.random) {
        found.score = at::empty({group.channels}, at::kDouble);
        fill_uniform(found.score, 1.0, derive_seed(options.seed, path));
      } else {
        found.score = at::zeros({group.channels}, at::kDouble);
        for (const std::string& name : group.producers) {
          const Slot& slot = ref.brick->slot(name);
          const at::Tensor norms = slot.as<Sliceable>().output_norms(1).to(at::kCPU, at::kDouble);
          // Mean |w| of a channel, so that layers of different fan-in compare.
          const at::Tensor weight = slot->named_parameters(/*recurse=*/false)["weight"];
          found.score +=
              norms * static_cast<double>(group.channels) / static_cast<double>(weight.numel());
        }
      }
      result.push_back(std::move(found));
    }
  }
  if (result.empty()) {
    fail(Code::usage,
         "{}: no channel group under '{}'; groups are the hidden channels of residual "
         "blocks and layers that feed the next through norms, activations and pools",
         kWhat, options.slots);
  }
  return result;
}

struct Unit {
  double score;
  size_t group;
  int64_t channel;
};

// Closes the lowest `rate` of the open units of these groups, never the last of one.
void close_lowest(std::vector<Group*> groups, double rate) {
  std::vector<Unit> units;
  std::vector<int64_t> left;
  for (size_t g = 0; g < groups.size(); ++g) {
    const at::Tensor &open = groups[g]->open, &score = groups[g]->score;
    left.push_back(open.sum().item<int64_t>());
    for (int64_t c = 0; c < open.numel(); ++c) {
      if (open.data_ptr<bool>()[c]) units.push_back({score.data_ptr<double>()[c], g, c});
    }
  }
  auto drop = std::llround(rate * static_cast<double>(units.size()));
  // Of equal scores the highest index goes first: the lowest stays.
  std::reverse(units.begin(), units.end());
  std::stable_sort(units.begin(), units.end(),
                   [](const Unit& a, const Unit& b) { return a.score < b.score; });
  for (const Unit& unit : units) {
    if (drop == 0) break;
    if (left[unit.group] <= 1) continue;
    groups[unit.group]->open.data_ptr<bool>()[unit.channel] = false;
    --left[unit.group];
    --drop;
  }
}

Json prune_channels(Model& model, const PruneOptions& options) {
  std::vector<Group> groups = find_groups(model, options);
  std::vector<Group*> all;
  for (Group& group : groups) all.push_back(&group);
  if (options.global) {
    close_lowest(all, options.rate);
  } else {
    for (Group* group : all) close_lowest({group}, options.rate);
  }
  Json kept = Json::object();
  int64_t open = 0, channels = 0;
  for (Group& group : groups) {
    const int64_t count = group.open.sum().item<int64_t>();
    open += count;
    channels += group.group.channels;
    kept[join_path(group.owner.path, group.group.name)] = {{"open", count},
                                                           {"channels", group.group.channels}};
    Brick& owner = *group.owner.brick;
    owner.set_channel_mask(
        group.group, group.open.to(at::TensorOptions(device_of(*model.root)).dtype(at::kFloat)));
  }
  return {{"granularity", "channel"},
          {"density", static_cast<double>(open) / static_cast<double>(channels)},
          {"groups", std::move(kept)}};
}

}  // namespace

Json prune(Model& model, const PassInput& input) {
  const PruneOptions options = read_options(input.options);
  return options.channels ? prune_channels(model, options) : prune_weights(model, options);
}

}  // namespace sluice::lab
