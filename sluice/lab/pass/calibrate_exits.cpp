// Thresholds for the exits of a network, from data: for each share of the dense cost the exits that
// run and how sure they have to be. What a size costs in the end is metered on data that took no
// part in the choice.
#include <algorithm>
#include <cmath>

#include "sluice/base/json.h"
#include "sluice/bundle/size_choice.h"
#include "sluice/lab/brick/exit_network.h"
#include "sluice/lab/pass/exits.h"
#include "sluice/lab/pass/size_meter.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

constexpr double kClosed = 1e30;    // above every score
constexpr int kSteps = 40;          // of a search in a table
constexpr int kMeteredSteps = 7;    // of one that runs the network
constexpr double kNear = 0.01;      // of a share that is met
constexpr int64_t kAllSubsets = 6;  // exits of which every combination is tried
constexpr int64_t kMostSearched = 32;

ExitNetwork& exits_of(Model& model, const std::string& what) {
  auto* exits = dynamic_cast<ExitNetwork*>(model.root.get());
  if (exits == nullptr || exits->exit_count() == 0)
    fail(Code::unsupported, "{}: the network ({}) has no exits; pass add-exits gives it some", what,
         model.root->kind());
  if (exits->exit_count() > kMostSearched)
    fail(Code::limit, "{}: {} exits; at most {}", what, exits->exit_count(), kMostSearched);
  return *exits;
}

/// Scores and choices of all rows with nobody leaving.
DepthTable table_of(Model& model, const ExitNetwork& exits, const PassInput& data,
                    const std::string& what) {
  std::vector<at::Tensor> scores, said;
  for_each_calibration_batch(model, data, what, [&](const at::Tensor& x) {
    Context context;
    const DepthTable table = exits.exit_table(x, context);
    scores.push_back(table.confidence.to(at::kCPU, at::kDouble));
    said.push_back(table.choice.to(at::kCPU));
  });
  DepthTable all{at::cat(scores), at::cat(said)};
  if (!at::isfinite(all.confidence).all().item<bool>())
    fail(Code::numeric, "{}: some scores of exits on the calibration inputs are no numbers", what);
  return all;
}

/// The exits that a size may open, most promising first.
std::vector<std::vector<bool>> subsets(int64_t exits, bool single) {
  const auto count = static_cast<size_t>(exits);
  std::vector<std::vector<bool>> result = {std::vector<bool>(count, true)};
  if (!single) return result;
  if (exits <= kAllSubsets) {
    for (uint64_t bits = (uint64_t{1} << count) - 2; bits > 0; --bits) {
      result.emplace_back();
      for (size_t i = 0; i < count; ++i) result.back().push_back((bits >> i & 1) != 0);
    }
    return result;
  }
  for (size_t a = 0; a < count; ++a) {  // one, or two of them
    for (size_t b = a; b < count; ++b) {
      result.emplace_back(count, false);
      result.back()[a] = result.back()[b] = true;
    }
  }
  return result;
}

struct ExitChoice {
  std::vector<bool> open;
  double threshold = 0, cost = 0, agreement = -1;
  ExitThresholds thresholds() const {
    ExitThresholds result;
    for (const bool each : open)
      result.push_back(each ? std::optional<double>(threshold) : std::nullopt);
    return result;
  }
};

/// One threshold for all exits in `open`: cost and agreement by the table.
ExitChoice simulate(const DepthTable& table, const std::vector<double>& costs,
                    const std::vector<bool>& open, double threshold) {
  std::vector<double> thresholds;
  for (const bool each : open) thresholds.push_back(each ? threshold : kClosed);
  const at::Tensor depths = exit_depths(table, thresholds);
  const auto columns = table.choice.size(1);
  const at::Tensor cost = at::tensor(at::ArrayRef<double>(costs)).to(at::kDouble);
  ExitChoice result{open, threshold};
  result.cost = cost.index_select(0, depths).mean().item<double>();
  result.agreement = (exit_choices(table, depths) == table.choice.select(1, columns - 1))
                         .to(at::kDouble)
                         .mean()
                         .item<double>();
  return result;
}

/// The best that costs at most `most`, by the table; agreement -1 where nothing does, and then the
/// cheapest cost there is.
ExitChoice choose(const DepthTable& table, const ExitNetwork& exits, const Shape& input,
                  double most) {
  ExitChoice best;
  best.cost = std::numeric_limits<double>::infinity();
  for (const std::vector<bool>& open : subsets(exits.exit_count(), exits.closes_single_exits())) {
    const std::vector<double> costs = exits.exit_costs(input, open);
    std::vector<at::Tensor> seen;
    for (size_t i = 0; i < open.size(); ++i)
      if (open[i]) seen.push_back(table.confidence.select(1, static_cast<int64_t>(i)));
    const at::Tensor scores = at::stack(seen);
    double low = scores.min().item<double>(), high = scores.max().item<double>();
    const double margin = 1e-3 * std::max(1.0, high - low);
    low -= margin;
    high += margin;
    ExitChoice found = simulate(table, costs, open, low);
    if (found.cost > most) {  // though every row leaves
      if (best.agreement < 0 && found.cost < best.cost) {
        best = found;
        best.agreement = -1;
      }
      continue;
    }
    for (int step = 0; step < kSteps; ++step) {
      const double middle = (low + high) / 2;
      const ExitChoice next = simulate(table, costs, open, middle);
      (next.cost <= most ? low : high) = middle;
      if (next.cost <= most) found = next;
    }
    if (found.agreement > best.agreement) best = found;
  }
  return best;
}

/// The choice on the network as it runs: tokens that left early are seen with what they had then,
/// which moves the scores of later ones.
ExitChoice refine(Model& model, ExitNetwork& exits, const PassInput& data, const std::string& what,
                  const DepthTable& table, ExitChoice choice, double share, double dense_macs) {
  std::vector<at::Tensor> said;
  const auto spends = [&](double threshold) {
    ExitChoice trial = choice;
    trial.threshold = threshold;
    exits.set_exit_sizes({trial.thresholds(), ExitThresholds(choice.open.size())});
    std::vector<at::Tensor> own;  // agreement is of no interest here
    return meter_size(model, data, what, 0, own).macs / dense_macs;
  };
  double spent = spends(choice.threshold);
  if (spent <= share && spent > share - kNear) return choice;
  const auto columns = table.confidence.size(1) - 1;
  double low = table.confidence.narrow(1, 0, columns).min().item<double>() - 1e-3,
         high = table.confidence.narrow(1, 0, columns).max().item<double>() + 1e-3;
  (spent <= share ? low : high) = choice.threshold;
  bool fits = spent <= share;
  for (int step = 0; step < kMeteredSteps; ++step) {
    const double middle = (low + high) / 2;
    spent = spends(middle);
    (spent <= share ? low : high) = middle;
    if (spent > share) continue;
    choice.threshold = middle;
    fits = true;
    if (spent > share - kNear) break;
  }
  if (!fits) choice.threshold = low;  // everybody leaves, or what came nearest from below
  return choice;
}

Json thresholds_json(const ExitNetwork& exits, const ExitThresholds& thresholds) {
  Json json = Json::object();
  for (size_t i = 0; i < thresholds.size(); ++i)
    json[exits.exit_name(static_cast<int64_t>(i))] =
        thresholds[i] ? Json(*thresholds[i]) : Json("closed");
  return json;
}

}  // namespace

Json calibrate_exits(Model& model, const PassInput& input) {
  json_require_known_keys(input.options, {"shares", "threshold"}, "pass calibrate-exits");
  return calibrate_exits(model, input, "pass calibrate-exits");
}

Json calibrate_exits(Model& model, const PassInput& input, const std::string& what) {
  ExitNetwork& exits = exits_of(model, what);
  const bool given = input.options.contains("threshold");
  if (given && input.options.contains("shares"))
    fail(Code::config, "{}: threshold and shares say the same thing; give one of them", what);
  const bool data = input.calibration.defined();
  if (!given && !data)
    fail(Code::usage,
         "{}: thresholds for a share of the cost come from data; give calibration inputs, or a "
         "threshold",
         what);
  const EvaluationMode evaluation(*model.root);
  const int64_t samples = data ? input.calibration.size(0) : 0, half = samples / 2;
  if (data && half < 1)
    fail(Code::usage, "{}: {} calibration inputs; at least 2 are needed, one half to measure on",
         what, samples);
  const PassInput choosing = data ? part_of(input, 0, half) : input,
                  held_out = data ? part_of(input, half, samples - half) : input;

  const auto count = static_cast<size_t>(exits.exit_count());
  std::vector<ExitThresholds> sizes;
  std::vector<ShareTarget> targets;
  if (given) {
    const auto threshold = json_get<double>(input.options, "threshold", what);
    if (!std::isfinite(threshold))
      fail(Code::config, "{}: threshold: expected a finite number, found {}", what, threshold);
    targets = {{"exits", 0}};
    sizes.push_back(ExitThresholds(count, threshold));
  } else {
    targets = read_shares(input.options, "exit", what);
    exits.set_exit_sizes({ExitThresholds(count), ExitThresholds(count)});  // nobody leaves
    const DepthTable table = table_of(model, exits, choosing, what);
    std::vector<at::Tensor> said;
    const double dense = meter_size(model, choosing, what, -1, said).macs;
    Shape shape = model.input_shape;
    if (model.root->vocabulary() > 0) shape = {input.calibration.size(1)};
    for (const ShareTarget& target : targets) {
      const ExitChoice chosen = choose(table, exits, shape, target.share * dense);
      if (chosen.agreement < 0)
        fail(Code::limit,
             "{}: no exits spend only {:.4g} of the dense cost: where every row leaves as early as "
             "it can it is {:.4g}",
             what, target.share, chosen.cost / dense);
      sizes.push_back(
          refine(model, exits, choosing, what, table, chosen, target.share, dense).thresholds());
    }
  }
  sizes.emplace_back(count);
  exits.set_exit_sizes(sizes);
  model.sizes.clear();
  for (const ShareTarget& target : targets) model.sizes.push_back({target.name, 0, {}});
  model.sizes.push_back({"dense", 0, {}});

  Json rows = Json::array();
  std::vector<at::Tensor> said;
  const auto last = static_cast<int64_t>(sizes.size()) - 1;
  const Metered dense = data ? meter_size(model, held_out, what, last, said) : Metered{};
  for (size_t size = 0; size < targets.size(); ++size) {
    Json row = {{"name", targets[size].name}, {"thresholds", thresholds_json(exits, sizes[size])}};
    if (data) {
      const Metered found = meter_size(model, held_out, what, static_cast<int64_t>(size), said);
      auto& quality = model.sizes[size].quality;
      quality[bundle::kCostShare] = std::min(1.0, found.macs / dense.macs);
      quality[bundle::kCostRows] = static_cast<double>(found.rows);
      quality["agreement"] = found.agreement;
      row["cost_share"] = found.macs / dense.macs;
      row["agreement"] = found.agreement;
    }
    rows.push_back(std::move(row));
  }
  if (data) model.sizes.back().quality[bundle::kCostShare] = 1;
  Json report = {{"exits", exits.exit_count()}, {"sizes", std::move(rows)}};
  if (data) report["measured_on"] = dense.rows;
  return report;
}

}  // namespace sluice::lab
