// UTF-8 and the character properties that tokenizers ask for.
//
// The reference library mixes tables of several Unicode versions; where that shows in its ids, the
// function here follows it and says so. Functions that take text expect valid UTF-8 (`repair_utf8`
// makes it so).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/base/utf8.h"

namespace sluice::text {

constexpr char32_t kReplacementCharacter = 0xFFFD;

/// Bytes of the character that begins with `lead`.
inline size_t utf8_size(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}
inline bool is_utf8_continuation(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) == 0x80;
}

/// The code point at text[at]; moves `at` behind it.
char32_t next_code_point(std::string_view text, size_t& at);
void append_utf8(std::string& out, char32_t c);
size_t count_code_points(std::string_view text);

bool is_ascii(std::string_view text);

/// Bytes of the broken sequence at the start of `text` that one U+FFFD stands for (the longest
/// prefix of a valid sequence, or one byte). `incomplete` is set when more bytes could still
/// complete it.
size_t broken_utf8_size(std::string_view text, bool& incomplete);
/// `text` with U+FFFD for every broken sequence, as bytes.decode("utf-8", "replace") of Python.
std::string repair_utf8(std::string_view text);

/// `text` for a message: quoted, one line, valid UTF-8, at most about 60 bytes.
std::string shown(std::string_view text);

bool is_whitespace(char32_t c);  ///< White_Space
bool is_word(
    char32_t c);  ///< \w of UTS 18: alphabetic, mark, decimal digit, connector, join control
bool is_numeric(char32_t c);      ///< general category N
bool is_punctuation(char32_t c);  ///< general category P, and all ASCII punctuation
bool is_other(char32_t c);        ///< general category Cc, Cf or Co
bool is_nonspacing_mark(char32_t c);
bool is_combining_mark(char32_t c);  ///< general category M

/// Lower case without context; U+0130 becomes two characters.
void append_lowercase(std::string& out, char32_t c);

enum class NormalForm { nfc, nfd, nfkc, nfkd };

/// True when `text` is known to be in that form already.
bool is_normalized(NormalForm form, std::string_view text);

/// A stretch that normalization left alone or changed, in bytes.
struct NormalizedSpan {
  uint32_t old_bytes, new_bytes;
  bool changed;
};
/// `text` in that form; with `spans` also how its stretches correspond.
std::string to_normal_form(NormalForm form, std::string_view text,
                           std::vector<NormalizedSpan>* spans = nullptr);

}  // namespace sluice::text
