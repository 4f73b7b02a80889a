// One row of int8 activations with AVX2: three rows of weights, a third of all rows apart, go by
// side by side. A core has more reads under way in several streams than in one: 25 GB/s for 20 on a
// Zen 3. Of two, three and four streams three suit all formats: four have too few registers.
// Numbers are those of the rows one by one (packed_dot_avx2_codes.cpp).
#include "sluice/engine/kernel/packed_dot_avx2.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace sluice::engine::avx2 {
namespace {

constexpr int R = 3;

// A row's cache line is used up before the next row's turn: lines whose addresses agree in the
// lowest 12 bits, as those of most rows do, are in each other's way (Zen 3: three cycles a load).
SLUICE_AVX2_INLINE void ahead(const std::byte* const (&codes)[R], const Inputs<1>& in, int64_t at) {
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) in.ahead(codes[r] + at, r);
}

SLUICE_AVX2_INLINE __m256i widen(__m256i sums, int factor = 1) {
  return _mm256_madd_epi16(sums, _mm256_set1_epi16(static_cast<int16_t>(factor)));
}

/// sum q x over `count` int8 weights.
SLUICE_AVX2_INLINE void dot_bytes(const std::byte* const (&w)[R], int64_t count, const int8_t* x,
                                  const Inputs<1>& in, int64_t (&out)[R]) {
  for (int r = 0; r < R; ++r) out[r] = 0;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t last = least(count, first + kBlock);
    __m256i sums[R];
    for (int r = 0; r < R; ++r) sums[r] = _mm256_setzero_si256();
    const auto step = [&](int r, __m256i q, __m256i v) SLUICE_AVX2 __attribute__((always_inline)) {
      sums[r] = _mm256_add_epi32(
          sums[r], widen(_mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(v, q))));
    };
    int64_t i = first;
    for (; i + 64 <= last; i += 64) {
      ahead(w, in, i);
      const __m256i v[2] = {load(x + i), load(x + i + 32)};
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) {
        step(r, load(w[r] + i), v[0]);
        step(r, load(w[r] + i + 32), v[1]);
      }
    }
    for (; i < last; i += 32)
      for (int r = 0; r < R; ++r) step(r, load_some(w[r] + i, last - i), load(x + i));
    for (int r = 0; r < R; ++r) out[r] += total(sums[r]);
  }
}

SLUICE_AVX2_INLINE void i8_rows(const Streams<R>& w, int64_t columns, const Inputs<1>& in,
                                float (&y)[R][1]) {
  int64_t sums[R];
  dot_bytes(w.codes, columns, in.codes(0), in, sums);
  for (int r = 0; r < R; ++r) y[r][0] = load_f32(w.scales[r]) * static_cast<float>(sums[r]);
}

SLUICE_AVX2_INLINE void i8_group_rows(const Streams<R>& w, int64_t columns, const Inputs<1>& in,
                                      float (&y)[R][1]) {
  const int64_t groups = (columns + 31) / 32;
  const int8_t* x = in.codes(0);
  alignas(32) float s[R][8];
  __m256 sums[R][2];
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
  for (int64_t g = 0; g < groups; g += 8) {
    for (int r = 0; r < R; ++r) _mm256_store_ps(s[r], scales8(w.scales[r] + 2 * g, groups - g));
    const auto add = [&](int r, int v, int c) SLUICE_AVX2 __attribute__((always_inline)) {
      const __m256i q = load(w.codes[r] + 32 * (g + v)), part = load(x + 32 * (g + v));
      const __m256i sum =
          widen(_mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(part, q)));
      sums[r][c] =
          _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_broadcast_ss(s[r] + v), sums[r][c]);
    };
    if (g + 8 <= groups) {
#pragma GCC unroll 4
      for (int v = 0; v < 8; v += 2) {
        ahead(w.codes, in, 32 * (g + v));
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) {
          add(r, v, 0);
          add(r, v + 1, 1);
        }
      }
    } else {
      for (int v = 0; v < groups - g; ++v)
        for (int r = 0; r < R; ++r) add(r, v, 0);
    }
  }
  for (int r = 0; r < R; ++r) y[r][0] = total(_mm256_add_ps(sums[r][0], sums[r][1]));
}

template <bool kMin>
SLUICE_AVX2_INLINE void i4_rows(const Streams<R>& w, int64_t columns, const Inputs<1>& in,
                                float (&y)[R][1]) {
  const int64_t groups = (columns + 31) / 32, bytes = groups * 16;
  const __m256i low = _mm256_set1_epi8(15), halves = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0);
  const int8_t* x = in.codes(0);
  alignas(32) float s[R][8];
  __m256 sums[R][2];
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
  for (int64_t i = 0; i < bytes; i += 128) {  // 8 groups
    for (int r = 0; r < R; ++r)
      _mm256_store_ps(s[r], scales8(w.scales[r] + i / 8, groups - i / 16));
    const auto add = [&](int r, int v, int c, __m256i codes) SLUICE_AVX2
        __attribute__((always_inline)) {
      const __m256i lower = _mm256_and_si256(codes, low),
                    upper = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low);
      // The scales of two groups, a half of the vector each.
      const __m256 two =
          _mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double*>(s[r] + 2 * v)));
      const int8_t* part = x + 2 * i + 64 * v;
      __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(lower, load(part)),
                                     _mm256_maddubs_epi16(upper, load(part + 32)));
      if (!kMin) sum = _mm256_add_epi16(sum, load(in.extra<int16_t>(0) + i / 2 + 16 * v));
      sums[r][c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(widen(sum)),
                                   _mm256_permutevar_ps(two, halves), sums[r][c]);
    };
    if (i + 128 <= bytes) {
#pragma GCC unroll 2
      for (int v = 0; v < 4; v += 2) {
        ahead(w.codes, in, i + 32 * v);
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) {
          add(r, v, 0, load(w.codes[r] + i + 32 * v));
          add(r, v + 1, 1, load(w.codes[r] + i + 32 * v + 32));
        }
      }
    } else {
      for (int v = 0; i + 32 * v < bytes; ++v)
        for (int r = 0; r < R; ++r)
          add(r, v, 0, load_some(w.codes[r] + i + 32 * v, bytes - i - 32 * v));
    }
    if (kMin) {
      const __m256 group_sums = _mm256_load_ps(in.extra<float>(0) + i / 16);
      for (int r = 0; r < R; ++r)
        sums[r][0] = _mm256_fmadd_ps(scales8(w.scales[r] + 2 * groups + i / 8, groups - i / 16),
                                     group_sums, sums[r][0]);
    }
  }
  for (int r = 0; r < R; ++r) y[r][0] = total(_mm256_add_ps(sums[r][0], sums[r][1]));
}

/// As dot_fields() of packed_dot_avx2_codes.cpp: sums of u x of fields of kBits bits, u = 0 to
/// kTop. kPlaces fields are masked in place and have a sum each; others are shifted down to these.
template <int kBits, int kTop, int kPlaces>
SLUICE_AVX2_INLINE void dot_fields(const std::byte* const (&w)[R], int64_t bytes,
                                   const Inputs<1>& in, int64_t (&out)[R]) {
  constexpr int kFields = 8 / kBits, kMask = (1 << kBits) - 1;
  constexpr int kWeight = 1 << (kBits * (kPlaces - 1));  // of the highest place
  // Steps of 32 bytes until the largest 16-bit sum is full.
  constexpr int64_t kSteps = 32767 / (kFields / kPlaces * kTop * kWeight * 2 * 127);
  static_assert(kSteps >= 8);
  for (int r = 0; r < R; ++r) out[r] = 0;
  for (int64_t first = 0; first < bytes; first += kBlock / kFields) {
    const int64_t last = least(bytes, first + kBlock / kFields);
    __m256i wide[R];
    for (int r = 0; r < R; ++r) wide[r] = _mm256_setzero_si256();
    for (int64_t i = first; i < last;) {
      __m256i sums[R][kPlaces];
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < kPlaces; ++p) sums[r][p] = _mm256_setzero_si256();
      const auto step = [&](__m256i(&codes)[R], const int8_t* x) SLUICE_AVX2
          __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int f = 0; f < kFields; ++f) {
          const int p = f % kPlaces;
          const __m256i field = _mm256_set1_epi8(static_cast<char>(kMask << (kBits * p)));
          __m256i v = load(x + 32 * f);
          asm("" : "+x"(v));  // one load for all rows
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            if (f > 0 && p == 0) codes[r] = _mm256_srli_epi16(codes[r], kBits * kPlaces);
            add_now(sums[r][p], _mm256_maddubs_epi16(_mm256_and_si256(codes[r], field), v));
          }
        }
      };
      const int64_t until = least(last, i + 32 * kSteps);
      for (; i + 32 <= until; i += 32) {
        __m256i codes[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          in.ahead(w[r] + i, r);
          codes[r] = load(w[r] + i);
        }
        step(codes, in.codes(0) + kFields * i);
      }
      if (i < until) {
        __m256i codes[R];
        for (int r = 0; r < R; ++r) codes[r] = load_some(w[r] + i, until - i);
        step(codes, in.codes(0) + kFields * i);
        i = until;
      }
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < kPlaces; ++p)
          wide[r] = _mm256_add_epi32(wide[r], widen(sums[r][p], kWeight >> (kBits * p)));
      }
    }
    for (int r = 0; r < R; ++r) out[r] += total(wide[r]) / kWeight;
  }
}

SLUICE_AVX2_INLINE void ternary_rows(const Streams<R>& w, int64_t columns, const Inputs<1>& in,
                                     float (&y)[R][1]) {
  int64_t sums[R];
  dot_fields<2, 2, 2>(w.codes, (columns + 63) / 64 * 16, in, sums);
  for (int r = 0; r < R; ++r)
    y[r][0] = load_f32(w.scales[r]) * static_cast<float>(sums[r] - in.header(0).code_sum);
}

template <int P>
SLUICE_AVX2_INLINE void binary_rows(const Streams<R>& w, int64_t columns, const Inputs<1>& in,
                                    float (&y)[R][1]) {
  const int64_t plane = bit_plane_bytes(columns);
  for (int r = 0; r < R; ++r) y[r][0] = 0;
  for (int k = 0; k < P; ++k) {
    const std::byte* bits[R];
    for (int r = 0; r < R; ++r) bits[r] = w.codes[r] + k * plane;
    int64_t sums[R];
    dot_fields<1, 1, 2>(bits, plane, in, sums);
    for (int r = 0; r < R; ++r)
      y[r][0] +=
          load_f32(w.scales[r] + 4 * k) * static_cast<float>(2 * sums[r] - in.header(0).code_sum);
  }
}

SLUICE_AVX2_INLINE void mixed_rows(const Streams<R>& w, int64_t columns, const Inputs<1>& in,
                                   float (&y)[R][1]) {
  const int64_t plane = bit_plane_bytes(columns);
  int64_t bits[R], eight[R];
  const std::byte* salient[R];
  for (int r = 0; r < R; ++r) salient[r] = w.codes[r] + plane;
  dot_fields<1, 1, 2>(w.codes, plane, in, bits);
  dot_bytes(salient, bundle::salient_columns(columns), in.extra<int8_t>(0), in, eight);
  for (int r = 0; r < R; ++r)
    y[r][0] = load_f32(w.scales[r]) * static_cast<float>(eight[r]) +
              load_f32(w.scales[r] + 4) * static_cast<float>(2 * bits[r] - in.header(0).code_sum);
}

template <Format kFormat>
struct Product {
  template <int, int>
  SLUICE_AVX2_INLINE void rows(const Streams<R>& w, int64_t columns, const Inputs<1>& in,
                               float (&y)[R][1]) {
    if constexpr (kFormat == Format::i8) i8_rows(w, columns, in, y);
    if constexpr (kFormat == Format::i8_group) i8_group_rows(w, columns, in, y);
    if constexpr (kFormat == Format::i4_group) i4_rows<false>(w, columns, in, y);
    if constexpr (kFormat == Format::i4_group_min) i4_rows<true>(w, columns, in, y);
    if constexpr (kFormat == Format::ternary) ternary_rows(w, columns, in, y);
    if constexpr (kFormat == Format::binary) binary_rows<1>(w, columns, in, y);
    if constexpr (kFormat == Format::binary2) binary_rows<2>(w, columns, in, y);
    if constexpr (kFormat == Format::mixed) mixed_rows(w, columns, in, y);
  }
};

}  // namespace

void run_streams(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y) {
  const auto run = [&]<Format kFormat>() {
    run_rows<Product<kFormat>, R, 1>(w, x, 0, reading_of(w.format, true, 1, rows.list != nullptr),
                                     rows, y, 0);
  };
  switch (w.format) {
    case Format::i8:
      return run.template operator()<Format::i8>();
    case Format::i8_group:
      return run.template operator()<Format::i8_group>();
    case Format::i4_group:
      return run.template operator()<Format::i4_group>();
    case Format::i4_group_min:
      return run.template operator()<Format::i4_group_min>();
    case Format::ternary:
      return run.template operator()<Format::ternary>();
    case Format::binary:
      return run.template operator()<Format::binary>();
    case Format::binary2:
      return run.template operator()<Format::binary2>();
    case Format::mixed:
      return run.template operator()<Format::mixed>();
    default:
      return;  // no codes
  }
}

}  // namespace sluice::engine::avx2

#endif
