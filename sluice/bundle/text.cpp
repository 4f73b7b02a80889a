#include "sluice/bundle/text.h"

#include <nlohmann/json.hpp>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/utf8.h"

namespace sluice::bundle {
bool is_utf8(std::string_view text) { return valid_utf8_prefix(text) == text.size(); }

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
  return parse_json(text, what, max_depth);
}

}  // namespace sluice::bundle
