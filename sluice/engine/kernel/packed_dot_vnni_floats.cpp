// Products of packed weights and float activations with AVX-512: codes become floats in registers.
#include "sluice/engine/kernel/packed_dot_vnni.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace sluice::engine::vnni {
namespace {

struct DecodeF32 {
  static constexpr int64_t kBytes = 4;
  SLUICE_VNNI_INLINE __m512 all(const std::byte* w) { return _mm512_loadu_ps(w); }
  SLUICE_VNNI_INLINE __m512 some(const std::byte* w, int64_t n) {
    return _mm512_maskz_loadu_ps(first16(n), w);
  }
};
struct DecodeBf16 {
  static constexpr int64_t kBytes = 2;
  SLUICE_VNNI_INLINE __m512 widen(__m256i w) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(w), 16));
  }
  SLUICE_VNNI_INLINE __m512 all(const std::byte* w) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
  }
  SLUICE_VNNI_INLINE __m512 some(const std::byte* w, int64_t n) {
    return widen(_mm256_maskz_loadu_epi16(first16(n), w));
  }
};
struct DecodeI8 {
  static constexpr int64_t kBytes = 1;
  SLUICE_VNNI_INLINE __m512 widen(__m128i w) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(w)); }
  SLUICE_VNNI_INLINE __m512 all(const std::byte* w) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
  }
  SLUICE_VNNI_INLINE __m512 some(const std::byte* w, int64_t n) {
    return widen(_mm_maskz_loadu_epi8(first16(n), w));
  }
};

template <class Decode, int B>
SLUICE_VNNI_INLINE void float_dot(const std::byte* codes, int64_t count, const float* const (&x)[B],
                                  int64_t ahead, float (&y)[B]) {
  constexpr int C = kFloatChains;
  __m512 sums[B][C];
  for (int b = 0; b < B; ++b)
    for (int c = 0; c < C; ++c) sums[b][c] = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 16 * C <= count; i += 16 * C) {
    for (int64_t line = 0; line < Decode::kBytes; ++line)
      _mm_prefetch(reinterpret_cast<const char*>(codes + i * Decode::kBytes + 64 * line + ahead),
                   _MM_HINT_T0);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const __m512 w = Decode::all(codes + (i + 16 * c) * Decode::kBytes);
      for (int b = 0; b < B; ++b)
        sums[b][c] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x[b] + i + 16 * c), sums[b][c]);
    }
  }
  for (; i < count; i += 16) {
    const __m512 w = Decode::some(codes + i * Decode::kBytes, count - i);
    for (int b = 0; b < B; ++b)
      sums[b][0] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x[b] + i), sums[b][0]);
  }
  for (int b = 0; b < B; ++b) y[b] = total(sums[b]);
}

template <int B>
SLUICE_VNNI_INLINE void i8_group_row(const std::byte* codes, const std::byte* scales,
                                     int64_t columns, const Inputs<B>& in, float (&y)[B]) {
  const int64_t groups = (columns + 31) / 32;
  alignas(64) float s[16];
  __m512 sums[B][2];
  for (int b = 0; b < B; ++b) sums[b][0] = sums[b][1] = _mm512_setzero_ps();
  const auto step = [&](int64_t g, int c) SLUICE_VNNI __attribute__((always_inline)) {
    if (g % 16 == 0) _mm512_store_ps(s, scales16(scales + 2 * g, groups - g));
    if (c == 0) in.ahead(codes + 32 * g);
    const __m512 w0 = DecodeI8::all(codes + 32 * g), w1 = DecodeI8::all(codes + 32 * g + 16);
    const __m512 factor = _mm512_set1_ps(s[g % 16]);
    for (int b = 0; b < B; ++b) {
      const float* x = in.floats(b) + 32 * g;
      const __m512 part =
          _mm512_fmadd_ps(w1, _mm512_load_ps(x + 16), _mm512_mul_ps(w0, _mm512_load_ps(x)));
      sums[b][c] = _mm512_fmadd_ps(part, factor, sums[b][c]);
    }
  };
  int64_t g = 0;
  for (; g + 2 <= groups; g += 2) {
    step(g, 0);
    step(g + 1, 1);
  }
  if (g < groups) step(g, 0);
  for (int b = 0; b < B; ++b) y[b] = total(sums[b]);
}

template <int B, bool kMin>
SLUICE_VNNI_INLINE void i4_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                               const Inputs<B>& in, float (&y)[B]) {
  const int64_t groups = (columns + 31) / 32;
  const __m512 lane = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  // Indices of vpermps are 4 bits: the code's upper neighbour is ignored.
  const __m512 values = kMin ? lane : _mm512_sub_ps(lane, _mm512_set1_ps(8));
  alignas(64) float s[16];
  __m512 sums[B][2];
  for (int b = 0; b < B; ++b) sums[b][0] = sums[b][1] = _mm512_setzero_ps();
  const auto step = [&](int64_t g, int c) SLUICE_VNNI __attribute__((always_inline)) {
    if (g % 16 == 0) _mm512_store_ps(s, scales16(scales + 2 * g, groups - g));
    if (c == 0) in.ahead(codes + 16 * g);
    const __m512i w =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 16 * g)));
    const __m512 w0 = _mm512_permutexvar_ps(w, values),
                 w1 = _mm512_permutexvar_ps(_mm512_srli_epi32(w, 4), values);
    const __m512 factor = _mm512_set1_ps(s[g % 16]);
    for (int b = 0; b < B; ++b) {
      const float* x = in.floats(b) + 32 * g;
      const __m512 part =
          _mm512_fmadd_ps(w1, _mm512_load_ps(x + 16), _mm512_mul_ps(w0, _mm512_load_ps(x)));
      sums[b][c] = _mm512_fmadd_ps(part, factor, sums[b][c]);
    }
  };
  int64_t g = 0;
  for (; g + 2 <= groups; g += 2) {
    step(g, 0);
    step(g + 1, 1);
  }
  if (g < groups) step(g, 0);
  if (kMin) {
    for (g = 0; g < groups; g += 16) {
      const __m512 minimum = scales16(scales + 2 * (groups + g), groups - g);
      for (int b = 0; b < B; ++b)
        sums[b][0] =
            _mm512_fmadd_ps(minimum, _mm512_load_ps(in.template extra<float>(b) + g), sums[b][0]);
    }
  }
  for (int b = 0; b < B; ++b) y[b] = total(sums[b]);
}

template <int B>
SLUICE_VNNI_INLINE void ternary_row(const std::byte* codes, const std::byte* scales,
                                    int64_t columns, const Inputs<B>& in, float (&y)[B]) {
  // The value of the lowest two bits, whatever the next two are.
  const __m512 values = _mm512_set_ps(2, 1, 0, -1, 2, 1, 0, -1, 2, 1, 0, -1, 2, 1, 0, -1);
  constexpr int C = kFloatChains;
  __m512 sums[B][C];
  for (int b = 0; b < B; ++b)
    for (int c = 0; c < C; ++c) sums[b][c] = _mm512_setzero_ps();
  for (int64_t i = 0; i < columns; i += 64) {
    if (i % 256 == 0) in.ahead(codes + i / 4);
    const __m512i w =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i / 4)));
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512 v =
          _mm512_permutexvar_ps(_mm512_srli_epi32(w, static_cast<unsigned>(2 * j)), values);
      for (int b = 0; b < B; ++b)
        sums[b][j % C] =
            _mm512_fmadd_ps(v, _mm512_load_ps(in.floats(b) + i + 16 * j), sums[b][j % C]);
    }
  }
  for (int b = 0; b < B; ++b) y[b] = load_f32(scales) * total(sums[b]);
}

// Sums of the activations where bits are set.
template <int B>
SLUICE_VNNI_INLINE void float_bits(const std::byte* bits, int64_t columns, const Inputs<B>& in,
                                   float (&y)[B]) {
  constexpr int C = kFloatChains;
  __m512 sums[B][C];
  for (int b = 0; b < B; ++b)
    for (int c = 0; c < C; ++c) sums[b][c] = _mm512_setzero_ps();
  for (int64_t i = 0; i < columns; i += 64) {
    if (i % 512 == 0) in.ahead(bits + i / 8);
    uint64_t word;
    std::memcpy(&word, bits + i / 8, 8);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __mmask16 mask = static_cast<__mmask16>(word >> (16 * j));
      for (int b = 0; b < B; ++b)
        sums[b][j % C] = _mm512_mask_add_ps(sums[b][j % C], mask, sums[b][j % C],
                                            _mm512_load_ps(in.floats(b) + i + 16 * j));
    }
  }
  for (int b = 0; b < B; ++b) y[b] = total(sums[b]);
}

template <int B>
SLUICE_VNNI_INLINE void binary_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                                   int planes, const Inputs<B>& in, float (&y)[B]) {
  for (int b = 0; b < B; ++b) y[b] = 0;
  for (int k = 0; k < planes; ++k) {
    float part[B];
    float_bits<B>(codes + k * bit_plane_bytes(columns), columns, in, part);
    for (int b = 0; b < B; ++b) y[b] += load_f32(scales + 4 * k) * (2 * part[b] - in.header(b).sum);
  }
}

template <int B>
SLUICE_VNNI_INLINE void mixed_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                                  const Inputs<B>& in, float (&y)[B]) {
  float bits[B];
  float_bits<B>(codes, columns, in, bits);
  const float* x[B];
  for (int b = 0; b < B; ++b) x[b] = in.template extra<float>(b);
  float_dot<DecodeI8, B>(codes + bit_plane_bytes(columns), bundle::salient_columns(columns), x,
                         in.distance, y);
  for (int b = 0; b < B; ++b)
    y[b] = load_f32(scales) * y[b] + load_f32(scales + 4) * (2 * bits[b] - in.header(b).sum);
}

template <class Decode, int B>
SLUICE_VNNI_INLINE void plain_row(const std::byte* codes, int64_t columns, const Inputs<B>& in,
                                  float (&y)[B]) {
  const float* x[B];
  for (int b = 0; b < B; ++b) x[b] = in.floats(b);
  float_dot<Decode, B>(codes, columns, x, in.distance, y);
}

template <Format kFormat>
struct RowProduct {
  static constexpr int64_t kMost = kMostFloats;
  template <int B>
  SLUICE_VNNI_INLINE void row(const std::byte* codes, const std::byte* scales, int64_t columns,
                              const Inputs<B>& in, float (&y)[B]) {
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
  run_format<RowProduct, true>(w, x, rows, y, y_stride);
}

}  // namespace sluice::engine::vnni

#endif
