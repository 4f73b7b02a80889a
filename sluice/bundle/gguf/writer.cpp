#include <cstring>
#include <set>

#include "sluice/base/error.h"
#include "sluice/bundle/gguf/gguf.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::gguf {
namespace {

constexpr size_t kAlignment = 32;

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void put_text(std::string& out, std::string_view text) {
  put(out, static_cast<uint64_t>(text.size()));
  out += text;
}

size_t padding(size_t size) { return (kAlignment - size % kAlignment) % kAlignment; }

template <class T>
void put_array(std::string& out, ValueType element, std::span<const T> values) {
  put(out, static_cast<uint32_t>(element));
  put(out, static_cast<uint64_t>(values.size()));
  out.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

}  // namespace

std::string& Writer::add(const std::string& key, ValueType type) {
  for (const auto& [name, value] : metadata_)
    if (name == key) fail(Code::usage, "GGUF key '{}' was set before", printable(key));
  std::string& value = metadata_.emplace_back(key, "").second;
  put(value, static_cast<uint32_t>(type));
  return value;
}

void Writer::set(const std::string& key, uint32_t value) { put(add(key, ValueType::u32), value); }
void Writer::set(const std::string& key, float value) { put(add(key, ValueType::f32), value); }
void Writer::set(const std::string& key, bool value) {
  put(add(key, ValueType::boolean), static_cast<uint8_t>(value));
}
void Writer::set(const std::string& key, std::string_view value) {
  put_text(add(key, ValueType::text), value);
}
void Writer::set(const std::string& key, std::span<const std::string> values) {
  std::string& out = add(key, ValueType::array);
  put(out, static_cast<uint32_t>(ValueType::text));
  put(out, static_cast<uint64_t>(values.size()));
  for (const std::string& value : values) put_text(out, value);
}
void Writer::set(const std::string& key, std::span<const float> values) {
  put_array(add(key, ValueType::array), ValueType::f32, values);
}
void Writer::set(const std::string& key, std::span<const int32_t> values) {
  put_array(add(key, ValueType::array), ValueType::i32, values);
}

void Writer::tensor(const std::string& name, uint32_t type, const Shape& shape,
                    std::span<const std::byte> bytes) {
  const TensorType* known = find_type(type);
  SLUICE_CHECK(known && !shape.empty() && shape.size() <= Limits::kRank);
  if (shape.back() % known->block != 0)
    fail(Code::shape, "GGUF tensor '{}': {} columns; {} stores blocks of {}", printable(name),
         shape.back(), known->name, known->block);
  const int64_t rows = numel(shape) / shape.back();
  const int64_t expected = checked_mul(rows, row_bytes(*known, shape.back()), "bytes");
  if (static_cast<uint64_t>(expected) != bytes.size())
    fail(Code::shape, "GGUF tensor '{}': {} of {} takes {} bytes, {} were given", printable(name),
         to_string(shape), known->name, expected, bytes.size());
  tensors_.push_back({name, type, shape, bytes});
}

std::string Writer::head() const {
  std::string out = "GGUF";
  put(out, uint32_t{3});
  put(out, static_cast<uint64_t>(tensors_.size()));
  put(out, static_cast<uint64_t>(metadata_.size()));
  for (const auto& [key, value] : metadata_) {
    put_text(out, key);
    out += value;
  }
  std::set<std::string_view> names;
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    if (!names.insert(tensor.name).second)
      fail(Code::usage, "two GGUF tensors are called '{}'", printable(tensor.name));
    put_text(out, tensor.name);
    put(out, static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i-- > 0;) put(out, static_cast<uint64_t>(tensor.shape[i]));
    put(out, tensor.type);
    put(out, offset);
    offset += tensor.bytes.size() + padding(tensor.bytes.size());
  }
  out.resize(out.size() + padding(out.size()), '\0');
  return out;
}

void Writer::write(const std::string& path) const {
  AtomicFile file(path);
  file.write(head());
  const std::string zeros(kAlignment, '\0');
  for (const Tensor& tensor : tensors_) {
    file.write(tensor.bytes);
    file.write(std::string_view(zeros).substr(0, padding(tensor.bytes.size())));
  }
  file.commit();
}

std::vector<std::byte> Writer::bytes() const {
  std::string out = head();
  for (const Tensor& tensor : tensors_) {
    out.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
    out.resize(out.size() + padding(tensor.bytes.size()), '\0');
  }
  const auto bytes = std::as_bytes(std::span(out));
  return {bytes.begin(), bytes.end()};
}

}  // namespace sluice::bundle::gguf
