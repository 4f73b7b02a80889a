// Ruby's regular expressions as PCRE2 (UTF, UCP, MULTILINE, newline = LF) reads them.
#include "sluice/base/error.h"
#include "sluice/text/later_characters.h"
#include "sluice/text/pattern.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

// PCRE2's \s has U+180E, which lost White_Space long ago; its \w has no marks.
constexpr std::string_view kSpace = "\\x{9}-\\x{d}\\x{85}\\p{Z}";
constexpr std::string_view kNotSpace =
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}"
    "\\p{L}\\p{M}\\p{N}\\p{P}\\p{S}\\p{Cf}\\p{Cn}\\p{Co}";

std::string_view later(std::string_view category) {
  for (const LaterCharacters& entry : kLaterCharacters) {
    if (entry.category == category) {
      return entry.ranges;
    }
  }
  return {};
}

std::string word_set() {
  std::string set = "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";
  return set.append(kLetterSymbols).append(later("L")).append(later("M")).append(later("Nd"));
}
std::string digit_set() { return std::string("\\p{Nd}").append(later("Nd")); }

class Translator {
 public:
  Translator(std::string_view from, std::string_view what) : from_(from), what_(what) {}

  std::string run() {
    while (at_ < from_.size()) {
      const char c = from_[at_];
      if (c == '\\') {
        escape(false);
      } else if (c == '[') {
        set();
      } else if (c == '(' && at_ + 1 < from_.size() && from_[at_ + 1] == '*') {
        unsupported("(*");
      } else if (c == '(' && at_ + 2 < from_.size() && from_[at_ + 1] == '?') {
        group();
      } else if (c == '{') {
        interval();
      } else {
        out_ += c;
        ++at_;
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void unsupported(std::string_view part) const {
    fail(Code::unsupported,
         "{}: the regular expression {} uses {} at character {}, which has no translation to PCRE2",
         what_, shown(from_), part, at_);
  }
  [[noreturn]] void wrong(std::string_view why) const {
    fail(Code::format, "{}: the regular expression {} is wrong at character {}: {}", what_,
         shown(from_), at_, why);
  }

  /// {,3} means {0,3} in Ruby; {1,3}+ repeats the repetition there, and is possessive in PCRE2.
  void interval() {
    const size_t close = from_.find_first_not_of("0123456789,", at_ + 1);
    if (close == std::string_view::npos || from_[close] != '}' || close == at_ + 1) {
      out_ += "\\{";
      ++at_;
      return;
    }
    if (close + 1 < from_.size() && from_[close + 1] == '+') {
      unsupported("a repeated repetition");
    }
    out_ += from_[at_ + 1] == ',' ? "{0" : "{";
    out_ += from_.substr(at_ + 1, close - at_);
    at_ = close + 1;
  }

  void group() {
    // (?m: is "dot matches newline" in Ruby, (?s: there does not exist; callouts and recursion are
    // not Ruby's.
    const char kind = from_[at_ + 2];
    if (kind == 'C' || kind == 'R' || kind == '&' || kind == 'P' || (kind >= '0' && kind <= '9') ||
        kind == '|') {
      unsupported(std::string("(?") + kind);
    }
    out_ += "(?";
    at_ += 2;
    while (at_ < from_.size() &&
           (from_[at_] == 'i' || from_[at_] == 'm' || from_[at_] == 'x' || from_[at_] == '-')) {
      out_ += from_[at_] == 'm' ? 's' : from_[at_];
      ++at_;
    }
  }

  void escape(bool in_set) {
    if (at_ + 1 >= from_.size()) {
      wrong("a lone backslash at the end");
    }
    const char c = from_[at_ + 1];
    const auto put = [&](std::string_view set, bool negative) {
      at_ += 2;
      if (in_set && negative) {
        unsupported("a negated class in a set");
      }
      if (in_set) {
        out_ += set;
      } else {
        out_ += negative ? "[^" : "[";
        out_ += set;
        out_ += ']';
      }
    };
    switch (c) {
      case 's':
        return put(kSpace, false);
      case 'S':
        if (in_set) {
          at_ += 2;
          out_ += kNotSpace;
          return;
        }
        return put(kSpace, true);
      case 'w':
        return put(word_set(), false);
      case 'W':
        return put(word_set(), true);
      case 'd':
        return put(digit_set(), false);
      case 'D':
        return put(digit_set(), true);
      case 'h':
        return put("0-9a-fA-F", false);
      case 'H':
        return put("0-9a-fA-F", true);
      case 'p':
      case 'P':
        return property(in_set);
      case 'R':
      case 'X':
      case 'K':
      case 'C':
      case 'N':
      case 'O':
      case 'y':
      case 'Y':
      case 'g':
      case 'Q':
      case 'E':
        unsupported(std::string("\\") + c);
      default:
        out_ += c == 'e' ? "\\x{1b}" : std::string("\\") + c;
        at_ += 2;
        return;
    }
  }

  void property(bool in_set) {
    const bool negative = from_[at_ + 1] == 'P';
    if (at_ + 2 >= from_.size() || from_[at_ + 2] != '{') {
      // \pL: PCRE2's, taken over as it is.
      if (at_ + 2 >= from_.size()) {
        wrong("\\p without a property");
      }
      out_ += from_.substr(at_, 3);
      at_ += 3;
      return;
    }
    const size_t close = from_.find('}', at_);
    if (close == std::string_view::npos || close - at_ > 64) {
      wrong("\\p{ without its }");
    }
    std::string name(from_.substr(at_ + 3, close - at_ - 3));
    bool inverted = negative;
    if (!name.empty() && name[0] == '^') {
      inverted = !inverted;
      name.erase(0, 1);
    }
    static constexpr std::string_view kNames[][2] = {{"Letter", "L"},
                                                     {"Mark", "M"},
                                                     {"Number", "N"},
                                                     {"Punctuation", "P"},
                                                     {"Symbol", "S"},
                                                     {"Separator", "Z"},
                                                     {"Other", "C"},
                                                     {"Uppercase_Letter", "Lu"},
                                                     {"Lowercase_Letter", "Ll"},
                                                     {"Titlecase_Letter", "Lt"},
                                                     {"Modifier_Letter", "Lm"},
                                                     {"Other_Letter", "Lo"},
                                                     {"Decimal_Number", "Nd"},
                                                     {"Nonspacing_Mark", "Mn"}};
    for (const auto& pair : kNames) {
      if (name == pair[0]) {
        name = pair[1];
      }
    }
    // Longer names are scripts; PCRE2 would take script extensions along.
    const std::string property = (name.size() > 2 && name != "Any" ? "{sc:" : "{") + name + "}";
    const std::string_view more = later(name);
    if (more.empty() || (in_set && inverted)) {
      out_ += (inverted ? "\\P" : "\\p") + property;
    } else if (in_set) {
      out_.append("\\p").append(property).append(more);
    } else {
      out_.append(inverted ? "[^\\p" : "[\\p").append(property).append(more).append("]");
    }
    at_ = close + 1;
  }

  void set() {
    out_ += '[';
    ++at_;
    if (at_ < from_.size() && from_[at_] == '^') {
      out_ += '^';
      ++at_;
    }
    bool first = true;
    for (;; first = false) {
      if (at_ >= from_.size()) {
        wrong("a [ without its ]");
      }
      const char c = from_[at_];
      if (c == ']' && !first) {
        out_ += ']';
        ++at_;
        return;
      }
      if (c == '\\') {
        escape(true);
      } else if (c == '[') {
        if (at_ + 1 < from_.size() && from_[at_ + 1] == ':') {
          unsupported("[:");
        }
        unsupported("a set within a set");
      } else if (c == '&' && at_ + 1 < from_.size() && from_[at_ + 1] == '&') {
        unsupported("&&");
      } else {
        out_ += c == ']' ? "\\]" : std::string(1, c);
        ++at_;
      }
    }
  }

  std::string_view from_, what_;
  std::string out_;
  size_t at_ = 0;
};

}  // namespace

std::string translate_regex(std::string_view expression, std::string_view what) {
  return Translator(expression, what).run();
}

}  // namespace sluice::text
