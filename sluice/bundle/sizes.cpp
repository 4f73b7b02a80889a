#include "sluice/bundle/sizes.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/bundle/bundle_json.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/bundle/size_choice.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

constexpr size_t kNameBytes = 64;
constexpr size_t kSizesBytes = size_t{1} << 20;
constexpr size_t kQualities = 64;
constexpr double kShareSlack = 1e-3;  // shares are written with few digits

/// MACs of a node's sizes, and of those that have none one.
std::vector<int64_t> node_macs(const Node& node, const Graph& graph, const GraphInfo& info,
                               const Cost& cost) {
  if (node.op == "threshold")
    return std::vector<int64_t>(threshold_values(node.attrs).size(), cost.macs);
  if (node.op == "sparse_input_linear" || node.op == "sparse_ffn") {
    std::vector<Shape> inputs;
    for (const std::string& name : node.inputs) inputs.push_back(info.shapes.at(name));
    std::map<std::string, TensorSpec> tensors;
    for (const auto& [role, name] : node.tensors) tensors.emplace(role, graph.tensors.at(name));
    return select_macs({node, inputs, tensors}, info.shapes.at(node.output));
  }
  const bool conv = node.op == "prefix_conv2d";
  if (!conv && node.op != "prefix_linear") return {cost.macs};
  const Shape& weight = graph.tensors.at(node.tensors.at("weight")).shape;
  const auto sizes = prefix_sizes(node.attrs, weight[0], weight[1]);
  int64_t most = 1;
  for (const PrefixSize& size : sizes) most = std::max(most, size.rows * size.columns);
  std::vector<int64_t> macs;  // cost.macs is that of the largest
  for (const PrefixSize& size : sizes)
    macs.push_back(cost.macs / most * (size.rows * size.columns));
  return macs;
}

bool plain_name(const std::string& name) {
  return !name.empty() && name.size() <= kNameBytes &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                  c == '.' || c == '_' || c == '-';
         });
}

}  // namespace

GraphSizes graph_sizes(const Graph& graph, const GraphInfo& info, const std::string& what) {
  GraphSizes result;
  std::vector<std::vector<int64_t>> macs, choices;
  const auto count = [&](const Node& node, size_t sizes) {
    if (sizes < 2) return;
    if (result.count > 1 && result.count != static_cast<int64_t>(sizes)) {
      fail(Code::shape, "{}: node '{}' has {} sizes; other nodes have {}", what,
           printable(node.path), sizes, result.count);
    }
    result.count = static_cast<int64_t>(sizes);
  };
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    macs.push_back(node_macs(node, graph, info, info.node_costs[i]));
    choices.emplace_back();
    if (node.op == "size_switch")
      choices.back() = switch_choices(node.attrs, static_cast<int64_t>(node.inputs.size()));
    count(node, std::max(macs.back().size(), choices.back().size()));
  }
  for (int64_t size = 0; size < result.count; ++size) {
    const auto at = [&](const std::vector<int64_t>& list) {
      return list[std::min(static_cast<size_t>(size), list.size() - 1)];
    };
    std::set<std::string> wanted(graph.outputs.begin(), graph.outputs.end());
    std::vector<bool> skipped(graph.nodes.size(), false);
    int64_t total = 0;
    for (size_t i = graph.nodes.size(); i-- > 0;) {
      const Node& node = graph.nodes[i];
      skipped[i] = result.count > 1 && wanted.count(node.output) == 0;
      if (skipped[i]) continue;
      total = checked_add(total, at(macs[i]), "MACs");
      if (choices[i].empty()) {
        wanted.insert(node.inputs.begin(), node.inputs.end());
      } else {
        wanted.insert(node.inputs[static_cast<size_t>(at(choices[i]))]);
      }
    }
    result.macs.push_back(total);
    result.skipped.push_back(std::move(skipped));
  }
  return result;
}

void check_sizes(const std::vector<SizeEntry>& sizes, const Graph& graph, const GraphInfo& info,
                 const std::string& what) {
  const GraphSizes found = graph_sizes(graph, info, what);
  if (static_cast<int64_t>(sizes.size()) != found.count) {
    fail(Code::shape, "{}: {} entries; the graph has {} sizes", what, sizes.size(), found.count);
  }
  std::set<std::string> names;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const SizeEntry& entry = sizes[i];
    if (!plain_name(entry.name)) {
      fail(Code::format,
           "{}: entry {}: name '{}'; expected 1 to {} letters, digits, '.', '_' or '-'", what, i,
           printable(entry.name, 80), kNameBytes);
    }
    if (!names.insert(entry.name).second)
      fail(Code::format, "{}: the name '{}' is there twice", what, entry.name);
    if (entry.macs != found.macs[i]) {
      fail(Code::format, "{}: size '{}': the table says {} multiply-accumulates, the graph has {}",
           what, entry.name, entry.macs, found.macs[i]);
    }
    const auto most = static_cast<double>(*std::max_element(found.macs.begin(), found.macs.end()));
    if (const auto share = entry.quality.find(kCostShare); share != entry.quality.end()) {
      if (!(share->second > 0 && share->second <= 1))
        fail(Code::format, "{}: size '{}': {} of {}; expected above 0, up to 1", what, entry.name,
             kCostShare, share->second);
      // Where rows leave, the largest size spends less than it may: no bound for others.
      if (!rows_leave(graph) &&
          share->second * most > static_cast<double>(entry.macs) * (1 + kShareSlack))
        fail(Code::format,
             "{}: size '{}': a measured share of {:.4g} of {:.0f} multiply-accumulates; the graph "
             "allows it {}",
             what, entry.name, share->second, most, entry.macs);
    }
    if (const auto rows = entry.quality.find(kCostRows);
        rows != entry.quality.end() && !(rows->second >= 1 && rows->second <= 1e15))
      fail(Code::format, "{}: size '{}': {} of {}; expected a number of rows from 1 on", what,
           entry.name, kCostRows, rows->second);
    if (const auto seconds = entry.quality.find(kSeconds);
        seconds != entry.quality.end() && !(seconds->second > 0))
      fail(Code::format, "{}: size '{}': {} seconds; expected a number above 0", what, entry.name,
           seconds->second);
    if (entry.quality.size() > kQualities)
      fail(Code::limit, "{}: size '{}': {} qualities; at most {}", what, entry.name,
           entry.quality.size(), kQualities);
    for (const auto& [key, value] : entry.quality) {
      if (!plain_name(key) || !std::isfinite(value))
        fail(Code::format, "{}: size '{}': quality '{}' is {}; expected a name and a finite number",
             what, entry.name, printable(key, 80), value);
    }
  }
}

int64_t find_size(const std::vector<SizeEntry>& sizes, const std::string& name,
                  const std::string& what) {
  std::vector<std::string> names;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i].name == name) return static_cast<int64_t>(i);
    names.push_back(sizes[i].name);
  }
  int64_t index = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
  const auto count = static_cast<int64_t>(sizes.size());
  if (error == std::errc() && end == name.data() + name.size() && index >= 0 && index < count)
    return index;
  const std::string near = nearest_name(name, names);
  fail(Code::usage, "{}: no size '{}'{}; {}", what, printable(name, 60),
       near.empty() ? "" : fmt::format(", did you mean '{}'?", near),
       names.empty() ? std::string("it has no table of sizes")
                     : fmt::format("it has {}, from '{}' to '{}' (sluice inspect --sizes)", count,
                                   names.front(), names.back()));
}

std::string sizes_to_json(const std::vector<SizeEntry>& sizes) {
  Json json = Json::array();
  for (const SizeEntry& entry : sizes) {
    Json quality = Json::object();
    for (const auto& [key, value] : entry.quality) quality[key] = value;
    json.push_back({{"name", entry.name}, {"macs", entry.macs}, {"quality", std::move(quality)}});
  }
  return json.dump();
}

std::vector<SizeEntry> sizes_from_json(std::string_view text, const std::string& what) {
  const Json json = parse_document(text, what, kSizesBytes, 4);
  if (!json.is_array())
    fail(Code::format, "{}: expected a list of sizes, found {}", what, json.type_name());
  if (json.size() > kMaxSizes)
    fail(Code::limit, "{}: {} sizes; at most {}", what, json.size(), kMaxSizes);
  std::vector<SizeEntry> sizes;
  for (size_t i = 0; i < json.size(); ++i) {
    const std::string place = fmt::format("{}: entry {}", what, i);
    const Json& each = json[i];
    if (!each.is_object())
      fail(Code::format, "{}: expected an object, found {}", place, each.type_name());
    SizeEntry entry;
    for (const auto& [key, value] : each.items()) {
      if (key == "name" && value.is_string()) {
        entry.name = value.get<std::string>();
      } else if (key == "macs" && value.is_number_integer()) {
        entry.macs = value.get<int64_t>();
      } else if (key == "quality" && value.is_object()) {
        for (const auto& [name, number] : value.items()) {
          if (!number.is_number())
            fail(Code::format, "{}: quality '{}': expected a number, found {}", place,
                 printable(name, 60), number.type_name());
          entry.quality[name] = number.get<double>();
        }
      } else {
        fail(Code::format,
             "{}: key '{}' ({}); expected name (text), macs (integer) and quality (object)", place,
             printable(key, 60), value.type_name());
      }
    }
    sizes.push_back(std::move(entry));
  }
  return sizes;
}

}  // namespace sluice::bundle
