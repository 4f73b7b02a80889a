// Products with packed weights for CPUs with AVX-512 VNNI. With int8 activations every format is
// brought to unsigned bytes u for vpdpbusd (unsigned x signed), and what that adds is taken off
// with sums of the activations:
//   i8       u = q + 128 (a flipped sign bit):   sum q x = sum u x - 128 sum x
//   i4       u = q + 8, as stored:               sum q x = sum u x - 8 sum x
//   ternary  u = q + 1, as stored:               sum q x = sum u x - sum x
//   binary   u = 1 where the bit is set:         sum q x = 2 sum u x - sum x
// Ternary codes and bits are not even shifted: the fields of a byte are masked in place, which
// multiplies them by powers of two; sums of each field are kept apart and divided (exactly) at the
// end. Activations are permuted once so that codes are used in the order in which they unpack.
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

namespace sluice::engine {
namespace {

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

// extra: grouped int8: 32-bit starting sums (16 per vector of codes); i4-32-min: sums of the groups
// as floats; mixed: activations of the salient columns.
Places places(Format format, DotKind kind, int64_t columns) {
  Places p;
  p.padded = round_up(columns, 512);
  const bool codes = kind == DotKind::i8 && !is_float(format);
  p.extra = p.values + p.padded * (codes ? 1 : 4);
  int64_t bytes = 0;
  if (codes && format == Format::i8_group) bytes = p.padded;      // 64 bytes per 64 columns
  if (codes && format == Format::i4_group) bytes = p.padded / 2;  // 64 bytes per 128 columns
  if (format == Format::i4_group_min) bytes = round_up(p.padded / 32, 16) * 4;
  if (format == Format::mixed)
    bytes = round_up(bundle::salient_columns(columns), 64) * (codes ? 1 : 4);
  p.end = p.extra + round_up(bytes, 64);
  return p;
}

int64_t stride(Format format, DotKind kind, int64_t columns) {
  return places(format, kind, columns).end;
}

template <class T>
const T* at(const std::byte* row, int64_t offset) {
  return reinterpret_cast<const T*>(row + offset);
}
template <class T>
T* at(std::byte* row, int64_t offset) {
  return reinterpret_cast<T*>(row + offset);
}

SLUICE_VNNI_INLINE __mmask16 first16(int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xFFFF : (1u << (n < 0 ? 0 : n)) - 1);
}
SLUICE_VNNI_INLINE __mmask64 first64(int64_t n) {
  return n >= 64 ? ~0ull : n <= 0 ? 0 : (1ull << n) - 1;
}

// ---------------------------------------------------------------- activations

SLUICE_VNNI float quantize(const float* x, int64_t count, int8_t* codes) {
  __m512 top = _mm512_setzero_ps();
  __mmask16 bad = 0;
  const __m512 infinity = _mm512_set1_ps(__builtin_inff());
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 v = _mm512_abs_ps(_mm512_maskz_loadu_ps(first16(count - i), x + i));
    bad |= _mm512_cmp_ps_mask(v, infinity, _CMP_NLT_UQ);  // infinite or NaN
    top = _mm512_max_ps(top, v);
  }
  const float scale = bad ? __builtin_nanf("") : _mm512_reduce_max_ps(top) / 127.0f;
  if (!(scale > 0)) {
    std::memset(codes, 0, static_cast<size_t>(count));
    return scale;
  }
  const __m512 divisor = _mm512_set1_ps(scale);
  const __m512i low = _mm512_set1_epi32(-127), high = _mm512_set1_epi32(127);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = first16(count - i);
    const __m512i q =
        _mm512_cvtps_epi32(_mm512_div_ps(_mm512_maskz_loadu_ps(mask, x + i), divisor));
    _mm_mask_storeu_epi8(codes + i, mask,
                         _mm512_cvtepi32_epi8(_mm512_max_epi32(low, _mm512_min_epi32(high, q))));
  }
  return scale;
}

SLUICE_VNNI int64_t sum_codes(const int8_t* codes, int64_t padded) {
  const __m512i ones = _mm512_set1_epi8(1);
  int64_t total = 0;
  for (int64_t block = 0; block < padded; block += kBlock) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = block; i < least(padded, block + kBlock); i += 64)
      sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(codes + i));
    total += _mm512_reduce_add_epi32(sum);
  }
  return total;
}

SLUICE_VNNI float sum_floats(const float* x, int64_t padded) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < padded; i += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
  return _mm512_reduce_add_ps(sum);
}

void round_to_bf16(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = bundle::bf16_to_f32(bundle::f32_to_bf16(x[i]));
}

// Starting sums of int8 groups: -offset x the sum of the 4 (or 4 + 4) codes of each lane.
SLUICE_VNNI void starting_sums(const int8_t* codes, int64_t padded, int vectors, int shift,
                               int32_t* out) {
  const __m512i ones = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < padded; i += 64 * vectors, out += 16) {
    __m512i sum = _mm512_setzero_si512();
    for (int v = 0; v < vectors; ++v)
      sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(codes + i + 64 * v));
    _mm512_storeu_si512(out,
                        _mm512_sub_epi32(_mm512_setzero_si512(),
                                         _mm512_slli_epi32(sum, static_cast<unsigned>(shift))));
  }
}

// From the order of columns to that of unpacking, `step` columns at a time: 4-bit and ternary codes
// move in runs of 16; bit j of byte p is column 8 p + j.
int64_t permuted_step(Format format) {
  switch (format) {
    case Format::i4_group:
    case Format::i4_group_min:
      return 128;
    case Format::ternary:
      return 256;
    case Format::binary:
    case Format::binary2:
    case Format::mixed:
      return 512;
    default:
      return 0;
  }
}

SLUICE_VNNI void permute_bits(const int8_t* from, int8_t* to) {
  // Eight columns of each of eight bytes become eight runs of eight.
  const __m512i within =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
  for (int64_t p = 0; p < 64; p += 8) {
    // Pairs of bytes: 16-bit units [j][p, p + 1]; then units of one j side by side.
    const __m512i pairs = _mm512_shuffle_epi8(_mm512_loadu_si512(from + 8 * p), within);
    alignas(64) uint16_t units[32];
    _mm512_store_si512(units, pairs);
    for (int64_t j = 0; j < 8; ++j) {
      const uint64_t run = uint64_t{units[j]} | uint64_t{units[8 + j]} << 16 |
                           uint64_t{units[16 + j]} << 32 | uint64_t{units[24 + j]} << 48;
      std::memcpy(to + 64 * j + p, &run, 8);
    }
  }
}

void permute(Format format, int8_t* codes, int64_t padded) {
  const int64_t step = permuted_step(format);
  if (step == 0) return;
  int8_t from[512];
  const int64_t parts = step / 64;  // vectors that one vector of codes unpacks to
  for (int64_t base = 0; base < padded; base += step) {
    std::memcpy(from, codes + base, static_cast<size_t>(step));
    if (step == 512) {
      permute_bits(from, codes + base);
      continue;
    }
    for (int64_t j = 0; j < parts; ++j) {
      for (int64_t lane = 0; lane < 4; ++lane)
        std::memcpy(codes + base + 64 * j + 16 * lane, from + 16 * (parts * lane + j), 16);
    }
  }
}

void group_sums(Format, const int8_t* codes, const float* x, int64_t padded, float* out) {
  for (int64_t g = 0; g < padded / 32; ++g) {
    int codes_sum = 0;
    float sum = 0;
    for (int64_t i = 32 * g; i < 32 * g + 32; ++i) {
      if (codes)
        codes_sum += codes[i];
      else
        sum += x[i];
    }
    out[g] = codes ? static_cast<float>(codes_sum) : sum;
  }
}

void prepare(const PackedMatrix& w, DotKind kind, const float* x, std::byte* out) {
  const Places p = places(w.format, kind, w.columns);
  DotHeader header;
  const bool codes = kind == DotKind::i8;
  int8_t* q = at<int8_t>(out, p.values);
  float* f = at<float>(out, p.values);
  std::memset(out + p.extra, 0, static_cast<size_t>(p.end - p.extra));
  if (codes && is_float(w.format)) {
    // The codes as floats; they are made at the end of the place and widened from its start.
    q = reinterpret_cast<int8_t*>(out + p.values + 3 * p.padded);
    header.scale = quantize(x, w.columns, q);
    for (int64_t i = 0; i < w.columns; ++i) f[i] = q[i];
    std::memset(f + w.columns, 0, static_cast<size_t>(p.padded - w.columns) * sizeof(float));
  } else if (codes) {
    header.scale = quantize(x, w.columns, q);
    std::memset(q + w.columns, 0, static_cast<size_t>(p.padded - w.columns));
    int8_t* salient = at<int8_t>(out, p.extra);
    for (size_t k = 0; k < w.salient.size(); ++k) {
      salient[k] = q[w.salient[k]];
      header.salient_sum += salient[k];
      q[w.salient[k]] = 0;
    }
    header.code_sum = sum_codes(q, p.padded);
    if (w.format == Format::i4_group_min)
      group_sums(w.format, q, nullptr, p.padded, at<float>(out, p.extra));
    permute(w.format, q, p.padded);
    if (w.format == Format::i8_group) starting_sums(q, p.padded, 1, 7, at<int32_t>(out, p.extra));
    if (w.format == Format::i4_group) starting_sums(q, p.padded, 2, 3, at<int32_t>(out, p.extra));
  } else {
    std::memcpy(f, x, static_cast<size_t>(w.columns) * sizeof(float));
    std::memset(f + w.columns, 0, static_cast<size_t>(p.padded - w.columns) * sizeof(float));
    if (kind == DotKind::bf16) round_to_bf16(f, w.columns);
    float* salient = at<float>(out, p.extra);
    for (size_t k = 0; k < w.salient.size(); ++k) {
      salient[k] = f[w.salient[k]];
      f[w.salient[k]] = 0;
    }
    if (w.format == Format::i4_group_min) group_sums(w.format, nullptr, f, p.padded, salient);
    header.sum = sum_floats(f, p.padded);
  }
  std::memcpy(out, &header, sizeof header);
}

// ---------------------------------------------------------------- weights

template <int B>
struct Inputs {
  const std::byte* row[B];
  Places p;
  // Asks for what follows after the codes at `now`: in consecutive rows, across their ends.
  int64_t distance;
  SLUICE_VNNI __attribute__((always_inline)) inline void ahead(const std::byte* now) const {
    _mm_prefetch(reinterpret_cast<const char*>(now + distance), _MM_HINT_T0);
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
// as the registers allow; floats always into the same four, so that a row of x gives the same
// numbers in a batch of any size.
template <int B>
constexpr int kChains = B == 1   ? 4
                        : B <= 4 ? 2
                                 : 1;
constexpr int kFloatChains = 4;

template <int N>
SLUICE_VNNI_INLINE int64_t total(const __m512i (&sums)[N]) {
  __m512i sum = sums[0];
  for (int c = 1; c < N; ++c) sum = _mm512_add_epi32(sum, sums[c]);
  return _mm512_reduce_add_epi32(sum);
}
template <int N>
SLUICE_VNNI_INLINE float total(const __m512 (&sums)[N]) {
  __m512 sum = sums[0];
  for (int c = 1; c < N; ++c) sum = _mm512_add_ps(sum, sums[c]);
  return _mm512_reduce_add_ps(sum);
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
        _mm_prefetch(reinterpret_cast<const char*>(w + i + 64 * c + ahead), _MM_HINT_T0);
        const __m512i u = _mm512_xor_si512(flip, _mm512_loadu_si512(w + i + 64 * c));
        for (int b = 0; b < B; ++b)
          sums[b][c] = _mm512_dpbusd_epi32(sums[b][c], u, _mm512_loadu_si512(x[b] + i + 64 * c));
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
        for (int b = 0; b < B; ++b)
          sums[b][j % C] = _mm512_dpbusd_epi32(sums[b][j % C], u,
                                               _mm512_load_si512(in.codes(b) + 8 * i + 64 * j));
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

SLUICE_VNNI_INLINE float load_f32(const std::byte* from) {
  float value;
  std::memcpy(&value, from, 4);
  return value;
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

// 16 scales as floats, zeros behind the last group.
SLUICE_VNNI_INLINE __m512 scales16(const std::byte* from, int64_t left) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first16(left), from));
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
  const __m512i field = _mm512_set1_epi8(3);
  int64_t sums[B];
  for (int b = 0; b < B; ++b) sums[b] = 0;
  for (int64_t first = 0; first < bytes; first += kBlock / 4) {
    const int64_t last = least(bytes, first + kBlock / 4);
    __m512i part[B][4];
    for (int b = 0; b < B; ++b)
      for (int j = 0; j < 4; ++j) part[b][j] = _mm512_setzero_si512();
    const auto step = [&](int64_t i, __m512i w) SLUICE_VNNI __attribute__((always_inline)) {
      in.ahead(codes + i);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const __m512i u =
            _mm512_and_si512(w, _mm512_slli_epi16(field, static_cast<unsigned>(2 * j)));
        for (int b = 0; b < B; ++b)
          part[b][j] =
              _mm512_dpbusd_epi32(part[b][j], u, _mm512_load_si512(in.codes(b) + 4 * i + 64 * j));
      }
    };
    int64_t i = first;
    for (; i + 64 <= last; i += 64) step(i, _mm512_loadu_si512(codes + i));
    if (i < last) step(i, _mm512_maskz_loadu_epi8(first64(last - i), codes + i));
    for (int b = 0; b < B; ++b) {
      const __m512i lanes = _mm512_add_epi32(
          _mm512_add_epi32(part[b][0], _mm512_srai_epi32(part[b][1], 2)),
          _mm512_add_epi32(_mm512_srai_epi32(part[b][2], 4), _mm512_srai_epi32(part[b][3], 6)));
      sums[b] += _mm512_reduce_add_epi32(lanes);
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

// ---------------------------------------------------------------- float activations

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
SLUICE_VNNI_INLINE void float_i8_group_row(const std::byte* codes, const std::byte* scales,
                                           int64_t columns, const Inputs<B>& in, float (&y)[B]) {
  const int64_t groups = (columns + 31) / 32;
  alignas(64) float s[16];
  __m512 sums[B][2];
  for (int b = 0; b < B; ++b) sums[b][0] = sums[b][1] = _mm512_setzero_ps();
  const auto step = [&](int64_t g, int c) SLUICE_VNNI __attribute__((always_inline)) {
    if (g % 16 == 0) _mm512_store_ps(s, scales16(scales + 2 * g, groups - g));
    in.ahead(codes + 32 * g);
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
SLUICE_VNNI_INLINE void float_i4_row(const std::byte* codes, const std::byte* scales,
                                     int64_t columns, const Inputs<B>& in, float (&y)[B]) {
  const int64_t groups = (columns + 31) / 32;
  const __m512 lane = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  // Indices of vpermps are 4 bits: the code's upper neighbour is ignored.
  const __m512 values = kMin ? lane : _mm512_sub_ps(lane, _mm512_set1_ps(8));
  alignas(64) float s[16];
  __m512 sums[B][2];
  for (int b = 0; b < B; ++b) sums[b][0] = sums[b][1] = _mm512_setzero_ps();
  const auto step = [&](int64_t g, int c) SLUICE_VNNI __attribute__((always_inline)) {
    if (g % 16 == 0) _mm512_store_ps(s, scales16(scales + 2 * g, groups - g));
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
SLUICE_VNNI_INLINE void float_ternary_row(const std::byte* codes, const std::byte* scales,
                                          int64_t columns, const Inputs<B>& in, float (&y)[B]) {
  // The value of the lowest two bits, whatever the next two are.
  const __m512 values = _mm512_set_ps(2, 1, 0, -1, 2, 1, 0, -1, 2, 1, 0, -1, 2, 1, 0, -1);
  constexpr int C = kFloatChains;
  __m512 sums[B][C];
  for (int b = 0; b < B; ++b)
    for (int c = 0; c < C; ++c) sums[b][c] = _mm512_setzero_ps();
  for (int64_t i = 0; i < columns; i += 64) {
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
SLUICE_VNNI_INLINE void float_binary_row(const std::byte* codes, const std::byte* scales,
                                         int64_t columns, int planes, const Inputs<B>& in,
                                         float (&y)[B]) {
  for (int b = 0; b < B; ++b) y[b] = 0;
  for (int k = 0; k < planes; ++k) {
    float part[B];
    float_bits<B>(codes + k * bit_plane_bytes(columns), columns, in, part);
    for (int b = 0; b < B; ++b) y[b] += load_f32(scales + 4 * k) * (2 * part[b] - in.header(b).sum);
  }
}

template <int B>
SLUICE_VNNI_INLINE void float_mixed_row(const std::byte* codes, const std::byte* scales,
                                        int64_t columns, const Inputs<B>& in, float (&y)[B]) {
  float bits[B];
  float_bits<B>(codes, columns, in, bits);
  const float* x[B];
  for (int b = 0; b < B; ++b) x[b] = in.template extra<float>(b);
  float_dot<DecodeI8, B>(codes + bit_plane_bytes(columns), bundle::salient_columns(columns), x,
                         in.distance, y);
  for (int b = 0; b < B; ++b)
    y[b] = load_f32(scales) * y[b] + load_f32(scales + 4) * (2 * bits[b] - in.header(b).sum);
}

// ---------------------------------------------------------------- rows

template <Format kFormat, bool kCodes, int B>
SLUICE_VNNI_INLINE void one_row(const std::byte* codes, const std::byte* scales, int64_t columns,
                                const Inputs<B>& in, float (&y)[B]) {
  if constexpr (kFormat == Format::f32 || kFormat == Format::bf16 ||
                (kFormat == Format::i8 && !kCodes)) {
    const float* x[B];
    for (int b = 0; b < B; ++b) x[b] = in.floats(b);
    if constexpr (kFormat == Format::f32)
      float_dot<DecodeF32, B>(codes, columns, x, in.distance, y);
    if constexpr (kFormat == Format::bf16)
      float_dot<DecodeBf16, B>(codes, columns, x, in.distance, y);
    if constexpr (kFormat == Format::i8) {
      float_dot<DecodeI8, B>(codes, columns, x, in.distance, y);
      for (int b = 0; b < B; ++b) y[b] *= load_f32(scales);
    }
  } else if constexpr (kCodes) {
    if constexpr (kFormat == Format::i8) i8_row<B>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::i8_group) i8_group_row<B>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::i4_group) i4_row<B, false>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::i4_group_min) i4_row<B, true>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::ternary) ternary_row<B>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::binary) binary_row<B, 1>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::binary2) binary_row<B, 2>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::mixed) mixed_row<B>(codes, scales, columns, in, y);
  } else {
    if constexpr (kFormat == Format::i8_group) float_i8_group_row<B>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::i4_group)
      float_i4_row<B, false>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::i4_group_min)
      float_i4_row<B, true>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::ternary) float_ternary_row<B>(codes, scales, columns, in, y);
    if constexpr (kFormat == Format::binary) float_binary_row<B>(codes, scales, columns, 1, in, y);
    if constexpr (kFormat == Format::binary2) float_binary_row<B>(codes, scales, columns, 2, in, y);
    if constexpr (kFormat == Format::mixed) float_mixed_row<B>(codes, scales, columns, in, y);
  }
}

// The hardware follows consecutive rows by itself; where a list jumps, the start of the next row is
// asked for early.
constexpr int64_t kPrefetch = 1024;
constexpr int64_t kAhead = 4096;

template <Format kFormat, bool kCodes, int B>
SLUICE_VNNI void run_rows(const PackedMatrix& w, const DotInput& x, int64_t first_input,
                          const DotRows& rows, float* y, int64_t y_stride) {
  Inputs<B> in;
  in.p = places(kFormat, x.kind, w.columns);
  for (int b = 0; b < B; ++b) in.row[b] = x.data + (first_input + b) * x.stride;
  in.distance = rows.list ? 0 : kAhead;
  float result[B];
  for (int64_t k = 0; k < rows.count; ++k) {
    const int64_t o = rows.at(k);
    if (rows.list && k + 1 < rows.count) {
      const std::byte* next = w.codes + rows.at(k + 1) * w.code_stride;
      for (int64_t i = 0; i < least(w.code_stride, kPrefetch); i += 64)
        _mm_prefetch(reinterpret_cast<const char*>(next + i), _MM_HINT_T0);
    }
    one_row<kFormat, kCodes, B>(w.codes + o * w.code_stride, w.scales + o * w.scale_stride,
                                w.columns, in, result);
    for (int b = 0; b < B; ++b) y[b * y_stride + k] = in.header(b).scale * result[b];
  }
}

template <Format kFormat, bool kCodes>
void run_batch(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
               int64_t y_stride) {
  // Batches of 1, 2, 4 and, for integers, 8 are compiled; others are sums of these.
  int64_t b = 0;
  if constexpr (kCodes) {
    for (; x.batch - b >= 8; b += 8)
      run_rows<kFormat, kCodes, 8>(w, x, b, rows, y + b * y_stride, y_stride);
  }
  for (; x.batch - b >= 4; b += 4)
    run_rows<kFormat, kCodes, 4>(w, x, b, rows, y + b * y_stride, y_stride);
  if (x.batch - b >= 2) {
    run_rows<kFormat, kCodes, 2>(w, x, b, rows, y + b * y_stride, y_stride);
    b += 2;
  }
  if (x.batch - b >= 1) run_rows<kFormat, kCodes, 1>(w, x, b, rows, y + b * y_stride, y_stride);
}

template <Format kFormat>
void run_format(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
                int64_t y_stride) {
  if (x.kind == DotKind::i8 && !is_float(kFormat)) {
    run_batch<kFormat, !is_float(kFormat)>(w, x, rows, y, y_stride);
  } else {
    run_batch<kFormat, false>(w, x, rows, y, y_stride);
  }
}

void run_some(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
              int64_t y_stride) {
  switch (w.format) {
    case Format::f32:
      return run_format<Format::f32>(w, x, rows, y, y_stride);
    case Format::bf16:
      return run_format<Format::bf16>(w, x, rows, y, y_stride);
    case Format::i8:
      return run_format<Format::i8>(w, x, rows, y, y_stride);
    case Format::i8_group:
      return run_format<Format::i8_group>(w, x, rows, y, y_stride);
    case Format::i4_group:
      return run_format<Format::i4_group>(w, x, rows, y, y_stride);
    case Format::i4_group_min:
      return run_format<Format::i4_group_min>(w, x, rows, y, y_stride);
    case Format::ternary:
      return run_format<Format::ternary>(w, x, rows, y, y_stride);
    case Format::binary:
      return run_format<Format::binary>(w, x, rows, y, y_stride);
    case Format::binary2:
      return run_format<Format::binary2>(w, x, rows, y, y_stride);
    case Format::mixed:
      return run_format<Format::mixed>(w, x, rows, y, y_stride);
  }
}

// Between parts of a batch, weights come from the cache: rows go in strips that fit it.
void run(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
         int64_t y_stride) {
  constexpr int64_t kCache = 256 << 10;
  const bool integers = x.kind == DotKind::i8 && !is_float(w.format);
  const bool once = x.batch == 1 || x.batch == 2 || x.batch == 4 || (x.batch == 8 && integers);
  const int64_t strip =
      once ? rows.count : (kCache + w.row_bytes() - 1) / (w.row_bytes() > 0 ? w.row_bytes() : 1);
  for (int64_t k = 0; k < rows.count; k += strip) {
    DotRows part = rows;
    part.count = least(strip, rows.count - k);
    if (rows.list)
      part.list = rows.list + k;
    else
      part.first = rows.first + k;
    run_some(w, x, part, y + k, y_stride);
  }
}

}  // namespace

const DotPath& vnni_dot() {
  static constexpr DotPath path{stride, prepare, run};
  return path;
}

}  // namespace sluice::engine

#else

namespace sluice::engine {
const DotPath& vnni_dot() { return portable_dot(); }
}  // namespace sluice::engine

#endif
