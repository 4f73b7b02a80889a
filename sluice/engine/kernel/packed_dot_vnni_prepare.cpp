// Activations as the AVX-512 VNNI products want them.
#include "sluice/engine/kernel/packed_dot_vnni.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace sluice::engine::vnni {
namespace {

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

/// Of every 32 numbers those at even places, then those at odd ones: as bf16 weights unpack.
SLUICE_VNNI void permute_pairs(float* x, int64_t padded) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int64_t i = 0; i < padded; i += 32) {
    const __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + 16);
    _mm512_storeu_ps(x + i, _mm512_permutex2var_ps(a, even, b));
    _mm512_storeu_ps(x + i + 16, _mm512_permutex2var_ps(a, odd, b));
  }
}

void group_sums(const int8_t* codes, int64_t padded, float* out) {
  for (int64_t g = 0; g < padded / 32; ++g) {
    int sum = 0;
    for (int64_t i = 32 * g; i < 32 * g + 32; ++i) sum += codes[i];
    out[g] = static_cast<float>(sum);
  }
}

}  // namespace

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
    if (w.format == Format::bf16) permute_pairs(f, p.padded);
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
    if (w.format == Format::i4_group_min) group_sums(q, p.padded, at<float>(out, p.extra));
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
    header.sum = sum_floats(f, p.padded);
    if (w.format == Format::bf16) permute_pairs(f, p.padded);
  }
  std::memcpy(out, &header, sizeof header);
}

}  // namespace sluice::engine::vnni

#endif
