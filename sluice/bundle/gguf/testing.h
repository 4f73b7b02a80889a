// GGUF files byte by byte, for tests and seeds of the fuzzer.
#pragma once
#include <cstring>
#include <string>
#include <string_view>

#include "sluice/bundle/gguf/gguf.h"

namespace sluice::bundle::gguf::testing {

/// Appends what it is told to, right or wrong.
struct Raw {
  std::string bytes;

  template <class T>
  Raw& put(T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Raw& text(std::string_view text) {
    put(uint64_t(text.size()));
    bytes += text;
    return *this;
  }
  Raw& head(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
    bytes += "GGUF";
    return put(version).put(tensors).put(keys);
  }
  Raw& key(std::string_view name, ValueType type) { return text(name).put(uint32_t(type)); }
  /// Sizes as the file has them: innermost first.
  Raw& tensor(std::string_view name, std::initializer_list<uint64_t> sizes, uint32_t type,
              uint64_t offset) {
    text(name).put(uint32_t(sizes.size()));
    for (const uint64_t size : sizes) put(size);
    return put(type).put(offset);
  }
  Raw& pad(size_t alignment = 32) {
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  Raw& zeros(size_t count) {
    bytes.resize(bytes.size() + count);
    return *this;
  }
  std::span<const std::byte> view() const { return std::as_bytes(std::span(bytes)); }
};

}  // namespace sluice::bundle::gguf::testing
