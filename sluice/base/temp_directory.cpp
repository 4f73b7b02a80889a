#include "sluice/base/temp_directory.h"

#include <dirent.h>
#include <ftw.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "sluice/base/error.h"

namespace sluice {
namespace {

extern "C" int remove_entry(const char* path, const struct stat*, int, FTW*) {
  std::remove(path);
  return 0;
}

std::string temporary_root() {
  const char* chosen = std::getenv("TMPDIR");
  return chosen != nullptr && *chosen != '\0' ? chosen : "/tmp";
}

}  // namespace

TempDirectory::TempDirectory(std::string_view purpose)
    : path_(fmt::format("{}/sluice-{}-XXXXXX", temporary_root(), purpose)) {
  if (::mkdtemp(path_.data()) == nullptr) {
    fail(Code::io, "cannot make a temporary directory {}: {}; TMPDIR names another place", path_,
         std::strerror(errno));
  }
}

// Not std::filesystem::remove_all: LibTorch's own binaries bring one of another compiler version
// along, the dynamic linker may prefer it to ours, and the two do not agree about the iterators
// inside.
TempDirectory::~TempDirectory() {
  constexpr int kOpenDirectories = 16;
  ::nftw(path_.c_str(), remove_entry, kOpenDirectories, FTW_DEPTH | FTW_PHYS);
}

std::string TempDirectory::operator/(std::string_view name) const {
  return fmt::format("{}/{}", path_, name);
}

std::vector<std::string> TempDirectory::entries() const {
  std::vector<std::string> names;
  DIR* directory = ::opendir(path_.c_str());
  if (directory == nullptr) {
    fail(Code::io, "cannot list {}: {}", path_, std::strerror(errno));
  }
  while (const dirent* entry = ::readdir(directory)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  ::closedir(directory);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace sluice
