// What the files of the AVX-512 VNNI products share (packed_dot_vnni*.cpp); internal.
#pragma once
#include "sluice/engine/kernel/packed_dot_path.h"

#if defined(__x86_64__) && defined(__GNUC__)

// gcc 12 takes the undefined operands inside its own intrinsics for mistakes once they are inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cstring>

#define SLUICE_VNNI \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma,avx2")))
#define SLUICE_VNNI_INLINE SLUICE_VNNI __attribute__((always_inline)) static inline

namespace sluice::engine::vnni {

using bundle::Format;
using bundle::PackedMatrix;

// Columns after which 32-bit sums are added to 64-bit ones: 2^16 products of 255 x 127 still fit. A
// multiple of every step below.
constexpr int64_t kBlock = int64_t{1} << 16;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr bool is_float(Format f) { return f == Format::f32 || f == Format::bf16; }

// A prepared row: header, then `values` (floats, or int8 codes), then what the format adds.
struct Places {
  int64_t padded;  ///< columns
  int64_t values = sizeof(DotHeader), extra = 0, end = 0;
};

// extra: codes that meet groups: 32-bit starting sums (16 per vector of codes), i4-32-min: sums of
// the groups as floats; mixed: activations of the salient columns.
inline Places places(Format format, DotKind kind, int64_t columns) {
  Places p;
  p.padded = round_up(columns, 512);
  const bool codes = kind == DotKind::i8 && !is_float(format);
  p.extra = p.values + p.padded * (codes ? 1 : 4);
  int64_t bytes = 0;
  if (codes && format == Format::i8_group) bytes = p.padded;      // 64 bytes per 64 columns
  if (codes && format == Format::i4_group) bytes = p.padded / 2;  // 64 bytes per 128 columns
  if (codes && format == Format::i4_group_min) bytes = round_up(p.padded / 32, 16) * 4;
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

SLUICE_VNNI_INLINE __mmask16 first16(int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xFFFF : (1u << (n < 0 ? 0 : n)) - 1);
}
SLUICE_VNNI_INLINE __mmask64 first64(int64_t n) {
  return n >= 64 ? ~0ull : n <= 0 ? 0 : (1ull << n) - 1;
}

template <int B>
struct Inputs {
  const std::byte* row[B];
  Places p;
  // Asks for what follows after the codes at `now`: in consecutive rows, across their ends.
  int64_t distance[kMostStreams];
  bool closest = false;
  SLUICE_VNNI __attribute__((always_inline)) inline void ahead(const std::byte* now,
                                                               int r = 0) const {
    const auto* at = reinterpret_cast<const char*>(now + distance[r]);
    if (closest)
      _mm_prefetch(at, _MM_HINT_T0);
    else
      _mm_prefetch(at, _MM_HINT_T1);
  }
  const DotHeader& header(int b) const { return *at<DotHeader>(row[b], 0); }
  const int8_t* codes(int b) const { return at<int8_t>(row[b], p.values); }
  const float* floats(int b) const { return at<float>(row[b], p.values); }
  template <class T>
  const T* extra(int b) const {
    return at<T>(row[b], p.extra);
  }
};

// Independent sums per row of x: enough to hide the latency of vpdpbusd. Integer sums may be split
// as the registers allow.
template <int B>
constexpr int kChains = B == 1   ? 4
                        : B <= 4 ? 2
                                 : 1;

template <int N>
SLUICE_VNNI_INLINE int64_t total(const __m512i (&sums)[N]) {
  __m512i sum = sums[0];
  for (int c = 1; c < N; ++c) sum = _mm512_add_epi32(sum, sums[c]);
  return _mm512_reduce_add_epi32(sum);
}

SLUICE_VNNI_INLINE float load_f32(const std::byte* from) {
  float value;
  std::memcpy(&value, from, 4);
  return value;
}

// a b + c, rounded once. Left to the compiler, one instance of a function gets another sum of
// products than the next, and rows other numbers alone than together.
SLUICE_VNNI_INLINE float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// 16 scales as floats, zeros behind the last group.
SLUICE_VNNI_INLINE __m512 scales16(const std::byte* from, int64_t left) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first16(left), from));
}

constexpr int64_t kCache = 256 << 10;  // bytes of rows between parts of a batch

constexpr bool has_groups(Format f) {
  return f == Format::i8_group || f == Format::i4_group || f == Format::i4_group_min;
}
/// Rows of x that one pass over the weights serves.
constexpr int64_t most_rows(Format f, bool codes) { return codes && !has_groups(f) ? 8 : 4; }
/// Rows of weights that go by side by side and meet `batch` rows of x, 2 or more: as many as leave
/// registers for the sums of each with each. Loads of x are shared among them.
constexpr int side_by_side(Format f, bool codes, int batch) {
  if (!codes) return 4;
  return has_groups(f) ? (batch <= 2 ? 2 : 4) : batch == 2 || batch == 8 ? 2 : 4;
}

/// What suits this processor; 1, 2 or 4 rows for one row of x. One stream of reads gets 13 to 23
/// GB/s out of a Zen 4 core, four that ask 512 bytes ahead 30 (the scales of groups are streams,
/// too). Cores of Intel with AMX read as fast in one: in several, groups and ternary codes went
/// from 85 to 92% of the bandwidth down to 71 to 84%. A Zen 5 follows two streams by itself: one
/// row of i8 takes 0.38 ms, 0.50 as on a Zen 4, 0.43 in one stream; bits, whose products take
/// longer, are asked for, and the rows of a list are wanted in the first-level cache (a sparse FFN
/// of i4-32 takes 0.28 to 0.30 of dense, 0.32 to 0.33 from the second).
Reading reading_of(Format format, bool codes, int64_t batch, bool listed);
/// The fewest rows that it gives.
constexpr int fewest_rows(Format f, bool codes) {
  if (!codes) return is_float(f) ? 2 : 4;
  return has_groups(f) || f == Format::ternary ? 1 : f == Format::i8 ? 2 : 4;
}

#define SLUICE_DOT_TARGET SLUICE_VNNI
#define SLUICE_DOT_INLINE SLUICE_VNNI_INLINE
#include "sluice/engine/kernel/packed_dot_rows-inl.h"

}  // namespace sluice::engine::vnni

#endif
