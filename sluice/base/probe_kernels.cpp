#include "sluice/base/probe_kernels.h"

#include <sys/mman.h>

#include "sluice/base/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sluice::probe {
namespace {

// 24 chains hide the latency of two FMA units of four or five cycles each and still leave registers
// (32 in AVX-512); with AVX2's 16 registers, 12 do.
constexpr int kWideChains = 24, kChains = 12;

constexpr float kFactor = 0.999F, kTerm = 0.001F;  // converges to 1: no overflow, no denormals

uint64_t sum_generic(std::span<const uint64_t> words) {
  uint64_t sum[8] = {};
  for (size_t i = 0; i < words.size(); i += 8) {
    for (size_t j = 0; j < 8; ++j) {
      sum[j] += words[i + j];
    }
  }
  uint64_t total = 0;
  for (const uint64_t s : sum) {
    total += s;
  }
  return total;
}

float multiply_add_generic(int64_t rounds) {
  float sums[kChains * 4];
  for (int i = 0; i < kChains * 4; ++i) {
    sums[i] = static_cast<float>(i);
  }
  for (int64_t r = 0; r < rounds; ++r) {
    for (float& s : sums) {
      s = s * kFactor + kTerm;
    }
  }
  float total = 0;
  for (const float s : sums) {
    total += s;
  }
  return total;
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) uint64_t sum_avx2(std::span<const uint64_t> words) {
  __m256i sum[4] = {};
  for (size_t i = 0; i < words.size(); i += 16) {
    for (size_t j = 0; j < 4; ++j) {
      const void* at = words.data() + i + 4 * j;
      sum[j] = _mm256_add_epi64(sum[j], _mm256_load_si256(static_cast<const __m256i*>(at)));
    }
  }
  alignas(32) uint64_t lanes[16];
  for (size_t j = 0; j < 4; ++j) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes + 4 * j), sum[j]);
  }
  return sum_generic(lanes);
}

__attribute__((target("avx512f"))) uint64_t sum_avx512(std::span<const uint64_t> words) {
  __m512i sum[4] = {};
  for (size_t i = 0; i < words.size(); i += 32) {
    for (size_t j = 0; j < 4; ++j) {
      sum[j] = _mm512_add_epi64(sum[j], _mm512_load_si512(words.data() + i + 8 * j));
    }
  }
  alignas(64) uint64_t lanes[32];
  for (size_t j = 0; j < 4; ++j) {
    _mm512_store_si512(lanes + 8 * j, sum[j]);
  }
  return sum_generic(lanes);
}

// The empty asm keeps each chain in a register and stops the compiler from reasoning about the
// values.

__attribute__((target("avx2,fma"))) float multiply_add_avx2(int64_t rounds) {
  __m256 sums[kChains];
  for (int i = 0; i < kChains; ++i) {
    sums[i] = _mm256_set1_ps(static_cast<float>(i));
  }
  const __m256 factor = _mm256_set1_ps(kFactor), term = _mm256_set1_ps(kTerm);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      sums[i] = _mm256_fmadd_ps(sums[i], factor, term);
      asm volatile("" : "+x"(sums[i]));
    }
  }
  for (int i = 1; i < kChains; ++i) {
    sums[0] = _mm256_add_ps(sums[0], sums[i]);
  }
  return _mm256_cvtss_f32(sums[0]);
}

__attribute__((target("avx512f"))) float multiply_add_avx512(int64_t rounds) {
  __m512 sums[kWideChains];
  for (int i = 0; i < kWideChains; ++i) {
    sums[i] = _mm512_set1_ps(static_cast<float>(i));
  }
  const __m512 factor = _mm512_set1_ps(kFactor), term = _mm512_set1_ps(kTerm);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < kWideChains; ++i) {
      sums[i] = _mm512_fmadd_ps(sums[i], factor, term);
      asm volatile("" : "+v"(sums[i]));
    }
  }
  for (int i = 1; i < kWideChains; ++i) {
    sums[0] = _mm512_add_ps(sums[0], sums[i]);
  }
  return _mm512_cvtss_f32(sums[0]);
}

bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has;
}
bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f");
  return has;
}

#endif

}  // namespace

Pages::Pages(size_t bytes) : bytes_(bytes) {
  data_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data_ == MAP_FAILED) {
    fail(Code::limit, "not enough memory for a measuring buffer of {} bytes", bytes);
  }
#ifdef MADV_HUGEPAGE
  ::madvise(data_, bytes, MADV_HUGEPAGE);  // a hint: without it, page walks cost a little bandwidth
#endif
}

Pages::~Pages() { ::munmap(data_, bytes_); }

uint64_t sum_words(std::span<const uint64_t> words) {
#if defined(__x86_64__)
  if (has_avx512()) {
    return sum_avx512(words);
  }
  if (has_avx2()) {
    return sum_avx2(words);
  }
#endif
  return sum_generic(words);
}

float multiply_add(int64_t rounds) {
#if defined(__x86_64__)
  if (has_avx512()) {
    return multiply_add_avx512(rounds);
  }
  if (has_avx2()) {
    return multiply_add_avx2(rounds);
  }
#endif
  return multiply_add_generic(rounds);
}

int64_t flops_of_multiply_add(int64_t rounds) {
#if defined(__x86_64__)
  if (has_avx512()) {
    return rounds * kWideChains * 16 * 2;
  }
  if (has_avx2()) {
    return rounds * kChains * 8 * 2;
  }
#endif
  return rounds * kChains * 4 * 2;
}

}  // namespace sluice::probe
