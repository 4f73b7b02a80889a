#pragma once
#include <nlohmann/json_fwd.hpp>

namespace sluice {
using Json = nlohmann::ordered_json;  // keeps the order in which keys were written: files read well
                                      // and diff well
}  // namespace sluice
