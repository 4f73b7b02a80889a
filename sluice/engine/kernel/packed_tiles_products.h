// What AMX does with unpacked codes; internal to packed_tiles.cpp. The
// caller unpacks in other functions, which these are not inlined into: tile loads do not tell the
// compiler that they read memory.
#pragma once
#include "sluice/engine/kernel/packed_tiles_decode.h"

#if defined(__x86_64__) && defined(__GNUC__)

#define SLUICE_TILES \
  __attribute__((    \
      target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma,avx2,amx-tile,amx-int8")))

namespace sluice::engine::tiles {

inline constexpr int64_t kStrip = 32;      // outputs whose codes are unpacked together
inline constexpr int64_t kBlock = 1024;    // columns of them: 32 KiB
inline constexpr int64_t kRows = 16;       // of x, in a tile
inline constexpr int64_t kRowChunk = 256;  // of x that meet a strip in turn: they fit the L2
inline constexpr int64_t kHalf = kBlock * kLanes;
inline constexpr int64_t kGroups = kBlock / bundle::kGroup;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};
};

/// Tiles 0-3: sums; 4, 5: x; 6, 7: weights.
SLUICE_TILES inline void configure(bool grouped) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.column_bytes[i] = grouped && (i == 4 || i == 5) ? 32 : 64;
    config.rows[i] = grouped && i >= 6 ? 8 : 16;
  }
  asm volatile("" : : "r"(&config) : "memory");  // gcc's intrinsic reads 8 bytes as it says
  _tile_loadconfig(&config);
}
SLUICE_TILES inline void release() { _tile_release(); }

/// 16 rows of x by 16 outputs, groups of 32 columns, four at a time. `results` has rows of kStrip;
/// sums of x: [group][row].
template <bool kMin>
SLUICE_TILES void multiply_groups(const std::byte* x, const std::byte* codes, const float* factors,
                                  const float* minima, const float* sums, int64_t groups,
                                  bool first, std::byte* tile, float* results) {
  __m512 acc[kRows];
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r)
    acc[r] = first ? _mm512_setzero_ps() : _mm512_load_ps(results + r * kStrip);
// A group into its tile; two groups later, when that has arrived in memory, out of it.
#define SLUICE_IN(T, G)                                  \
  _tile_zero(T);                                         \
  _tile_loadd(4, x + (G) / 2 * 1024 + (G) % 2 * 32, 64); \
  _tile_loadd(6, codes + (G)*512, 64);                   \
  _tile_dpbssd(T, 4, 6);                                 \
  _tile_stored(T, tile + (T)*1024, 64);
#define SLUICE_OUT(T, G)                                                                        \
  {                                                                                             \
    const __m512 factor = _mm512_load_ps(factors + (G)*kLanes);                                 \
    const __m512 minimum = kMin ? _mm512_load_ps(minima + (G)*kLanes) : factor;                 \
    _Pragma("GCC unroll 16") for (int64_t r = 0; r < kRows; ++r) {                              \
      const __m512i sum = _mm512_load_si512(tile + (T)*1024 + 64 * r);                          \
      acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, acc[r]);                        \
      if (kMin) acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(sums[(G)*kRows + r]), minimum, acc[r]); \
    }                                                                                           \
  }
  SLUICE_IN(0, 0)
  SLUICE_IN(1, 1)
  for (int64_t g = 0; g < groups; g += 4) {
    SLUICE_IN(2, g + 2)
    SLUICE_OUT(0, g)
    SLUICE_IN(3, g + 3)
    SLUICE_OUT(1, g + 1)
    if (g + 4 < groups) {
      SLUICE_IN(0, g + 4)
    }
    SLUICE_OUT(2, g + 2)
    if (g + 4 < groups) {
      SLUICE_IN(1, g + 5)
    }
    SLUICE_OUT(3, g + 3)
  }
#undef SLUICE_IN
#undef SLUICE_OUT
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) _mm512_store_ps(results + r * kStrip, acc[r]);
}

/// 32 or 16 rows of x by 32 outputs, `columns` of them a multiple of 64; onto `sums`.
template <bool kTwo>
SLUICE_TILES void multiply_whole(const std::byte* x, int64_t x_stride, const std::byte* codes,
                                 int64_t columns, bool first, int32_t* sums) {
  constexpr int64_t kStride = kStrip * 4;
  int32_t* const below = sums + kRows * kStrip;
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, kStride);
    _tile_loadd(1, sums + kLanes, kStride);
    if (kTwo) {
      _tile_loadd(2, below, kStride);
      _tile_loadd(3, below + kLanes, kStride);
    }
  }
  for (int64_t c = 0; c < columns; c += 64) {
    _tile_loadd(6, codes + c * kLanes, 64);
    _tile_loadd(4, x + c * kRows, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, codes + kHalf + c * kLanes, 64);
    _tile_dpbssd(1, 4, 7);
    if (kTwo) {
      _tile_loadd(5, x + x_stride + c * kRows, 64);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, sums, kStride);
  _tile_stored(1, sums + kLanes, kStride);
  if (kTwo) {
    _tile_stored(2, below, kStride);
    _tile_stored(3, below + kLanes, kStride);
  }
}

/// results (= or +=) sums x scales, 32 outputs a row.
SLUICE_VNNI inline void scale(const int32_t* sums, const float* scales, int64_t rows, bool first,
                              float* results) {
  for (int64_t h = 0; h < kStrip; h += kLanes) {
    const __m512 factor = _mm512_load_ps(scales + h);
    for (int64_t i = h; i < rows * kStrip; i += kStrip) {
      const __m512 v = _mm512_mul_ps(factor, _mm512_cvtepi32_ps(_mm512_load_si512(sums + i)));
      _mm512_store_ps(results + i, first ? v : _mm512_add_ps(_mm512_load_ps(results + i), v));
    }
  }
}

SLUICE_VNNI inline void write_out(const float* results, const float* scales, int64_t rows,
                                  int64_t outputs, float* y, int64_t y_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    const __m512 s = _mm512_set1_ps(scales[r]);
    for (int64_t h = 0; h < outputs; h += kLanes)
      _mm512_mask_storeu_ps(y + r * y_stride + h, vnni::first16(outputs - h),
                            _mm512_mul_ps(s, _mm512_load_ps(results + r * kStrip + h)));
  }
}

}  // namespace sluice::engine::tiles

#endif
