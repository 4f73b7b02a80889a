#include "sluice/bundle/import/config.h"

#include <cmath>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::hf {
namespace {

std::string shown(const Json& value) {
  return printable(value.dump(-1, ' ', false, Json::error_handler_t::replace), 60);
}

[[noreturn]] void wrong(const std::string& field, const std::string& expected, const Json* found) {
  fail(Code::config, "{}: expected {}, found {}", field, expected,
       found ? shown(*found) : "nothing");
}

int64_t checked_integer(const Json* value, int64_t least, int64_t most, const std::string& field) {
  const bool fits = value && value->is_number_integer() &&
                    !(value->is_number_unsigned() && value->get<uint64_t>() > uint64_t(INT64_MAX));
  if (!fits || value->get<int64_t>() < least || value->get<int64_t>() > most)
    wrong(field, fmt::format("an integer from {} to {}", least, most), value);
  return value->get<int64_t>();
}

double checked_number(const Json* value, Range range, const std::string& field) {
  const double number = value && value->is_number() ? value->get<double>() : std::nan("");
  if (!(number >= range.least && number <= range.most))
    wrong(field, fmt::format("a number from {} to {}", range.least, range.most), value);
  return number;
}

}  // namespace

Config Config::read(const std::string& path) { return Config(read_json_file(path), path); }

Config::Config(Json json, std::string what) : what_(std::move(what)) {
  if (!json.is_object())
    fail(Code::config, "{}: expected a JSON object, found {}", what_, json.type_name());
  json_ = std::make_shared<const Json>(std::move(json));
}

const Json* Config::find(const std::string& name) const {
  const auto it = json_->find(name);
  return it == json_->end() || it->is_null() ? nullptr : &*it;
}

std::string Config::field(const std::string& name) const {
  if (const auto it = aliases_.find(inside_ + name); it != aliases_.end())
    return fmt::format("{}: key '{}'", what_, it->second);
  return fmt::format("{}: field '{}{}'", what_, inside_, name);
}

bool Config::has(const std::string& name) const { return find(name) != nullptr; }

int64_t Config::integer(const std::string& name, int64_t least, int64_t most) const {
  return checked_integer(find(name), least, most, field(name));
}

int64_t Config::integer_or(const std::string& name, int64_t fallback, int64_t least,
                           int64_t most) const {
  return has(name) ? integer(name, least, most) : fallback;
}

double Config::number(const std::string& name, Range range) const {
  return checked_number(find(name), range, field(name));
}

double Config::number_or(const std::string& name, double fallback, Range range) const {
  return has(name) ? number(name, range) : fallback;
}

bool Config::flag_or(const std::string& name, bool fallback) const {
  const Json* value = find(name);
  if (!value) return fallback;
  if (!value->is_boolean()) wrong(field(name), "true or false", value);
  return value->get<bool>();
}

std::string Config::text_or(const std::string& name, const std::string& fallback) const {
  const Json* value = find(name);
  if (!value) return fallback;
  if (!value->is_string()) wrong(field(name), "text", value);
  return value->get<std::string>();
}

std::vector<int64_t> Config::integers(const std::string& name) const {
  const Json* value = find(name);
  if (!value) return {};
  if (!value->is_array()) return {checked_integer(value, 0, kMaxSize, field(name))};
  std::vector<int64_t> result;
  for (const Json& item : *value)
    result.push_back(checked_integer(&item, 0, kMaxSize, field(name)));
  return result;
}

std::vector<double> Config::numbers(const std::string& name, Range range) const {
  const Json* value = find(name);
  if (!value) return {};
  if (!value->is_array()) wrong(field(name), "a list of numbers", value);
  std::vector<double> result;
  for (const Json& item : *value) result.push_back(checked_number(&item, range, field(name)));
  return result;
}

std::vector<std::string> Config::texts(const std::string& name) const {
  const Json* value = find(name);
  if (!value) return {};
  if (!value->is_array()) wrong(field(name), "a list of texts", value);
  std::vector<std::string> result;
  for (const Json& item : *value) {
    if (!item.is_string()) wrong(field(name), "a list of texts", value);
    result.push_back(item.get<std::string>());
  }
  return result;
}

std::optional<Config> Config::object(const std::string& name) const {
  const Json* value = find(name);
  if (!value) return std::nullopt;
  if (!value->is_object()) wrong(field(name), "an object", value);
  Config inner(*value, what_);
  inner.inside_ = inside_ + name + ".";
  inner.aliases_ = aliases_;
  return inner;
}

void require_plain_name(const std::string& name, const std::string& what) {
  if (name.empty() || name == "." || name == ".." || name.size() > 255 || !is_plain_text(name) ||
      name.find_first_of("/\\") != name.npos)
    fail(Code::config, "{}: expected the name of a file in the same folder, found '{}'", what,
         printable(name));
}

}  // namespace sluice::bundle::hf
