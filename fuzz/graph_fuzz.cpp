// Any text as a graph: reading and checking may only throw Error, and what reads also writes and
// reads again the same.
#include <cstdlib>
#include <cstring>
#include <string>

#include "fuzz/refusal.h"
#include "sluice/bundle/graph.h"

using namespace sluice;
using namespace sluice::bundle;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const Graph graph = graph_from_json(text, "input");
    const std::string once = graph_to_json(graph);
    if (graph_to_json(graph_from_json(once, "copy")) != once) std::abort();
    const GraphInfo info = check_graph(graph, "input");
    if (info.node_costs.size() != graph.nodes.size()) std::abort();
  } catch (const Error& error) {
    check_refusal(error);
  }
  return 0;
}
