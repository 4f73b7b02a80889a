// Dotted paths and their patterns: `*` stands for any run of characters inside one segment, `**`
// for any number of segments. "blocks.*.ffn" matches "blocks.0.ffn"; "**.conv1" matches at any
// depth; "**" matches all.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace sluice {

bool path_matches(std::string_view pattern, std::string_view path);

/// "stage0" + "conv1" -> "stage0.conv1"; an empty parent gives the name alone.
std::string join_path(std::string_view parent, std::string_view name);

/// The candidate with the smallest edit distance, or "" when none is near; for "did you mean" in
/// messages.
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace sluice
