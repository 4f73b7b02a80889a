// The sizes of a nested network: how many a graph has, what each of them runs and costs, and the
// table that a bundle carries beside it (metadata "sluice.sizes"):
//   [{"name": "w50-d4", "macs": 2110000, "quality": {"accuracy": 0.91}}, ...]
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "sluice/bundle/graph.h"

namespace sluice::bundle {

/// One entry per size, in the order of the lists of the graph's nodes.
struct SizeEntry {
  std::string name;                       ///< unique: letters, digits, '.', '_', '-'
  int64_t macs = 0;                       ///< per sample: what the graph says, checked
  std::map<std::string, double> quality;  ///< as measured: {"accuracy": 0.91}
};

struct GraphSizes {
  int64_t count = 1;
  std::vector<int64_t> macs;               ///< by size, per sample
  std::vector<std::vector<bool>> skipped;  ///< by size and node: a size_switch leaves it out
};

/// Of a graph that has passed check_graph with the result `info`. Throws Error{shape} naming `what`
/// and the node where nodes have lists of different lengths.
GraphSizes graph_sizes(const Graph& graph, const GraphInfo& info, const std::string& what);

/// Throws Error{shape|format|limit} naming `what` and the entry when the table does not say what
/// the graph does: another number of sizes, other MACs, names twice, numbers that are not finite.
void check_sizes(const std::vector<SizeEntry>& sizes, const Graph& graph, const GraphInfo& info,
                 const std::string& what);

/// Index of the entry of that name, or of the number in it; Error{usage} naming those there are.
int64_t find_size(const std::vector<SizeEntry>& sizes, const std::string& name,
                  const std::string& what);

}  // namespace sluice::bundle
