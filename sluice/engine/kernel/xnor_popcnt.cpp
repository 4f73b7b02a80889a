// xnor.h with VPOPCNTDQ, which Highway 1.0.3 does not use.
#include "sluice/engine/kernel/xnor_layer.h"

#if defined(__x86_64__) && defined(__GNUC__)
// gcc 12 takes the undefined operands inside its own intrinsics for mistakes once they are inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#define SLUICE_POPCNT_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")))

namespace sluice::engine {
namespace {

template <int kPixels>
SLUICE_POPCNT_TARGET void count_tile(const XnorLayer& layer, const uint64_t* weight,
                                     const uint64_t* const* corners, uint32_t* counts) {
  const uint64_t* from[kPixels];
  __m512i low[kPixels], high[kPixels];
#pragma GCC unroll 8
  for (int p = 0; p < kPixels; ++p) {
    from[p] = corners[p];
    low[p] = high[p] = _mm512_setzero_si512();
  }
  for (const XnorRun& run : layer.runs) {
    for (int64_t i = run.offset; i < run.offset + run.words; ++i, weight += kXnorBlock) {
      const __m512i w0 = _mm512_load_si512(weight), w1 = _mm512_load_si512(weight + 8);
#pragma GCC unroll 8
      for (int p = 0; p < kPixels; ++p) {
        const __m512i x = _mm512_set1_epi64(static_cast<long long>(from[p][i]));
        low[p] = _mm512_add_epi64(low[p], _mm512_popcnt_epi64(_mm512_xor_si512(x, w0)));
        high[p] = _mm512_add_epi64(high[p], _mm512_popcnt_epi64(_mm512_xor_si512(x, w1)));
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPixels; ++p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(counts + p * kXnorBlock),
                        _mm512_cvtepi64_epi32(low[p]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(counts + p * kXnorBlock + 8),
                        _mm512_cvtepi64_epi32(high[p]));
  }
}

}  // namespace

bool xnor_popcnt_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vpopcntdq");
}

void xnor_count_popcnt(const XnorLayer& layer, int64_t block, const uint64_t* const* corners,
                       int64_t pixels, uint32_t* counts) {
  const uint64_t* weight =
      reinterpret_cast<const uint64_t*>(layer.bits.data()) + block * layer.depth * kXnorBlock;
  int64_t p = 0;
  for (; p + 8 <= pixels; p += 8)
    count_tile<8>(layer, weight, corners + p, counts + p * kXnorBlock);
  if (p + 4 <= pixels) {
    count_tile<4>(layer, weight, corners + p, counts + p * kXnorBlock);
    p += 4;
  }
  for (; p < pixels; ++p) count_tile<1>(layer, weight, corners + p, counts + p * kXnorBlock);
}

SLUICE_POPCNT_TARGET void xnor_pack_popcnt(const float* x, int64_t channels, uint64_t* words) {
  const __m512 zero = _mm512_setzero_ps();
  const auto sixteen = [&](const float* at) SLUICE_POPCNT_TARGET {
    return static_cast<uint64_t>(_mm512_cmp_ps_mask(_mm512_loadu_ps(at), zero, _CMP_GE_OQ));
  };
  int64_t c = 0;
  for (; c + 64 <= channels; c += 64) {
    *words++ = sixteen(x + c) | sixteen(x + c + 16) << 16 | sixteen(x + c + 32) << 32 |
               sixteen(x + c + 48) << 48;
  }
  if (c == channels) return;
  uint64_t word = 0;
  for (int64_t first = c; first < channels; first += 16) {
    const int64_t left = channels - first < 16 ? channels - first : 16;
    const __mmask16 valid = static_cast<__mmask16>((1u << left) - 1);
    const __mmask16 bits =
        _mm512_mask_cmp_ps_mask(valid, _mm512_maskz_loadu_ps(valid, x + first), zero, _CMP_GE_OQ);
    word |= static_cast<uint64_t>(bits) << (first - c);
  }
  *words = word;
}

}  // namespace sluice::engine

#else

namespace sluice::engine {

bool xnor_popcnt_here() { return false; }
void xnor_count_popcnt(const XnorLayer&, int64_t, const uint64_t* const*, int64_t, uint32_t*) {}
void xnor_pack_popcnt(const float*, int64_t, uint64_t*) {}

}  // namespace sluice::engine
#endif
