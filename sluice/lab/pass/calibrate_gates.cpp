// Prices for what gates open, from data: each size of the network lowers the scores by a price
// times what a decision costs (the Lagrangian of a budget), one price for all gates.
#include <cmath>
#include <limits>

#include "sluice/base/json.h"
#include "sluice/bundle/size_choice.h"
#include "sluice/lab/brick/choice.h"
#include "sluice/lab/brick/sized_linear.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/gate/ordinal.h"
#include "sluice/lab/pass/size_meter.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

constexpr char kCalibrateGates[] = "pass calibrate-gates", kTrained[] = "trained";
constexpr double kOpen = -std::numeric_limits<double>::infinity();
constexpr double kMostPrice = 1 << 14;  // no score is as large
constexpr int kSearchSteps = 9;
constexpr double kNearShare = 0.01;

/// MACs of a row that takes each option, over those of the dearest.
at::Tensor option_costs(const Choice& choice, int64_t inputs) {
  std::vector<double> macs;
  for (int64_t i = 0; i < choice.options(); ++i) {
    const Slot& option = choice.option(i);
    macs.push_back(option.empty() ? 0 : static_cast<double>(option.cost({1, inputs}).macs));
  }
  const at::Tensor costs = at::tensor(at::ArrayRef<double>(macs)).to(at::kFloat);
  return costs / costs.max().clamp_min(1);
}

/// Gives a choice whose router is a linear layer as many sizes as prices.
bool steer_choice(Choice& choice, const std::vector<double>& prices) {
  if (!choice.routed() || choice.route().kind != Route::Kind::router) return false;
  const Brick& router = *choice.router();
  std::shared_ptr<SizedLinear> layer;
  if (const auto* linear = dynamic_cast<const Linear*>(&router)) layer = SizedLinear::of(*linear);
  if (const auto* sized = dynamic_cast<const SizedLinear*>(&router))
    layer = sized->with_offsets({at::zeros({sized->outputs()})});
  if (layer == nullptr) return false;
  const at::Tensor costs = option_costs(choice, layer->inputs());
  std::vector<at::Tensor> offsets;
  for (const double price : prices) offsets.push_back(price_offset(price, costs));
  choice.router().exchange(placed_like(layer->with_offsets(offsets), router));
  return true;
}

/// Sizes with these prices for every gate of the network that can have some; how many can.
int64_t steer_all(Model& model, const std::vector<double>& prices) {
  int64_t count = 0;
  for (const SlotRef& ref : walk(*model.root)) {
    Brick* brick = ref.slot->get().get();
    if (auto* gate = dynamic_cast<Gate*>(brick)) count += gate->steer(prices);
    if (auto* gate = dynamic_cast<OrdinalGate*>(brick)) count += gate->steer(prices);
    if (auto* choice = dynamic_cast<Choice*>(brick)) count += steer_choice(*choice, prices);
  }
  return count;
}

/// The lowest price with which the network spends at most `share` of what it does dense.
double price_of(Model& model, const PassInput& data, double share, double dense) {
  const auto spends = [&](double price) {
    steer_all(model, {price, kOpen});
    std::vector<at::Tensor> own;  // agreement is of no interest here
    return meter_size(model, data, kCalibrateGates, 0, own).macs / dense;
  };
  double low = 0, high = 0;  // low spends more than share, high not
  if (spends(0) > share) {
    for (high = 0.5; spends(high) > share; high *= 2) {
      low = high;
      if (high >= kMostPrice) {
        fail(Code::limit,
             "{}: no gates spend only {:.4g} of the dense cost: where all close that can it is "
             "{:.4g}",
             kCalibrateGates, share, spends(high));
      }
    }
  } else {
    for (low = -0.5; spends(low) <= share; low *= 2) {
      high = low;
      if (low <= -kMostPrice) return low;
    }
  }
  for (int step = 0; step < kSearchSteps; ++step) {
    const double middle = (low + high) / 2, spent = spends(middle);
    (spent > share ? low : high) = middle;
    if (spent <= share && spent > share - kNearShare) break;
  }
  return high;
}

}  // namespace

Json calibrate_gates(Model& model, const PassInput& input) {
  json_require_known_keys(input.options, {"shares"}, kCalibrateGates);
  const auto known = std::ssize(model.sizes);
  if (known > 0 && (known < 2 || model.sizes[static_cast<size_t>(known - 2)].name != kTrained)) {
    fail(Code::usage, "{}: the network has {} sizes of another kind (pass pick-size keeps one)",
         kCalibrateGates, known);
  }
  const EvaluationMode evaluation(*model.root);
  const std::vector<ShareTarget> targets = read_shares(input.options, "gate", kCalibrateGates);
  const int64_t samples = input.calibration.defined() ? input.calibration.size(0) : 0,
                half = samples / 2;
  if (half < 1) {
    fail(Code::usage,
         "{}: {} calibration inputs; at least 2 are needed, one half to choose prices on, one to "
         "measure on",
         kCalibrateGates, samples);
  }
  const PassInput choosing = part_of(input, 0, half),
                  held_out = part_of(input, half, samples - half);
  const int64_t gates = steer_all(model, {kOpen, kOpen});
  if (gates == 0) {
    fail(Code::unsupported,
         "{}: the network has no gate whose score could be lowered (threshold and ordinal gates, "
         "choices with a router); exits have calibrate-exits",
         kCalibrateGates);
  }
  model.sizes.clear();
  std::vector<at::Tensor> said;
  const double dense = meter_size(model, choosing, kCalibrateGates, -1, said).macs;
  struct Setting {
    std::string name;
    double price;
  };
  std::vector<Setting> settings;
  for (const ShareTarget& target : targets) {
    settings.push_back({target.name, price_of(model, choosing, target.share, dense)});
  }
  settings.push_back({kTrained, 0.0});
  settings.push_back({"dense", kOpen});
  std::vector<double> prices;
  for (const Setting& setting : settings) prices.push_back(setting.price);
  steer_all(model, prices);

  said.clear();
  const auto last = static_cast<int64_t>(settings.size()) - 1;
  const Metered whole = meter_size(model, held_out, kCalibrateGates, last, said);
  Json rows = Json::array();
  for (int64_t size = 0; size <= last; ++size) {
    const Setting& setting = settings[static_cast<size_t>(size)];
    model.sizes.push_back({setting.name, 0, {}});
    auto& quality = model.sizes.back().quality;
    if (size == last) {
      quality[bundle::kCostShare] = 1;
      break;
    }
    const Metered found = meter_size(model, held_out, kCalibrateGates, size, said);
    quality[bundle::kCostShare] = std::min(1.0, found.macs / whole.macs);
    quality[bundle::kCostRows] = static_cast<double>(found.rows);
    quality["agreement"] = found.agreement;
    rows.push_back({{"name", setting.name},
                    {"price", setting.price},
                    {"cost_share", found.macs / whole.macs},
                    {"agreement", found.agreement}});
  }
  return {{"gates", gates}, {"sizes", std::move(rows)}, {"measured_on", whole.rows}};
}

}  // namespace sluice::lab
