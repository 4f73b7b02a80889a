#include "sluice/text/pre_tokenizers.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/text/normalizers.h"
#include "sluice/text/pattern.h"
#include "sluice/text/stage_json.h"
#include "sluice/text/unicode.h"

namespace sluice::text {

const std::string_view kGpt2Expression =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

/// What becomes of the matches of a split.
enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

Behavior parse_behavior(const Json& json, const std::string& what) {
  const auto name = json_get<std::string>(json, "behavior", what);
  static constexpr std::pair<std::string_view, Behavior> kNames[] = {
      {"Removed", Behavior::removed},
      {"Isolated", Behavior::isolated},
      {"MergedWithPrevious", Behavior::merged_with_previous},
      {"MergedWithNext", Behavior::merged_with_next},
      {"Contiguous", Behavior::contiguous}};
  for (const auto& [known, behavior] : kNames) {
    if (name == known) {
      return behavior;
    }
  }
  fail(Code::config,
       "{}: 'behavior': expected Removed, Isolated, MergedWithPrevious, MergedWithNext or "
       "Contiguous, found {}",
       what, shown(name));
}

/// Stretches of `slice` as words.
void emit(const Slice& slice, std::vector<Stretch>& stretches, Behavior behavior,
          std::vector<Slice>& out) {
  switch (behavior) {
    case Behavior::isolated:
    case Behavior::removed:
      for (const Stretch& stretch : stretches) {
        if (!stretch.match || behavior == Behavior::isolated) {
          out.push_back(slice.part(stretch.begin, stretch.end));
        }
      }
      return;
    case Behavior::merged_with_next: {
      // Seen from the end: a match joins the word begun there, unless that word begins with a
      // match.
      std::vector<Stretch> words;
      bool previous = false;
      for (size_t i = stretches.size(); i-- > 0;) {
        const Stretch& stretch = stretches[i];
        if (stretch.match && !previous && !words.empty()) {
          words.back().begin = stretch.begin;
        } else {
          words.push_back(stretch);
        }
        previous = stretch.match;
      }
      for (size_t i = words.size(); i-- > 0;) {
        out.push_back(slice.part(words[i].begin, words[i].end));
      }
      return;
    }
    case Behavior::merged_with_previous:
    case Behavior::contiguous: {
      bool previous = false;
      std::optional<Stretch> word;
      for (const Stretch& stretch : stretches) {
        const bool joins = behavior == Behavior::contiguous ? stretch.match == previous
                                                            : stretch.match && !previous;
        if (joins && word) {
          word->end = stretch.end;
        } else {
          if (word) {
            out.push_back(slice.part(word->begin, word->end));
          }
          word = stretch;
        }
        previous = stretch.match;
      }
      if (word) {
        out.push_back(slice.part(word->begin, word->end));
      }
      return;
    }
  }
}

std::vector<Stretch>& stretch_buffer() {
  thread_local std::vector<Stretch> buffer;
  return buffer;
}

/// Stretches by character: each one that `is` accepts is a match.
template <class Is>
std::vector<Stretch>& by_character(std::string_view text, Is&& is) {
  std::vector<Stretch>& out = stretch_buffer();
  out.clear();
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    if (is(next_code_point(text, at))) {
      if (done < begin) {
        out.push_back({done, begin, false});
      }
      out.push_back({begin, at, true});
      done = at;
    }
  }
  if (done < text.size()) {
    out.push_back({done, text.size(), false});
  }
  return out;
}

struct ByteLevel : PreTokenizer {
  bool add_prefix_space;
  std::optional<Pattern> pattern;

  void split(const Slice& given, Scratch& scratch, std::vector<Slice>& out) const override {
    Slice slice = given;
    if (add_prefix_space && !slice.text.empty() && slice.text[0] != ' ') {
      Rewriter rewriter(slice, scratch);
      rewriter.put(" ", slice.origin(0, utf8_size(slice.text[0])));
      rewriter.keep(0, slice.text.size());
      slice = rewriter.finish();
    }
    const size_t first = out.size();
    if (pattern) {
      std::vector<Stretch>& stretches = stretch_buffer();
      pattern->find(slice.text, stretches);
      emit(slice, stretches, Behavior::isolated, out);
    } else {
      out.push_back(slice);
    }
    if (!scratch.defer_bytes) {
      for (size_t i = first; i < out.size(); ++i) {
        map_bytes(out[i], scratch);
      }
    }
  }
  bool maps_bytes_last() const override { return true; }
};

struct Split : PreTokenizer {
  Pattern pattern;
  Behavior behavior;
  bool invert;
  Split(Pattern p, Behavior b, bool i) : pattern(std::move(p)), behavior(b), invert(i) {}
  void split(const Slice& slice, Scratch&, std::vector<Slice>& out) const override {
    std::vector<Stretch>& stretches = stretch_buffer();
    pattern.find(slice.text, stretches);
    if (invert) {
      for (Stretch& stretch : stretches) {
        stretch.match = !stretch.match;
      }
    }
    emit(slice, stretches, behavior, out);
  }
};

struct Metaspace : PreTokenizer {
  enum class Prepend { first, never, always };
  std::string replacement;
  char32_t character;
  Prepend prepend;
  bool cut;

  void split(const Slice& given, Scratch& scratch, std::vector<Slice>& out) const override {
    Slice slice = given;
    if (slice.text.empty()) {
      return;
    }
    Rewriter rewriter(slice, scratch);
    const bool begins = slice.text[0] == ' ' || slice.text.starts_with(replacement);
    if (!begins &&
        (prepend == Prepend::always || (prepend == Prepend::first && slice.begin == 0))) {
      rewriter.put(replacement, slice.origin(0, utf8_size(slice.text[0])));
    }
    for (size_t at = 0; at < slice.text.size();) {
      const size_t space = std::min(slice.text.find(' ', at), slice.text.size());
      rewriter.keep(at, space);
      if (space < slice.text.size()) {
        rewriter.put(replacement, slice.origin(space, 1));
      }
      at = space + 1;
    }
    slice = rewriter.finish();
    if (cut) {
      emit(slice, by_character(slice.text, [&](char32_t c) { return c == character; }),
           Behavior::merged_with_next, out);
    } else {
      out.push_back(slice);
    }
  }
  bool needs_origins() const override { return prepend == Prepend::first; }
};

struct Bert : PreTokenizer {
  void split(const Slice& slice, Scratch&, std::vector<Slice>& out) const override {
    const std::string_view text = slice.text;
    size_t word = 0;
    for (size_t at = 0; at < text.size();) {
      const size_t begin = at;
      const char32_t c = next_code_point(text, at);
      const bool space = is_whitespace(c);
      if (!space && !is_punctuation(c)) {
        continue;
      }
      if (word < begin) {
        out.push_back(slice.part(word, begin));
      }
      if (!space) {
        out.push_back(slice.part(begin, at));
      }
      word = at;
    }
    if (word < text.size()) {
      out.push_back(slice.part(word, text.size()));
    }
  }
};

/// Runs of word characters and runs of what is neither word nor white.
struct Whitespace : PreTokenizer {
  void split(const Slice& slice, Scratch&, std::vector<Slice>& out) const override {
    const auto kind = [](char32_t c) { return is_word(c) ? 1 : is_whitespace(c) ? 0 : 2; };
    size_t begin = 0;
    int current = 0;
    for (size_t at = 0; at <= slice.text.size();) {
      const size_t here = at;
      int next = -1;
      if (at < slice.text.size()) {
        next = kind(next_code_point(slice.text, at));
      } else {
        ++at;
      }
      if (next != current) {
        if (current != 0 && begin < here) {
          out.push_back(slice.part(begin, here));
        }
        begin = here;
        current = next;
      }
    }
  }
};

struct ByCharacter : PreTokenizer {
  enum class Kind { whitespace, punctuation, numeric, delimiter } kind;
  Behavior behavior;
  char32_t delimiter = 0;
  ByCharacter(Kind k, Behavior b, char32_t d = 0) : kind(k), behavior(b), delimiter(d) {}
  void split(const Slice& slice, Scratch&, std::vector<Slice>& out) const override {
    emit(slice,
         by_character(slice.text,
                      [&](char32_t c) {
                        switch (kind) {
                          case Kind::whitespace:
                            return is_whitespace(c);
                          case Kind::punctuation:
                            return is_punctuation(c);
                          case Kind::numeric:
                            return is_numeric(c);
                          case Kind::delimiter:
                            return c == delimiter;
                        }
                        return false;
                      }),
         behavior, out);
  }
};

struct FixedLength : PreTokenizer {
  int64_t length;
  void split(const Slice& slice, Scratch&, std::vector<Slice>& out) const override {
    for (size_t at = 0; at < slice.text.size();) {
      const size_t begin = at;
      for (int64_t i = 0; i < length && at < slice.text.size(); ++i) {
        at += utf8_size(slice.text[at]);
      }
      out.push_back(slice.part(begin, at));
    }
  }
};

struct PreTokenizerSequence : PreTokenizer {
  std::vector<std::unique_ptr<PreTokenizer>> parts;

  void split(const Slice& slice, Scratch& scratch, std::vector<Slice>& out) const override {
    if (parts.empty()) {
      out.push_back(slice);
      return;
    }
    // Only the last step may leave its bytes unmapped: the others see what it would see.
    const bool deferred = std::exchange(scratch.defer_bytes, false);
    std::vector<Slice> words{slice}, next;
    for (size_t i = 0; i < parts.size(); ++i) {
      const bool last = i + 1 == parts.size();
      scratch.defer_bytes = last && deferred;
      std::vector<Slice>& target = last ? out : next;
      for (const Slice& word : words) {
        if (!word.text.empty()) {
          parts[i]->split(word, scratch, target);
        }
      }
      if (!last) {
        words.swap(next);
        next.clear();
      }
    }
    scratch.defer_bytes = deferred;
  }
  bool maps_bytes_last() const override {
    return !parts.empty() && parts.back()->maps_bytes_last();
  }
  bool needs_origins() const override {
    return std::any_of(parts.begin(), parts.end(),
                       [](const auto& part) { return part->needs_origins(); });
  }
};

std::unique_ptr<PreTokenizer> make_metaspace(const Json& json, const std::string& what) {
  auto made = std::make_unique<Metaspace>();
  made->character = one_character(json, "replacement", what);
  append_utf8(made->replacement, made->character);
  made->prepend = Metaspace::Prepend::always;
  if (present(json, "prepend_scheme", what) != nullptr) {
    const auto scheme = json_get<std::string>(json, "prepend_scheme", what);
    if (scheme != "first" && scheme != "never" && scheme != "always") {
      fail(Code::config, "{}: 'prepend_scheme': expected first, never or always, found {}", what,
           shown(scheme));
    }
    made->prepend = scheme == "first"   ? Metaspace::Prepend::first
                    : scheme == "never" ? Metaspace::Prepend::never
                                        : Metaspace::Prepend::always;
  }
  if (present(json, "add_prefix_space", what) != nullptr &&
      !json_get<bool>(json, "add_prefix_space", what)) {
    if (present(json, "prepend_scheme", what) != nullptr &&
        made->prepend != Metaspace::Prepend::never) {
      fail(Code::config, "{}: 'add_prefix_space' is false, but 'prepend_scheme' is not never",
           what);
    }
    made->prepend = Metaspace::Prepend::never;
  }
  made->cut = present(json, "split", what) == nullptr || json_get<bool>(json, "split", what);
  return made;
}

}  // namespace

std::unique_ptr<PreTokenizer> make_byte_level_split(std::string_view expression,
                                                    const std::string& what) {
  auto made = std::make_unique<ByteLevel>();
  made->add_prefix_space = false;
  made->pattern = Pattern::regex(expression, what);
  return made;
}

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Json& json, const std::string& what) {
  using Kind = ByCharacter::Kind;
  const auto type = json_get<std::string>(json, "type", what);
  if (type == "ByteLevel") {
    auto made = std::make_unique<ByteLevel>();
    made->add_prefix_space = json_get<bool>(json, "add_prefix_space", what);
    if (json_get_or<bool>(json, "use_regex", true, what)) {
      made->pattern = Pattern::regex(kGpt2Expression, what);
    }
    return made;
  }
  if (type == "Split") {
    return std::make_unique<Split>(make_pattern(json, what), parse_behavior(json, what),
                                   json_get<bool>(json, "invert", what));
  }
  if (type == "Metaspace") {
    return make_metaspace(json, what);
  }
  if (type == "BertPreTokenizer") {
    return std::make_unique<Bert>();
  }
  if (type == "Whitespace") {
    return std::make_unique<Whitespace>();
  }
  if (type == "WhitespaceSplit") {
    return std::make_unique<ByCharacter>(Kind::whitespace, Behavior::removed);
  }
  if (type == "Punctuation") {
    return std::make_unique<ByCharacter>(
        Kind::punctuation, present(json, "behavior", what) == nullptr ? Behavior::isolated
                                                                      : parse_behavior(json, what));
  }
  if (type == "Digits") {
    return std::make_unique<ByCharacter>(
        Kind::numeric, json_get<bool>(json, "individual_digits", what) ? Behavior::isolated
                                                                       : Behavior::contiguous);
  }
  if (type == "CharDelimiterSplit") {
    return std::make_unique<ByCharacter>(Kind::delimiter, Behavior::removed,
                                         one_character(json, "delimiter", what));
  }
  if (type == "FixedLength") {
    auto made = std::make_unique<FixedLength>();
    made->length =
        present(json, "length", what) == nullptr ? 5 : bounded(json, "length", 1, 1 << 30, what);
    return made;
  }
  if (type == "Sequence") {
    auto made = std::make_unique<PreTokenizerSequence>();
    for_each_part(json, "pretokenizers", what, [&](const Json& part, const std::string& name) {
      made->parts.push_back(make_pre_tokenizer(part, name));
    });
    return made;
  }
  unknown_type(type, what,
               "ByteLevel, Split, Metaspace, BertPreTokenizer, Whitespace, WhitespaceSplit, "
               "Punctuation, Digits, "
               "CharDelimiterSplit, FixedLength, Sequence");
}

}  // namespace sluice::text
