// Values of the metadata by key.
#include <array>
#include <cmath>
#include <cstring>
#include <optional>

#include "sluice/base/error.h"
#include "sluice/bundle/gguf/gguf.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::gguf {
namespace {

constexpr std::array<const char*, 13> kValueNames = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "text", "array", "u64", "i64", "f64"};

template <class T>
T load(std::span<const std::byte> bytes, uint64_t index = 0) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof value, sizeof value);
  return value;
}

/// The integer at `index`, where the type is one; above 2^63-1 there is none either.
std::optional<int64_t> integer_at(std::span<const std::byte> bytes, ValueType type,
                                  uint64_t index) {
  switch (type) {
    case ValueType::u8:
      return load<uint8_t>(bytes, index);
    case ValueType::i8:
      return load<int8_t>(bytes, index);
    case ValueType::u16:
      return load<uint16_t>(bytes, index);
    case ValueType::i16:
      return load<int16_t>(bytes, index);
    case ValueType::u32:
      return load<uint32_t>(bytes, index);
    case ValueType::i32:
      return load<int32_t>(bytes, index);
    case ValueType::i64:
      return load<int64_t>(bytes, index);
    case ValueType::u64: {
      const uint64_t value = load<uint64_t>(bytes, index);
      if (value > uint64_t(INT64_MAX)) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

std::string shown(const Value& value) {
  if (const auto number = integer_at(value.bytes, value.type, 0); number && !value.bytes.empty())
    return std::to_string(*number);
  if (value.type == ValueType::f32) return fmt::format("{}", load<float>(value.bytes));
  if (value.type == ValueType::f64) return fmt::format("{}", load<double>(value.bytes));
  if (value.type == ValueType::u64) return fmt::format("{}", load<uint64_t>(value.bytes));
  if (value.type == ValueType::boolean) return value.bytes[0] == std::byte{0} ? "false" : "true";
  if (value.type == ValueType::text)
    return "'" +
           printable({reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size()}, 40) +
           "'";
  return fmt::format("an array of {} {}", value.count, value_type_name(value.element));
}

}  // namespace

std::string_view value_type_name(ValueType type) { return kValueNames[static_cast<size_t>(type)]; }

std::string File::field(const std::string& key) const {
  return fmt::format("{}: key '{}'", path_, printable(key));
}

const Value& File::at(const std::string& key) const {
  const auto it = metadata_.find(key);
  if (it == metadata_.end()) fail(Code::missing, "{}: it is not there", field(key));
  return it->second;
}

int64_t File::integer(const std::string& key, int64_t least, int64_t most) const {
  const Value& value = at(key);
  const auto found = integer_at(value.bytes, value.type, 0);
  if (!found || *found < least || *found > most)
    fail(Code::config, "{}: expected an integer from {} to {}, found {}", field(key), least, most,
         shown(value));
  return *found;
}

double File::number(const std::string& key, double least, double most) const {
  const Value& value = at(key);
  double found = std::nan("");
  if (value.type == ValueType::f32) {
    // The shortest decimal that rounds to this f32: 1e-5 stays 1e-5.
    found = std::strtod(fmt::format("{}", load<float>(value.bytes)).c_str(), nullptr);
  } else if (value.type == ValueType::f64) {
    found = load<double>(value.bytes);
  } else if (const auto whole = integer_at(value.bytes, value.type, 0)) {
    found = static_cast<double>(*whole);
  }
  if (!(found >= least && found <= most))
    fail(Code::config, "{}: expected a number from {} to {}, found {}", field(key), least, most,
         shown(value));
  return found;
}

bool File::flag(const std::string& key) const {
  const Value& value = at(key);
  if (value.type != ValueType::boolean)
    fail(Code::config, "{}: expected true or false, found {}", field(key), shown(value));
  return value.bytes[0] != std::byte{0};
}

std::string File::text(const std::string& key) const {
  const Value& value = at(key);
  if (value.type != ValueType::text)
    fail(Code::config, "{}: expected text, found {}", field(key), shown(value));
  return {reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size()};
}

const Value& File::array(const std::string& key, const char* expected) const {
  const Value& value = at(key);
  if (value.type != ValueType::array)
    fail(Code::config, "{}: expected an array of {}, found {}", field(key), expected, shown(value));
  return value;
}

std::vector<std::string> File::texts(const std::string& key) const {
  const Value& value = array(key, "texts");
  if (value.element != ValueType::text)
    fail(Code::config, "{}: expected an array of texts, found {}", field(key), shown(value));
  std::vector<std::string> result;
  result.reserve(static_cast<size_t>(value.count));
  const std::byte* at = value.bytes.data();  // lengths were checked when the file was read
  for (uint64_t i = 0; i < value.count; ++i) {
    uint64_t length;
    std::memcpy(&length, at, sizeof length);
    result.emplace_back(reinterpret_cast<const char*>(at + sizeof length), length);
    at += sizeof length + length;
  }
  return result;
}

std::vector<int64_t> File::integers(const std::string& key, int64_t least, int64_t most) const {
  const Value& value = array(key, "integers");
  std::vector<int64_t> result;
  for (uint64_t i = 0; i < value.count; ++i) {
    const auto found = integer_at(value.bytes, value.element, i);
    if (!found || *found < least || *found > most)
      fail(Code::config, "{}: entry {}: expected an integer from {} to {}, found {}", field(key), i,
           least, most, found ? std::to_string(*found) : shown(value));
    result.push_back(*found);
  }
  return result;
}

std::vector<float> File::numbers(const std::string& key) const {
  const Value& value = array(key, "f32");
  if (value.element != ValueType::f32)
    fail(Code::config, "{}: expected an array of f32, found {}", field(key), shown(value));
  std::vector<float> result(static_cast<size_t>(value.count));
  std::memcpy(result.data(), value.bytes.data(), value.bytes.size());
  for (size_t i = 0; i < result.size(); ++i)
    if (!std::isfinite(result[i]))
      fail(Code::numeric, "{}: entry {} is {}", field(key), i, result[i]);
  return result;
}

}  // namespace sluice::bundle::gguf
