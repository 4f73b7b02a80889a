#include "sluice/base/utf8.h"

#include <fmt/format.h>

namespace sluice {
namespace {

/// Bytes of the character of UTF-8 at `i`, or 0 where none is whole and valid.
size_t character_size(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) -> unsigned { return static_cast<unsigned char>(text[i + k]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t size = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (size > text.size() - i) return 0;
  // Too long forms, surrogates and what lies above U+10FFFF show in the second byte.
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (size > 1 && (byte(1) < low || byte(1) > high)) return 0;
  for (size_t k = 2; k < size; ++k) {
    if ((byte(k) & 0xC0) != 0x80) return 0;
  }
  return size;
}

/// The same, but 0 for what terminals obey: control characters (C1 as well) and the marks that
/// reorder or break lines, U+2028 to U+202E and U+2066 to U+2069.
size_t plain_size(std::string_view text, size_t i) {
  const size_t size = character_size(text, i);
  const auto byte = [&](size_t k) -> unsigned { return static_cast<unsigned char>(text[i + k]); };
  if (size == 1 && (byte(0) < 0x20 || byte(0) == 0x7F)) return 0;
  if (size == 2 && byte(0) == 0xC2 && byte(1) < 0xA0) return 0;
  if (size == 3 && byte(0) == 0xE2) {
    if (byte(1) == 0x80 && byte(2) >= 0xA8 && byte(2) <= 0xAE) return 0;
    if (byte(1) == 0x81 && byte(2) >= 0xA6 && byte(2) <= 0xA9) return 0;
  }
  return size;
}

}  // namespace

size_t valid_utf8_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t size = character_size(text, at);
    if (size == 0) break;
    at += size;
  }
  return at;
}

bool is_plain_text(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = plain_size(text, i);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= max_bytes) return out + "...";
    if (const size_t length = plain_size(text, i)) {
      out.append(text.substr(i, length));
      i += length;
    } else {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[i]));
      ++i;
    }
  }
  return out;
}

}  // namespace sluice
