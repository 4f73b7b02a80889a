#include "sluice/text/stage_json.h"

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/text/unicode.h"

namespace sluice::text {

const Json* present(const Json& json, std::string_view key, const std::string& what) {
  if (!json.is_object()) {
    fail(Code::config, "{}: expected a table, found {}", what, json.type_name());
  }
  const auto place = json.find(key);
  return place == json.end() || place->is_null() ? nullptr : &*place;
}

void for_each_part(const Json& json, std::string_view key, const std::string& what,
                   const std::function<void(const Json&, const std::string&)>& use) {
  const Json* parts = present(json, key, what);
  if (parts == nullptr || !parts->is_array()) {
    fail(Code::config, "{}: '{}': expected an array of stages", what, key);
  }
  if (parts->size() > 64) {
    fail(Code::limit, "{}: '{}' has {} stages; at most 64 are allowed", what, key, parts->size());
  }
  size_t i = 0;
  for (const Json& part : *parts) {
    use(part, fmt::format("{}.{}[{}]", what, key, i++));
  }
}

Pattern make_pattern(const Json& json, const std::string& what) {
  const Json* pattern = present(json, "pattern", what);
  if (pattern == nullptr || !pattern->is_object()) {
    fail(Code::config, "{}: 'pattern': expected {{\"String\": ...}} or {{\"Regex\": ...}}", what);
  }
  if (present(*pattern, "String", what) != nullptr) {
    return Pattern::literal(json_get<std::string>(*pattern, "String", what));
  }
  return Pattern::regex(json_get<std::string>(*pattern, "Regex", what), what);
}

char32_t one_character(const Json& json, std::string_view key, const std::string& what) {
  const auto text = json_get<std::string>(json, key, what);
  size_t at = 0;
  const char32_t c = text.empty() ? 0 : next_code_point(text, at);
  if (text.empty() || at != text.size()) {
    fail(Code::config, "{}: '{}': expected one character, found {}", what, key, shown(text));
  }
  return c;
}

int64_t bounded(const Json& json, std::string_view key, int64_t low, int64_t high,
                const std::string& what) {
  const auto value = json_get<int64_t>(json, key, what);
  if (value < low || value > high) {
    fail(Code::config, "{}: '{}': expected {} to {}, found {}", what, key, low, high, value);
  }
  return value;
}

void unknown_type(std::string_view type, const std::string& what, std::string_view known) {
  fail(Code::unsupported, "{}: unknown type {}; known: {}", what, shown(type), known);
}

}  // namespace sluice::text
