#include "sluice/text/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/edits.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>

#include <algorithm>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/base/utf8.h"

namespace sluice::text {
namespace {

uint32_t category(char32_t c) { return U_MASK(u_charType(static_cast<UChar32>(c))); }

/// The reference's tables of categories end with Unicode 8, those of combining marks with 9: it
/// takes later characters for unassigned, and has some in the category they had then.
bool assigned_by(int version, char32_t c) {
  UVersionInfo age;
  u_charAge(static_cast<UChar32>(c), age);
  return age[0] != 0 && age[0] <= version;
}

struct Range {
  char32_t first, last;
};
/// Letters, numbers and marks that the reference knows and ICU 72 does not.
template <size_t n>
bool among(const Range (&ranges)[n], char32_t c) {
  for (const Range& range : ranges) {
    if (c <= range.last) {
      return c >= range.first;
    }
  }
  return false;
}
constexpr Range kLaterWords[] = {
    {0x897, 0x897},     {0xCF3, 0xCF3},     {0xECE, 0xECE},     {0x1C89, 0x1C8A},
    {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3}, {0x10D40, 0x10D65},
    {0x10D69, 0x10D6D}, {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC4}, {0x10EFC, 0x10EFF},
    {0x1123F, 0x11241}, {0x11380, 0x11389}, {0x1138B, 0x1138B}, {0x1138E, 0x1138E},
    {0x11390, 0x113B5}, {0x113B7, 0x113C0}, {0x113C2, 0x113C2}, {0x113C5, 0x113C5},
    {0x113C7, 0x113CA}, {0x113CC, 0x113D3}, {0x113E1, 0x113E2}, {0x116D0, 0x116E3},
    {0x11BC0, 0x11BE0}, {0x11BF0, 0x11BF9}, {0x11F00, 0x11F10}, {0x11F12, 0x11F3A},
    {0x11F3E, 0x11F42}, {0x11F50, 0x11F5A}, {0x1342F, 0x1342F}, {0x13440, 0x13455},
    {0x13460, 0x143FA}, {0x16100, 0x16139}, {0x16D40, 0x16D6C}, {0x16D70, 0x16D79},
    {0x18CFF, 0x18CFF}, {0x1B132, 0x1B132}, {0x1B155, 0x1B155}, {0x1CCF0, 0x1CCF9},
    {0x1DF25, 0x1DF2A}, {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F}, {0x1E4D0, 0x1E4F9},
    {0x1E5D0, 0x1E5FA}, {0x2B739, 0x2B739}, {0x2EBF0, 0x2EE5D}, {0x31350, 0x323AF}};
constexpr Range kLaterNumbers[] = {{0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9},
                                   {0x11DE0, 0x11DE9}, {0x16130, 0x16139}, {0x16D70, 0x16D79},
                                   {0x16FF4, 0x16FF6}, {0x1CCF0, 0x1CCF9}, {0x1E5F1, 0x1E5FA}};

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

std::string shown(std::string_view text) { return "'" + printable(text, 60) + "'"; }

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
         u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_JOIN_CONTROL) || among(kLaterWords, c);
}

bool is_numeric(char32_t c) {
  return (category(c) & U_GC_N_MASK) != 0 || (c >= 0x10D40 && among(kLaterNumbers, c));
}

bool is_punctuation(char32_t c) {
  if (c < 0x80) {
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
           (c >= '{' && c <= '~');
  }
  return ((category(c) & U_GC_P_MASK) != 0 && assigned_by(8, c)) || c == 0x166D || c == 0x111C9;
}

bool is_other(char32_t c) {
  return (category(c) & (U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CO_MASK)) != 0 &&
         (c < 0x80 || assigned_by(8, c));
}

bool is_nonspacing_mark(char32_t c) {
  if (c < 0x300) {
    return false;
  }
  // These became marks, or ceased to be, after Unicode 8.
  const bool later = c == 0x1885 || c == 0x1886 || c == 0xA9BD || c == 0x111C9 || c == 0x1123E;
  return ((category(c) & U_GC_MN_MASK) != 0 && !later && assigned_by(8, c)) || c == 0x1734;
}

bool is_combining_mark(char32_t c) {
  return c >= 0x300 &&
         (((category(c) & U_GC_M_MASK) != 0 && assigned_by(9, c)) || c == 0x1CF2 || c == 0x1CF3);
}

namespace {

/// With the capitals of Unicode 16 and 17.
char32_t later_lowercase(char32_t c) {
  switch (c) {
    case 0x1C89:
      return 0x1C8A;
    case 0xA7CB:
      return 0x264;
    case 0xA7CC:
    case 0xA7CE:
    case 0xA7D2:
    case 0xA7D4:
    case 0xA7DA:
      return c + 1;
    case 0xA7DC:
      return 0x19B;
    default:
      break;
  }
  if (c >= 0x10D50 && c <= 0x10D65) {
    return c + 0x20;
  }
  if (c >= 0x16EA0 && c <= 0x16EB8) {
    return c + 0x1B;
  }
  return static_cast<char32_t>(u_tolower(static_cast<UChar32>(c)));
}

}  // namespace

void append_lowercase(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  } else if (c == 0x130) {
    out += "i\xCC\x87";
  } else {
    append_utf8(out, later_lowercase(c));
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
