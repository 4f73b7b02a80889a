#include "sluice/text/normalizers.h"

#include <utility>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/text/pattern.h"
#include "sluice/text/stage_json.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

/// Every character on its own: `each(c, out)` appends what it becomes.
template <class Each>
void rewrite(Slice& slice, Scratch& scratch, Each&& each) {
  Rewriter rewriter(slice, scratch);
  for (size_t at = 0; at < slice.text.size();) {
    const size_t begin = at;
    const char32_t c = next_code_point(slice.text, at);
    each(c, rewriter.text());
    rewriter.mark(slice.origin(begin, at - begin));
  }
  slice = rewriter.finish();
}

/// True when `predicate` holds for some character: most texts need no copy.
template <class Predicate>
bool any(std::string_view text, Predicate&& predicate) {
  for (size_t at = 0; at < text.size();) {
    if (predicate(next_code_point(text, at))) {
      return true;
    }
  }
  return false;
}

template <class Keep>
void filter(Slice& slice, Scratch& scratch, Keep&& keep) {
  if (any(slice.text, [&](char32_t c) { return !keep(c); })) {
    rewrite(slice, scratch, [&](char32_t c, std::string& out) {
      if (keep(c)) {
        append_utf8(out, c);
      }
    });
  }
}

void lowercase(Slice& slice, Scratch& scratch) {
  if (any(slice.text, [](char32_t c) { return c >= 0x80 || (c >= 'A' && c <= 'Z'); })) {
    rewrite(slice, scratch, [](char32_t c, std::string& out) { append_lowercase(out, c); });
  }
}

void normalize_form(NormalForm form, Slice& slice, Scratch& scratch) {
  if (is_normalized(form, slice.text)) {
    return;
  }
  if (!scratch.track) {
    std::string& text = scratch.text();
    text = to_normal_form(form, slice.text);
    slice = {text, nullptr, slice.begin, -1};
    return;
  }
  std::vector<NormalizedSpan> spans;
  const std::string text = to_normal_form(form, slice.text, &spans);
  Rewriter rewriter(slice, scratch);
  size_t from = 0, to = 0;
  for (const NormalizedSpan& span : spans) {
    if (!span.changed) {
      rewriter.keep(from, from + span.old_bytes);
    } else if (span.new_bytes > 0) {
      ByteRange origin = slice.range(from, from + span.old_bytes);
      if (span.old_bytes == 0) {
        origin = {slice.begin, slice.begin};
      }
      rewriter.put(std::string_view(text).substr(to, span.new_bytes), origin);
    }
    from += span.old_bytes;
    to += span.new_bytes;
  }
  slice = rewriter.finish();
}

struct FormNormalizer : Normalizer {
  NormalForm form;
  explicit FormNormalizer(NormalForm f) : form(f) {}
  void apply(Slice& slice, Scratch& scratch) const override {
    normalize_form(form, slice, scratch);
  }
};

struct LowercaseNormalizer : Normalizer {
  void apply(Slice& slice, Scratch& scratch) const override { lowercase(slice, scratch); }
};

struct StripAccents : Normalizer {
  void apply(Slice& slice, Scratch& scratch) const override {
    filter(slice, scratch, [](char32_t c) { return !is_combining_mark(c); });
  }
};

struct ByteLevelNormalizer : Normalizer {
  void apply(Slice& slice, Scratch& scratch) const override { map_bytes(slice, scratch); }
};

struct Strip : Normalizer {
  bool left, right;
  void apply(Slice& slice, Scratch& scratch) const override {
    size_t begin = 0, end = slice.text.size();
    while (left && begin < end) {
      size_t next = begin;
      if (!is_whitespace(next_code_point(slice.text, next))) {
        break;
      }
      begin = next;
    }
    while (right && end > begin) {
      size_t start = end - 1;
      while (is_utf8_continuation(slice.text[start])) {
        --start;
      }
      size_t at = start;
      if (!is_whitespace(next_code_point(slice.text, at))) {
        break;
      }
      end = start;
    }
    if (begin > 0 || end < slice.text.size()) {
      Rewriter rewriter(slice, scratch);
      rewriter.keep(begin, end);
      slice = rewriter.finish();
    }
  }
};

struct Nmt : Normalizer {
  static bool dropped(char32_t c) {
    return (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F ||
           c == 0x9F;
  }
  static bool blank(char32_t c) {
    return c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 ||
           (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
           c == 0xFEFF || c == 0xFFFD;
  }
  void apply(Slice& slice, Scratch& scratch) const override {
    if (any(slice.text, [](char32_t c) { return dropped(c) || blank(c); })) {
      rewrite(slice, scratch, [](char32_t c, std::string& out) {
        if (!dropped(c)) {
          append_utf8(out, blank(c) ? U' ' : c);
        }
      });
    }
  }
};

struct BertNormalizer : Normalizer {
  bool clean_text, chinese, strip_accents, lower;

  static bool keeps(char32_t c) {
    return c == '\t' || c == '\n' || c == '\r' ||
           !(c == 0 || c == kReplacementCharacter || is_other(c));
  }
  static bool is_chinese(char32_t c) {
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
           (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B81F) ||
           (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) ||
           (c >= 0x2F800 && c <= 0x2FA1F);
  }
  void apply(Slice& slice, Scratch& scratch) const override {
    if (clean_text || chinese) {
      rewrite(slice, scratch, [&](char32_t c, std::string& out) {
        if (clean_text) {
          if (!keeps(c)) {
            return;
          }
          c = is_whitespace(c) ? U' ' : c;
        }
        if (chinese && c >= 0x3400 && is_chinese(c)) {
          out += ' ';
          append_utf8(out, c);
          out += ' ';
        } else {
          append_utf8(out, c);
        }
      });
    }
    if (strip_accents) {
      normalize_form(NormalForm::nfd, slice, scratch);
      if (!is_ascii(slice.text)) {
        filter(slice, scratch, [](char32_t c) { return !is_nonspacing_mark(c); });
      }
    }
    if (lower) {
      lowercase(slice, scratch);
    }
  }
};

struct Replace : Normalizer {
  Pattern pattern;
  std::string content;
  Replace(Pattern p, std::string c) : pattern(std::move(p)), content(std::move(c)) {}
  void apply(Slice& slice, Scratch& scratch) const override {
    std::vector<Stretch> stretches;
    pattern.find(slice.text, stretches);
    if (stretches.empty() || (stretches.size() == 1 && !stretches[0].match)) {
      return;
    }
    Rewriter rewriter(slice, scratch);
    for (const Stretch& stretch : stretches) {
      if (!stretch.match) {
        rewriter.keep(stretch.begin, stretch.end);
        continue;
      }
      // The new text stands for the last character of the match.
      ByteRange origin{slice.begin, slice.begin};
      if (stretch.end > 0) {
        origin = slice.range(stretch.end - 1, stretch.end);
      }
      rewriter.put(content, origin);
    }
    slice = rewriter.finish();
  }
};

struct Prepend : Normalizer {
  std::string content;
  explicit Prepend(std::string_view c) : content(c) {}
  void apply(Slice& slice, Scratch& scratch) const override {
    if (slice.text.empty()) {
      return;
    }
    Rewriter rewriter(slice, scratch);
    rewriter.put(content, slice.origin(0, utf8_size(slice.text[0])));
    rewriter.keep(0, slice.text.size());
    slice = rewriter.finish();
  }
};

struct NormalizerSequence : Normalizer {
  std::vector<std::unique_ptr<Normalizer>> parts;
  void apply(Slice& slice, Scratch& scratch) const override {
    for (const auto& part : parts) {
      part->apply(slice, scratch);
    }
  }
};

}  // namespace

std::unique_ptr<Normalizer> make_sentence_piece_normalizer(bool prefix) {
  constexpr std::string_view kBlank = "\xE2\x96\x81";
  auto sequence = std::make_unique<NormalizerSequence>();
  if (prefix) {
    sequence->parts.push_back(std::make_unique<Prepend>(kBlank));
  }
  sequence->parts.push_back(std::make_unique<Replace>(Pattern::literal(" "), std::string(kBlank)));
  return sequence;
}

std::unique_ptr<Normalizer> make_normalizer(const Json& json, const std::string& what) {
  const auto type = json_get<std::string>(json, "type", what);
  static constexpr std::pair<std::string_view, NormalForm> kForms[] = {{"NFC", NormalForm::nfc},
                                                                       {"NFD", NormalForm::nfd},
                                                                       {"NFKC", NormalForm::nfkc},
                                                                       {"NFKD", NormalForm::nfkd}};
  for (const auto& [name, form] : kForms) {
    if (type == name) {
      return std::make_unique<FormNormalizer>(form);
    }
  }
  if (type == "BertNormalizer") {
    auto made = std::make_unique<BertNormalizer>();
    made->clean_text = json_get<bool>(json, "clean_text", what);
    made->chinese = json_get<bool>(json, "handle_chinese_chars", what);
    made->lower = json_get<bool>(json, "lowercase", what);
    const Json* accents = present(json, "strip_accents", what);
    made->strip_accents =
        accents == nullptr ? made->lower : json_get<bool>(json, "strip_accents", what);
    return made;
  }
  if (type == "Strip") {
    auto made = std::make_unique<Strip>();
    made->left = json_get<bool>(json, "strip_left", what);
    made->right = json_get<bool>(json, "strip_right", what);
    return made;
  }
  if (type == "Sequence") {
    auto made = std::make_unique<NormalizerSequence>();
    for_each_part(json, "normalizers", what, [&](const Json& part, const std::string& name) {
      made->parts.push_back(make_normalizer(part, name));
    });
    return made;
  }
  if (type == "Precompiled") {
    return make_precompiled(json_get<std::string>(json, "precompiled_charsmap", what), what);
  }
  if (type == "Replace") {
    return std::make_unique<Replace>(make_pattern(json, what),
                                     json_get<std::string>(json, "content", what));
  }
  if (type == "Prepend") {
    return std::make_unique<Prepend>(json_get<std::string>(json, "prepend", what));
  }
  if (type == "StripAccents") {
    return std::make_unique<StripAccents>();
  }
  if (type == "Lowercase") {
    return std::make_unique<LowercaseNormalizer>();
  }
  if (type == "Nmt") {
    return std::make_unique<Nmt>();
  }
  if (type == "ByteLevel") {
    return std::make_unique<ByteLevelNormalizer>();
  }
  unknown_type(type, what,
               "BertNormalizer, Strip, StripAccents, NFC, NFD, NFKC, NFKD, Sequence, Lowercase, "
               "Nmt, Precompiled, "
               "Replace, Prepend, ByteLevel");
}

}  // namespace sluice::text
