#include "sluice/bundle/size_choice.h"

#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/bundle/bundle.h"
#include "sluice/bundle/bundle_json.h"
#include "sluice/bundle/safetensors.h"

namespace sluice::bundle {
namespace {

/// Qualities by which sizes are compared, the first that all have; 1: more is better.
constexpr std::pair<const char*, int> kCompared[] = {
    {"accuracy", 1}, {"ndcg_at_10", 1}, {"recall_at_1", 1}, {"perplexity", -1}, {"loss", -1}};

}  // namespace

bool rows_leave(const Graph& graph) {
  return std::ranges::any_of(graph.nodes,
                             [](const Node& node) { return node.op == "compact_rows"; });
}

std::vector<double> relative_costs(const Graph& graph, std::vector<double> costs) {
  if (costs.empty()) return costs;
  double most = rows_leave(graph) ? costs.back() : *std::ranges::max_element(costs);
  most = std::max(most, 1e-30);
  for (double& each : costs) each /= most;
  return costs;
}

std::optional<double> measured(const SizeEntry& entry, const std::string& name) {
  const auto found = entry.quality.find(name);
  return found == entry.quality.end() ? std::nullopt : std::optional(found->second);
}

double cost_share(const std::vector<SizeEntry>& sizes, size_t size) {
  return measured(sizes[size], kCostShare).value_or(most_share(sizes, size));
}

double most_share(const std::vector<SizeEntry>& sizes, size_t size) {
  int64_t most = 1;
  for (const SizeEntry& entry : sizes) most = std::max(most, entry.macs);
  return static_cast<double>(sizes[size].macs) / static_cast<double>(most);
}

void require_sizes(const std::vector<SizeEntry>& sizes, const std::string& what) {
  if (!sizes.empty()) return;
  fail(Code::usage,
       "{}: it has one size only, so there is nothing to spend less with; sluice transform --pass "
       "sparsify-activations:keep=[0.3,0.5,0.7,1], add-exits or nest, or sluice train with [nest], "
       "gives it several",
       what);
}

int64_t best_size(const std::vector<SizeEntry>& sizes, const std::vector<double>& costs,
                  const std::vector<bool>& fits) {
  const char* quality = nullptr;
  int sign = 1;
  for (const auto& [name, direction] : kCompared) {
    const bool all = std::all_of(sizes.begin(), sizes.end(), [name = name](const SizeEntry& each) {
      return each.quality.count(name) > 0;
    });
    if (!all) continue;
    quality = name;
    sign = direction;
    break;
  }
  int64_t best = -1;
  std::pair<double, double> most;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (!fits[i]) continue;
    const double cost = costs[i];
    const std::pair<double, double> rank =
        quality ? std::pair(sign * sizes[i].quality.at(quality), -cost) : std::pair(cost, 0.0);
    if (best >= 0 && (rank < most || (quality && rank == most))) continue;
    best = static_cast<int64_t>(i);
    most = rank;
  }
  return best;
}

int64_t best_size(const std::vector<SizeEntry>& sizes, const std::vector<double>& costs,
                  double share, const std::string& what) {
  require_sizes(sizes, what);
  std::vector<bool> fits;
  size_t cheapest = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    fits.push_back(costs[i] <= share);
    if (costs[i] < costs[cheapest]) cheapest = i;
  }
  const int64_t best = best_size(sizes, costs, fits);
  if (best < 0)
    fail(Code::limit, "{}: no size costs {:.4g} of the largest; the cheapest, '{}', costs {:.4g}",
         what, share, sizes[cheapest].name, costs[cheapest]);
  return best;
}

void write_with_sizes(const Bundle& bundle, const std::vector<SizeEntry>& sizes,
                      const std::string& path) {
  check_sizes(sizes, bundle.graph(), bundle.info(), path + ": table of sizes");
  std::map<std::string, std::string> metadata = bundle.file().metadata();
  metadata["sluice.sizes"] = sizes_to_json(sizes);
  write_safetensors(path, bundle.file().tensors(), metadata);
}

}  // namespace sluice::bundle
