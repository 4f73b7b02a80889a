// What the files of the AVX2 products share (packed_dot_avx2*.cpp); internal.
#pragma once
#include "sluice/engine/kernel/packed_dot_path.h"

#if defined(__x86_64__) && defined(__GNUC__)

// gcc 12 takes the undefined operands inside its own intrinsics for mistakes once they are inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cstring>

#define SLUICE_AVX2 __attribute__((target("avx2,fma,f16c")))
#define SLUICE_AVX2_INLINE SLUICE_AVX2 __attribute__((always_inline)) static inline

namespace sluice::engine::avx2 {

using bundle::Format;
using bundle::PackedMatrix;

// Columns after which 32-bit sums are added to 64-bit ones. A multiple of every step below.
constexpr int64_t kBlock = int64_t{1} << 16;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr bool is_float(Format f) { return f == Format::f32 || f == Format::bf16; }

// A prepared row: header, then `values` (floats, or int8 codes, zeros up to `padded`), then what
// the format adds.
struct Places {
  int64_t padded;  ///< columns
  int64_t values = sizeof(DotHeader), extra = 0, end = 0;
};

// extra: codes that meet i4-32: 16-bit starting sums (16 per vector of codes), i4-32-min: sums of
// the groups as floats; mixed: activations of the salient columns.
inline Places places(Format format, DotKind kind, int64_t columns) {
  Places p;
  p.padded = round_up(columns, 512);
  const bool codes = kind == DotKind::i8 && !is_float(format);
  p.extra = p.values + p.padded * (codes ? 1 : 4);
  int64_t bytes = 0;
  if (codes && format == Format::i4_group) bytes = p.padded / 2;  // 32 bytes per 64 columns
  if (codes && format == Format::i4_group_min) bytes = p.padded / 32 * 4;
  if (format == Format::mixed)
    bytes = round_up(bundle::salient_columns(columns), 64) * (codes ? 1 : 4);
  p.end = p.extra + round_up(bytes, 64);
  return p;
}

template <class T>
const T* at(const std::byte* row, int64_t offset) {
  return reinterpret_cast<const T*>(row + offset);
}
template <class T>
T* at(std::byte* row, int64_t offset) {
  return reinterpret_cast<T*>(row + offset);
}

/// One row of x into its prepared form.
void prepare(const PackedMatrix& w, DotKind kind, const float* x, std::byte* out);
/// All rows of x at once with int8 codes of x, or with floats.
void run_codes(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
               int64_t y_stride);
void run_floats(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
                int64_t y_stride);
/// Codes of one row of x: three rows of weights at a time.
void run_streams(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y);
/// Rows of x that one pass over the weights serves: as many as there are registers for.
constexpr int64_t most_rows(Format, bool) { return 4; }
/// Rows of weights that go by side by side and meet `batch` rows of x; loads of x are shared.
constexpr int side_by_side(Format, bool codes, int batch) { return codes ? 1 : batch == 4 ? 2 : 4; }
constexpr int fewest_rows(Format, bool codes) { return codes ? 1 : 4; }

template <int B>
struct Inputs {
  const std::byte* row[B];
  Places p;
  int64_t distance[kMostStreams];  ///< of a stream: to the codes that are asked for ahead
  SLUICE_AVX2 __attribute__((always_inline)) inline void ahead(const std::byte* now,
                                                               int r = 0) const {
    _mm_prefetch(reinterpret_cast<const char*>(now + distance[r]), _MM_HINT_T0);
  }
  const DotHeader& header(int b) const { return *at<DotHeader>(row[b], 0); }
  const int8_t* codes(int b) const { return at<int8_t>(row[b], p.values); }
  const float* floats(int b) const { return at<float>(row[b], p.values); }
  template <class T>
  const T* extra(int b) const {
    return at<T>(row[b], p.extra);
  }
};

SLUICE_AVX2_INLINE __m256i load(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
/// The first n of 32 bytes, behind them zeros; nothing behind is read.
SLUICE_AVX2_INLINE __m256i load_some(const std::byte* from, int64_t n) {
  if (n >= 32) return load(from);
  alignas(32) std::byte part[32] = {};
  std::memcpy(part, from, static_cast<size_t>(n < 0 ? 0 : n));
  return load(part);
}

/// sum += part, 16 bits each, here and now: gcc 12 adds up all parts of a step before it adds them
/// to the sum, and keeps them in memory for that.
SLUICE_AVX2_INLINE void add_now(__m256i& sum, __m256i part) {
  asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(part));
}

SLUICE_AVX2_INLINE int64_t total(__m256i sums) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
}
SLUICE_AVX2_INLINE float total(__m256 sums) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

SLUICE_AVX2_INLINE float load_f32(const std::byte* from) {
  float value;
  std::memcpy(&value, from, 4);
  return value;
}

/// Eight scales as floats, zeros behind the last group.
SLUICE_AVX2_INLINE __m256 scales8(const std::byte* from, int64_t left) {
  if (left >= 8) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return _mm256_cvtph_ps(_mm256_castsi256_si128(load_some(from, 2 * left)));
}

/// Of eight groups' scales those of the two groups that a vector of 4-bit codes holds.
SLUICE_AVX2_INLINE __m256 scales_of_two(__m256 scales, int vector) {
  const __m256i upper = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0);
  return _mm256_permutevar8x32_ps(scales, _mm256_add_epi32(upper, _mm256_set1_epi32(2 * vector)));
}

constexpr int64_t kCache = 128 << 10;  // bytes of rows between parts of a batch
/// One row of codes takes three rows of weights at a time (run_streams), other rows of codes one.
constexpr Reading reading_of(Format, bool codes, int64_t batch, bool listed) {
  if (listed) return {codes ? 1 : 4, 4096};
  if (codes && batch > 1) return {1, 2048};  // 8192: i4-32 40% slower
  return {codes ? 1 : 4, 1024};
}

#define SLUICE_DOT_TARGET SLUICE_AVX2
#define SLUICE_DOT_INLINE SLUICE_AVX2_INLINE
#include "sluice/engine/kernel/packed_dot_rows-inl.h"

}  // namespace sluice::engine::avx2

#endif
