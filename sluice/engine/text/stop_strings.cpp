#include "sluice/engine/text/stop_strings.h"

#include <algorithm>

#include "sluice/base/error.h"

namespace sluice::engine {

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
  for (const std::string& s : strings_)
    if (s.empty()) fail(Code::usage, "a stop string is empty; every text would end at once");
}

std::string StopStrings::push(std::string_view piece) {
  if (stopped_) return "";
  held_ += piece;
  size_t first = std::string::npos;
  for (const std::string& s : strings_) first = std::min(first, held_.find(s));
  // A longer one that began before `first` may still be on its way.
  size_t open = held_.size();
  for (const std::string& s : strings_) {
    const size_t longest = std::min(s.size() - 1, held_.size());
    for (size_t n = longest; n > 0; --n) {
      if (std::string_view(held_).ends_with(std::string_view(s).substr(0, n))) {
        open = std::min(open, held_.size() - n);
        break;
      }
    }
  }
  stopped_ = first != std::string::npos && first <= open;
  const size_t certain = stopped_ ? first : open;
  std::string out = held_.substr(0, certain);
  held_ = stopped_ ? "" : held_.substr(certain);
  return out;
}

std::string StopStrings::flush() {
  // The text ends here: the longer one did not come.
  size_t first = std::string::npos;
  for (const std::string& s : strings_) first = std::min(first, held_.find(s));
  stopped_ = stopped_ || first != std::string::npos;
  std::string out = held_.substr(0, first);
  held_.clear();
  return out;
}

}  // namespace sluice::engine
