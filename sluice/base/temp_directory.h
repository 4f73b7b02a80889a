// A directory of one's own below the system's temporary one, gone with everything in it at the end.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace sluice {

class TempDirectory {
 public:
  /// `purpose` is part of the name. Throws Error{io} when none can be made ($TMPDIR decides where).
  explicit TempDirectory(std::string_view purpose = "work");
  ~TempDirectory();
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(std::string_view name) const;
  /// Names of what is directly in it, sorted.
  std::vector<std::string> entries() const;

 private:
  std::string path_;
};

}  // namespace sluice
