// The inner loops that measure what a machine can do at most: reading memory and multiplying
// floats.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace sluice::probe {

/// Zeroed anonymous memory in huge pages where the system gives them. Throws Error{limit} when
/// there is not enough.
class Pages {
 public:
  explicit Pages(size_t bytes);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  uint64_t* words() const { return static_cast<uint64_t*>(data_); }

 private:
  void* data_;
  size_t bytes_;
};

/// Sum of `words`, whose size is a multiple of 32, read with the widest loads of this CPU.
uint64_t sum_words(std::span<const uint64_t> words);

/// `rounds` rounds of independent multiply-adds in registers. The value means nothing; use it, so
/// that the work is not optimised away.
float multiply_add(int64_t rounds);
int64_t flops_of_multiply_add(int64_t rounds);

/// `rounds` rounds of independent 8-bit dot products in registers, with AMX tiles or else the
/// widest VNNI unit.
int32_t int8_dot(int64_t rounds);
/// 2 per multiply-add; 0 on a CPU without either.
int64_t operations_of_int8_dot(int64_t rounds);

/// Makes the compiler believe that `value` is needed.
template <class T>
inline void keep(const T& value) {
  asm volatile("" : : "r,m"(value) : "memory");
}

}  // namespace sluice::probe
