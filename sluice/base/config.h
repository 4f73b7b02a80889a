// TOML files as Json, so that one set of helpers reads configurations and recipes.
#pragma once
#include <string>
#include <string_view>

#include "sluice/base/json_fwd.h"

namespace sluice {

/// Throws Error{config} naming `what`, line and column.
Json parse_toml(std::string_view text, std::string_view what);
Json read_toml_file(const std::string& path);

/// Deep merge: values of `over` win; tables merge key by key.
Json merge_json(Json base, const Json& over);

/// Applies "a.b.c=value" (value read as TOML, else as a string). Throws Error{usage} without '='.
void set_by_path(Json& config, std::string_view assignment);

}  // namespace sluice
