// Products of packed weights and float activations with AVX2: codes become floats in registers.
// Codes of less than a byte are taken as 32-bit words, field by field: what one shift brings up
// lies in eight words, and the activations are permuted once into the order that this gives.
#include "sluice/engine/kernel/packed_dot_avx2.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace sluice::engine::avx2 {
namespace {

// Floats always go into the same four sums, f32 and bf16 into two, so that a row of x gives the
// same numbers in a batch of any size and in one of several streams (packed_dot_avx2_streams.cpp).
constexpr int kChains = 4;

template <int B, int C = kChains>
struct Sums {
  __m256 of[B][C];
  SLUICE_AVX2 __attribute__((always_inline)) inline Sums() {
    for (int b = 0; b < B; ++b)
      for (int c = 0; c < C; ++c) of[b][c] = _mm256_setzero_ps();
  }
  /// Chain c += w x.
  SLUICE_AVX2 __attribute__((always_inline)) inline void add(int c, __m256 w,
                                                             const float* const (&x)[B],
                                                             int64_t i) {
    for (int b = 0; b < B; ++b) of[b][c] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x[b] + i), of[b][c]);
  }
  SLUICE_AVX2 __attribute__((always_inline)) inline float sum(int b) const {
    if constexpr (C == 2) return total(_mm256_add_ps(of[b][0], of[b][1]));
    return total(
        _mm256_add_ps(_mm256_add_ps(of[b][0], of[b][1]), _mm256_add_ps(of[b][2], of[b][3])));
  }
};

template <int B>
SLUICE_AVX2_INLINE void values_of(const Inputs<B>& in, const float* (&x)[B]) {
  for (int b = 0; b < B; ++b) x[b] = in.floats(b);
}

/// 32 columns, the rest of a row through a copy with zeros behind it.
struct DecodeF32 {
  static constexpr int64_t kBytes = 4;
  static constexpr int kChains = 2;
  template <int B>
  SLUICE_AVX2_INLINE void add(const std::byte* w, const float* const (&x)[B], int64_t i,
                              Sums<B, 2>& sums) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c)
      sums.add(c % 2, _mm256_loadu_ps(reinterpret_cast<const float*>(w) + 8 * c), x, i + 8 * c);
  }
};
// 16 numbers at a time: those at even places, then those at odd ones.
struct DecodeBf16 {
  static constexpr int64_t kBytes = 2;
  static constexpr int kChains = 2;
  template <int B>
  SLUICE_AVX2_INLINE void add(const std::byte* w, const float* const (&x)[B], int64_t i,
                              Sums<B, 2>& sums) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256i both = load(w + 32 * h);
      sums.add(0, _mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), x, i + 16 * h);
      sums.add(1, _mm256_castsi256_ps(_mm256_and_si256(both, upper)), x, i + 16 * h + 8);
    }
  }
};
struct DecodeI8 {
  static constexpr int64_t kBytes = 1;
  static constexpr int kChains = 4;
  SLUICE_AVX2_INLINE __m256 eight(const std::byte* w) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w))));
  }
  template <int B>
  SLUICE_AVX2_INLINE void add(const std::byte* w, const float* const (&x)[B], int64_t i,
                              Sums<B>& sums) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) sums.add(c, eight(w + 8 * c), x, i + 8 * c);
  }
};

template <class Decode, int B>
SLUICE_AVX2_INLINE void float_dot(const std::byte* codes, int64_t count, const float* const (&x)[B],
                                  int64_t ahead, float (&y)[B]) {
  constexpr int64_t kBytes = Decode::kBytes;
  Sums<B, Decode::kChains> sums;
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    for (int64_t line = 0; line < 32 * kBytes; line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(codes + i * kBytes + line + ahead), _MM_HINT_T0);
    Decode::template add<B>(codes + i * kBytes, x, i, sums);
  }
  if (i < count) {
    alignas(32) std::byte part[32 * kBytes] = {};
    std::memcpy(part, codes + i * kBytes, static_cast<size_t>((count - i) * kBytes));
    Decode::template add<B>(part, x, i, sums);
  }
  for (int b = 0; b < B; ++b) y[b] = sums.sum(b);
}

template <int B>
SLUICE_AVX2_INLINE void i8_group_row(const std::byte* codes, const std::byte* scales,
                                     int64_t columns, const Inputs<B>& in, float (&y)[B]) {
  const int64_t groups = (columns + 31) / 32;
  alignas(32) float s[8];
  const float* x[B];
  values_of(in, x);
  __m256 sums[B];
  for (int b = 0; b < B; ++b) sums[b] = _mm256_setzero_ps();
  for (int64_t g = 0; g < groups; ++g) {
    if (g % 8 == 0) _mm256_store_ps(s, scales8(scales + 2 * g, groups - g));
    in.ahead(codes + 32 * g);
    Sums<B> part;
    DecodeI8::add<B>(codes + 32 * g, x, 32 * g, part);
    const __m256 factor = _mm256_broadcast_ss(s + g % 8);
    for (int b = 0; b < B; ++b) {
      const __m256 sum = _mm256_add_ps(_mm256_add_ps(part.of[b][0], part.of[b][1]),
                                       _mm256_add_ps(part.of[b][2], part.of[b][3]));
      sums[b] = _mm256_fmadd_ps(sum, factor, sums[b]);
    }
  }
  for (int b = 0; b < B; ++b) y[b] = total(sums[b]);
}

template <int B, bool kMin>
SLUICE_AVX2_INLINE void i4_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                               const Inputs<B>& in, float (&y)[B]) {
  const int64_t groups = (columns + 31) / 32, bytes = groups * 16;
  // A code q + 8 with its upper bit flipped is q in four bits of two's complement.
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x88)), low = _mm256_set1_epi32(15);
  const float* x[B];
  values_of(in, x);
  __m256 sums[B];
  for (int b = 0; b < B; ++b) sums[b] = _mm256_setzero_ps();
  const auto step = [&](int64_t i, __m256i w, __m256 factor) SLUICE_AVX2
      __attribute__((always_inline)) {
    if (!kMin) w = _mm256_xor_si256(w, flip);
    __m256 part[B][2];
    for (int b = 0; b < B; ++b) part[b][0] = part[b][1] = _mm256_setzero_ps();
#pragma GCC unroll 8
    for (int n = 0; n < 8; ++n) {
      const __m256i q = kMin ? _mm256_and_si256(_mm256_srli_epi32(w, 4 * n), low)
                             : _mm256_srai_epi32(_mm256_slli_epi32(w, 28 - 4 * n), 28);
      const __m256 value = _mm256_cvtepi32_ps(q);
      for (int b = 0; b < B; ++b)
        part[b][n % 2] =
            _mm256_fmadd_ps(value, _mm256_loadu_ps(x[b] + 2 * i + 8 * n), part[b][n % 2]);
    }
    for (int b = 0; b < B; ++b)
      sums[b] = _mm256_fmadd_ps(_mm256_add_ps(part[b][0], part[b][1]), factor, sums[b]);
  };
  for (int64_t i = 0; i < bytes; i += 128) {  // 8 groups
    const __m256 s = scales8(scales + i / 8, groups - i / 16);
    for (int v = 0; v < 4 && i + 32 * v < bytes; ++v) {
      in.ahead(codes + i + 32 * v);
      step(i + 32 * v, load_some(codes + i + 32 * v, bytes - i - 32 * v), scales_of_two(s, v));
    }
    if (kMin) {
      const __m256 minimum = scales8(scales + 2 * groups + i / 8, groups - i / 16);
      for (int b = 0; b < B; ++b)
        sums[b] =
            _mm256_fmadd_ps(minimum, _mm256_load_ps(in.template extra<float>(b) + i / 16), sums[b]);
    }
  }
  for (int b = 0; b < B; ++b) y[b] = total(sums[b]);
}

template <int B>
SLUICE_AVX2_INLINE void ternary_row(const std::byte* codes, const std::byte* scales,
                                    int64_t columns, const Inputs<B>& in, float (&y)[B]) {
  // The value of the lowest two bits, whatever the others are.
  const __m256 values = _mm256_set_ps(2, 1, 0, -1, 2, 1, 0, -1);
  const int64_t bytes = (columns + 63) / 64 * 16;
  const float* x[B];
  values_of(in, x);
  Sums<B> sums;
  for (int64_t i = 0; i < bytes; i += 32) {
    in.ahead(codes + i);
    const __m256i w = load_some(codes + i, bytes - i);
#pragma GCC unroll 16
    for (int f = 0; f < 16; ++f)
      sums.add(f % kChains, _mm256_permutevar_ps(values, _mm256_srli_epi32(w, 2 * f)), x,
               4 * i + 8 * f);
  }
  for (int b = 0; b < B; ++b) y[b] = load_f32(scales) * sums.sum(b);
}

// Sums of the activations where bits are set.
template <int B>
SLUICE_AVX2_INLINE void float_bits(const std::byte* bits, int64_t columns, const Inputs<B>& in,
                                   float (&y)[B]) {
  const int64_t bytes = bit_plane_bytes(columns);
  const __m256 zero = _mm256_setzero_ps();
  Sums<B> sums;
  for (int64_t i = 0; i < bytes; i += 32) {
    in.ahead(bits + i);
    const __m256i w = load_some(bits + i, bytes - i);
#pragma GCC unroll 32
    for (int f = 0; f < 32; ++f) {
      const __m256 sign = _mm256_castsi256_ps(_mm256_slli_epi32(w, 31 - f));
      for (int b = 0; b < B; ++b) {
        const __m256 x = _mm256_loadu_ps(in.floats(b) + 8 * i + 8 * f);
        __m256& sum = sums.of[b][f % kChains];
        sum = _mm256_add_ps(sum, _mm256_blendv_ps(zero, x, sign));
      }
    }
  }
  for (int b = 0; b < B; ++b) y[b] = sums.sum(b);
}

template <int B>
SLUICE_AVX2_INLINE void binary_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                                   int planes, const Inputs<B>& in, float (&y)[B]) {
  for (int b = 0; b < B; ++b) y[b] = 0;
  for (int k = 0; k < planes; ++k) {
    float part[B];
    float_bits<B>(codes + k * bit_plane_bytes(columns), columns, in, part);
    for (int b = 0; b < B; ++b) y[b] += load_f32(scales + 4 * k) * (2 * part[b] - in.header(b).sum);
  }
}

template <int B>
SLUICE_AVX2_INLINE void mixed_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                                  const Inputs<B>& in, float (&y)[B]) {
  float bits[B];
  float_bits<B>(codes, columns, in, bits);
  const float* x[B];
  for (int b = 0; b < B; ++b) x[b] = in.template extra<float>(b);
  float_dot<DecodeI8, B>(codes + bit_plane_bytes(columns), bundle::salient_columns(columns), x,
                         in.distance[0], y);
  for (int b = 0; b < B; ++b)
    y[b] = load_f32(scales) * y[b] + load_f32(scales + 4) * (2 * bits[b] - in.header(b).sum);
}

template <class Decode, int B>
SLUICE_AVX2_INLINE void plain_row(const std::byte* codes, int64_t columns, const Inputs<B>& in,
                                  float (&y)[B]) {
  const float* x[B];
  values_of(in, x);
  float_dot<Decode, B>(codes, columns, x, in.distance[0], y);
}

template <Format kFormat>
struct Product {
  static constexpr int64_t kMost = most_rows(kFormat, false);
  template <int B>
  static constexpr int kRows = 1;
  static constexpr int kFewest = 1, kAtOnce = 1;  // run_streams() is for several
  template <int R, int B>
  SLUICE_AVX2_INLINE void rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                               float (&sums)[R][B]) {
    const std::byte *codes = w.codes[0], *scales = w.scales[0];
    float(&y)[B] = sums[0];
    if constexpr (kFormat == Format::f32) plain_row<DecodeF32, B>(codes, columns, in, y);
    if constexpr (kFormat == Format::bf16) plain_row<DecodeBf16, B>(codes, columns, in, y);
    if constexpr (kFormat == Format::i8) {
      plain_row<DecodeI8, B>(codes, columns, in, y);
      for (int b = 0; b < B; ++b) y[b] *= load_f32(scales);
    }
    if constexpr (kFormat == Format::i8_group) i8_group_row<B>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::i4_group) i4_row<B, false>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::i4_group_min) i4_row<B, true>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::ternary) ternary_row<B>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::binary) binary_row<B>(codes, scales, columns, 1, in, y);
    if constexpr (kFormat == Format::binary2) binary_row<B>(codes, scales, columns, 2, in, y);
    if constexpr (kFormat == Format::mixed) mixed_row<B>(codes, scales, columns, in, y);
  }
};

}  // namespace

void run_floats(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
                int64_t y_stride) {
  run_format<Product, true>(w, x, rows, y, y_stride);
}

}  // namespace sluice::engine::avx2

#endif
