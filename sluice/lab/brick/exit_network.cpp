#include "sluice/lab/brick/exit_network.h"

#include <algorithm>
#include <cmath>

#include "sluice/base/json.h"
#include "sluice/lab/brick/nested.h"

namespace sluice::lab {
namespace {

constexpr size_t kMostSizes = 256;  // of a node's lists

}  // namespace

void ExitNetwork::check_exit_sizes(const std::vector<ExitThresholds>& sizes) const {
  if (sizes.empty()) return;
  if (sizes.size() < 2 || sizes.size() > kMostSizes)
    fail(Code::config, "thresholds of exits: {} sizes; expected 2 to {}", sizes.size(), kMostSizes);
  for (const ExitThresholds& size : sizes) {
    if (std::ssize(size) != exit_count())
      fail(Code::config, "thresholds of exits: {} in a size; the network has {} exits", size.size(),
           exit_count());
    const bool one = std::ranges::any_of(size, [](const auto&t) { return t.has_value(); }),
               all = std::ranges::all_of(size, [](const auto&t) { return t.has_value(); });
    if (one && !all && !closes_single_exits())
      fail(Code::config,
           "thresholds of exits: what a later gate of this rule decides depends on the earlier "
           "ones; expected all exits of a size open, or none");
    for (const auto& each : size)
      if (each && !std::isfinite(static_cast<float>(*each)))
        fail(Code::config, "thresholds of exits: expected finite numbers, found {}", *each);
  }
  for (const auto& each : sizes.back())
    if (each)
      fail(Code::config,
           "thresholds of exits: the last size is the whole network; expected null for every exit, "
           "found {}",
           *each);
}

void ExitNetwork::set_exit_sizes(std::vector<ExitThresholds> sizes) {
  check_exit_sizes(sizes);
  sizes_ = std::move(sizes);
}

const ExitThresholds* ExitNetwork::thresholds_for(const Context& context,
                                                  std::string_view kind) const {
  if (sizes_.empty()) return nullptr;
  return &sizes_[static_cast<size_t>(chosen_size(context, std::ssize(sizes_), kind))];
}

bool ExitNetwork::ever_open(size_t exit) const {
  return sizes_.empty() ||
         std::ranges::any_of(sizes_, [&](const auto& size) { return size[exit].has_value(); });
}

std::vector<int64_t> ExitNetwork::closed_list(size_t exit) const {
  std::vector<int64_t> result;
  for (const ExitThresholds& size : sizes_) result.push_back(size[exit] ? 0 : 1);
  return result;
}

std::vector<double> ExitNetwork::threshold_list(size_t exit) const {
  std::vector<double> result;
  for (const ExitThresholds& size : sizes_) result.push_back(-size[exit].value_or(0));
  return result;
}

Json exit_sizes_json(const std::vector<ExitThresholds>& sizes) {
  Json json = Json::array();
  for (const ExitThresholds& size : sizes) {
    Json row = Json::array();
    for (const auto& each : size) row.push_back(each ? Json(*each) : Json());
    json.push_back(std::move(row));
  }
  return json;
}

std::vector<ExitThresholds> read_exit_sizes(const Json& attributes, std::string_view kind) {
  std::vector<ExitThresholds> sizes;
  const auto found = attributes.find("thresholds");
  if (found == attributes.end()) return sizes;
  const auto refuse = [&] {
    fail(Code::config,
         "thresholds of {}: expected a list of sizes, each a list of numbers or nulls", kind);
  };
  if (!found->is_array() || found->size() > kMostSizes) refuse();
  for (const Json& row : *found) {
    if (!row.is_array()) refuse();
    sizes.emplace_back();
    for (const Json& each : row) {
      if (!each.is_number() && !each.is_null()) refuse();
      sizes.back().push_back(each.is_null() ? std::nullopt
                                            : std::optional<double>(each.get<double>()));
    }
  }
  return sizes;
}

}  // namespace sluice::lab
