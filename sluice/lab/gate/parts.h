// Internal: finding a gate's parts by name, and what Gate checks between them.
#pragma once
#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include <map>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {

/// Kind of a part -> what builds it from its attributes.
template <class T>
using PartTable = std::map<std::string, T (*)(const Json&)>;

template <class T>
std::vector<std::string> part_names(const PartTable<T>& table) {
  std::vector<std::string> result;
  for (const auto& [name, make] : table) result.push_back(name);
  return result;
}

/// Throws Error{config} naming the nearest kind of `what`.
template <class T>
T make_part(const PartTable<T>& table, const Json& attributes, std::string_view what) {
  if (!attributes.is_object() || !attributes.contains("kind") ||
      !attributes.at("kind").is_string()) {
    fail(Code::config, "{} of gate: expected a table with 'kind'", what);
  }
  const auto kind = attributes.at("kind").get<std::string>();
  const auto found = table.find(kind);
  if (found == table.end()) {
    const std::string near = nearest_name(kind, part_names(table));
    fail(Code::config, "{} of gate: unknown kind '{}'{}; known: {}", what, kind.substr(0, 60),
         near.empty() ? "" : fmt::format(", did you mean '{}'?", near),
         fmt::join(part_names(table), ", "));
  }
  return found->second(attributes);
}

/// Gives the score the number of sizes that a gate's attributes say.
void make_sizes(Score& score, const Json& attributes, std::string_view kind);
/// Score::steer() with the offsets of these prices (price_offset()).
bool steer_score(Score& score, const std::vector<double>& prices, const at::Tensor& cost);
/// What Score::logits() takes: the size chosen, or -1 for a score of one size.
int64_t score_size(const Score& score, const Context& context, std::string_view kind);

/// Throws Error{config} when a decision's k exceeds `units`.
void require_units(const Json& decision, int64_t units);

}  // namespace sluice::lab
