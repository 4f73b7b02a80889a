// The small JSON documents beside the graph. Internal to bundle: Bundle reads with these, Builder
// checks with them what it is about to write, so that nothing is written that could not be read.
#pragma once
#include <string>
#include <string_view>

#include "sluice/base/json_fwd.h"
#include "sluice/bundle/bundle.h"

namespace sluice::bundle {

std::string task_to_json(const Task& task);
Task task_from_json(std::string_view text, const std::string& what);
/// `graph` must have passed check_graph with the result `info`.
void check_task(const Task& task, const Graph& graph, const GraphInfo& info,
                const std::string& what);

/// Read and written; what the numbers are against the graph is check_sizes' to judge.
std::string sizes_to_json(const std::vector<SizeEntry>& sizes);
std::vector<SizeEntry> sizes_from_json(std::string_view text, const std::string& what);

/// A list of objects, each with the text "step".
Json provenance_from_json(std::string_view text, const std::string& what);

/// Any JSON value of bearable size.
void check_model_json(std::string_view text, const std::string& what);

}  // namespace sluice::bundle
