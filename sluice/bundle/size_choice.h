// Which size of a network to run, by what it costs and is worth.
//
// Beside the most that a size may cost, which the graph says (SizeEntry::macs), its entry may hold
// three numbers that were measured, among its qualities:
//   cost_share  what it spent on the inputs it was measured on, over what the largest size (where
//   rows
//               leave: the last) spent on them: above 0, up to 1, and no more than the graph allows
//   cost_rows   how many rows (tokens, pictures, texts) cost_share is the mean of, where it is an
//               expectation: each input decides what it spends. Without it the share is exact.
//   seconds     of one sample (one token of a decoder) on the machine that measured
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "sluice/bundle/sizes.h"

namespace sluice::bundle {

class Bundle;

inline constexpr const char* kCostShare = "cost_share";
inline constexpr const char* kCostRows = "cost_rows";
inline constexpr const char* kSeconds = "seconds";

/// Rows may leave (compact_rows): sizes differ in what inputs decide, and the most that one may
/// cost says little. The last size then is what others are measured by.
bool rows_leave(const Graph& graph);
/// Each cost over that of the size that others are measured by: the last one where rows leave, else
/// the most expensive.
std::vector<double> relative_costs(const Graph& graph, std::vector<double> costs);
/// A measured number of the entry, if there is one.
std::optional<double> measured(const SizeEntry& entry, const std::string& name);
/// What entry `size` costs of the largest: its measured share, or the most that it may.
double cost_share(const std::vector<SizeEntry>& sizes, size_t size);
/// The most that entry `size` may cost: its MACs over those of the largest.
double most_share(const std::vector<SizeEntry>& sizes, size_t size);

/// Throws Error{usage} naming the passes that make sizes for an empty table.
void require_sizes(const std::vector<SizeEntry>& sizes, const std::string& what);
/// Index of the best entry whose cost (by entry, of the largest) is at most `share`: of the best
/// quality where all entries tell one that is known (accuracy, ndcg_at_10, recall_at_1: more is
/// better; perplexity, loss: less), of equals the cheapest; else the most expensive, of equals the
/// last, which is nearer to the whole network. Throws
/// Error{limit} naming the cheapest when none fits, and as require_sizes().
int64_t best_size(const std::vector<SizeEntry>& sizes, const std::vector<double>& costs,
                  double share, const std::string& what);
/// The same of entries that fit by another rule; -1 when none does.
int64_t best_size(const std::vector<SizeEntry>& sizes, const std::vector<double>& costs,
                  const std::vector<bool>& fits);

/// A copy of the bundle's file with another table of sizes, which is checked first. Writes aside,
/// then renames.
void write_with_sizes(const Bundle& bundle, const std::vector<SizeEntry>& sizes,
                      const std::string& path);

}  // namespace sluice::bundle
