// nlohmann::json costs 2.7 s a file: include this in .cpp files (and lab, whose precompiled header
// has it); other headers take json_fwd.h or plain structs.
#pragma once
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "sluice/base/json_fwd.h"

namespace sluice {

/// Parses untrusted text; throws Error{format} naming `what`, the byte offset and the problem.
/// Nesting deeper than `max_depth`, duplicate keys and trailing text are refused.
Json parse_json(std::string_view text, std::string_view what, int max_depth = 64);

/// Reads a whole JSON file. Errors as parse_json, Error{io} when it cannot be read.
Json read_json_file(const std::string& path);

/// object[key] as T; throws Error{config} naming `what`, the key, expected and found type.
template <class T>
T json_get(const Json& object, std::string_view key, std::string_view what);
/// The same with a default for an absent key.
template <class T>
T json_get_or(const Json& object, std::string_view key, T fallback, std::string_view what);
// Defined for bool, int64_t, double (integers convert), std::string, std::vector<int64_t>,
// std::vector<double>, std::vector<std::string>, Json (any value) in json.cpp.

/// Throws Error{config} when `object` has a key outside `known`, naming it, the nearest known key
/// and all known.
void json_require_known_keys(const Json& object, std::initializer_list<std::string_view> known,
                             std::string_view what);

}  // namespace sluice
