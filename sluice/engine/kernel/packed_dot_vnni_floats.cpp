// Products of packed weights and float activations with AVX-512: codes become floats in registers.
#include "sluice/engine/kernel/packed_dot_vnni.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace sluice::engine::vnni {
namespace {

// 16 kParts columns as floats, or the first n of them with zeros behind.
struct DecodeF32 {
  static constexpr int64_t kBytes = 4;
  static constexpr int kParts = 1;
  SLUICE_VNNI_INLINE void all(const std::byte* w, __m512 (&v)[1]) { v[0] = _mm512_loadu_ps(w); }
  SLUICE_VNNI_INLINE void some(const std::byte* w, int64_t n, __m512 (&v)[1]) {
    v[0] = _mm512_maskz_loadu_ps(first16(n), w);
  }
};
// Those at even places, then those at odd ones: prepare() brings x into this order.
struct DecodeBf16 {
  static constexpr int64_t kBytes = 2;
  static constexpr int kParts = 2;
  SLUICE_VNNI_INLINE void split(__m512i w, __m512 (&v)[2]) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
    asm("" : "+v"(w));  // or gcc reads memory twice
    v[0] = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    v[1] = _mm512_castsi512_ps(_mm512_and_si512(w, upper));
  }
  SLUICE_VNNI_INLINE void all(const std::byte* w, __m512 (&v)[2]) {
    split(_mm512_loadu_si512(w), v);
  }
  SLUICE_VNNI_INLINE void some(const std::byte* w, int64_t n, __m512 (&v)[2]) {
    const __mmask32 mask = n >= 32 ? 0xFFFFFFFFu : (1u << n) - 1;
    split(_mm512_maskz_loadu_epi16(mask, w), v);
  }
};
struct DecodeI8 {
  static constexpr int64_t kBytes = 1;
  static constexpr int kParts = 1;
  SLUICE_VNNI_INLINE __m512 widen(__m128i w) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(w)); }
  SLUICE_VNNI_INLINE __m512 sixteen(const std::byte* w) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
  }
  SLUICE_VNNI_INLINE void all(const std::byte* w, __m512 (&v)[1]) { v[0] = sixteen(w); }
  SLUICE_VNNI_INLINE void some(const std::byte* w, int64_t n, __m512 (&v)[1]) {
    v[0] = widen(_mm_maskz_loadu_epi8(first16(n), w));
  }
};

template <class Decode, int R, int B>
SLUICE_VNNI_INLINE void float_dot(const std::byte* const (&w)[R], int64_t count,
                                  const float* const (&x)[B], const Inputs<B>& in,
                                  float (&y)[R][B]) {
  constexpr int C = kFloatChains, P = Decode::kParts;
  constexpr int64_t kBytes = Decode::kBytes;
  __m512 sums[R][B][C];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b)
      for (int c = 0; c < C; ++c) sums[r][b][c] = _mm512_setzero_ps();
  const auto add = [&](int r, int64_t i, int c, const __m512(&v)[P]) SLUICE_VNNI
      __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p)
      for (int b = 0; b < B; ++b)
        sums[r][b][c + p] =
            _mm512_fmadd_ps(v[p], _mm512_loadu_ps(x[b] + i + 16 * p), sums[r][b][c + p]);
  };
  int64_t i = 0;
  for (; i + 16 * C <= count; i += 16 * C) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      for (int64_t line = 0; line < kBytes; ++line) in.ahead(w[r] + i * kBytes + 64 * line, r);
#pragma GCC unroll 4
      for (int c = 0; c < C; c += P) {
        __m512 v[P];
        Decode::all(w[r] + (i + 16 * c) * kBytes, v);
        add(r, i + 16 * c, c, v);
      }
    }
  }
  for (; i < count; i += 16 * P) {
    for (int r = 0; r < R; ++r) {
      __m512 v[P];
      Decode::some(w[r] + i * kBytes, count - i, v);
      add(r, i, 0, v);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) y[r][b] = total(sums[r][b]);
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
    const __m512 w0 = DecodeI8::sixteen(codes + 32 * g),
                 w1 = DecodeI8::sixteen(codes + 32 * g + 16);
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
  float eight[1][B];
  float_dot<DecodeI8, 1, B>({codes + bit_plane_bytes(columns)}, bundle::salient_columns(columns), x,
                            in, eight);
  for (int b = 0; b < B; ++b)
    y[b] = load_f32(scales) * eight[0][b] + load_f32(scales + 4) * (2 * bits[b] - in.header(b).sum);
}

template <class Decode, int R, int B>
SLUICE_VNNI_INLINE void plain_rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                                   float (&y)[R][B]) {
  const float* x[B];
  for (int b = 0; b < B; ++b) x[b] = in.floats(b);
  float_dot<Decode, R, B>(w.codes, columns, x, in, y);
}

template <Format kFormat>
struct Product {
  static constexpr int64_t kMost = kMostFloats;
  // Of other formats, unpacking to floats is what takes time.
  static constexpr int kStreams = is_float(kFormat) ? kStreamRows : 1;
  template <int R, int B>
  SLUICE_VNNI_INLINE void rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                               float (&y)[R][B]) {
    const std::byte *codes = w.codes[0], *scales = w.scales[0];
    if constexpr (kFormat == Format::f32) plain_rows<DecodeF32>(w, columns, in, y);
    if constexpr (kFormat == Format::bf16) plain_rows<DecodeBf16>(w, columns, in, y);
    if constexpr (kFormat == Format::i8) {
      plain_rows<DecodeI8>(w, columns, in, y);
      for (int b = 0; b < B; ++b) y[0][b] *= load_f32(scales);
    }
    if constexpr (kFormat == Format::i8_group) i8_group_row<B>(codes, scales, columns, in, y[0]);
    if constexpr (kFormat == Format::i4_group) i4_row<B, false>(codes, scales, columns, in, y[0]);
    if constexpr (kFormat == Format::i4_group_min)
      i4_row<B, true>(codes, scales, columns, in, y[0]);
    if constexpr (kFormat == Format::ternary) ternary_row<B>(codes, scales, columns, in, y[0]);
    if constexpr (kFormat == Format::binary) binary_row<B>(codes, scales, columns, 1, in, y[0]);
    if constexpr (kFormat == Format::binary2) binary_row<B>(codes, scales, columns, 2, in, y[0]);
    if constexpr (kFormat == Format::mixed) mixed_row<B>(codes, scales, columns, in, y[0]);
  }
};

}  // namespace

void run_floats(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
                int64_t y_stride) {
  run_format<Product, true>(w, x, rows, y, y_stride);
}

}  // namespace sluice::engine::vnni

#endif
