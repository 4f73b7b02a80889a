#include "sluice/lab/gate/budget.h"

#include <algorithm>
#include <cmath>

#include "sluice/base/json.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/gate/ordinal.h"

namespace sluice::lab {
namespace {

constexpr double kMultiplierRate = 0.1;

bool learns(const Brick& gate) {
  return std::ranges::any_of(gate.parameters(),
                             [](const at::Tensor& each) { return each.requires_grad(); });
}

/// Training can change how many units of it are open.
bool moves(const Gate& gate) {
  const Json all = gate.attributes();
  const Json decision = all.at("decision").at("kind"), estimator = all.at("estimator").at("kind");
  return (decision == "threshold" || decision == "sample") && estimator != "none";
}

void check(const GateBudgetOptions& options) {
  const auto positive = [](double value, const char* name) {
    if (!(std::isfinite(value) && value > 0)) {
      fail(Code::config, "gate budget: {}: expected a number above 0, found {}", name, value);
    }
  };
  if (!(options.open > 0 && options.open <= 1)) {
    fail(Code::config, "gate budget: expected a share above 0 and up to 1, found {}", options.open);
  }
  positive(options.weight, "weight");
  positive(options.rate, "rate");
  if (!(options.ramp >= 0 && options.ramp <= 1)) {
    fail(Code::config, "gate budget: ramp: expected a share of the steps, found {}", options.ramp);
  }
}

/// [rows] of 0 and 1 for a decision of `rows` rows: those that are text. Undefined: all.
at::Tensor rows_inside(const at::Tensor& decision, const at::Tensor& lengths) {
  if (!lengths.defined() || decision.dim() != 3 || decision.size(0) != lengths.size(0) ||
      decision.size(1) == 1) {
    return {};
  }
  const at::Tensor at = at::arange(decision.size(1), lengths.options()).unsqueeze(0);
  return (at < lengths.unsqueeze(1)).flatten().to(decision.options());
}

}  // namespace

GateBudget::GateBudget(Brick& root, GateBudgetOptions options) : options_(options) {
  check(options_);
  int64_t still = 0;  // gates that cannot change how much they open
  for (const SlotRef& ref : walk(root)) {
    const Brick* brick = ref.slot->get().get();
    const auto* gate = dynamic_cast<const Gate*>(brick);
    const bool ordinal = dynamic_cast<const OrdinalGate*>(brick) != nullptr;
    if (gate == nullptr && !ordinal) continue;
    if (learns(*brick) && (ordinal || moves(*gate))) {
      double at = 0.5;
      if (!ordinal) at = json_get_or(gate->attributes().at("decision"), "at", at, "gate budget");
      gates_[ref.path] = {ordinal, at};
    } else {
      ++still;
    }
  }
  if (!gates_.empty()) return;
  if (still > 0) {
    fail(Code::usage,
         "gate budget: none of the network's {} gates can learn how much it opens: top-k gates "
         "always open as many, gates with estimator 'none' and parameters that stay do not learn",
         still);
  }
  fail(Code::usage,
       "gate budget: the network has no gates; sluice transform --pass insert-gates puts some into "
       "it");
}

GateBudget::Sums GateBudget::sums(const GateLog& log, const at::Tensor& lengths) const {
  Sums result;
  for (const GateRecord& record : log.records()) {
    const auto found = gates_.find(record.path);
    if (found == gates_.end()) continue;
    const auto [ordinal, threshold] = found->second;
    const at::Tensor& p = record.probability;
    const at::Tensor hard =
        ordinal ? one_hot(p.argmax(-1), p.size(-1), p) : (p > threshold).to(p.scalar_type());
    const at::Tensor decision = p.requires_grad() ? hard + (p - p.detach()) : hard;
    at::Tensor macs = record.unit_macs.to(decision.options().requires_grad(false));
    at::Tensor rows = decision.flatten(0, -2);  // [rows, units]
    auto count = static_cast<double>(rows.size(0));
    const at::Tensor inside = rows_inside(decision, lengths);
    if (inside.defined()) {
      rows = rows * inside.unsqueeze(1);
      count = inside.sum().item<double>();
    }
    // Of units the log has MACs of a whole sample, of choices those of a row.
    if (!ordinal && decision.dim() == 3) macs = macs / static_cast<double>(decision.size(1));
    const auto most = (ordinal ? macs.max() : macs.sum()).item<double>();
    const at::Tensor opened = at::matmul(rows, macs).sum();
    result.opened = result.opened.defined() ? result.opened + opened : opened;
    result.all += count * most;
  }
  if (!result.opened.defined()) {
    fail(Code::state, "gate budget: none of the {} gates has decided in this forward", gates());
  }
  return result;
}

at::Tensor GateBudget::open_share(const GateLog& log, const at::Tensor& lengths) const {
  const Sums found = sums(log, lengths);
  return found.opened / std::max(found.all, 1e-12);
}

OpenedMacs GateBudget::opened(const GateLog& log, const at::Tensor& lengths) const {
  const Sums found = sums(log, lengths);
  return {found.opened.item<double>(), found.all};
}

double GateBudget::target(int64_t step, int64_t steps) const {
  const double end = options_.ramp * static_cast<double>(steps);
  const double done = end > 0 ? std::min(1.0, static_cast<double>(step) / end) : 1.0;
  return 1 + (options_.open - 1) * done;
}

at::Tensor GateBudget::loss(const at::Tensor& share, int64_t step, int64_t steps) const {
  const at::Tensor difference = share - target(step, steps);
  return difference.square() * options_.weight + difference * multiplier_;
}

void GateBudget::learn(double share, int64_t step, int64_t steps) {
  const double wanted = target(step, steps);
  // On the way down shares lag behind, which says nothing about what quality wants.
  if (wanted > options_.open) return;
  multiplier_ += kMultiplierRate * options_.weight * (share - wanted);
}

bool GateBudget::owns(const std::string& parameter) const {
  return std::ranges::any_of(
      gates_, [&](const auto& gate) { return parameter.starts_with(gate.first + "."); });
}

}  // namespace sluice::lab
