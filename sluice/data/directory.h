// Where data sets lie.
#pragma once
#include <string>

namespace sluice::data {

/// The folder of a set: $SLUICE_DATA/<name> if it is there, else `packaged`, where a Debian package
/// has put it, else where scripts/data.sh does ($XDG_DATA_HOME or ~/.local/share, /sluice/<name>).
/// It need not exist.
std::string data_directory(const std::string& name, const std::string& packaged = "");

}  // namespace sluice::data
