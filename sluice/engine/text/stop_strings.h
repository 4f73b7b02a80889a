// Text as it comes, up to the first of some strings, wherever tokens cut them.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace sluice::engine {

class StopStrings {
 public:
  /// Throws Error{usage} for an empty string.
  explicit StopStrings(std::vector<std::string> strings);
  /// Text that is certain now to lie before a stop string; may be empty. Of several stop strings
  /// the one that begins first ends the text.
  std::string push(std::string_view piece);
  /// What was held back because a stop string might have begun there.
  std::string flush();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> strings_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace sluice::engine
