// Products of packed weights and int8 activations with AVX-512 VNNI. Every format is
// brought to unsigned bytes u for vpdpbusd (unsigned x signed), and what that adds is taken off
// with sums of the activations:
//   i8       u = q + 128 (a flipped sign bit):   sum q x = sum u x - 128 sum x
//   i4       u = q + 8, as stored:               sum q x = sum u x - 8 sum x
//   ternary  u = q + 1, as stored:               sum q x = sum u x - sum x
//   binary   u = 1 where the bit is set:         sum q x = 2 sum u x - sum x
// Ternary codes and bits are not even shifted: the fields of a byte are masked in place, which
// multiplies them by powers of two; sums of each field are kept apart and divided (exactly) at the
// end. Activations are permuted once so that codes are used in the order in which they unpack.
#include "sluice/engine/kernel/packed_dot_vnni.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace sluice::engine::vnni {
namespace {

// sum += u x, four columns a lane. gcc 12 copies every sum to another register and back around the
// intrinsic in loops of several sums: a third more instructions.
SLUICE_VNNI_INLINE void add_products(__m512i& sum, __m512i u, const int8_t* x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "m"(*reinterpret_cast<const __m512i_u*>(x)));
}
SLUICE_VNNI_INLINE void add_products(__m512i& sum, __m512i u, __m512i x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(x));
}
// The same for R rows of weights and B of x.
template <int R, int B, int C>
SLUICE_VNNI_INLINE void add_products(__m512i (&sums)[R][B][C], int c, const __m512i (&u)[R],
                                     const int8_t* const (&x)[B]) {
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b) {
    if constexpr (R == 1) {
      add_products(sums[0][b][c], u[0], x[b]);
    } else {
      const __m512i shared = _mm512_loadu_si512(x[b]);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) add_products(sums[r][b][c], u[r], shared);
    }
  }
}

// All of u before any is used: masks and products in turns took a fifth more time in a loop of
// nothing else (Zen 4).
template <int R>
SLUICE_VNNI_INLINE void together(__m512i (&u)[R]) {
  if constexpr (R == 3) asm("" : "+v"(u[0]), "+v"(u[1]), "+v"(u[2]));
  if constexpr (R == 4) asm("" : "+v"(u[0]), "+v"(u[1]), "+v"(u[2]), "+v"(u[3]));
}

template <int R, int B, int C>
SLUICE_VNNI_INLINE void clear(__m512i (&sums)[R][B][C]) {
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b)
      for (int c = 0; c < C; ++c) sums[r][b][c] = _mm512_setzero_si512();
}

// sum (q + 128) x over `count` int8 weights.
template <int R, int B>
SLUICE_VNNI_INLINE void dot_bytes(const std::byte* const (&w)[R], int64_t count,
                                  const int8_t* const (&x)[B], const Inputs<B>& in,
                                  int64_t (&out)[R][B]) {
  constexpr int C = R == 1 ? kChains<B> : R * B <= 8 ? 2 : 1;
  const __m512i flip = _mm512_set1_epi8(-128);
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) out[r][b] = 0;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t last = least(count, first + kBlock);
    __m512i sums[R][B][C];
    clear(sums);
    const auto step = [&](int64_t i, int c, __mmask64 mask) SLUICE_VNNI
        __attribute__((always_inline)) {
      __m512i u[R];
      const int8_t* xs[B];
      for (int b = 0; b < B; ++b) xs[b] = x[b] + i;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        in.ahead(w[r] + i, r);
        u[r] = _mm512_xor_si512(flip, ~mask == 0 ? _mm512_loadu_si512(w[r] + i)
                                                 : _mm512_maskz_loadu_epi8(mask, w[r] + i));
      }
      add_products(sums, c, u, xs);
    };
    int64_t i = first;
    for (; i + 64 * C <= last; i += 64 * C) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) step(i + 64 * c, c, ~0ull);
    }
    for (; i < last; i += 64) step(i, 0, first64(last - i));
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b) out[r][b] += total(sums[r][b]);
  }
}

// Sums of u x of fields of kBits bits, u = 0 to 2^kBits - 1, of consecutive bytes; field f of the
// 64 bytes from i on meets x[8 / kBits i + 64 f..]. kPlaces fields are masked in place and have a
// sum each; the others are shifted down to these first. The fewer registers there are for sums, the
// more is shifted, which is shared by all rows of x.
template <int R, int B, int kBits, int kPlaces>
SLUICE_VNNI_INLINE void dot_fields(const std::byte* const (&w)[R], int64_t bytes,
                                   const Inputs<B>& in, int64_t (&out)[R][B]) {
  constexpr int kFields = 8 / kBits;
  constexpr int kMask = (1 << kBits) - 1;
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) out[r][b] = 0;
  for (int64_t first = 0; first < bytes; first += kBlock / kFields) {
    const int64_t last = least(bytes, first + kBlock / kFields);
    __m512i sums[R][B][kPlaces];
    clear(sums);
    const auto step = [&](int64_t i, __mmask64 mask) SLUICE_VNNI __attribute__((always_inline)) {
      __m512i codes[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        in.ahead(w[r] + i, r);
        codes[r] =
            ~mask == 0 ? _mm512_loadu_si512(w[r] + i) : _mm512_maskz_loadu_epi8(mask, w[r] + i);
      }
#pragma GCC unroll 8
      for (int f = 0; f < kFields; ++f) {
        const int p = f % kPlaces;
        const __m512i field = _mm512_set1_epi8(static_cast<char>(kMask << (kBits * p)));
        __m512i u[R];
        const int8_t* x[B];
        for (int b = 0; b < B; ++b) x[b] = in.codes(b) + kFields * i + 64 * f;
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          if (f > 0 && p == 0)
            codes[r] = _mm512_srli_epi16(codes[r], static_cast<unsigned>(kBits * kPlaces));
          u[r] = _mm512_and_si512(codes[r], field);
        }
        together(u);
        add_products(sums, p, u, x);
      }
    };
    int64_t i = first;
    for (; i + 64 <= last; i += 64) step(i, ~0ull);
    if (i < last) step(i, first64(last - i));
    for (int r = 0; r < R; ++r) {
      for (int b = 0; b < B; ++b) {
#pragma GCC unroll 8
        for (int p = 1; p < kPlaces; ++p)
          sums[r][b][p] = _mm512_srai_epi32(sums[r][b][p], static_cast<unsigned>(kBits * p));
        out[r][b] += total(sums[r][b]);
      }
    }
  }
}

template <int R, int B>
SLUICE_VNNI_INLINE void dot_bits(const std::byte* const (&w)[R], int64_t plane, const Inputs<B>& in,
                                 int64_t (&out)[R][B]) {
  dot_fields<R, B, 1, R * B <= 2 ? 8 : R * B <= 4 ? 4 : R * B <= 8 ? 2 : 1>(w, plane, in, out);
}

template <int R>
SLUICE_VNNI_INLINE void behind(const std::byte* const (&codes)[R], int64_t bytes,
                               const std::byte* (&out)[R]) {
  for (int r = 0; r < R; ++r) out[r] = codes[r] + bytes;
}

template <int R, int B>
SLUICE_VNNI_INLINE void i8_rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                                float (&y)[R][B]) {
  const int8_t* x[B];
  for (int b = 0; b < B; ++b) x[b] = in.codes(b);
  int64_t sums[R][B];
  dot_bytes<R, B>(w.codes, columns, x, in, sums);
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b)
      y[r][b] =
          load_f32(w.scales[r]) * static_cast<float>(sums[r][b] - 128 * in.header(b).code_sum);
}

// Lane l of vector v belongs to group v x per_vector + l / (16 / per_vector).
SLUICE_VNNI_INLINE __m512i spread(int vector, int per_vector) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_add_epi32(_mm512_srli_epi32(lane, per_vector == 2 ? 3 : 2),
                          _mm512_set1_epi32(vector * per_vector));
}

template <int R, int B>
SLUICE_VNNI_INLINE void i8_group_rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                                      float (&y)[R][B]) {
  const int64_t groups = (columns + 31) / 32, bytes = groups * 32;
  const __m512i flip = _mm512_set1_epi8(-128);
  __m512 sums[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r][b] = _mm512_setzero_ps();
  for (int64_t i = 0; i < bytes; i += 512) {  // 16 groups
    __m512 s[R];
    for (int r = 0; r < R; ++r) s[r] = scales16(w.scales[r] + i / 16, groups - i / 32);
    const auto step = [&](int v, __mmask64 mask) SLUICE_VNNI __attribute__((always_inline)) {
      __m512i u[R];
      __m512 factor[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const std::byte* codes = w.codes[r] + i + 64 * v;
        in.ahead(codes, r);
        u[r] = _mm512_xor_si512(
            flip, ~mask == 0 ? _mm512_loadu_si512(codes) : _mm512_maskz_loadu_epi8(mask, codes));
        factor[r] = _mm512_permutexvar_ps(spread(v, 2), s[r]);
      }
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        const __m512i start = _mm512_load_si512(in.template extra<int32_t>(b) + i / 4 + 16 * v),
                      x = _mm512_load_si512(in.codes(b) + i + 64 * v);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
          sums[r][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(start, u[r], x)),
                                       factor[r], sums[r][b]);
      }
    };
    if (i + 512 <= bytes) {
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) step(v, ~0ull);
    } else {
      for (int v = 0; i + 64 * v < bytes; ++v) step(v, first64(bytes - i - 64 * v));
    }
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) y[r][b] = _mm512_reduce_add_ps(sums[r][b]);
}

template <int R, int B, bool kMin>
SLUICE_VNNI_INLINE void i4_rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                                float (&y)[R][B]) {
  const int64_t groups = (columns + 31) / 32, bytes = groups * 16;
  const __m512i low = _mm512_set1_epi8(15);
  __m512 sums[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r][b] = _mm512_setzero_ps();
  for (int64_t i = 0; i < bytes; i += 256) {  // 16 groups
    __m512 s[R];
    for (int r = 0; r < R; ++r) s[r] = scales16(w.scales[r] + i / 8, groups - i / 16);
    const auto step = [&](int v, __mmask64 mask) SLUICE_VNNI __attribute__((always_inline)) {
      __m512i a[R], c[R];
      __m512 factor[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const std::byte* codes = w.codes[r] + i + 64 * v;
        in.ahead(codes, r);
        const __m512i both =
            ~mask == 0 ? _mm512_loadu_si512(codes) : _mm512_maskz_loadu_epi8(mask, codes);
        a[r] = _mm512_and_si512(both, low);
        c[r] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        factor[r] = _mm512_permutexvar_ps(spread(v, 4), s[r]);
      }
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        const int8_t* at = in.codes(b) + 2 * i + 128 * v;
        const __m512i x[2] = {_mm512_load_si512(at), _mm512_load_si512(at + 64)};
        const __m512i start =
            kMin ? _mm512_setzero_si512()
                 : _mm512_load_si512(in.template extra<int32_t>(b) + i / 4 + 16 * v);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const __m512i sum =
              _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(start, a[r], x[0]), c[r], x[1]);
          sums[r][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor[r], sums[r][b]);
        }
      }
    };
    if (i + 256 <= bytes) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) step(v, ~0ull);
    } else {
      for (int v = 0; i + 64 * v < bytes; ++v) step(v, first64(bytes - i - 64 * v));
    }
    if (kMin) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m512 minimum = scales16(w.scales[r] + 2 * groups + i / 8, groups - i / 16);
        for (int b = 0; b < B; ++b)
          sums[r][b] = _mm512_fmadd_ps(
              minimum, _mm512_load_ps(in.template extra<float>(b) + i / 16), sums[r][b]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) y[r][b] = _mm512_reduce_add_ps(sums[r][b]);
}

template <int R, int B>
SLUICE_VNNI_INLINE void ternary_rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                                     float (&y)[R][B]) {
  int64_t sums[R][B];
  dot_fields<R, B, 2,
             R * B <= 4   ? 4
             : R * B <= 8 ? 2
                          : 1>(w.codes, (columns + 63) / 64 * 16, in, sums);
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b)
      y[r][b] = load_f32(w.scales[r]) * static_cast<float>(sums[r][b] - in.header(b).code_sum);
}

template <int R, int B, int P>
SLUICE_VNNI_INLINE void binary_rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                                    float (&y)[R][B]) {
  const int64_t plane = bit_plane_bytes(columns);
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) y[r][b] = 0;
  for (int k = 0; k < P; ++k) {
    const std::byte* bits[R];
    behind(w.codes, k * plane, bits);
    int64_t sums[R][B];
    dot_bits<R, B>(bits, plane, in, sums);
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b)
        y[r][b] = multiply_add(load_f32(w.scales[r] + 4 * k),
                               static_cast<float>(2 * sums[r][b] - in.header(b).code_sum), y[r][b]);
  }
}

template <int R, int B>
SLUICE_VNNI_INLINE void mixed_rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                                   float (&y)[R][B]) {
  int64_t bits[R][B], eight[R][B];
  const int64_t plane = bit_plane_bytes(columns);
  dot_bits<R, B>(w.codes, plane, in, bits);
  const int8_t* x[B];
  for (int b = 0; b < B; ++b) x[b] = in.template extra<int8_t>(b);
  const std::byte* salient[R];
  behind(w.codes, plane, salient);
  dot_bytes<R, B>(salient, bundle::salient_columns(columns), x, in, eight);
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b)
      y[r][b] = multiply_add(
          load_f32(w.scales[r]), static_cast<float>(eight[r][b] - 128 * in.header(b).salient_sum),
          load_f32(w.scales[r] + 4) * static_cast<float>(2 * bits[r][b] - in.header(b).code_sum));
}

template <Format kFormat>
struct Product {
  static constexpr int64_t kMost = most_rows(kFormat, true);
  template <int B>
  static constexpr int kRows = side_by_side(kFormat, true, B);
  static constexpr int kFewest = fewest_rows(kFormat, true), kWidest = 4;
  template <int R, int B>
  SLUICE_VNNI_INLINE void rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                               float (&y)[R][B]) {
    if constexpr (kFormat == Format::i8) i8_rows(w, columns, in, y);
    if constexpr (kFormat == Format::i8_group) i8_group_rows(w, columns, in, y);
    if constexpr (kFormat == Format::i4_group) i4_rows<R, B, false>(w, columns, in, y);
    if constexpr (kFormat == Format::i4_group_min) i4_rows<R, B, true>(w, columns, in, y);
    if constexpr (kFormat == Format::ternary) ternary_rows(w, columns, in, y);
    if constexpr (kFormat == Format::binary) binary_rows<R, B, 1>(w, columns, in, y);
    if constexpr (kFormat == Format::binary2) binary_rows<R, B, 2>(w, columns, in, y);
    if constexpr (kFormat == Format::mixed) mixed_rows(w, columns, in, y);
  }
};

}  // namespace

void run_codes(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
               int64_t y_stride) {
  run_format<Product, false>(w, x, rows, y, y_stride);
}

}  // namespace sluice::engine::vnni

#endif
