// Where a measured report comes from: the fields "date", "commit" and "machine" of the report
// schema (docs/add-a-recipe.md). Its own library, sluice_origin: only what writes reports is linked
// anew after a commit.
#pragma once
#include <string>

#include "sluice/base/json_fwd.h"

namespace sluice {

/// Today in UTC, "2026-01-31".
std::string today();

/// Commit the binary was built from, "-dirty" behind it when tracked sources differed, or
/// "unknown".
std::string build_commit();

/// {"cpu", "isa", "threads", "memory"} of this machine; "device" where the work ran on another than
/// the CPU ("cuda:0").
Json machine_json(int threads, const std::string& device = "");

}  // namespace sluice
