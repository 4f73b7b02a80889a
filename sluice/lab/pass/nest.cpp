// nest: ordinary layers -> nested ones, of which each size of the network runs a leading part.
#include <algorithm>
#include <set>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/pass/importance.h"
#include "sluice/lab/pass/nest_sizes.h"
#include "sluice/lab/pass/subnet.h"

namespace sluice::lab {
namespace {

const std::string kNest = "pass nest";

struct NestOptions {
  SubnetSpace space;
  std::string mixtures;
  bool all = false;  ///< scope: the residual stream, too
  std::string order, slots;
};

NestOptions read_options(const Json& options, const Model& model) {
  json_require_known_keys(
      options, {"widths", "depths", "scope", "order", "multiple", "slots", "knobs", "mixtures"},
      kNest);
  NestOptions result;
  result.space = read_space(options, model, kNest);
  result.mixtures = one_of(options, "mixtures", kMixtures, kNest);
  result.all = one_of(options, "scope", {"hidden", "all"}, kNest) == "all";
  result.order = one_of(options, "order", {"magnitude", "activation", "none"}, kNest);
  result.slots = json_get_or<std::string>(options, "slots", "**", kNest);
  try {
    result.space.check();
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", kNest, error.what()));
  }
  if (result.all && result.slots != "**") {
    fail(Code::usage, "{}: slots: with scope=all every layer takes part, for they share a stream",
         kNest);
  }
  return result;
}

bool is_stage(const Brick& brick) {
  if (dynamic_cast<const ResidualBlock*>(&brick) != nullptr) return true;
  const auto* sequential = dynamic_cast<const Sequential*>(&brick);
  return sequential != nullptr && !sequential->slots().empty() &&
         std::all_of(sequential->slots().begin(), sequential->slots().end(), [](const auto& slot) {
           return dynamic_cast<const ResidualBlock*>(slot->get().get()) != nullptr;
         });
}

bool is_global_pool(const Brick& brick) {
  const auto* pool = dynamic_cast<const Pool2d*>(&brick);
  return pool != nullptr && pool->attributes().at("mode") == "global_avg";
}

/// The blocks of a transformer in a chain that may end after any of them: then come its last norm
/// and head, shared by all depths.
void chain_text_blocks(Model& model) {
  Slot& place = model.root->slot("blocks");
  const auto blocks = std::dynamic_pointer_cast<Sequential>(place.get());
  if (blocks == nullptr) {
    fail(Code::unsupported, "{}: depths: expected transformer blocks one after another, found a {}",
         kNest, place->kind());
  }
  auto chain = std::make_shared<NestedChain>();
  for (const auto& slot : blocks->slots()) {
    for (const char* turn : {"attn_turn", "ffn_turn"}) {
      if ((**slot).has_slot(turn) && !(**slot).slot(turn).empty()) {
        fail(
            Code::unsupported,
            "{}: depths: blocks.{} turns the stream, which ends in another basis after each block; "
            "nest first",
            kNest, slot->name());
      }
    }
    chain->append(slot->name(), slot->get());
  }
  chain->train(blocks->is_training());
  place.exchange(placed_like(std::move(chain), *blocks));
}

/// The blocks of a residual network in one chain that may end after any of them: then comes the
/// pool.
void chain_blocks(Model& model) {
  if (dynamic_cast<TextRoot*>(model.root.get()) != nullptr) return chain_text_blocks(model);
  auto* root = dynamic_cast<Sequential*>(model.root.get());
  size_t first = 0, end = 0;
  if (root != nullptr) {
    const auto& slots = root->slots();
    while (first < slots.size() && !is_stage(**slots[first])) ++first;
    end = first;
    while (end < slots.size() && is_stage(**slots[end])) ++end;
    if (end == slots.size() || !is_global_pool(**slots[end])) end = first;
  }
  if (root == nullptr || end == first) {
    fail(
        Code::unsupported,
        "{}: depths: expected residual blocks one after another, then global average pooling, or a "
        "transformer",
        kNest);
  }
  const auto take = [](Slot& slot) { return slot.exchange(nullptr); };
  auto chain = std::make_shared<NestedChain>();
  auto result = std::make_shared<Sequential>();
  const bool training = root->is_training();
  for (size_t i = 0; i < root->slots().size(); ++i) {
    Slot& slot = *root->slots()[i];
    if (i < first || i > end) {
      result->append(slot.name(), take(slot));
    } else if (i == end) {
      chain->append("exit", take(slot));
      result->append("body", chain);
    } else if (BrickPtr stage = take(slot); stage->kind() == "sequential") {
      for (const auto& block : stage->slots()) {
        chain->append(slot.name() + "_" + block->name(), take(*block));
      }
    } else {
      chain->append(slot.name(), std::move(stage));
    }
  }
  model.root = result;
  if (!training) result->eval();
}

/// The layer whose outputs are the network's, when only bricks without weights follow it.
const Slot* last_layer(const Brick& brick) {
  const auto* sequential = dynamic_cast<const Sequential*>(&brick);
  if (sequential == nullptr) return nullptr;
  for (auto slot = sequential->slots().rbegin(); slot != sequential->slots().rend(); ++slot) {
    const Brick& child = ***slot;
    if (dynamic_cast<const Sliceable*>(&child) != nullptr) return slot->get();
    if (dynamic_cast<const Sequential*>(&child) != nullptr) return last_layer(child);
    if (!child.parameters().empty() || !child.slots().empty()) return nullptr;
  }
  return nullptr;
}

/// The layer that reads the features of the chain.
const Slot* reader_of_chain(const Model& model) {
  bool behind = false;
  for (const auto& slot : model.root->slots()) {
    if (behind && dynamic_cast<const Linear*>(slot->get().get()) != nullptr) return slot.get();
    behind |= dynamic_cast<const NestedChain*>(slot->get().get()) != nullptr;
  }
  return nullptr;
}

struct NestChoice {
  std::set<const Slot*> elastic, nested;
  std::vector<std::pair<BrickRef, ChannelGroup>> groups;
};

NestChoice choose_hidden(const Model& model, const NestOptions& options) {
  NestChoice choice;
  for (const BrickRef& ref : all_bricks(model)) {
    for (const ChannelGroup& group : ref.brick->channel_groups()) {
      if (group.unit == "head" || !matches_any(options.slots, ref.path, group.producers)) continue;
      choice.groups.emplace_back(ref, group);
      for (const std::string& name : group.producers) {
        choice.elastic.insert(&ref.brick->slot(name));
        choice.nested.insert(&ref.brick->slot(name));
      }
      for (const std::string& name : group.consumers) {
        choice.nested.insert(&ref.brick->slot(name));
      }
    }
  }
  if (choice.groups.empty()) {
    fail(Code::usage,
         "{}: no hidden channels or neurons under '{}': expected residual blocks, feed-forward "
         "networks, or layers that feed the next through norms, activations and pools; packed "
         "layers are none",
         kNest, options.slots);
  }
  // Statistics of every norm behind a convolution depend on what the size runs before it.
  for (const BrickRef& ref : all_bricks(model)) {
    for (const FoldPair& pair : ref.brick->fold_pairs()) {
      const auto* conv = dynamic_cast<const Conv2d*>(ref.brick->slot(pair.producer).get().get());
      if (conv != nullptr && conv->options().groups == 1) {
        choice.nested.insert(&ref.brick->slot(pair.producer));
      }
    }
  }
  if (const Slot* reader = reader_of_chain(model)) choice.nested.insert(reader);
  return choice;
}

NestChoice choose_all(const Model& model) {
  if (model.root->vocabulary() > 0) {
    fail(Code::unsupported, "{}: scope=all is for networks of pictures; use scope=hidden", kNest);
  }
  const Slot* last = last_layer(*model.root);
  if (last == nullptr) {
    fail(Code::unsupported, "{}: scope=all: expected a linear layer or convolution at the end",
         kNest);
  }
  NestChoice choice;
  for (const BrickRef& ref : all_bricks(model)) {
    // Only hidden groups are put in order: the stream's units stand in many layers at once.
    for (const ChannelGroup& group : ref.brick->channel_groups()) {
      choice.groups.emplace_back(ref, group);
    }
    for (const auto& slot : ref.brick->slots()) {
      if (slot->empty()) continue;
      if (const auto* conv = dynamic_cast<const Conv2d*>(slot->get().get());
          conv != nullptr && conv->options().groups != 1) {
        fail(Code::unsupported, "{}: {}: {} groups; a leading part of the channels cuts them",
             kNest, join_path(ref.path, slot->name()), conv->options().groups);
      }
      if (dynamic_cast<const Sliceable*>(slot->get().get()) == nullptr) continue;
      choice.nested.insert(slot.get());
      if (slot.get() != last) choice.elastic.insert(slot.get());
    }
  }
  return choice;
}

void require_plain(const Model& model) {
  if (!model.sizes.empty()) {
    fail(Code::state, "{}: the network is nested already; pick-size makes an ordinary one of it",
         kNest);
  }
  for (const BrickRef& ref : all_bricks(model)) {
    if (dynamic_cast<const GateBrick*>(ref.brick.get()) != nullptr ||
        dynamic_cast<const ChannelMask*>(ref.brick.get()) != nullptr) {
      fail(Code::state, "{}: {} holds a {}; run freeze-gates and slice-channels first", kNest,
           ref.path, ref.brick->kind());
    }
  }
}

/// Puts the units of each group in descending order of importance: the function stays.
Json order_units(Model& model, const NestOptions& options, const PassInput& input,
                 const NestChoice& choice) {
  Json paths = Json::array();
  if (options.order == "none") return paths;
  std::map<std::string, at::Tensor> squares;
  if (options.order == "activation") {
    std::vector<std::string> readers;
    for (const auto& [owner, group] : choice.groups) {
      for (const std::string& path : reader_paths(owner, group)) readers.push_back(path);
    }
    squares = input_squares(model, input, readers, "nest");
  }
  for (const auto& [owner, group] : choice.groups) {
    const at::Tensor score = options.order == "activation"
                                 ? activation_importance(owner, group, squares)
                                 : magnitude_importance(*owner.brick, group);
    slice_group(*owner.brick, group, std::get<1>(at::sort(score, /*stable=*/true, 0, true)));
    paths.push_back(join_path(owner.path, group.name));
  }
  return paths;
}

void take_values(at::Tensor& target, const at::Tensor& from) {
  SLUICE_CHECK(target.sizes() == from.sizes());
  target.set_data(from.detach().clone());
  target.set_requires_grad(from.requires_grad());
}

BrickPtr nested_linear(const Linear& old, bool elastic) {
  const WithoutInit without_init;
  NestedSizes sizes;
  if (elastic) sizes.rows = {old.outputs()};
  auto result = std::make_shared<NestedLinear>(old.inputs(), old.outputs(), old.bias.defined(),
                                               std::move(sizes));
  take_values(result->weight, old.weight);
  if (old.bias.defined()) take_values(result->bias, old.bias);
  result->train(old.is_training());
  return result;
}

BrickPtr nested_conv(const Conv2d& old, const BatchNorm* norm, bool elastic) {
  const WithoutInit without_init;
  NestedSizes sizes;
  if (elastic) sizes.rows = {old.options().outputs};
  NestedConv2d::Norm kind;
  if (norm != nullptr) {
    kind = {true, norm->eps(), norm->attributes().at("momentum").get<double>()};
  }
  auto result = std::make_shared<NestedConv2d>(old.options(), kind, std::move(sizes));
  take_values(result->weight, old.weight);
  if (old.bias.defined()) take_values(result->bias, old.bias);
  if (norm != nullptr) {
    take_values(result->norm_weight, norm->weight);
    take_values(result->norm_bias, norm->bias);
    take_values(result->running_mean, norm->running_mean.unsqueeze(0));
    take_values(result->running_var, norm->running_var.unsqueeze(0));
  }
  result->train(old.is_training());
  return result;
}

/// Puts nested bricks into the chosen slots. Returns their paths.
Json replace_layers(Model& model, const NestChoice& choice) {
  std::map<const Slot*, Slot*> norm_of;
  for (const BrickRef& ref : all_bricks(model)) {
    for (const FoldPair& pair : ref.brick->fold_pairs()) {
      norm_of[&ref.brick->slot(pair.producer)] = &ref.brick->slot(pair.norm);
    }
  }
  Json paths = Json::array();
  for (const SlotRef& ref : walk(*model.root)) {
    if (!choice.nested.contains(ref.slot)) continue;
    const bool elastic = choice.elastic.contains(ref.slot);
    const auto found = norm_of.find(ref.slot);
    Slot* norm = found == norm_of.end() ? nullptr : found->second;
    if (const auto* linear = dynamic_cast<const Linear*>(ref.slot->get().get())) {
      if (norm != nullptr) {
        fail(Code::unsupported, "{}: {} is followed by a batch norm; run fold-norm first", kNest,
             ref.path);
      }
      ref.slot->exchange(placed_like(nested_linear(*linear, elastic), *linear));
    } else {
      const BrickPtr old = ref.slot->get();
      const auto& conv = ref.slot->as<Conv2d>();
      const auto* batch_norm = norm == nullptr ? nullptr : &norm->as<BatchNorm>();
      ref.slot->exchange(placed_like(nested_conv(conv, batch_norm, elastic), *old));
      if (norm != nullptr) {
        norm->exchange(placed_like(std::make_shared<Identity>(), *old));
      }
    }
    paths.push_back(ref.path);
  }
  return paths;
}

}  // namespace

Json nest(Model& model, const PassInput& input) {
  const NestOptions options = read_options(input.options, model);
  require_plain(model);
  if (!options.space.depths.empty()) chain_blocks(model);
  // Depth alone leaves a transformer's layers what they are.
  const bool depth_alone = options.space.widths.size() == 1 && !options.space.depths.empty() &&
                           model.root->vocabulary() > 0;
  const NestChoice choice = depth_alone   ? NestChoice{}
                            : options.all ? choose_all(model)
                                          : choose_hidden(model, options);
  // Slots stay put while their bricks change, so the choice holds.
  Json ordered = order_units(model, options, input, choice);
  Json layers = replace_layers(model, choice);
  for (const BrickRef& ref : all_bricks(model)) {
    if (options.all && dynamic_cast<const BatchNorm*>(ref.brick.get()) != nullptr) {
      fail(Code::unsupported,
           "{}: {} is a batch norm that follows no convolution; run fold-norm "
           "first",
           kNest, ref.path);
    }
  }
  set_sizes(model, options.space, mixtures_of(options.space, options.mixtures));
  return {{"nested", std::move(layers)},
          {"ordered", std::move(ordered)},
          {"sizes", table_of_sizes(model)}};
}

}  // namespace sluice::lab
