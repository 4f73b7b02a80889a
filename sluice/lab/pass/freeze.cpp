// freeze-gates: per-sample gates become the decision that most calibration samples take (the
// consensus).
#include <algorithm>
#include <cmath>
#include <map>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

constexpr int64_t kBins = 20;

struct Frozen {
  SlotRef ref;
  at::Tensor mean;  ///< [units] double, CPU: share of samples for which each unit is open
  at::Tensor open;  ///< [units] bool, CPU
};

std::vector<Frozen> find_gates(Model& model, const std::string& pattern) {
  std::vector<Frozen> gates;
  for (const SlotRef& ref : walk(*model.root)) {
    const auto* gate = dynamic_cast<const GateBrick*>(ref.slot->get().get());
    if (gate == nullptr || dynamic_cast<const ConstantMask*>(gate) != nullptr) continue;
    const std::string block = ref.path.substr(0, ref.path.rfind('.'));
    if (path_matches(pattern, ref.path) || path_matches(pattern, block))
      gates.push_back({ref, {}, {}});
  }
  if (gates.empty()) {
    fail(Code::usage, "pass freeze-gates: no per-sample gate under '{}'; insert-gates makes them",
         pattern);
  }
  return gates;
}

int64_t measure(Model& model, const PassInput& input, std::vector<Frozen>& gates) {
  struct Sum {
    at::Tensor open;   ///< [units]
    int64_t rows = 0;  ///< samples, or tokens of a gate that decides for each
  };
  std::map<std::string, Sum> sums;
  int64_t samples = 0;
  const EvaluationMode evaluation(*model.root);
  for_each_calibration_batch(model, input, "freeze-gates", [&](const at::Tensor& x) {
    GateLog log;
    Context context;
    context.gate_log = &log;
    model.root->forward(x, context);
    samples += x.size(0);
    for (const GateRecord& record : log.records()) {
      const at::Tensor decided = record.decision.flatten(0, -2);
      const at::Tensor sum = decided.sum(0).to(at::kCPU, at::kDouble);
      Sum& total = sums[record.path];
      total.open = total.open.defined() ? total.open + sum : sum;
      total.rows += decided.size(0);
    }
  });
  for (Frozen& gate : gates) {
    const auto found = sums.find(gate.ref.path);
    SLUICE_CHECK(found != sums.end());
    // A gate behind closed ones may have seen nothing: what it would say is not known, all close.
    gate.mean = found->second.open / static_cast<double>(std::max<int64_t>(1, found->second.rows));
  }
  return samples;
}

// Opens those above the threshold, and the most often open ones until `least` are.
at::Tensor choose(const at::Tensor& mean, double threshold, int64_t least) {
  at::Tensor open = mean > threshold;
  if (open.sum().item<int64_t>() >= least) return open;
  const auto [values, order] = at::sort(mean, /*stable=*/true, 0, /*descending=*/true);
  open = at::zeros_like(mean, at::kBool);
  open.index_fill_(0, order.narrow(0, 0, least), true);
  return open;
}

/// The slot whose gate leaves out a whole block; nullptr: the brick is no block, or never left out.
const Slot* skip_slot(const Brick* brick) {
  if (const auto* block = dynamic_cast<const ResidualBlock*>(brick)) {
    return &block->slot("block_gate");
  }
  const auto* block = dynamic_cast<const TransformerBlock*>(brick);
  return block != nullptr && block->has_slot("token_gate") ? &block->slot("token_gate") : nullptr;
}

bool is_block(const Brick* brick) {
  return dynamic_cast<const ResidualBlock*>(brick) != nullptr ||
         dynamic_cast<const TransformerBlock*>(brick) != nullptr;
}

bool skipped(const Brick* block, const std::vector<Frozen>& gates) {
  const Slot* found = skip_slot(block);
  if (found == nullptr || found->empty()) return false;
  const Slot& slot = *found;
  if (const auto* mask = dynamic_cast<const ConstantMask*>(slot.get().get())) {
    return mask->mask.sum().item<double>() == 0;
  }
  for (const Frozen& gate : gates) {
    if (gate.ref.slot == &slot) return !gate.open.any().item<bool>();
  }
  return false;  // its gate stays per-sample
}

// A stage whose blocks are all closed would be no stage: its most often open block stays.
void keep_a_block_per_stage(Model& model, std::vector<Frozen>& gates) {
  for (const BrickRef& stage : all_bricks(model)) {
    std::vector<const Brick*> blocks;
    for (const auto& slot : stage.brick->slots()) {
      if (is_block(slot->get().get())) blocks.push_back(slot->get().get());
    }
    const bool closed = std::all_of(blocks.begin(), blocks.end(),
                                    [&](const Brick* b) { return skipped(b, gates); });
    if (blocks.empty() || !closed) continue;
    Frozen* best = nullptr;
    for (Frozen& gate : gates) {
      const bool here = std::any_of(blocks.begin(), blocks.end(),
                                    [&](const Brick* b) { return gate.ref.slot == skip_slot(b); });
      if (!here) continue;
      if (best == nullptr || gate.mean.item<double>() > best->mean.item<double>()) best = &gate;
    }
    if (best != nullptr) best->open.fill_(true);
  }
}

}  // namespace

Json freeze_gates(Model& model, const PassInput& input) {
  const std::string what = "pass freeze-gates";
  json_require_known_keys(input.options, {"slots", "threshold", "min_channels"}, what);
  const auto threshold = json_get_or<double>(input.options, "threshold", 0.5, what);
  const auto min_channels = json_get_or<double>(input.options, "min_channels", 0.1, what);
  if (!(threshold >= 0 && threshold < 1)) {
    fail(Code::config, "{}: threshold: expected 0 <= x < 1, found {}", what, threshold);
  }
  if (!(min_channels >= 0 && min_channels <= 1)) {
    fail(Code::config, "{}: min_channels: expected 0 to 1, found {}", what, min_channels);
  }
  std::vector<Frozen> gates =
      find_gates(model, json_get_or<std::string>(input.options, "slots", "**", what));
  const int64_t samples = measure(model, input, gates);

  for (Frozen& gate : gates) {
    const int64_t units = gate.mean.numel();
    const bool block = gate.ref.slot == skip_slot(gate.ref.owner);
    // 1e-9: a share such as 0.1 of 10 units must not become 2 by rounding up its last bit.
    const auto least =
        static_cast<int64_t>(std::ceil(min_channels * static_cast<double>(units) - 1e-9));
    gate.open = choose(gate.mean, threshold, block ? 0 : std::max<int64_t>(1, least));
  }
  keep_a_block_per_stage(model, gates);

  Json kept = Json::object(), by_gate = Json::object();
  std::vector<at::Tensor> means;
  int64_t units = 0, open = 0;
  for (Frozen& gate : gates) {
    const int64_t count = gate.mean.numel();
    const int64_t opened = gate.open.sum().item<int64_t>();
    units += count;
    open += opened;
    kept[gate.ref.path] = static_cast<double>(opened) / static_cast<double>(count);
    by_gate[gate.ref.path] = {
        {"units", count},
        {"open", opened},
        {"consensus", (4 * gate.mean * (1 - gate.mean)).mean().item<double>()}};
    means.push_back(gate.mean);
    gate.ref.slot->exchange(
        placed_like(std::make_shared<ConstantMask>(gate.open), *gate.ref.owner));
  }
  const at::Tensor all = at::cat(means);
  const at::Tensor counts = at::histc(all, kBins, 0, 1).to(at::kLong);
  return {{"samples", samples},
          {"threshold", threshold},
          {"units", units},
          {"open", open},
          {"consensus", (4 * all * (1 - all)).mean().item<double>()},
          {"kept", std::move(kept)},
          {"gates", std::move(by_gate)},
          {"histogram",
           std::vector<int64_t>(counts.data_ptr<int64_t>(), counts.data_ptr<int64_t>() + kBins)}};
}

}  // namespace sluice::lab
