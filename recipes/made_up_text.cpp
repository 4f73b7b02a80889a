#include "recipes/made_up_text.h"

#include <fmt/format.h>

#include <filesystem>

#include "sluice/base/file.h"
#include "sluice/base/random.h"
#include "sluice/data/directory.h"

namespace sluice::recipes {

std::string made_up_text(const std::string& folder, std::string_view pattern, int files,
                         int lines) {
  const std::string path = (std::filesystem::path(folder) / "made-up").string();
  make_directories(path);
  for (int file = 0; file < files; ++file) {
    std::string text;
    for (int line = 0; line < lines; ++line) {
      const uint64_t a = derive_seed(uint64_t(file), "line", uint64_t(line)) % 23;
      text += fmt::format(fmt::runtime(pattern), a, (a * 7) % 23, (a * 5 + 3) % 23);
    }
    write_text_file(fmt::format("{}/{}.txt", path, file), text);
  }
  return path;
}

}  // namespace sluice::recipes
