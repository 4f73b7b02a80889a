// For tests: a folder of their own, removed at the end.
#pragma once
#include <stdlib.h>

#include <filesystem>
#include <string>

#include "sluice/base/error.h"

namespace sluice::bundle::testing {

class TempFolder {
 public:
  TempFolder() : path_((std::filesystem::temp_directory_path() / "sluice-XXXXXX").string()) {
    if (!::mkdtemp(path_.data())) fail(Code::io, "cannot make a folder like {}", path_);
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace sluice::bundle::testing
