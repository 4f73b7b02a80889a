#include "sluice/base/utf8.h"

namespace sluice {

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

}  // namespace sluice
