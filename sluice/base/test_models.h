// Pretrained models in tests: those that scripts/fetch-models.sh has brought.
#pragma once
#include <cstdlib>
#include <filesystem>
#include <string>

namespace sluice {

/// The folder of model `name` in the cache, when `file` is in it; else "", and the test is to be
/// skipped: GTEST_SKIP() << "no ...; scripts/fetch-models.sh NAME gets it".
inline std::string fetched_model(const std::string& name, const std::string& file) {
  const auto variable = [](const char* key) {
    const char* value = std::getenv(key);
    return std::string(value ? value : "");
  };
  std::string root = variable("SLUICE_CACHE");
  if (root.empty()) {
    root = variable("XDG_CACHE_HOME");
    if (root.empty()) root = variable("HOME") + "/.cache";
    root += "/sluice";
  }
  const std::string folder = root + "/models/" + name;
  std::error_code none;
  return std::filesystem::is_regular_file(folder + "/" + file, none) ? folder : "";
}

}  // namespace sluice
