// add-lora and fold-lora: side paths that learn in place of the layers, and the layers with what
// was learnt.
#include <cmath>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/adapt/lora.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

constexpr char kAddLora[] = "pass add-lora", kFoldLora[] = "pass fold-lora";

/// The filled slots that match and hold a T.
template <class T>
std::vector<SlotRef> slots_with(Model& model, const std::string& pattern) {
  std::vector<SlotRef> found;
  for (const SlotRef& ref : walk(*model.root, pattern)) {
    if (dynamic_cast<T*>(ref.slot->get().get()) != nullptr) found.push_back(ref);
  }
  return found;
}

/// The engine runs a mask in front of a linear layer as zeros in its weight.
void require_unmasked(const Model& model, const std::string& pattern) {
  for (const BrickRef& ref : all_bricks(model)) {
    for (const ChannelGroup& group : ref.brick->channel_groups()) {
      if (!ref.brick->channel_mask(group).defined()) continue;
      for (const std::string& consumer : group.consumers) {
        const std::string path = join_path(ref.path, consumer);
        if (!path_matches(pattern, path) ||
            dynamic_cast<const Linear*>(ref.brick->slot(consumer).get().get()) == nullptr) {
          continue;
        }
        fail(Code::usage, "{}: inputs of {} are masked; slice-channels first", kAddLora, path);
      }
    }
  }
}

}  // namespace

Json add_lora(Model& model, const PassInput& input) {
  json_require_known_keys(input.options, {"slots", "rank", "scale", "seed"}, kAddLora);
  const auto pattern = json_get_or<std::string>(input.options, "slots", "**", kAddLora);
  const auto rank = json_get_or<int64_t>(input.options, "rank", 8, kAddLora);
  const auto scale = json_get_or<double>(input.options, "scale", 1.0, kAddLora);
  const auto seed = json_get_or<int64_t>(input.options, "seed", 0, kAddLora);
  require_unmasked(model, pattern);
  Json layers = Json::array();
  int64_t weights = 0;
  for (const SlotRef& ref : slots_with<Linear>(model, pattern)) {
    if (dynamic_cast<LoraLinear*>(ref.owner) != nullptr) {
      fail(Code::usage, "{}: {} has a side path already; fold it first (pass fold-lora)", kAddLora,
           ref.path);
    }
    auto adapted = LoraLinear::of(std::dynamic_pointer_cast<Linear>(ref.slot->get()), rank, scale);
    fill_uniform(adapted->lora_a, 1 / std::sqrt(static_cast<double>(adapted->options().inputs)),
                 derive_seed(static_cast<uint64_t>(seed), ref.path));
    weights += adapted->lora_a.numel() + adapted->lora_b.numel();
    ref.slot->exchange(adapted);
    layers.push_back(ref.path);
  }
  if (layers.empty()) {
    fail(Code::unsupported, "{}: no linear layer among slots '{}'", kAddLora, pattern);
  }
  return {{"layers", std::move(layers)}, {"rank", rank}, {"weights", weights}};
}

Json fold_lora(Model& model, const PassInput& input) {
  json_require_known_keys(input.options, {"slots"}, kFoldLora);
  const auto pattern = json_get_or<std::string>(input.options, "slots", "**", kFoldLora);
  Json layers = Json::array();
  for (const SlotRef& ref : slots_with<LoraLinear>(model, pattern)) {
    ref.slot->exchange(ref.slot->as<LoraLinear>().folded());
    layers.push_back(ref.path);
  }
  return {{"layers", std::move(layers)}};
}

}  // namespace sluice::lab
