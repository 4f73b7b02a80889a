// Reading the stages of a tokenizer.json; for the .cpp files of this folder.
#pragma once
#include <functional>
#include <string>
#include <string_view>

#include "sluice/base/json_fwd.h"
#include "sluice/text/pattern.h"

namespace sluice::text {

/// object[key], or nothing when it is absent or null. Throws Error{config} when `json` is no
/// object.
const Json* present(const Json& json, std::string_view key, const std::string& what);

/// Calls `use(part, name)` for each element of the array json[key]; Error{config} when it is none,
/// Error{limit} above 64 parts.
void for_each_part(const Json& json, std::string_view key, const std::string& what,
                   const std::function<void(const Json&, const std::string&)>& use);

/// json["pattern"]: {"String": ...} or {"Regex": ...}.
Pattern make_pattern(const Json& json, const std::string& what);

/// A text of exactly one character.
char32_t one_character(const Json& json, std::string_view key, const std::string& what);

/// A whole number in [low, high].
int64_t bounded(const Json& json, std::string_view key, int64_t low, int64_t high,
                const std::string& what);

[[noreturn]] void unknown_type(std::string_view type, const std::string& what,
                               std::string_view known);

}  // namespace sluice::text
