#include "sluice/text/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/edits.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>

#include <algorithm>
#include <cstring>

#include "sluice/base/error.h"

namespace sluice::text {
namespace {

uint32_t category(char32_t c) { return U_MASK(u_charType(static_cast<UChar32>(c))); }

/// The reference's normalization tables end with this Unicode version; later characters pass
/// unchanged.
const icu::Normalizer2& normalizer(NormalForm form) {
  static const auto make = [](const char* name, UNormalization2Mode mode) {
    UErrorCode status = U_ZERO_ERROR;
    const icu::Normalizer2* whole = icu::Normalizer2::getInstance(nullptr, name, mode, status);
    static icu::UnicodeSet* const known = [] {
      UErrorCode set_status = U_ZERO_ERROR;
      auto* set = new icu::UnicodeSet(u"[:age=9.0:]", set_status);
      set->freeze();
      return set;
    }();
    if (U_FAILURE(status)) {
      fail(Code::unsupported, "ICU cannot normalize text: {}; install its data files",
           u_errorName(status));
    }
    return new icu::FilteredNormalizer2(*whole, *known);
  };
  static const icu::Normalizer2* const all[] = {
      make("nfc", UNORM2_COMPOSE), make("nfc", UNORM2_DECOMPOSE), make("nfkc", UNORM2_COMPOSE),
      make("nfkc", UNORM2_DECOMPOSE)};
  return *all[static_cast<int>(form)];
}

}  // namespace

char32_t next_code_point(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const char32_t lead = byte(at);
  if (lead < 0x80) {
    ++at;
    return lead;
  }
  if (lead < 0xE0) {
    at += 2;
    return (lead & 0x1F) << 6 | (byte(at - 1) & 0x3F);
  }
  if (lead < 0xF0) {
    at += 3;
    return (lead & 0x0F) << 12 | (byte(at - 2) & 0x3F) << 6 | (byte(at - 1) & 0x3F);
  }
  at += 4;
  return (lead & 0x07) << 18 | (byte(at - 3) & 0x3F) << 12 | (byte(at - 2) & 0x3F) << 6 |
         (byte(at - 1) & 0x3F);
}

void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
    return;
  }
  if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
  } else {
    if (c < 0x10000) {
      out += static_cast<char>(0xE0 | c >> 12);
    } else {
      out += static_cast<char>(0xF0 | c >> 18);
      out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    }
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
  }
  out += static_cast<char>(0x80 | (c & 0x3F));
}

size_t count_code_points(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !is_utf8_continuation(c); }));
}

bool is_ascii(std::string_view text) {
  size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + i, 8);
    if ((word & 0x8080808080808080u) != 0) {
      return false;
    }
  }
  for (; i < text.size(); ++i) {
    if (static_cast<unsigned char>(text[i]) >= 0x80) {
      return false;
    }
  }
  return true;
}

size_t broken_utf8_size(std::string_view text, bool& incomplete) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  incomplete = false;
  const unsigned lead = byte(0);
  if (lead < 0xC2 || lead > 0xF4) {
    return 1;
  }
  const size_t size = utf8_size(text[0]);
  unsigned low = 0x80, high = 0xBF;  // of the second byte: no overlong forms, surrogates, or beyond
  low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : low;
  high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : high;
  size_t good = 1;
  while (good < size && good < text.size() && byte(good) >= low && byte(good) <= high) {
    low = 0x80;
    high = 0xBF;
    ++good;
  }
  if (good == size) {
    return 0;
  }
  incomplete = good == text.size();
  return good;
}

size_t valid_utf8_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    bool incomplete;
    if (broken_utf8_size(text.substr(at, 4), incomplete) != 0) {
      break;
    }
    at += utf8_size(text[at]);
  }
  return at;
}

std::string repair_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t good = valid_utf8_prefix(text);
    out.append(text.substr(0, good));
    text.remove_prefix(good);
    if (!text.empty()) {
      bool incomplete;
      text.remove_prefix(broken_utf8_size(text.substr(0, 4), incomplete));
      append_utf8(out, kReplacementCharacter);
    }
  }
  return out;
}

std::string shown(std::string_view text) {
  std::string out = "'";
  const std::string whole = repair_utf8(text.substr(0, 61));
  for (size_t at = 0; at < whole.size();) {
    const char32_t c = next_code_point(whole, at);
    if (out.size() > 60) {
      return out + "...'";
    }
    if (c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x2028 || c == 0x2029) {
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      append_utf8(out, c);
    }
  }
  return out + "'";
}

bool is_whitespace(char32_t c) {
  if (c < 0x80) {
    return c == ' ' || (c >= 9 && c <= 13);
  }
  return u_isUWhiteSpace(static_cast<UChar32>(c));
}

bool is_word(char32_t c) {
  if (c < 0x80) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
  }
  return (category(c) & (U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK)) != 0 ||
         u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_ALPHABETIC) ||
         u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_JOIN_CONTROL);
}

bool is_numeric(char32_t c) { return (category(c) & U_GC_N_MASK) != 0; }

bool is_punctuation(char32_t c) {
  if (c < 0x80) {
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
           (c >= '{' && c <= '~');
  }
  return (category(c) & U_GC_P_MASK) != 0;
}

bool is_other(char32_t c) {
  return (category(c) & (U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CN_MASK | U_GC_CO_MASK)) != 0;
}

bool is_nonspacing_mark(char32_t c) { return c >= 0x300 && (category(c) & U_GC_MN_MASK) != 0; }

bool is_combining_mark(char32_t c) { return c >= 0x300 && (category(c) & U_GC_M_MASK) != 0; }

void append_lowercase(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  } else if (c == 0x130) {
    out += "i\xCC\x87";
  } else {
    append_utf8(out, static_cast<char32_t>(u_tolower(static_cast<UChar32>(c))));
  }
}

bool is_normalized(NormalForm form, std::string_view text) {
  if (is_ascii(text)) {
    return true;
  }
  UErrorCode status = U_ZERO_ERROR;
  return normalizer(form).isNormalizedUTF8({text.data(), static_cast<int32_t>(text.size())},
                                           status) &&
         U_SUCCESS(status);
}

std::string to_normal_form(NormalForm form, std::string_view text,
                           std::vector<NormalizedSpan>* spans) {
  std::string out;
  icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(text.size()));
  icu::Edits edits;
  UErrorCode status = U_ZERO_ERROR;
  normalizer(form).normalizeUTF8(0, {text.data(), static_cast<int32_t>(text.size())}, sink,
                                 spans != nullptr ? &edits : nullptr, status);
  if (U_FAILURE(status)) {
    fail(Code::limit, "cannot normalize a text of {} bytes: {}", text.size(), u_errorName(status));
  }
  if (spans != nullptr) {
    spans->clear();
    for (auto edit = edits.getFineIterator(); edit.next(status);) {
      spans->push_back({static_cast<uint32_t>(edit.oldLength()),
                        static_cast<uint32_t>(edit.newLength()), edit.hasChange() != 0});
    }
  }
  return out;
}

}  // namespace sluice::text
