#include "sluice/bundle/import/onnx/wire.h"

#include <bit>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::onnx {
namespace {

constexpr size_t kMaxText = size_t{64} << 10;

uint64_t little_endian(std::span<const std::byte> bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<uint64_t>(bytes[i]);
  return value;
}

}  // namespace

void Wire::refuse(std::string_view problem) const {
  fail(Code::format, "{}: byte {}, {}: {}", file_.what,
       (start_ ? start_ : message_.data()) - file_.bytes.data(), name_, problem);
}

uint64_t Wire::varint(std::span<const std::byte> from, size_t& at) const {
  uint64_t value = 0;
  for (int shift = 0; shift < 70; shift += 7) {
    if (at >= from.size()) refuse("a number that does not end; the file is cut off or no ONNX");
    const uint64_t byte = static_cast<uint64_t>(from[at++]);
    if (shift == 63 && byte > 1) break;
    value |= (byte & 127) << shift;
    if (byte < 128) return value;
  }
  refuse("a number of more than 64 bits");
}

bool Wire::next() {
  if (at_ >= message_.size()) return false;
  start_ = message_.data() + at_;
  const uint64_t key = varint(message_, at_);
  const uint64_t number = key >> 3;
  if (number == 0 || number > (1u << 29) - 1)
    refuse(fmt::format("field number {}; the file is no ONNX", number));
  number_ = static_cast<uint32_t>(number);
  type_ = static_cast<Type>(key & 7);
  size_t size = 0;
  switch (type_) {
    case Type::varint:
      value_ = varint(message_, at_);
      return true;
    case Type::fixed64:
      size = 8;
      break;
    case Type::fixed32:
      size = 4;
      break;
    case Type::bytes: {
      const uint64_t length = varint(message_, at_);
      if (length > message_.size() - at_)
        refuse(fmt::format("field {} of {} bytes, {} are left", number, length,
                           message_.size() - at_));
      size = static_cast<size_t>(length);
      break;
    }
    default:
      refuse(fmt::format("field {} of unknown wire type {}", number, key & 7));
  }
  if (size > message_.size() - at_)
    refuse(fmt::format("field {} of {} bytes, {} are left", number, size, message_.size() - at_));
  bytes_ = message_.subspan(at_, size);
  at_ += size;
  return true;
}

void Wire::expect(Type type, std::string_view field) const {
  if (type_ != type)
    refuse(fmt::format("field '{}': wire type {}, expected {}", field, static_cast<int>(type_),
                       static_cast<int>(type)));
}

int64_t Wire::integer(std::string_view field) const {
  expect(Type::varint, field);
  return static_cast<int64_t>(value_);
}

float Wire::real(std::string_view field) const {
  expect(Type::fixed32, field);
  return std::bit_cast<float>(static_cast<uint32_t>(little_endian(bytes_)));
}

std::span<const std::byte> Wire::bytes(std::string_view field) const {
  expect(Type::bytes, field);
  return bytes_;
}

std::string Wire::text(std::string_view field) const {
  expect(Type::bytes, field);
  if (bytes_.size() > kMaxText)
    refuse(fmt::format("field '{}': a text of {} bytes; at most {} are allowed", field,
                       bytes_.size(), kMaxText));
  std::string text(reinterpret_cast<const char*>(bytes_.data()), bytes_.size());
  if (!is_plain_text(text))
    refuse(fmt::format("field '{}': not valid UTF-8, or with control characters", field));
  return text;
}

void Wire::integers(std::vector<int64_t>& to, std::string_view field) const {
  if (type_ == Type::varint) {
    to.push_back(static_cast<int64_t>(value_));
    return;
  }
  expect(Type::bytes, field);
  for (size_t at = 0; at < bytes_.size();) to.push_back(static_cast<int64_t>(varint(bytes_, at)));
}

void Wire::reals(std::vector<float>& to, std::string_view field) const {
  if (type_ == Type::fixed32) {
    to.push_back(real(field));
    return;
  }
  expect(Type::bytes, field);
  if (bytes_.size() % 4 != 0)
    refuse(fmt::format("field '{}': {} bytes are no whole number of floats", field, bytes_.size()));
  const size_t first = to.size();
  to.resize(first + bytes_.size() / 4);
  if (!bytes_.empty()) std::memcpy(to.data() + first, bytes_.data(), bytes_.size());
}

void Wire::doubles(std::vector<double>& to, std::string_view field) const {
  if (type_ == Type::fixed64) {
    to.push_back(std::bit_cast<double>(little_endian(bytes_)));
    return;
  }
  expect(Type::bytes, field);
  if (bytes_.size() % 8 != 0)
    refuse(
        fmt::format("field '{}': {} bytes are no whole number of doubles", field, bytes_.size()));
  const size_t first = to.size();
  to.resize(first + bytes_.size() / 8);
  if (!bytes_.empty()) std::memcpy(to.data() + first, bytes_.data(), bytes_.size());
}

}  // namespace sluice::bundle::onnx
