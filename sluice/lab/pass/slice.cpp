// Surgery with equal outputs: slice-channels and fold-norm.
#include <map>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/pass/stream.h"

namespace sluice::lab {
namespace {

Json change(int64_t before, int64_t after) { return {{"before", before}, {"after", after}}; }

// ---- slice-channels ----

// The columns of the channels `keep`, where each has `columns` consecutive ones.
at::Tensor columns_of(const at::Tensor& keep, const std::vector<int64_t>& columns, size_t index) {
  const int64_t count = columns.empty() ? 1 : columns[index];
  if (count == 1) return keep;
  return (keep.unsqueeze(1) * count + at::arange(count, keep.options())).flatten();
}

// Slices every masked group of `ref`; {group path: {before, after}} into `report`.
void slice_groups(const BrickRef& ref, Json& report) {
  Brick& owner = *ref.brick;
  for (size_t i = 0;; ++i) {
    // Asked anew each time: slicing one group changes its neighbours' bricks and may remove a slot.
    const std::vector<ChannelGroup> groups = owner.channel_groups();
    if (i >= groups.size()) return;
    const ChannelGroup& group = groups[i];
    const at::Tensor mask = owner.channel_mask(group);
    if (!mask.defined()) continue;
    at::Tensor keep = mask.nonzero().flatten();
    const int64_t open = keep.numel();
    const std::string path = join_path(ref.path, group.name);
    if (open == 0) {
      // A layer cannot have no channel: one stays, closed.
      if (group.channels > 1) {
        keep = at::zeros({1}, keep.options());
        slice_group(owner, group, keep);
        ChannelGroup left = group;
        owner.set_channel_mask(left, at::zeros({1}, mask.options()));
        report[path] = change(group.channels, 1);
      }
      continue;
    }
    if (open < group.channels) {
      slice_group(owner, group, keep);
      report[path] = change(group.channels, open);
    }
    owner.clear_channel_mask(group);
  }
}

// Whether what comes out of `brick` is known to be >= 0 (1), not known (0), or as what goes in
// (-1).
int sign_of(const Brick& brick) {
  if (const auto* activation = dynamic_cast<const Activation*>(&brick)) {
    return activation->function() == "relu" || activation->function() == "sigmoid" ? 1 : 0;
  }
  if (const auto* block = dynamic_cast<const ResidualBlock*>(&brick)) {
    return block->activation() == "relu" || block->activation() == "sigmoid" ? 1 : 0;
  }
  if (const auto* sequential = dynamic_cast<const Sequential*>(&brick)) {
    for (auto slot = sequential->slots().rbegin(); slot != sequential->slots().rend(); ++slot) {
      const int sign = sign_of(***slot);
      if (sign >= 0) return sign;
    }
    return -1;
  }
  const bool passes = dynamic_cast<const Identity*>(&brick) != nullptr ||
                      dynamic_cast<const Pool2d*>(&brick) != nullptr ||
                      dynamic_cast<const Flatten*>(&brick) != nullptr ||
                      dynamic_cast<const ChannelMask*>(&brick) != nullptr;
  return passes ? -1 : 0;
}

// Whether the input of the slot at `path` is known to be >= 0: what runs before it, as far as
// sequentials lead.
bool input_is_non_negative(Model& model, const std::string& path) {
  std::map<std::string, SlotRef> refs;
  for (SlotRef& ref : walk(*model.root)) refs.emplace(ref.path, ref);
  for (std::string at = path; !at.empty();) {
    const SlotRef& ref = refs.at(at);
    const auto* parent = dynamic_cast<const Sequential*>(ref.owner);
    if (parent == nullptr) return false;
    int sign = -1;
    for (const auto& slot : parent->slots()) {
      if (slot.get() == ref.slot) break;
      const int here = sign_of(**slot);
      if (here >= 0) sign = here;
    }
    if (sign >= 0) return sign == 1;
    const size_t dot = at.rfind('.');
    at = dot == std::string::npos ? "" : at.substr(0, dot);
  }
  return false;
}

// Blocks that never run go; those that always run lose their gate. Returns the paths of the former.
Json drop_blocks(Model& model) {
  Json dropped = Json::array();
  // The walk goes on into the slots of a block that was just replaced: all bricks must outlive it.
  const std::vector<BrickRef> alive = all_bricks(model);
  for (const SlotRef& ref : walk(*model.root)) {
    auto* transformer = dynamic_cast<TransformerBlock*>(ref.slot->get().get());
    if (transformer != nullptr && transformer->has_slot("token_gate")) {
      Slot& gate = transformer->token_gate();
      const auto* mask = dynamic_cast<const ConstantMask*>(gate.get().get());
      if (mask == nullptr) continue;
      if (mask->mask.item<float>() != 0) {
        gate.exchange(nullptr);
        continue;
      }
      BrickPtr rest = std::make_shared<Identity>();
      rest->train(transformer->is_training());
      ref.slot->exchange(std::move(rest));
      dropped.push_back(ref.path);
      continue;
    }
    const auto* block = dynamic_cast<const ResidualBlock*>(ref.slot->get().get());
    if (block == nullptr) continue;
    Slot& gate = block->slot("block_gate");
    const auto* mask = dynamic_cast<const ConstantMask*>(gate.get().get());
    if (mask == nullptr) continue;
    if (mask->mask.item<float>() != 0) {
      gate.exchange(nullptr);
      continue;
    }
    const bool plain = block->activation() == "relu" && input_is_non_negative(model, ref.path);
    BrickPtr rest = plain ? BrickPtr(std::make_shared<Identity>())
                          : BrickPtr(std::make_shared<Activation>(block->activation()));
    rest->train(block->is_training());
    ref.slot->exchange(std::move(rest));
    dropped.push_back(ref.path);
  }
  return dropped;
}

// ---- fold-norm ----

struct Folded {
  at::Tensor weight, bias;
};

Folded fold(const at::Tensor& weight, const at::Tensor& bias, const BatchNorm& norm) {
  const auto wide = [](const at::Tensor& t) { return t.detach().to(at::kDouble); };
  const at::Tensor scale = wide(norm.weight) / at::sqrt(wide(norm.running_var) + norm.eps());
  std::vector<int64_t> rows(static_cast<size_t>(weight.dim()), 1);
  rows[0] = weight.size(0);
  at::Tensor shift = -wide(norm.running_mean);
  if (bias.defined()) shift = shift + wide(bias);
  return {(wide(weight) * scale.view(rows)).to(weight.scalar_type()),
          (wide(norm.bias) + shift * scale).to(weight.scalar_type())};
}

template <class T>
BrickPtr with_values(std::shared_ptr<T> layer, const T& old, const Folded& values) {
  layer->weight.set_data(values.weight);
  layer->bias.set_data(values.bias);
  layer->weight.set_requires_grad(old.weight.requires_grad());
  layer->bias.set_requires_grad(old.weight.requires_grad());
  layer->train(old.is_training());
  return layer;
}

BrickPtr folded(const Slot& producer, const BatchNorm& norm) {
  const WithoutInit without_init;
  if (const auto* linear = dynamic_cast<const Linear*>(producer.get().get())) {
    return with_values(std::make_shared<Linear>(linear->inputs(), linear->outputs()), *linear,
                       fold(linear->weight, linear->bias, norm));
  }
  const Conv2d& conv = producer.as<Conv2d>();
  Conv2dOptions options = conv.options();
  options.bias = true;
  return with_values(std::make_shared<Conv2d>(options), conv, fold(conv.weight, conv.bias, norm));
}

}  // namespace

void slice_group(Brick& owner, const ChannelGroup& group, const at::Tensor& keep) {
  for (size_t i = 0; i < group.producers.size(); ++i) {
    Slot& slot = owner.slot(group.producers[i]);
    slot.exchange(slot.as<Sliceable>().slice_outputs(columns_of(keep, group.producer_columns, i)));
  }
  for (const std::string& name : group.carriers) {
    Slot& slot = owner.slot(name);
    slot.exchange(slot.as<BatchNorm>().slice_channels(keep));
  }
  for (size_t i = 0; i < group.consumers.size(); ++i) {
    Slot& slot = owner.slot(group.consumers[i]);
    slot.exchange(slot.as<Sliceable>().slice_inputs(columns_of(keep, group.consumer_columns, i)));
  }
}

Json slice_channels(Model& model, const PassInput& input) {
  json_require_known_keys(input.options, {}, "pass slice-channels");
  const Cost before = model.cost();
  Json blocks = drop_blocks(model);
  Json channels = Json::object();
  for (const BrickRef& ref : all_bricks(model)) slice_groups(ref, channels);
  const Cost after = model.cost();
  return {{"macs", change(before.macs, after.macs)},
          {"params", change(before.params, after.params)},
          {"channels", std::move(channels)},
          {"blocks", std::move(blocks)}};
}

Json fold_norm(Model& model, const PassInput& input) {
  json_require_known_keys(input.options, {}, "pass fold-norm");
  Json paths = fold_norm_readers(model);
  for (const BrickRef& ref : all_bricks(model)) {
    for (const FoldPair& pair : ref.brick->fold_pairs()) {
      Slot& producer = ref.brick->slot(pair.producer);
      Slot& norm = ref.brick->slot(pair.norm);
      BrickPtr layer = folded(producer, norm.as<BatchNorm>());
      producer.exchange(std::move(layer));
      norm.exchange(std::make_shared<Identity>());
      paths.push_back(join_path(ref.path, pair.norm));
    }
  }
  return {{"folded", std::move(paths)}};
}

}  // namespace sluice::lab
