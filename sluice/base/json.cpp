#include "sluice/base/json.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <limits>
#include <unordered_set>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/utf8.h"

namespace sluice {
namespace {

/// Tells the handler below how far the parser has read: its own events carry no position.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, const char** reached) : at_(at), reached_(reached) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    *reached_ = ++at_;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator old = *this;
    ++*this;
    return old;
  }
  bool operator==(const CountingIterator& other) const { return at_ == other.at_; }
  bool operator!=(const CountingIterator& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  const char** reached_;
};

class Builder {
 public:
  Builder(std::string_view text, std::string_view what, int max_depth)
      : what_(what), begin_(text.data()), reached_(text.data()), max_depth_(max_depth) {}

  const char** reached() { return &reached_; }
  Json take() { return std::move(root_); }

  bool null() { return value(nullptr); }
  bool boolean(bool v) { return value(v); }
  bool number_integer(Json::number_integer_t v) { return value(v); }
  bool number_unsigned(Json::number_unsigned_t v) { return value(v); }
  bool number_float(Json::number_float_t v, const std::string&) { return value(v); }
  bool string(std::string& v) { return value(std::move(v)); }
  bool binary(Json::binary_t&) { return false; }
  bool start_object(size_t) { return open(Json::object()); }
  bool start_array(size_t) { return open(Json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    if (!open_.back().keys.insert(name).second) {
      fail(Code::format, "{}: byte {}: the key '{}' is there twice", what_, offset(),
           printable(name, 60));
    }
    open_.back().key = std::move(name);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) {
    std::string_view message = error.what();
    if (const size_t end = message.find("] "); end != std::string_view::npos) {
      message.remove_prefix(end + 2);  // "[json.exception.parse_error.101] "
    }
    if (const size_t end = message.find(": "); message.starts_with("parse error")) {
      message.remove_prefix(end == std::string_view::npos ? 0 : end + 2);
    }
    fail(Code::format, "{}: byte {}: not valid JSON: {}", what_, position > 0 ? position - 1 : 0,
         printable(message, 160));
  }

 private:
  struct Open {
    Json* container;
    std::string key;
    std::unordered_set<std::string>
        keys;  // Json's own look-up is linear: quadratic on a hostile file
  };

  size_t offset() const {
    return static_cast<size_t>(std::max<std::ptrdiff_t>(1, reached_ - begin_) - 1);
  }

  template <class V>
  bool value(V&& v) {
    place(Json(std::forward<V>(v)));
    return true;
  }
  Json* place(Json&& v) {
    if (open_.empty()) {
      root_ = std::move(v);
      return &root_;
    }
    Open& parent = open_.back();
    if (parent.container->is_array()) {
      parent.container->push_back(std::move(v));
      return &parent.container->back();
    }
    auto& members = parent.container->get_ref<Json::object_t&>();
    members.emplace_back(std::move(parent.key), std::move(v));
    return &members.back().second;
  }
  bool open(Json&& v) {
    if (open_.size() >= static_cast<size_t>(std::max(0, max_depth_))) {
      fail(Code::format, "{}: byte {}: nested deeper than {} levels", what_, offset(), max_depth_);
    }
    open_.push_back({place(std::move(v)), {}, {}});
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  std::string_view what_;
  const char* begin_;
  const char* reached_;
  int max_depth_;
  Json root_;
  std::vector<Open> open_;
};

const char* found_type(const Json& value) {
  if (value.is_number_integer()) {
    return "an integer";
  }
  if (value.is_number()) {
    return "a number";
  }
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return "true or false";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::object:
      return "a table";
    default:
      return "something else";
  }
}

[[noreturn]] void wrong_type(const Json& value, std::string_view key, std::string_view what,
                             const char* expected) {
  fail(Code::config, "{}: '{}': expected {}, found {}: {}", what, key, expected, found_type(value),
       printable(value.dump(-1, ' ', false, Json::error_handler_t::replace), 60));
}

template <class T>
struct Convert;

template <>
struct Convert<Json> {
  static Json from(const Json& value, std::string_view, std::string_view) { return value; }
};

template <>
struct Convert<bool> {
  static bool from(const Json& value, std::string_view key, std::string_view what) {
    if (!value.is_boolean()) {
      wrong_type(value, key, what, "true or false");
    }
    return value.get<bool>();
  }
};

template <>
struct Convert<int64_t> {
  static int64_t from(const Json& value, std::string_view key, std::string_view what) {
    if (!value.is_number_integer()) {
      wrong_type(value, key, what, "an integer");
    }
    if (value.is_number_unsigned() &&
        value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      wrong_type(value, key, what, "an integer below 2^63");
    }
    return value.get<int64_t>();
  }
};

template <>
struct Convert<double> {
  static double from(const Json& value, std::string_view key, std::string_view what) {
    if (!value.is_number()) {
      wrong_type(value, key, what, "a number");
    }
    return value.get<double>();
  }
};

template <>
struct Convert<std::string> {
  static std::string from(const Json& value, std::string_view key, std::string_view what) {
    if (!value.is_string()) {
      wrong_type(value, key, what, "a string");
    }
    return value.get<std::string>();
  }
};

template <class T>
struct Convert<std::vector<T>> {
  static std::vector<T> from(const Json& value, std::string_view key, std::string_view what) {
    if (!value.is_array()) {
      wrong_type(value, key, what, "an array");
    }
    std::vector<T> result;
    result.reserve(value.size());
    for (const Json& element : value) {
      result.push_back(Convert<T>::from(element, fmt::format("{}[{}]", key, result.size()), what));
    }
    return result;
  }
};

const Json* find_key(const Json& object, std::string_view key, std::string_view what) {
  if (!object.is_object()) {
    fail(Code::config, "{}: expected a table with '{}', found {}", what, key, found_type(object));
  }
  const auto place = object.find(key);
  return place == object.end() ? nullptr : &*place;
}

}  // namespace

Json parse_json(std::string_view text, std::string_view what, int max_depth) {
  // The parser takes a zero byte for the end and would accept whatever follows.
  if (const size_t zero = text.find('\0'); zero != std::string_view::npos) {
    fail(Code::format, "{}: byte {}: a zero byte in JSON text", what, zero);
  }
  Builder builder(text, what, max_depth);
  const CountingIterator begin(text.data(), builder.reached());
  const CountingIterator end(text.data() + text.size(), builder.reached());
  Json::sax_parse(begin, end, &builder);
  return builder.take();
}

Json read_json_file(const std::string& path) { return parse_json(read_text_file(path), path); }

template <class T>
T json_get(const Json& object, std::string_view key, std::string_view what) {
  const Json* value = find_key(object, key, what);
  if (value == nullptr) {
    fail(Code::config, "{}: the key '{}' is missing", what, key);
  }
  return Convert<T>::from(*value, key, what);
}

template <class T>
T json_get_or(const Json& object, std::string_view key, T fallback, std::string_view what) {
  const Json* value = find_key(object, key, what);
  return value == nullptr ? std::move(fallback) : Convert<T>::from(*value, key, what);
}

#define SLUICE_JSON_TYPE(T)                                                \
  template T json_get<T>(const Json&, std::string_view, std::string_view); \
  template T json_get_or<T>(const Json&, std::string_view, T, std::string_view);
SLUICE_JSON_TYPE(bool)
SLUICE_JSON_TYPE(int64_t)
SLUICE_JSON_TYPE(double)
SLUICE_JSON_TYPE(std::string)
SLUICE_JSON_TYPE(std::vector<int64_t>)
SLUICE_JSON_TYPE(std::vector<double>)
SLUICE_JSON_TYPE(std::vector<std::string>)
SLUICE_JSON_TYPE(Json)
#undef SLUICE_JSON_TYPE

void json_require_known_keys(const Json& object, std::initializer_list<std::string_view> known,
                             std::string_view what) {
  if (!object.is_object()) {
    fail(Code::config, "{}: expected a table, found {}", what, found_type(object));
  }
  for (const auto& item : object.items()) {
    if (std::find(known.begin(), known.end(), item.key()) != known.end()) {
      continue;
    }
    const std::vector<std::string> names(known.begin(), known.end());
    const std::string nearest = nearest_name(item.key(), names);
    std::string all;
    for (const std::string& name : names) {
      all += (all.empty() ? "" : ", ") + name;
    }
    fail(Code::config, "{}: unknown key '{}'{}; known: {}", what, printable(item.key(), 60),
         nearest.empty() ? "" : fmt::format(", did you mean '{}'?", nearest),
         all.empty() ? "none" : all);
  }
}

}  // namespace sluice
