// Internal: options about sizes, which nest and set-sizes share.
#pragma once
#include "sluice/lab/pass/subnet.h"

namespace sluice::lab {

/// The value of `key`, one of `known`; the first without it. Error{config} with the nearest name.
std::string one_of(const Json& options, const char* key, std::vector<std::string> known,
                   const std::string& what);
/// widths, depths, multiple and knobs.
SubnetSpace read_space(const Json& options, const Model& model, const std::string& what);
/// Values of `mixtures`.
extern const std::vector<std::string> kMixtures;
std::vector<Subnet> mixtures_of(const SubnetSpace& space, const std::string& kind);
/// [{name, macs}] for reports.
Json table_of_sizes(const Model& model);

}  // namespace sluice::lab
