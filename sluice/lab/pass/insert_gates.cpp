// insert-gates: fresh gates in the empty gate slots of a network's bricks.
#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

constexpr char kInsertGates[] = "pass insert-gates";

/// Where a brick takes a gate.
struct GateSite {
  Slot* slot;
  int64_t inputs, units;
};

/// What a granularity gates; a site only where the slot is empty.
struct GateKind {
  std::optional<GateSite> (*site)(Brick& brick);
  bool tokens;         ///< decides for each token, from the token
  const char* wanted;  ///< what a network without a site lacks
};

std::optional<GateSite> residual_site(Brick& brick, const char* name) {
  auto* block = dynamic_cast<ResidualBlock*>(&brick);
  if (block == nullptr || !block->slot(name).empty()) return {};
  return GateSite{&block->slot(name), block->slot("conv1").as<Conv2d>().options().inputs, 1};
}

std::optional<GateSite> channel_site(Brick& brick) {
  auto site = residual_site(brick, "channel_gate");
  if (!site) return {};
  const std::vector<ChannelGroup> groups = brick.channel_groups();
  if (groups.empty()) return {};
  site->units = groups.front().channels;
  return site;
}

std::optional<GateSite> block_site(Brick& brick) {
  auto site = residual_site(brick, "block_gate");
  if (site && !dynamic_cast<ResidualBlock&>(brick).identity_shortcut()) return {};
  return site;
}

std::optional<GateSite> neuron_site(Brick& brick) {
  auto* ffn = dynamic_cast<Ffn*>(&brick);
  if (ffn == nullptr || !ffn->slot("neuron_gate").empty()) return {};
  const std::vector<ChannelGroup> groups = ffn->channel_groups();
  if (groups.empty()) return {};
  return GateSite{&ffn->slot("neuron_gate"), ffn->slot("up").as<Linear>().inputs(),
                  groups.front().channels};
}

std::optional<GateSite> head_site(Brick& brick) {
  auto* attention = dynamic_cast<Attention*>(&brick);
  if (attention == nullptr || !attention->slot("head_gate").empty()) return {};
  const std::vector<ChannelGroup> groups = attention->channel_groups();
  if (groups.empty()) return {};
  return GateSite{&attention->slot("head_gate"), attention->slot("q").as<Linear>().inputs(),
                  groups.front().channels};
}

std::optional<GateSite> token_site(Brick& brick) {
  auto* block = dynamic_cast<TransformerBlock*>(&brick);
  if (block == nullptr || block->slot("ffn").empty() || !block->token_gate().empty()) return {};
  for (const char* turn : {"attn_turn", "ffn_turn"}) {
    if (block->has_slot(turn)) return {};
  }
  const auto* attention = dynamic_cast<const Attention*>(block->slot("attn").get().get());
  if (attention == nullptr || !attention->slot("head_gate").empty()) return {};
  const Json q = attention->slot("q")->attributes();
  if (!q.contains("inputs")) return {};
  return GateSite{&block->token_gate(), q.at("inputs").get<int64_t>(), 1};
}

const std::map<std::string, GateKind>& gate_kinds() {
  static const std::map<std::string, GateKind> kinds = {
      {"channel", {channel_site, false, "residual block with an empty channel_gate slot"}},
      {"block",
       {block_site, false,
        "residual block with an empty block_gate slot and an identity shortcut"}},
      {"neuron",
       {neuron_site, true,
        "feed-forward network of ordinary linear layers (dequantize first) with an empty "
        "neuron_gate slot"}},
      {"head",
       {head_site, true,
        "attention of ordinary linear layers (dequantize first) with an empty head_gate slot"}},
      {"token",
       {token_site, true,
        "transformer block with an empty token_gate slot, attention without a head gate and a "
        "stream that is not turned"}},
  };
  return kinds;
}

const GateKind& kind_of(const std::string& granularity) {
  const auto found = gate_kinds().find(granularity);
  if (found != gate_kinds().end()) return found->second;
  if (granularity == "network") {
    fail(Code::config,
         "{}: granularity: whether the rest of a network runs is what exits decide; use add-exits",
         kInsertGates);
  }
  std::string known;
  for (const auto& [name, kind] : gate_kinds()) known += (known.empty() ? "'" : ", '") + name + "'";
  fail(Code::config, "{}: granularity: expected one of {}, found '{}'", kInsertGates, known,
       granularity.substr(0, 60));
}

Json score_of(const Json& options, const GateKind& kind, const GateSite& site) {
  const auto hidden = json_get_or<int64_t>(options, "hidden", 0, kInsertGates);
  const auto name = json_get_or<std::string>(options, "score", "mlp", kInsertGates);
  Json score = {{"kind", "pooled_mlp"}, {"inputs", site.inputs}, {"units", site.units}};
  if (!kind.tokens) {
    if (options.contains("score")) {
      fail(Code::usage, "{}: score: gates of residual blocks have one kind; leave it out",
           kInsertGates);
    }
    score["bias"] = json_get_or<double>(options, "bias", 2.0, kInsertGates);
    if (hidden != 0) score["hidden"] = hidden;
    return score;
  }
  score["kind"] = name;
  if (name == "mlp") {
    score["hidden"] = {hidden != 0 ? hidden : std::max<int64_t>(4, site.inputs / 4)};
  } else if (name != "linear") {
    fail(Code::config, "{}: score: expected 'mlp' or 'linear', found '{}'", kInsertGates,
         name.substr(0, 60));
  } else if (hidden != 0) {
    fail(Code::usage, "{}: hidden: a linear score has no hidden layer", kInsertGates);
  }
  return score;
}

Json decision_of(const Json& options, const std::string& granularity, int64_t units) {
  const auto name = json_get_or<std::string>(options, "decision", "threshold", kInsertGates);
  if (name == "threshold") {
    if (options.contains("keep")) {
      fail(Code::usage, "{}: keep: of decision=top_k and statistical_top_k; a threshold has none",
           kInsertGates);
    }
    return {{"kind", name}, {"at", 0.5}};
  }
  if (name != "top_k" && name != "statistical_top_k") {
    fail(Code::config,
         "{}: decision: expected 'threshold', 'top_k' or 'statistical_top_k', found '{}'",
         kInsertGates, name.substr(0, 60));
  }
  if (granularity != "neuron") {
    fail(Code::usage, "{}: decision: '{}' is one of neurons; a {} compares with a threshold",
         kInsertGates, name, granularity);
  }
  const auto keep = json_get_or<double>(options, "keep", 0.5, kInsertGates);
  if (!(keep > 0 && keep <= 1)) {
    fail(Code::config, "{}: keep: expected a share above 0 and up to 1, found {}", kInsertGates,
         keep);
  }
  const auto k = static_cast<int64_t>(std::llround(keep * static_cast<double>(units)));
  return {{"kind", name}, {"k", std::clamp<int64_t>(k, 1, units)}};
}

BrickPtr fresh_gate(const Json& options, const Json& score, const Json& decision,
                    const std::string& path) {
  const auto bias = json_get_or<double>(options, "bias", 2.0, kInsertGates);
  auto gate = std::make_shared<Gate>(Json{
      {"score", score},
      {"decision", decision},
      {"estimator",
       {{"kind", json_get_or<std::string>(options, "estimator", "ste_sigmoid", kInsertGates)}}},
      {"noise", json_get_or<double>(options, "noise", 0.0, kInsertGates)}});
  const auto seed = static_cast<uint64_t>(json_get_or<int64_t>(options, "seed", 0, kInsertGates));
  const at::NoGradGuard no_grad;
  at::Tensor last;
  for (const auto& item : gate->named_parameters()) {
    at::Tensor parameter = item.value();
    if (parameter.dim() == 2) {
      fill_uniform(parameter, 1.0 / std::sqrt(static_cast<double>(parameter.size(1))),
                   derive_seed(seed, join_path(path, item.key())));
    } else {
      last = parameter.zero_();  // hidden biases are 0, the last one says "open"
    }
  }
  last.fill_(bias);
  return gate;
}

}  // namespace

Json insert_gates(Model& model, const PassInput& input) {
  const Json& options = input.options;
  json_require_known_keys(options,
                          {"slots", "granularity", "noise", "bias", "hidden", "score", "decision",
                           "keep", "estimator", "seed"},
                          kInsertGates);
  const auto granularity =
      json_get_or<std::string>(options, "granularity", "channel", kInsertGates);
  const auto pattern = json_get_or<std::string>(options, "slots", "**", kInsertGates);
  const GateKind& kind = kind_of(granularity);
  Json paths = Json::array();
  int64_t units = 0, params = 0;
  for (const SlotRef& ref : walk(*model.root, pattern)) {
    if (ref.slot->empty()) continue;
    const std::optional<GateSite> site = kind.site(**ref.slot);
    if (!site) continue;
    const std::string path = join_path(ref.path, site->slot->name());
    BrickPtr gate = fresh_gate(options, score_of(options, kind, *site),
                               decision_of(options, granularity, site->units), path);
    for (const at::Tensor& parameter : gate->parameters()) params += parameter.numel();
    site->slot->exchange(placed_like(std::move(gate), **ref.slot));
    paths.push_back(path);
    units += site->units;
  }
  if (paths.empty()) {
    fail(Code::usage, "{}: under '{}' there is no {}", kInsertGates, pattern, kind.wanted);
  }
  for (const BrickRef& ref : all_bricks(model)) ref.brick->check_slots();  // gates of two kinds
  return {{"granularity", granularity},
          {"units", units},
          {"added_params", params},
          {"gates", std::move(paths)}};
}

}  // namespace sluice::lab
