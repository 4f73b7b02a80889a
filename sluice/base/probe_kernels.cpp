#include "sluice/base/probe_kernels.h"

#include <sys/mman.h>

#include "sluice/base/amx.h"
#include "sluice/base/error.h"
#include "sluice/base/machine.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sluice::probe {
namespace {

// Two FMA units of four or five cycles latency need ten chains; AVX2 has 16 registers, two hold
// constants.
constexpr int kChains = 12;
#define SLUICE_EACH_CHAIN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

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

// Four quarters side by side: one stream leaves memory idle whenever its hardware prefetcher stops
// at the end of a page.

__attribute__((target("avx2"))) inline __m256i load_line(const uint64_t* at) {
  const auto* lanes = reinterpret_cast<const __m256i*>(at);
  return _mm256_add_epi64(_mm256_load_si256(lanes), _mm256_load_si256(lanes + 1));
}

__attribute__((target("avx2"))) uint64_t sum_avx2(std::span<const uint64_t> words) {
  const size_t quarter = words.size() / 4;
  const uint64_t* const first = words.data();
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (size_t i = 0; i < quarter; i += 8) {
    a = _mm256_add_epi64(a, load_line(first + i));
    b = _mm256_add_epi64(b, load_line(first + quarter + i));
    c = _mm256_add_epi64(c, load_line(first + 2 * quarter + i));
    d = _mm256_add_epi64(d, load_line(first + 3 * quarter + i));
  }
  alignas(32) uint64_t lanes[8] = {};
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes),
                     _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d)));
  return sum_generic(lanes);
}

__attribute__((target("avx512f"))) uint64_t sum_avx512(std::span<const uint64_t> words) {
  const size_t quarter = words.size() / 4;
  const uint64_t* const first = words.data();
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (size_t i = 0; i < quarter; i += 8) {
    a = _mm512_add_epi64(a, _mm512_load_si512(first + i));
    b = _mm512_add_epi64(b, _mm512_load_si512(first + quarter + i));
    c = _mm512_add_epi64(c, _mm512_load_si512(first + 2 * quarter + i));
    d = _mm512_add_epi64(d, _mm512_load_si512(first + 3 * quarter + i));
  }
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, _mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d)));
  return sum_generic(lanes);
}

// Named variables, because gcc leaves an array of vectors on the stack. The empty asm stops the
// compiler from reasoning about the values.

__attribute__((target("avx2,fma"))) float multiply_add_avx2(int64_t rounds) {
  const __m256 factor = _mm256_set1_ps(kFactor), term = _mm256_set1_ps(kTerm);
  __m256 total = _mm256_setzero_ps();
#define SLUICE_CHAIN(i) __m256 chain##i = _mm256_set1_ps(i);
  SLUICE_EACH_CHAIN(SLUICE_CHAIN)
#undef SLUICE_CHAIN
  for (int64_t r = 0; r < rounds; ++r) {
#define SLUICE_CHAIN(i)                               \
  chain##i = _mm256_fmadd_ps(chain##i, factor, term); \
  asm volatile("" : "+x"(chain##i));
    SLUICE_EACH_CHAIN(SLUICE_CHAIN)
#undef SLUICE_CHAIN
  }
#define SLUICE_CHAIN(i) total = _mm256_add_ps(total, chain##i);
  SLUICE_EACH_CHAIN(SLUICE_CHAIN)
#undef SLUICE_CHAIN
  return _mm256_cvtss_f32(total);
}

__attribute__((target("avx512f"))) float multiply_add_avx512(int64_t rounds) {
  const __m512 factor = _mm512_set1_ps(kFactor), term = _mm512_set1_ps(kTerm);
  __m512 total = _mm512_setzero_ps();
#define SLUICE_CHAIN(i) __m512 chain##i = _mm512_set1_ps(i);
  SLUICE_EACH_CHAIN(SLUICE_CHAIN)
#undef SLUICE_CHAIN
  for (int64_t r = 0; r < rounds; ++r) {
#define SLUICE_CHAIN(i)                               \
  chain##i = _mm512_fmadd_ps(chain##i, factor, term); \
  asm volatile("" : "+v"(chain##i));
    SLUICE_EACH_CHAIN(SLUICE_CHAIN)
#undef SLUICE_CHAIN
  }
#define SLUICE_CHAIN(i) total = _mm512_add_ps(total, chain##i);
  SLUICE_EACH_CHAIN(SLUICE_CHAIN)
#undef SLUICE_CHAIN
  return _mm512_cvtss_f32(total);
}

__attribute__((target("avx512f,avx512vnni"))) int32_t int8_dot_avx512(int64_t rounds) {
  const __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(-1);
  __m512i total = _mm512_setzero_si512();
#define SLUICE_CHAIN(i) __m512i chain##i = _mm512_set1_epi32(i);
  SLUICE_EACH_CHAIN(SLUICE_CHAIN)
#undef SLUICE_CHAIN
  for (int64_t r = 0; r < rounds; ++r) {
#define SLUICE_CHAIN(i)                           \
  chain##i = _mm512_dpbusd_epi32(chain##i, a, b); \
  asm volatile("" : "+v"(chain##i));
    SLUICE_EACH_CHAIN(SLUICE_CHAIN)
#undef SLUICE_CHAIN
  }
#define SLUICE_CHAIN(i) total = _mm512_add_epi32(total, chain##i);
  SLUICE_EACH_CHAIN(SLUICE_CHAIN)
#undef SLUICE_CHAIN
  return _mm512_cvtsi512_si32(total);
}

#if defined(__GNUC__)
#define SLUICE_AMX __attribute__((target("avx512f,amx-tile,amx-int8")))
constexpr int64_t kTileRounds = 4, kTileOperations = 2 * 16 * 16 * 64;

// Four sums, two tiles of either operand: as much as eight registers allow.
SLUICE_AMX int32_t int8_dot_amx(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  alignas(64) int32_t sums[16 * 16];
  _tile_stored(0, sums, 64);
  _tile_release();
  return sums[0];
}
#endif

bool has_avx512_vnni() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni");
  return has && !machine_limited_to_avx2();
}

bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has;
}
bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f");
  return has && !machine_limited_to_avx2();
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
    return rounds * kChains * 16 * 2;
  }
  if (has_avx2()) {
    return rounds * kChains * 8 * 2;
  }
#endif
  return rounds * kChains * 4 * 2;
}

int32_t int8_dot(int64_t rounds) {
#if defined(__x86_64__)
#if defined(__GNUC__)
  if (amx_int8_usable()) {
    return int8_dot_amx(rounds);
  }
#endif
  if (has_avx512_vnni()) {
    return int8_dot_avx512(rounds);
  }
#endif
  return 0;
}

int64_t operations_of_int8_dot(int64_t rounds) {
#if defined(__x86_64__)
#if defined(__GNUC__)
  if (amx_int8_usable()) {
    return rounds * kTileRounds * kTileOperations;
  }
#endif
  if (has_avx512_vnni()) {
    return rounds * kChains * 64 * 2;
  }
#endif
  return 0;
}

}  // namespace sluice::probe
