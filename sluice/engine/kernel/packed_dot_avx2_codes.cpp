// Products of packed weights and int8 activations with AVX2. vpmaddubsw multiplies unsigned bytes
// by signed ones and adds neighbours in 16 bits, where it saturates, so every format is brought to
// bytes u for which two products fit, and what that adds is taken off with sums of the activations:
//   i8       u = |q|, x with the sign of q:   sum q x = sum u x'          (2 x 127 x 127 < 2^15)
//   i4       u = q + 8, as stored:            sum q x = sum u x - 8 sum x
//   ternary  u = q + 1, as stored:            sum q x = sum u x - sum x
//   binary   u = 1 where the bit is set:      sum q x = 2 sum u x - sum x
// Ternary codes and bits stay in 16 bits for several steps, which saves the widening. They are
// masked in place, which multiplies them by powers of two: fields of one weight share a sum, and
// the sums are brought to one weight when they are widened. Activations are permuted once so that
// codes are used in the order in which they unpack.
#include "sluice/engine/kernel/packed_dot_avx2.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace sluice::engine::avx2 {
namespace {

/// 16-bit sums of u x of neighbours.
SLUICE_AVX2_INLINE __m256i products(__m256i u, const int8_t* x) {
  return _mm256_maddubs_epi16(u, load(x));
}

/// 32-bit sums of neighbours times a factor.
SLUICE_AVX2_INLINE __m256i widen(__m256i sums, int factor = 1) {
  return _mm256_madd_epi16(sums, _mm256_set1_epi16(static_cast<int16_t>(factor)));
}

/// sum q x over `count` int8 weights.
template <int B>
SLUICE_AVX2_INLINE void dot_bytes(const std::byte* w, int64_t count, const int8_t* const (&x)[B],
                                  int64_t ahead, int64_t (&out)[B]) {
  constexpr int C = B == 1 ? 4 : 2;
  for (int b = 0; b < B; ++b) out[b] = 0;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t last = least(count, first + kBlock);
    __m256i sums[B][C];
    for (int b = 0; b < B; ++b)
      for (int c = 0; c < C; ++c) sums[b][c] = _mm256_setzero_si256();
    const auto step = [&](int64_t i, int c, __m256i q) SLUICE_AVX2 __attribute__((always_inline)) {
      const __m256i u = _mm256_abs_epi8(q);
      for (int b = 0; b < B; ++b) {
        const __m256i signed_x = _mm256_sign_epi8(load(x[b] + i), q);
        sums[b][c] = _mm256_add_epi32(sums[b][c], widen(_mm256_maddubs_epi16(u, signed_x)));
      }
    };
    int64_t i = first;
    for (; i + 32 * C <= last; i += 32 * C) {
      for (int64_t line = 0; line < C / 2; ++line)
        _mm_prefetch(reinterpret_cast<const char*>(w + i + 64 * line + ahead), _MM_HINT_T0);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) step(i + 32 * c, c, load(w + i + 32 * c));
    }
    for (; i < last; i += 32) step(i, 0, load_some(w + i, last - i));
    for (int b = 0; b < B; ++b) {
      for (int c = 1; c < C; ++c) sums[b][0] = _mm256_add_epi32(sums[b][0], sums[b][c]);
      out[b] += total(sums[b][0]);
    }
  }
}

/// Sums of u x of fields of kBits bits, u = 0 to kTop, of consecutive bytes; field f of the 32
/// bytes from i on meets x[8 / kBits i + 32 f..]. With kMasked the fields of each half of a byte
/// are masked in place and there is a sum for each place; else, where there are too few registers
/// for that, every field is shifted down and all share a sum.
template <int B, int kBits, int kTop, bool kMasked>
SLUICE_AVX2_INLINE void dot_fields(const std::byte* w, int64_t bytes, const Inputs<B>& in,
                                   int64_t (&out)[B]) {
  constexpr int kFields = 8 / kBits, kPlaces = kMasked ? kFields / 2 : 1;
  constexpr int kWeight = 1 << (kBits * (kPlaces - 1));  // of the highest place
  constexpr int kMask = (1 << kBits) - 1;
  // Steps of 32 bytes until the largest 16-bit sum is full.
  constexpr int64_t kSteps = 32767 / (kFields / kPlaces * kTop * kWeight * 2 * 127);
  static_assert(kSteps >= 8);
  for (int b = 0; b < B; ++b) out[b] = 0;
  for (int64_t first = 0; first < bytes; first += kBlock / kFields) {
    const int64_t last = least(bytes, first + kBlock / kFields);
    __m256i wide[B];
    for (int b = 0; b < B; ++b) wide[b] = _mm256_setzero_si256();
    for (int64_t i = first; i < last;) {
      __m256i sums[B][kPlaces];
      for (int b = 0; b < B; ++b)
        for (int p = 0; p < kPlaces; ++p) sums[b][p] = _mm256_setzero_si256();
      const auto step = [&](int64_t from, __m256i codes) SLUICE_AVX2
          __attribute__((always_inline)) {
        const __m256i upper = _mm256_srli_epi16(codes, 4);
#pragma GCC unroll 8
        for (int f = 0; f < kFields; ++f) {
          const __m256i half = f < kFields / 2 ? codes : upper;
          const int p = f % kPlaces;
          const __m256i u =
              kMasked
                  ? _mm256_and_si256(half,
                                     _mm256_set1_epi8(static_cast<char>(kMask << (kBits * p))))
                  : _mm256_and_si256(_mm256_srli_epi16(codes, kBits * f), _mm256_set1_epi8(kMask));
          for (int b = 0; b < B; ++b) {
            const int8_t* x = in.codes(b) + kFields * from + 32 * f;
            add_now(sums[b][p], products(u, x));
          }
        }
      };
      const int64_t until = least(last, i + 32 * kSteps);
      for (; i + 32 <= until; i += 32) {
        in.ahead(w + i);
        step(i, load(w + i));
      }
      if (i < until) {
        step(i, load_some(w + i, until - i));
        i = until;
      }
      for (int b = 0; b < B; ++b) {
#pragma GCC unroll 4
        for (int p = 0; p < kPlaces; ++p)
          wide[b] = _mm256_add_epi32(wide[b], widen(sums[b][p], kWeight >> (kBits * p)));
      }
    }
    for (int b = 0; b < B; ++b) out[b] += total(wide[b]) / kWeight;
  }
}

template <int B>
SLUICE_AVX2_INLINE void i8_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                               const Inputs<B>& in, float (&y)[B]) {
  const int8_t* x[B];
  for (int b = 0; b < B; ++b) x[b] = in.codes(b);
  int64_t sums[B];
  dot_bytes<B>(codes, columns, x, in.distance[0], sums);
  for (int b = 0; b < B; ++b) y[b] = load_f32(scales) * static_cast<float>(sums[b]);
}

// Scaled sums of groups alternate between two sums, for which others would have to wait.
template <int B>
SLUICE_AVX2_INLINE void i8_group_row(const std::byte* codes, const std::byte* scales,
                                     int64_t columns, const Inputs<B>& in, float (&y)[B]) {
  const int64_t groups = (columns + 31) / 32;
  alignas(32) float s[8];
  __m256 sums[B][2];
  for (int b = 0; b < B; ++b) sums[b][0] = sums[b][1] = _mm256_setzero_ps();
  for (int64_t g = 0; g < groups; g += 8) {
    _mm256_store_ps(s, scales8(scales + 2 * g, groups - g));
    const auto step = [&](int v, int c) SLUICE_AVX2 __attribute__((always_inline)) {
      const __m256i q = load(codes + 32 * (g + v)), u = _mm256_abs_epi8(q);
      const __m256 factor = _mm256_broadcast_ss(s + v);
      for (int b = 0; b < B; ++b) {
        const __m256i signed_x = _mm256_sign_epi8(load(in.codes(b) + 32 * (g + v)), q);
        const __m256i sum = widen(_mm256_maddubs_epi16(u, signed_x));
        sums[b][c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), factor, sums[b][c]);
      }
    };
    if (g + 8 <= groups) {
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) {
        if (v % 2 == 0) in.ahead(codes + 32 * (g + v));
        step(v, v % 2);
      }
    } else {
      for (int v = 0; v < groups - g; ++v) step(v, 0);
    }
  }
  for (int b = 0; b < B; ++b) y[b] = total(_mm256_add_ps(sums[b][0], sums[b][1]));
}

template <int B, bool kMin>
SLUICE_AVX2_INLINE void i4_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                               const Inputs<B>& in, float (&y)[B]) {
  const int64_t groups = (columns + 31) / 32, bytes = groups * 16;
  const __m256i low = _mm256_set1_epi8(15);
  __m256 sums[B][2];
  for (int b = 0; b < B; ++b) sums[b][0] = sums[b][1] = _mm256_setzero_ps();
  for (int64_t i = 0; i < bytes; i += 128) {  // 8 groups
    const __m256 s = scales8(scales + i / 8, groups - i / 16);
    const auto step = [&](int v, int c, __m256i w) SLUICE_AVX2 __attribute__((always_inline)) {
      const __m256i lower = _mm256_and_si256(w, low),
                    upper = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
      const __m256 factor = scales_of_two(s, v);
      for (int b = 0; b < B; ++b) {
        const int8_t* x = in.codes(b) + 2 * i + 64 * v;
        __m256i sum = _mm256_add_epi16(products(lower, x), products(upper, x + 32));
        if (!kMin)
          sum = _mm256_add_epi16(sum, load(in.template extra<int16_t>(b) + i / 2 + 16 * v));
        sums[b][c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(widen(sum)), factor, sums[b][c]);
      }
    };
    if (i + 128 <= bytes) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        if (v % 2 == 0) in.ahead(codes + i + 32 * v);
        step(v, v % 2, load(codes + i + 32 * v));
      }
    } else {
      for (int v = 0; i + 32 * v < bytes; ++v)
        step(v, 0, load_some(codes + i + 32 * v, bytes - i - 32 * v));
    }
    if (kMin) {
      const __m256 minimum = scales8(scales + 2 * groups + i / 8, groups - i / 16);
      for (int b = 0; b < B; ++b)
        sums[b][0] = _mm256_fmadd_ps(minimum, _mm256_load_ps(in.template extra<float>(b) + i / 16),
                                     sums[b][0]);
    }
  }
  for (int b = 0; b < B; ++b) y[b] = total(_mm256_add_ps(sums[b][0], sums[b][1]));
}

template <int B>
SLUICE_AVX2_INLINE void ternary_row(const std::byte* codes, const std::byte* scales,
                                    int64_t columns, const Inputs<B>& in, float (&y)[B]) {
  int64_t sums[B];
  dot_fields<B, 2, 2, true>(codes, (columns + 63) / 64 * 16, in, sums);
  for (int b = 0; b < B; ++b)
    y[b] = load_f32(scales) * static_cast<float>(sums[b] - in.header(b).code_sum);
}

template <int B, int P>
SLUICE_AVX2_INLINE void binary_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                                   const Inputs<B>& in, float (&y)[B]) {
  for (int b = 0; b < B; ++b) y[b] = 0;
  for (int k = 0; k < P; ++k) {
    int64_t sums[B];
    dot_fields<B, 1, 1, B <= 2>(codes + k * bit_plane_bytes(columns), bit_plane_bytes(columns), in,
                                sums);
    for (int b = 0; b < B; ++b)
      y[b] += load_f32(scales + 4 * k) * static_cast<float>(2 * sums[b] - in.header(b).code_sum);
  }
}

template <int B>
SLUICE_AVX2_INLINE void mixed_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                                  const Inputs<B>& in, float (&y)[B]) {
  int64_t bits[B], eight[B];
  const int64_t plane = bit_plane_bytes(columns);
  dot_fields<B, 1, 1, B <= 2>(codes, plane, in, bits);
  const int8_t* x[B];
  for (int b = 0; b < B; ++b) x[b] = in.template extra<int8_t>(b);
  dot_bytes<B>(codes + plane, bundle::salient_columns(columns), x, in.distance[0], eight);
  for (int b = 0; b < B; ++b)
    y[b] = load_f32(scales) * static_cast<float>(eight[b]) +
           load_f32(scales + 4) * static_cast<float>(2 * bits[b] - in.header(b).code_sum);
}

template <Format kFormat>
struct Product {
  static constexpr int64_t kMost = most_rows(kFormat, true);
  template <int B>
  static constexpr int kRows = 1;
  static constexpr int kFewest = 1, kWidest = 1;  // run_streams() is for several
  template <int R, int B>
  SLUICE_AVX2_INLINE void rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                               float (&sums)[R][B]) {
    const std::byte *codes = w.codes[0], *scales = w.scales[0];
    float(&y)[B] = sums[0];
    if constexpr (kFormat == Format::i8) i8_row<B>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::i8_group) i8_group_row<B>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::i4_group) i4_row<B, false>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::i4_group_min) i4_row<B, true>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::ternary) ternary_row<B>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::binary) binary_row<B, 1>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::binary2) binary_row<B, 2>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::mixed) mixed_row<B>(codes, scales, columns, in, y);
  }
};

}  // namespace

void run_codes(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
               int64_t y_stride) {
  run_format<Product, false>(w, x, rows, y, y_stride);
}

}  // namespace sluice::engine::avx2

#endif
