// Memory for SIMD: 64-byte aligned, zeroed (unless its pages should not be touched), of fixed size.
// From a megabyte on it starts at a page: rows of weights of a page or half of one, read here and
// there, then cross no page, at which prefetching by hardware ends.
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
                              ::operator new(static_cast<size_t>(bytes), align_of(bytes)))
                        : nullptr,
              Free{align_of(bytes)}) {
    if (bytes > 0 && zeroed) std::memset(data_.get(), 0, static_cast<size_t>(bytes));
  }
  std::byte* data() const { return data_.get(); }
  float* floats() const { return reinterpret_cast<float*>(data_.get()); }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kPage = 4096;
  static std::align_val_t align_of(int64_t bytes) {
    return std::align_val_t{bytes >= int64_t{1} << 20 ? kPage : kAlign};
  }
  struct Free {
    std::align_val_t align;
    Free() : Free(std::align_val_t{kAlign}) {}
    explicit Free(std::align_val_t align_) : align(align_) {}
    void operator()(std::byte* p) const { ::operator delete(p, align); }
  };
  int64_t bytes_ = 0;
  std::unique_ptr<std::byte, Free> data_;
};

inline int64_t align_up(int64_t bytes, int64_t to = Buffer::kAlign) {
  return (bytes + to - 1) / to * to;
}

}  // namespace sluice::engine
