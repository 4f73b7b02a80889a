// Products of packed weights and float activations with AVX-512: codes become floats in registers,
// exactly (a code times the half float that scales its group has 19 bits at most; only the minimum
// of i4-32-min rounds). Four rows of weights go by side by side: they are streams for the memory,
// sums that do not wait for each other, and share what is loaded of the activations, which, of
// four rows, fill the first-level cache twice.
#include "sluice/engine/kernel/packed_dot_vnni.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace sluice::engine::vnni {
namespace {

// Each decoder holds codes of R rows. load(r, from, i, left) takes those of row r's kChunk columns
// from column i on, kBytes bytes at `from`, of which `left` columns are there; part(r, p) gives the
// p-th 16 of these columns as floats. begin(i) comes before each multiple of 512 columns.
template <int R>
struct DecodeF32 {
  static constexpr int64_t kChunk = 16, kBytes = 64;
  __m512 values[R];
  explicit DecodeF32(const Streams<R>&, int64_t) {}
  void begin(int64_t) {}
  SLUICE_VNNI __attribute__((always_inline)) inline void load(int r, const std::byte* from, int64_t,
                                                              int64_t left) {
    values[r] = left >= 16 ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(first16(left), from);
  }
  SLUICE_VNNI __attribute__((always_inline)) inline __m512 part(int r, int) const {
    return values[r];
  }
};

// The 16 at even places, then those at odd ones: prepare() brings x into this order.
template <int R>
struct DecodeBf16 {
  static constexpr int64_t kChunk = 32, kBytes = 64;
  __m512i pairs[R];
  explicit DecodeBf16(const Streams<R>&, int64_t) {}
  void begin(int64_t) {}
  SLUICE_VNNI __attribute__((always_inline)) inline void load(int r, const std::byte* from, int64_t,
                                                              int64_t left) {
    if (left >= 32) {
      pairs[r] = _mm512_loadu_si512(from);
      asm("" : "+v"(pairs[r]));  // or gcc reads memory twice
    } else {
      pairs[r] = _mm512_maskz_loadu_epi16((1u << left) - 1, from);
    }
  }
  SLUICE_VNNI __attribute__((always_inline)) inline __m512 part(int r, int p) const {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
    return _mm512_castsi512_ps(p == 0 ? _mm512_slli_epi32(pairs[r], 16)
                                      : _mm512_and_si512(pairs[r], upper));
  }
};

SLUICE_VNNI_INLINE __m512 widen(__m128i codes) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}
SLUICE_VNNI_INLINE __m128i load16(const std::byte* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

template <int R>
struct DecodeI8 {
  static constexpr int64_t kChunk = 16, kBytes = 16;
  __m512 values[R];
  explicit DecodeI8(const Streams<R>&, int64_t) {}
  void begin(int64_t) {}
  SLUICE_VNNI __attribute__((always_inline)) inline void load(int r, const std::byte* from, int64_t,
                                                              int64_t left) {
    values[r] = widen(left >= 16 ? load16(from) : _mm_maskz_loadu_epi8(first16(left), from));
  }
  SLUICE_VNNI __attribute__((always_inline)) inline __m512 part(int r, int) const {
    return values[r];
  }
};

// Scales of 16 groups of 32 columns for each of R rows, `behind` scales after those at w.scales.
template <int R>
struct Factors {
  alignas(64) float of[R][16];
  SLUICE_VNNI __attribute__((always_inline)) inline void load(const Streams<R>& w, int64_t behind,
                                                              int64_t left) {
    for (int r = 0; r < R; ++r) _mm512_store_ps(of[r], scales16(w.scales[r] + 2 * behind, left));
  }
};

template <int R>
struct DecodeI8Group {
  static constexpr int64_t kChunk = 32, kBytes = 32;
  const Streams<R>& w;
  const int64_t groups;
  Factors<R> factors;
  const std::byte* codes[R];
  __m512 factor[R];
  DecodeI8Group(const Streams<R>& w, int64_t columns) : w(w), groups((columns + 31) / 32) {}
  SLUICE_VNNI __attribute__((always_inline)) inline void begin(int64_t i) {
    factors.load(w, i / 32, groups - i / 32);
  }
  SLUICE_VNNI __attribute__((always_inline)) inline void load(int r, const std::byte* from,
                                                              int64_t i, int64_t) {
    codes[r] = from;
    factor[r] = _mm512_set1_ps(factors.of[r][i / 32 % 16]);
  }
  SLUICE_VNNI __attribute__((always_inline)) inline __m512 part(int r, int p) const {
    return _mm512_mul_ps(widen(load16(codes[r] + 16 * p)), factor[r]);
  }
};

template <int R, bool kMin>
struct DecodeI4 {
  static constexpr int64_t kChunk = 32, kBytes = 16;
  const Streams<R>& w;
  const int64_t groups;
  Factors<R> factors, minima;
  __m512i codes[R];
  int group = 0;
  DecodeI4(const Streams<R>& w, int64_t columns) : w(w), groups((columns + 31) / 32) {}
  SLUICE_VNNI __attribute__((always_inline)) inline void begin(int64_t i) {
    factors.load(w, i / 32, groups - i / 32);
    if (kMin) minima.load(w, groups + i / 32, groups - i / 32);
  }
  SLUICE_VNNI __attribute__((always_inline)) inline void load(int r, const std::byte* from,
                                                              int64_t i, int64_t) {
    codes[r] = _mm512_cvtepu8_epi32(load16(from));
    group = static_cast<int>(i / 32 % 16);
  }
  SLUICE_VNNI __attribute__((always_inline)) inline __m512 part(int r, int p) const {
    const __m512 lane = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512 values = kMin ? lane : _mm512_sub_ps(lane, _mm512_set1_ps(8));
    // Indices of vpermps are 4 bits: the code's upper neighbour is ignored.
    const __m512 v =
        _mm512_permutexvar_ps(p == 0 ? codes[r] : _mm512_srli_epi32(codes[r], 4), values);
    const __m512 factor = _mm512_set1_ps(factors.of[r][group]);
    return kMin ? _mm512_fmadd_ps(v, factor, _mm512_set1_ps(minima.of[r][group]))
                : _mm512_mul_ps(v, factor);
  }
};

template <int R>
struct DecodeTernary {
  static constexpr int64_t kChunk = 64, kBytes = 16;
  __m512i codes[R];
  explicit DecodeTernary(const Streams<R>&, int64_t) {}
  void begin(int64_t) {}
  SLUICE_VNNI __attribute__((always_inline)) inline void load(int r, const std::byte* from, int64_t,
                                                              int64_t) {
    codes[r] = _mm512_cvtepu8_epi32(load16(from));
  }
  SLUICE_VNNI __attribute__((always_inline)) inline __m512 part(int r, int p) const {
    // The value of the lowest two bits, whatever the next two are.
    const __m512 values = _mm512_set_ps(2, 1, 0, -1, 2, 1, 0, -1, 2, 1, 0, -1, 2, 1, 0, -1);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(codes[r], static_cast<unsigned>(2 * p)), values);
  }
};

#ifndef TURN
#define TURN 4
#endif
constexpr int kTurnRows = TURN;

/// y[r][b] = sum_i w_r[i] x_b[i] over `count` columns. Each of these has one sum of 16 lanes,
/// whatever R and B are: a row of x gives the same numbers in a batch of any size.
template <template <int> class Decode, int R, int B>
SLUICE_VNNI_INLINE void float_dot(const Streams<R>& w, int64_t count, const float* const (&x)[B],
                                  const Inputs<B>& in, float (&y)[R][B]) {
  using D = Decode<R>;
  constexpr int kParts = D::kChunk / 16;
  constexpr int64_t kLine = 64 / D::kBytes * D::kChunk;  // columns of a cache line
  D decode(w, count);
  __m512 sums[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r][b] = _mm512_setzero_ps();
  // kChunks chunks of a row, then of the next one.
  const auto turn = [&]<int kChunks>(int64_t i, int64_t left) SLUICE_VNNI
      __attribute__((always_inline)) {
    __m512 v[B][kChunks * kParts];
    for (int b = 0; b < B; ++b)
      for (int p = 0; p < kChunks * kParts; ++p) v[b][p] = _mm512_loadu_ps(x[b] + i + 16 * p);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kChunks; ++c) {
        const int64_t at = i + c * D::kChunk;
        const std::byte* from = w.codes[r] + at / D::kChunk * D::kBytes;
        if (at % kLine == 0) in.ahead(from, r);
        decode.load(r, from, at, left);
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) {
          const __m512 weights = decode.part(r, p);
          for (int b = 0; b < B; ++b)
            sums[r][b] = _mm512_fmadd_ps(weights, v[b][c * kParts + p], sums[r][b]);
        }
      }
    }
  };
  constexpr int kTurn = kParts >= 4 ? 1 : 4 / kParts;
  int64_t i = 0;
  for (; i + kTurn * D::kChunk <= count; i += kTurn * D::kChunk) {
    if (i % 512 == 0) decode.begin(i);
    turn.template operator()<kTurn>(i, D::kChunk);
  }
  for (; i < count; i += D::kChunk) {
    if (i % 512 == 0) decode.begin(i);
    turn.template operator()<1>(i, count - i);
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) y[r][b] = _mm512_reduce_add_ps(sums[r][b]);
}

// Sums of the activations where bits are set.
template <int R, int B>
SLUICE_VNNI_INLINE void float_bits(const std::byte* const (&bits)[R], int64_t columns,
                                   const Inputs<B>& in, float (&y)[R][B]) {
  __m512 sums[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r][b] = _mm512_setzero_ps();
  for (int64_t i = 0; i < columns; i += 64) {
    uint64_t words[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      if (i % 512 == 0) in.ahead(bits[r] + i / 8, r);
      std::memcpy(&words[r], bits[r] + i / 8, 8);
    }
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      __m512 v[B];
      for (int b = 0; b < B; ++b) v[b] = _mm512_load_ps(in.floats(b) + i + 16 * p);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __mmask16 mask = static_cast<__mmask16>(words[r] >> (16 * p));
        for (int b = 0; b < B; ++b)
          sums[r][b] = _mm512_mask_add_ps(sums[r][b], mask, sums[r][b], v[b]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) y[r][b] = _mm512_reduce_add_ps(sums[r][b]);
}

template <int R>
SLUICE_VNNI_INLINE Streams<R> behind(Streams<R> w, int64_t bytes) {
  for (int r = 0; r < R; ++r) w.codes[r] += bytes;
  return w;
}

/// The scale number k of each row.
template <int R>
SLUICE_VNNI_INLINE void scale_rows(const Streams<R>& w, int k, float (&out)[R]) {
  for (int r = 0; r < R; ++r) out[r] = load_f32(w.scales[r] + 4 * k);
}

/// y += s_k (sum over set bits of x - sum over the others).
template <int R, int B>
SLUICE_VNNI_INLINE void add_plane(const Streams<R>& w, int64_t plane, int k, int64_t columns,
                                  const Inputs<B>& in, float (&y)[R][B]) {
  float part[R][B], scale[R];
  float_bits<R, B>(behind(w, plane).codes, columns, in, part);
  scale_rows(w, k, scale);
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b)
      y[r][b] = multiply_add(scale[r], multiply_add(2, part[r][b], -in.header(b).sum), y[r][b]);
}

template <int R>
using DecodeI4Plain = DecodeI4<R, false>;
template <int R>
using DecodeI4Min = DecodeI4<R, true>;

template <Format kFormat>
struct Product {
  static constexpr int64_t kMost = most_rows(kFormat, false);
  template <int B>
  static constexpr int kRows = side_by_side(kFormat, false, B);
  static constexpr int kFewest = fewest_rows(kFormat, false), kAtOnce = kMostStreams;
  template <int R, int B>
  SLUICE_VNNI_INLINE void rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                               float (&y)[R][B]) {
    const float* x[B];
    for (int b = 0; b < B; ++b) x[b] = in.floats(b);
    if constexpr (kFormat == Format::f32) float_dot<DecodeF32, R, B>(w, columns, x, in, y);
    if constexpr (kFormat == Format::bf16) float_dot<DecodeBf16, R, B>(w, columns, x, in, y);
    if constexpr (kFormat == Format::i8) float_dot<DecodeI8, R, B>(w, columns, x, in, y);
    if constexpr (kFormat == Format::i8_group) float_dot<DecodeI8Group, R, B>(w, columns, x, in, y);
    if constexpr (kFormat == Format::i4_group) float_dot<DecodeI4Plain, R, B>(w, columns, x, in, y);
    if constexpr (kFormat == Format::i4_group_min)
      float_dot<DecodeI4Min, R, B>(w, columns, x, in, y);
    if constexpr (kFormat == Format::ternary) float_dot<DecodeTernary, R, B>(w, columns, x, in, y);
    if constexpr (kFormat == Format::i8 || kFormat == Format::ternary) {
      float scale[R];
      scale_rows(w, 0, scale);
      for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) y[r][b] *= scale[r];
    }
    const int64_t plane = bit_plane_bytes(columns);
    if constexpr (kFormat == Format::binary || kFormat == Format::binary2) {
      for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) y[r][b] = 0;
      add_plane(w, 0, 0, columns, in, y);
      if constexpr (kFormat == Format::binary2) add_plane(w, plane, 1, columns, in, y);
    }
    if constexpr (kFormat == Format::mixed) {
      float scale[R];
      for (int b = 0; b < B; ++b) x[b] = in.template extra<float>(b);
      float_dot<DecodeI8, R, B>(behind(w, plane), bundle::salient_columns(columns), x, in, y);
      scale_rows(w, 0, scale);
      for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) y[r][b] *= scale[r];
      add_plane(w, 0, 1, columns, in, y);
    }
  }
};

}  // namespace

void run_floats(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
                int64_t y_stride) {
  run_format<Product, true>(w, x, rows, y, y_stride);
}

}  // namespace sluice::engine::vnni

#endif
