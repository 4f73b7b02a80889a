// What a stage searches for: a fixed text or a regular expression.
//
// The reference runs Oniguruma in Ruby syntax; patterns are translated to PCRE2 with the same
// meaning (\s and \h differ, ^ and $ match at lines). What cannot be translated is refused when the
// pattern is made. Matching is bounded: a pattern that backtracks without end throws Error{limit}
// instead of hanging.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::text {

/// A stretch of the searched text, a match or what lies between two.
struct Stretch {
  size_t begin, end;
  bool match;
};

class Pattern {
 public:
  /// Matches `text` literally; it may be empty (then every gap matches, as in the reference).
  static Pattern literal(std::string_view text);
  /// Throws Error{format} naming `what` for a wrong expression, Error{unsupported} for one that has
  /// no translation, Error{limit} for one that is too long.
  static Pattern regex(std::string_view expression, std::string_view what);
  Pattern(Pattern&&) noexcept;
  Pattern& operator=(Pattern&&) noexcept;
  ~Pattern();

  /// Cuts `text` (valid UTF-8) into matches and the stretches between them, in order; nothing for
  /// an empty text. Thread-safe. Throws Error{limit}.
  void find(std::string_view text, std::vector<Stretch>& out) const;
  /// Fixed text this matches; empty for an expression.
  const std::string& fixed() const { return literal_; }

 private:
  struct Compiled;
  Pattern();
  std::string literal_;
  std::unique_ptr<Compiled> compiled_;
};

/// Oniguruma's syntax in PCRE2's; internal, for tests.
std::string translate_regex(std::string_view expression, std::string_view what);

}  // namespace sluice::text
