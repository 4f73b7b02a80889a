#include "sluice/base/utf8.h"

#include <fmt/format.h>

namespace sluice {
namespace {

// Length of the valid, harmless UTF-8 character at `i`, or 0: control characters (C1 as well:
// terminals obey them), overlong forms, surrogates and values above U+10FFFF count as harmful.
size_t plain_length(std::string_view text, size_t i) {
  const auto at = [&](size_t k) -> unsigned {
    return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0u;
  };
  const auto tail = [&](size_t k) { return (at(k) & 0xC0u) == 0x80u; };
  const unsigned c = at(0);
  if (c < 0x80) return c >= 0x20 && c != 0x7F ? 1 : 0;
  if (c >= 0xC2 && c < 0xE0) return tail(1) && !(c == 0xC2 && at(1) < 0xA0) ? 2 : 0;
  if (c >= 0xE0 && c < 0xF0) {
    if (!tail(1) || !tail(2) || (c == 0xE0 && at(1) < 0xA0) || (c == 0xED && at(1) >= 0xA0))
      return 0;
    // Marks that reorder or break lines: U+2028..U+202E, U+2066..U+2069.
    if (c == 0xE2 && at(1) == 0x80 && at(2) >= 0xA8 && at(2) <= 0xAE) return 0;
    if (c == 0xE2 && at(1) == 0x81 && at(2) >= 0xA6 && at(2) <= 0xA9) return 0;
    return 3;
  }
  if (c >= 0xF0 && c < 0xF5) {
    if (!tail(1) || !tail(2) || !tail(3) || (c == 0xF0 && at(1) < 0x90) ||
        (c == 0xF4 && at(1) >= 0x90))
      return 0;
    return 4;
  }
  return 0;
}

}  // namespace

size_t valid_utf8_prefix(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  size_t at = 0;
  while (at < text.size()) {
    const unsigned lead = byte(at);
    if (lead < 0x80) {
      ++at;
      continue;
    }
    const size_t size = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    if (size == 0 || size > text.size() - at) return at;
    // Too long forms, surrogates and what lies above U+10FFFF show in the second byte.
    const unsigned second = byte(at + 1);
    const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (second < low || second > high) return at;
    for (size_t i = 2; i < size; ++i) {
      if ((byte(at + i) & 0xC0) != 0x80) return at;
    }
    at += size;
  }
  return at;
}

bool is_plain_text(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = plain_length(text, i);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= max_bytes) return out + "...";
    if (const size_t length = plain_length(text, i)) {
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
