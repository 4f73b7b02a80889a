#include "sluice/data/directory.h"

#include <cstdlib>

#include "sluice/base/file.h"

namespace sluice::data {

std::string data_directory(const std::string& name, const std::string& packaged) {
  const auto variable = [](const char* key) {
    const char* value = std::getenv(key);
    return std::string(value == nullptr ? "" : value);
  };
  if (const std::string root = variable("SLUICE_DATA"); !root.empty()) {
    if (const std::string directory = root + "/" + name; file_exists(directory)) return directory;
  }
  if (!packaged.empty()) return packaged;
  const std::string data = variable("XDG_DATA_HOME");
  return (data.empty() ? variable("HOME") + "/.local/share" : data) + "/sluice/" + name;
}

}  // namespace sluice::data
