#include "sluice/base/config.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"

// The only file that includes it: it costs several seconds.
#include <toml++/toml.h>

namespace sluice {
namespace {

constexpr int kMaxDepth = 64;

Json convert(const toml::node& node, std::string_view what, int depth);

std::string place_of(const toml::node& node, std::string_view what) {
  const toml::source_position at = node.source().begin;
  return fmt::format("{}:{}:{}", what, at.line, at.column);
}

Json convert_table(const toml::table& table, std::string_view what, int depth) {
  // toml++ sorts keys by name; ours keep the order of the file.
  std::vector<std::pair<const toml::key*, const toml::node*>> members;
  for (auto&& [key, value] : table) {
    members.emplace_back(&key, &value);
  }
  std::stable_sort(members.begin(), members.end(), [](const auto& a, const auto& b) {
    return a.first->source().begin < b.first->source().begin;
  });
  Json result = Json::object();
  for (const auto& [key, value] : members) {
    result[std::string(key->str())] = convert(*value, what, depth + 1);
  }
  return result;
}

Json convert(const toml::node& node, std::string_view what, int depth) {
  if (depth > kMaxDepth) {
    fail(Code::config, "{}: nested deeper than {} levels", place_of(node, what), kMaxDepth);
  }
  switch (node.type()) {
    case toml::node_type::table:
      return convert_table(*node.as_table(), what, depth);
    case toml::node_type::array: {
      Json result = Json::array();
      for (auto&& element : *node.as_array()) {
        result.push_back(convert(element, what, depth + 1));
      }
      return result;
    }
    case toml::node_type::string:
      return node.as_string()->get();
    case toml::node_type::integer:
      return node.as_integer()->get();
    case toml::node_type::boolean:
      return node.as_boolean()->get();
    case toml::node_type::floating_point: {
      const double value = node.as_floating_point()->get();
      if (!std::isfinite(value)) {
        fail(Code::config, "{}: expected a finite number, found inf or nan", place_of(node, what));
      }
      return value;
    }
    default:
      fail(Code::config, "{}: dates and times are not used here; write a string in quotes",
           place_of(node, what));
  }
}

// toml++ builds and destroys nested values recursively and does not limit all of them: refuse
// absurd nesting before it sees the text. Knows just enough of TOML to tell brackets and dots from
// those in strings and comments.
void refuse_deep_nesting(std::string_view text, std::string_view what) {
  int brackets = 0, dots = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"' || c == '\'') {
      const std::string_view three = c == '"' ? "\"\"\"" : "\'\'\'";
      const bool block = text.substr(i).starts_with(three);
      for (i += block ? 3 : 1; i < text.size(); ++i) {
        if (c == '"' && text[i] == '\\') {
          ++i;
        } else if (block ? text.substr(i).starts_with(three) : text[i] == c || text[i] == '\n') {
          i += block ? 2 : 0;
          break;
        }
      }
    } else if (c == '#') {
      i = std::min(text.find('\n', i), text.size()) - 1;
    } else if (c == '[' || c == '{') {
      ++brackets;
    } else if (c == ']' || c == '}') {
      brackets = std::max(0, brackets - 1);
    } else if (c == '.') {
      ++dots;
    } else if (c == '\n' || c == '=' || c == ',') {
      dots = 0;
    }
    if (std::max(brackets, dots) > kMaxDepth) {
      const auto line =
          std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(i), '\n');
      fail(Code::config, "{}:{}: nested deeper than {} levels", what, line + 1, kMaxDepth);
    }
  }
}

}  // namespace

Json parse_toml(std::string_view text, std::string_view what) {
  refuse_deep_nesting(text, what);
  try {
    const toml::table table = toml::parse(text);
    return convert_table(table, what, 0);
  } catch (const toml::parse_error& error) {
    const toml::source_position at = error.source().begin;
    fail(Code::config, "{}:{}:{}: {}", what, at.line, at.column, error.description());
  }
}

Json read_toml_file(const std::string& path) {
  return parse_toml(read_text_file(path, size_t{1} << 24), path);
}

Json merge_json(Json base, const Json& over) {
  if (!base.is_object() || !over.is_object()) {
    return over;
  }
  for (const auto& item : over.items()) {
    const auto place = base.find(item.key());
    if (place == base.end()) {
      base[item.key()] = item.value();
    } else {
      *place = merge_json(std::move(*place), item.value());
    }
  }
  return base;
}

void set_by_path(Json& config, std::string_view assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string_view::npos) {
    fail(Code::usage, "'{}': expected key=value, for example train.epochs=3", assignment);
  }
  const auto trim = [](std::string_view text) {
    const size_t first = text.find_first_not_of(" \t");
    return first == std::string_view::npos
               ? std::string_view()
               : text.substr(first, text.find_last_not_of(" \t") - first + 1);
  };
  const std::string_view path = trim(assignment.substr(0, equals));
  const std::string_view text = trim(assignment.substr(equals + 1));

  std::vector<std::string> keys;
  for (size_t begin = 0;;) {
    const size_t dot = path.find('.', begin);
    keys.emplace_back(trim(path.substr(begin, dot == path.npos ? dot : dot - begin)));
    if (keys.back().empty()) {
      fail(Code::usage, "'{}': an empty key before '='; expected key=value", assignment);
    }
    if (dot == path.npos) {
      break;
    }
    begin = dot + 1;
  }
  if (keys.size() > static_cast<size_t>(kMaxDepth)) {
    fail(Code::usage, "'{}...': a key nested deeper than {} levels", path.substr(0, 60), kMaxDepth);
  }

  Json value = std::string(text);
  try {
    const Json parsed = parse_toml(fmt::format("value = {}", text), "value");
    if (parsed.size() == 1) {  // more: the text held a line break and further keys
      value = parsed.front();
    }
  } catch (const Error&) {
    // Not TOML, so it is meant as a string: name=resnet.
  }

  Json* place = &config;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (place->is_null()) {
      *place = Json::object();
    }
    if (!place->is_object()) {
      fail(Code::usage, "'{}': '{}' is not a table in this configuration", assignment,
           i == 0 ? "the whole" : keys[i - 1]);
    }
    place = &(*place)[keys[i]];
  }
  *place = std::move(value);
}

}  // namespace sluice
