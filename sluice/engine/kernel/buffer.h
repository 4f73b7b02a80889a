// Memory for SIMD: 64-byte aligned, zeroed (unless its pages should not be touched), of fixed size.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace sluice::engine {

class Buffer {
 public:
  static constexpr size_t kAlign = 64;
  Buffer() = default;
  explicit Buffer(int64_t bytes, bool zeroed = true)
      : bytes_(bytes),
        data_(bytes > 0 ? static_cast<std::byte*>(
                              ::operator new (static_cast<size_t>(bytes), std::align_val_t{kAlign}))
                        : nullptr) {
    if (bytes > 0 && zeroed) std::memset(data_.get(), 0, static_cast<size_t>(bytes));
  }
  std::byte* data() const { return data_.get(); }
  float* floats() const { return reinterpret_cast<float*>(data_.get()); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete (p, std::align_val_t{kAlign}); }
  };
  int64_t bytes_ = 0;
  std::unique_ptr<std::byte, Free> data_;
};

inline int64_t align_up(int64_t bytes, int64_t to = Buffer::kAlign) {
  return (bytes + to - 1) / to * to;
}

}  // namespace sluice::engine
