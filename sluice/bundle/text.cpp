#include "sluice/bundle/text.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/utf8.h"

namespace sluice::bundle {
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

bool is_utf8(std::string_view text) { return valid_utf8_prefix(text) == text.size(); }

bool is_plain_text(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = plain_length(text, i);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

std::string json_problem(const char* message) {
  std::string_view text = message;
  if (const size_t end = text.find("] "); text.starts_with("[json.") && end != text.npos)
    text.remove_prefix(end + 2);
  return printable(text, 240);
}

std::string json_quote(const std::string& text, std::string_view what) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail(Code::usage, "{}: '{}' is not valid UTF-8, which JSON needs; rename it", what,
         printable(text));
  }
}

Json parse_document(std::string_view text, const std::string& what, size_t max_bytes,
                    int max_depth) {
  if (text.size() > max_bytes)
    fail(Code::limit, "{}: {} bytes of JSON; at most {} are read", what, text.size(), max_bytes);
  try {
    return parse_json(text, what, max_depth);
  } catch (const Error& error) {  // it quotes keys and tokens as they are
    throw Error(error.code(), printable(error.what(), 1000));
  }
}

}  // namespace sluice::bundle
