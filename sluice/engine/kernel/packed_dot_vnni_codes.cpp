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

// sum (q + 128) x over `count` int8 weights.
template <int B>
SLUICE_VNNI_INLINE void dot_bytes(const std::byte* w, int64_t count, const int8_t* const (&x)[B],
                                  int64_t ahead, int64_t (&out)[B]) {
  constexpr int C = kChains<B>;
  const __m512i flip = _mm512_set1_epi8(-128);
  for (int b = 0; b < B; ++b) out[b] = 0;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t last = least(count, first + kBlock);
    __m512i sums[B][C];
    for (int b = 0; b < B; ++b)
      for (int c = 0; c < C; ++c) sums[b][c] = _mm512_setzero_si512();
    int64_t i = first;
    for (; i + 64 * C <= last; i += 64 * C) {
      for (int c = 0; c < C; ++c) {
        _mm_prefetch(reinterpret_cast<const char*>(w + i + 64 * c + ahead), _MM_HINT_T1);
        const __m512i u = _mm512_xor_si512(flip, _mm512_loadu_si512(w + i + 64 * c));
        for (int b = 0; b < B; ++b) add_products(sums[b][c], u, x[b] + i + 64 * c);
      }
    }
    for (; i < last; i += 64) {
      const __m512i u = _mm512_xor_si512(flip, _mm512_maskz_loadu_epi8(first64(last - i), w + i));
      for (int b = 0; b < B; ++b)
        sums[b][0] = _mm512_dpbusd_epi32(sums[b][0], u, _mm512_loadu_si512(x[b] + i));
    }
    for (int b = 0; b < B; ++b) out[b] += total(sums[b]);
  }
}

// Sums of x where bits of a plane are set. For few rows of x each bit of the bytes has its own sum
// and is only masked; for many, the registers do not suffice, and shifting is shared by all.
template <int B>
SLUICE_VNNI_INLINE void dot_bits(const std::byte* w, int64_t plane, const Inputs<B>& in,
                                 int64_t (&out)[B]) {
  constexpr bool kMasked = B <= 2;
  constexpr int C = kMasked ? 8 : 2;
  for (int b = 0; b < B; ++b) out[b] = 0;
  for (int64_t first = 0; first < plane; first += kBlock / 8) {
    const int64_t last = least(plane, first + kBlock / 8);
    __m512i sums[B][C];
    for (int b = 0; b < B; ++b)
      for (int c = 0; c < C; ++c) sums[b][c] = _mm512_setzero_si512();
    const auto step = [&](int64_t i, __m512i bits) SLUICE_VNNI __attribute__((always_inline)) {
      in.ahead(w + i);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        const __m512i u = kMasked
                              ? _mm512_and_si512(bits, _mm512_set1_epi8(static_cast<char>(1 << j)))
                              : _mm512_and_si512(_mm512_srli_epi16(bits, static_cast<unsigned>(j)),
                                                 _mm512_set1_epi8(1));
        for (int b = 0; b < B; ++b) add_products(sums[b][j % C], u, in.codes(b) + 8 * i + 64 * j);
      }
    };
    int64_t i = first;
    for (; i + 64 <= last; i += 64) step(i, _mm512_loadu_si512(w + i));
    if (i < last) step(i, _mm512_maskz_loadu_epi8(first64(last - i), w + i));
    for (int b = 0; b < B; ++b) {
      if (kMasked) {
        for (unsigned j = 1; j < 8; ++j) sums[b][j % C] = _mm512_srai_epi32(sums[b][j % C], j);
      }
      out[b] += total(sums[b]);
    }
  }
}

template <int B>
SLUICE_VNNI_INLINE void i8_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                               const Inputs<B>& in, float (&y)[B]) {
  const int8_t* x[B];
  for (int b = 0; b < B; ++b) x[b] = in.codes(b);
  int64_t sums[B];
  dot_bytes<B>(codes, columns, x, in.distance, sums);
  for (int b = 0; b < B; ++b)
    y[b] = load_f32(scales) * static_cast<float>(sums[b] - 128 * in.header(b).code_sum);
}

// Lane l of vector v belongs to group v x per_vector + l / (16 / per_vector).
SLUICE_VNNI_INLINE __m512i spread(int vector, int per_vector) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_add_epi32(_mm512_srli_epi32(lane, per_vector == 2 ? 3 : 2),
                          _mm512_set1_epi32(vector * per_vector));
}

template <int B>
SLUICE_VNNI_INLINE void i8_group_row(const std::byte* codes, const std::byte* scales,
                                     int64_t columns, const Inputs<B>& in, float (&y)[B]) {
  const int64_t groups = (columns + 31) / 32, bytes = groups * 32;
  const __m512i flip = _mm512_set1_epi8(-128);
  __m512 sums[B];
  for (int b = 0; b < B; ++b) sums[b] = _mm512_setzero_ps();
  for (int64_t i = 0; i < bytes; i += 512) {  // 16 groups
    const __m512 s = scales16(scales + i / 16, groups - i / 32);
    const int vectors = static_cast<int>(least(8, (bytes - i + 63) / 64));
    const auto step = [&](int v, __m512i u) SLUICE_VNNI __attribute__((always_inline)) {
      in.ahead(codes + i + 64 * v);
      const __m512 factor = _mm512_permutexvar_ps(spread(v, 2), s);
      for (int b = 0; b < B; ++b) {
        const __m512i sum = _mm512_dpbusd_epi32(
            _mm512_load_si512(in.template extra<int32_t>(b) + i / 4 + 16 * v),
            _mm512_xor_si512(flip, u), _mm512_load_si512(in.codes(b) + i + 64 * v));
        sums[b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, sums[b]);
      }
    };
    if (i + 512 <= bytes) {
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) step(v, _mm512_loadu_si512(codes + i + 64 * v));
    } else {
      for (int v = 0; v < vectors; ++v)
        step(v, _mm512_maskz_loadu_epi8(first64(bytes - i - 64 * v), codes + i + 64 * v));
    }
  }
  for (int b = 0; b < B; ++b) y[b] = _mm512_reduce_add_ps(sums[b]);
}

template <int B, bool kMin>
SLUICE_VNNI_INLINE void i4_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                               const Inputs<B>& in, float (&y)[B]) {
  const int64_t groups = (columns + 31) / 32, bytes = groups * 16;
  const __m512i low = _mm512_set1_epi8(15);
  __m512 sums[B];
  for (int b = 0; b < B; ++b) sums[b] = _mm512_setzero_ps();
  for (int64_t i = 0; i < bytes; i += 256) {  // 16 groups
    const __m512 s = scales16(scales + i / 8, groups - i / 16);
    const auto step = [&](int v, __m512i w) SLUICE_VNNI __attribute__((always_inline)) {
      in.ahead(codes + i + 64 * v);
      const __m512i a = _mm512_and_si512(w, low),
                    c = _mm512_and_si512(_mm512_srli_epi16(w, 4), low);
      const __m512 factor = _mm512_permutexvar_ps(spread(v, 4), s);
      for (int b = 0; b < B; ++b) {
        const int8_t* x = in.codes(b) + 2 * i + 128 * v;
        const __m512i start =
            kMin ? _mm512_setzero_si512()
                 : _mm512_load_si512(in.template extra<int32_t>(b) + i / 4 + 16 * v);
        const __m512i sum = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(start, a, _mm512_load_si512(x)),
                                                c, _mm512_load_si512(x + 64));
        sums[b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, sums[b]);
      }
    };
    if (i + 256 <= bytes) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) step(v, _mm512_loadu_si512(codes + i + 64 * v));
    } else {
      for (int v = 0; i + 64 * v < bytes; ++v)
        step(v, _mm512_maskz_loadu_epi8(first64(bytes - i - 64 * v), codes + i + 64 * v));
    }
    if (kMin) {
      const __m512 minimum = scales16(scales + 2 * groups + i / 8, groups - i / 16);
      for (int b = 0; b < B; ++b)
        sums[b] =
            _mm512_fmadd_ps(minimum, _mm512_load_ps(in.template extra<float>(b) + i / 16), sums[b]);
    }
  }
  for (int b = 0; b < B; ++b) y[b] = _mm512_reduce_add_ps(sums[b]);
}

template <int B>
SLUICE_VNNI_INLINE void ternary_row(const std::byte* codes, const std::byte* scales,
                                    int64_t columns, const Inputs<B>& in, float (&y)[B]) {
  const int64_t bytes = (columns + 63) / 64 * 16;
  // As in dot_bits: masked in place while there are registers for four sums each, else shifted.
  constexpr bool kMasked = B <= 4;
  constexpr int C = kMasked ? 4 : 1;
  const __m512i field = _mm512_set1_epi8(3);
  int64_t sums[B];
  for (int b = 0; b < B; ++b) sums[b] = 0;
  for (int64_t first = 0; first < bytes; first += kBlock / 4) {
    const int64_t last = least(bytes, first + kBlock / 4);
    __m512i part[B][C];
    for (int b = 0; b < B; ++b)
      for (int c = 0; c < C; ++c) part[b][c] = _mm512_setzero_si512();
    const auto step = [&](int64_t i, __m512i w) SLUICE_VNNI __attribute__((always_inline)) {
      in.ahead(codes + i);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const __m512i u =
            kMasked ? _mm512_and_si512(w, _mm512_slli_epi16(field, static_cast<unsigned>(2 * j)))
                    : _mm512_and_si512(_mm512_srli_epi16(w, static_cast<unsigned>(2 * j)), field);
        for (int b = 0; b < B; ++b) add_products(part[b][j % C], u, in.codes(b) + 4 * i + 64 * j);
      }
    };
    int64_t i = first;
    for (; i + 64 <= last; i += 64) step(i, _mm512_loadu_si512(codes + i));
    if (i < last) step(i, _mm512_maskz_loadu_epi8(first64(last - i), codes + i));
    for (int b = 0; b < B; ++b) {
      if (kMasked) {
        for (unsigned c = 1; c < 4; ++c) part[b][c % C] = _mm512_srai_epi32(part[b][c % C], 2 * c);
      }
      sums[b] += total(part[b]);
    }
  }
  for (int b = 0; b < B; ++b)
    y[b] = load_f32(scales) * static_cast<float>(sums[b] - in.header(b).code_sum);
}

template <int B, int P>
SLUICE_VNNI_INLINE void binary_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                                   const Inputs<B>& in, float (&y)[B]) {
  for (int b = 0; b < B; ++b) y[b] = 0;
  for (int k = 0; k < P; ++k) {
    int64_t sums[B];
    dot_bits<B>(codes + k * bit_plane_bytes(columns), bit_plane_bytes(columns), in, sums);
    for (int b = 0; b < B; ++b)
      y[b] += load_f32(scales + 4 * k) * static_cast<float>(2 * sums[b] - in.header(b).code_sum);
  }
}

template <int B>
SLUICE_VNNI_INLINE void mixed_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                                  const Inputs<B>& in, float (&y)[B]) {
  int64_t bits[B], eight[B];
  const int64_t plane = bit_plane_bytes(columns);
  dot_bits<B>(codes, plane, in, bits);
  const int8_t* x[B];
  for (int b = 0; b < B; ++b) x[b] = in.template extra<int8_t>(b);
  dot_bytes<B>(codes + plane, bundle::salient_columns(columns), x, in.distance, eight);
  for (int b = 0; b < B; ++b)
    y[b] = load_f32(scales) * static_cast<float>(eight[b] - 128 * in.header(b).salient_sum) +
           load_f32(scales + 4) * static_cast<float>(2 * bits[b] - in.header(b).code_sum);
}

template <Format kFormat>
struct RowProduct {
  static constexpr int64_t kMost = kMostCodes;
  template <int B>
  SLUICE_VNNI_INLINE void row(const std::byte* codes, const std::byte* scales, int64_t columns,
                              const Inputs<B>& in, float (&y)[B]) {
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
  run_format<RowProduct, false>(w, x, rows, y, y_stride);
}

}  // namespace sluice::engine::vnni

#endif
