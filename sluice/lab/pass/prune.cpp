// prune: zeroes weights (they stay zero in the tensors) or masks channels (slice-channels then
// removes them).
#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include <algorithm>
#include <cmath>
#include <map>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/graph_network.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/pass/importance.h"
#include "sluice/lab/pass/mask.h"

namespace sluice::lab {
namespace {

const std::string kPrune = "pass prune";

struct PruneOptions {
  double rate;
  std::string score, granularity;
  bool random, global;
  std::string slots;
  uint64_t seed;
};

std::string one_of(const Json& options, const char* key,
                   std::initializer_list<std::string_view> known) {
  auto value = json_get_or<std::string>(options, key, std::string(*known.begin()), kPrune);
  if (std::find(known.begin(), known.end(), value) == known.end()) {
    fail(Code::config, "{}: {}: expected '{}', found '{}'", kPrune, key, fmt::join(known, "' or '"),
         value.substr(0, 60));
  }
  return value;
}

PruneOptions read_prune(const Json& options) {
  json_require_known_keys(options, {"rate", "score", "scope", "granularity", "slots", "seed"},
                          kPrune);
  PruneOptions result;
  result.rate = json_get_or<double>(options, "rate", 0.5, kPrune);
  if (!(result.rate >= 0 && result.rate <= 1)) {
    fail(Code::config, "{}: rate: expected 0 to 1, found {}", kPrune, result.rate);
  }
  result.score = one_of(options, "score", {"magnitude", "random", "activation"});
  result.random = result.score == "random";
  result.global = one_of(options, "scope", {"layer", "global"}) == "global";
  result.granularity = one_of(options, "granularity", {"weight", "channel", "neuron", "head"});
  if (result.score == "activation" && result.granularity == "weight") {
    fail(Code::config,
         "{}: score: activation ranks channels, neurons and heads; for weights use "
         "magnitude",
         kPrune);
  }
  result.slots = json_get_or<std::string>(options, "slots", "**", kPrune);
  result.seed = static_cast<uint64_t>(json_get_or<int64_t>(options, "seed", 0, kPrune));
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
    } else if (const auto* other = dynamic_cast<const GraphConv*>(ref.slot->get().get())) {
      weight = other->weight;
    } else {
      continue;
    }
    const std::string path = join_path(ref.path, "weight");
    current.set(path, (weight.detach() != 0).to(weight.scalar_type()));
    rates.rates.emplace_back(path, options.rate);
  }
  if (rates.rates.empty()) {
    fail(Code::usage, "{}: no linear layer or convolution under '{}'", kPrune, options.slots);
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

std::vector<Group> find_groups(Model& model, const PruneOptions& options, const PassInput& input) {
  std::vector<Group> result;
  for (const BrickRef& ref : all_bricks(model)) {
    for (const ChannelGroup& group : ref.brick->channel_groups()) {
      if (group.unit != options.granularity) continue;
      if (!matches_any(options.slots, ref.path, group.producers)) continue;
      const std::string path = join_path(ref.path, group.name);
      const at::Tensor mask = ref.brick->channel_mask(group);
      if (!mask.defined() && !group.gate.empty() && !ref.brick->slot(group.gate).empty()) {
        fail(Code::state, "{}: {} has a per-sample gate; run freeze-gates first", kPrune, path);
      }
      Group found{ref, group, at::ones({group.channels}, at::kBool), {}};
      if (mask.defined()) found.open = (mask != 0).to(at::kCPU);
      if (options.random) {
        found.score = at::empty({group.channels}, at::kDouble);
        fill_uniform(found.score, 1.0, derive_seed(options.seed, path));
      } else if (options.score == "magnitude") {
        found.score = magnitude_importance(*ref.brick, group);
      }
      result.push_back(std::move(found));
    }
  }
  if (result.empty()) {
    fail(Code::usage,
         "{}: no group of {}s under '{}'; channels are the hidden ones of residual blocks and of "
         "layers that feed the next through norms, activations and pools; neurons and heads those "
         "of transformer blocks whose layers are not packed",
         kPrune, options.granularity, options.slots);
  }
  if (options.score == "activation") {
    std::vector<std::string> paths;
    for (const Group& group : result) {
      for (const std::string& path : reader_paths(group.owner, group.group)) paths.push_back(path);
    }
    const auto squares = input_squares(model, input, paths, "prune");
    for (Group& group : result) {
      group.score = activation_importance(group.owner, group.group, squares);
    }
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

Json prune_channels(Model& model, const PruneOptions& options, const PassInput& input) {
  std::vector<Group> groups = find_groups(model, options, input);
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
  return {{"granularity", options.granularity},
          {"density", static_cast<double>(open) / static_cast<double>(channels)},
          {"groups", std::move(kept)}};
}

}  // namespace

Json prune(Model& model, const PassInput& input) {
  const PruneOptions options = read_prune(input.options);
  return options.granularity == "weight" ? prune_weights(model, options)
                                         : prune_channels(model, options, input);
}

}  // namespace sluice::lab
