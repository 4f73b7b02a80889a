// The alphabet of byte-level vocabularies: printable bytes stand for themselves, the other 68 for
// U+0100 upwards.
#include <array>

#include "sluice/text/normalizers.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

struct Alphabet {
  std::array<std::string, 256> characters;
  std::array<int16_t, 324> bytes;
  Alphabet() {
    bytes.fill(-1);
    char32_t next = 256;
    for (unsigned b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b != 0xAD);
      const char32_t c = printable ? b : next++;
      append_utf8(characters[b], c);
      bytes[c] = static_cast<int16_t>(b);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

std::string_view byte_level_character(unsigned char byte) { return alphabet().characters[byte]; }

int byte_level_byte(char32_t c) { return c < alphabet().bytes.size() ? alphabet().bytes[c] : -1; }

void append_byte_level(std::string& out, std::string_view bytes) {
  for (const char byte : bytes) {
    out += alphabet().characters[static_cast<unsigned char>(byte)];
  }
}

void map_bytes(Slice& slice, Scratch& scratch) {
  Rewriter rewriter(slice, scratch);
  for (size_t at = 0; at < slice.text.size();) {
    const size_t size = utf8_size(slice.text[at]);
    append_byte_level(rewriter.text(), slice.text.substr(at, size));
    rewriter.mark(slice.origin(at, size));
    at += size;
  }
  slice = rewriter.finish();
}

}  // namespace sluice::text
