// How packed codes become the second operand of AMX products; internal to packed_tiles*.
//
// A decoder turns `columns` (a multiple of 128) of 16 rows, `stride` bytes apart, into columns / 4
// vectors: vector k holds int8 weights of the columns 4 k .. 4 k + 3, row n in lane n.
#pragma once
#include "sluice/engine/kernel/packed_dot_vnni.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace sluice::engine::tiles {

inline constexpr int64_t kLanes = 16, kColumnStep = 128;

enum class Codes : uint8_t { bytes, nibbles, nibbles_from_0, pairs, bits };

/// Bytes that `columns` of one row take, `columns` a multiple of kColumnStep.
inline int64_t code_bytes(Codes codes, int64_t columns) {
  switch (codes) {
    case Codes::bytes:
      return columns;
    case Codes::nibbles:
    case Codes::nibbles_from_0:
      return columns / 2;
    case Codes::pairs:
      return columns / 4;
    case Codes::bits:
      return columns / 8;
  }
  return 0;
}

// 16 bytes of each row, as four vectors of their 32-bit parts: a row's part r is in lane n of
// parts[r].
SLUICE_VNNI_INLINE void load_parts(const std::byte* from, int64_t stride, __m512i (&parts)[4]) {
  __m512i v[4];
  for (int i = 0; i < 4; ++i) {
    const auto row = [&](int lane) SLUICE_VNNI __attribute__((always_inline)) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + (4 * lane + i) * stride));
    };
    v[i] = _mm512_castsi128_si512(row(0));
    v[i] = _mm512_mask_broadcast_i32x4(v[i], 0x00F0, row(1));
    v[i] = _mm512_mask_broadcast_i32x4(v[i], 0x0F00, row(2));
    v[i] = _mm512_mask_broadcast_i32x4(v[i], 0xF000, row(3));
  }
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpacklo_epi32(v[2], v[3]),
                c = _mm512_unpackhi_epi32(v[0], v[1]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  parts[0] = _mm512_unpacklo_epi64(a, b);
  parts[1] = _mm512_unpackhi_epi64(a, b);
  parts[2] = _mm512_unpacklo_epi64(c, d);
  parts[3] = _mm512_unpackhi_epi64(c, d);
}

SLUICE_VNNI inline void decode_bytes(const std::byte* from, int64_t stride, int64_t columns,
                                     std::byte* out) {
  for (int64_t i = 0; i < columns; i += 16, out += 256) {
    __m512i parts[4];
    load_parts(from + i, stride, parts);
    for (int r = 0; r < 4; ++r) _mm512_store_si512(out + 64 * r, parts[r]);
  }
}

// Of a group of 32 columns, the low halves of 16 bytes are the first 16.
template <int kMinus>
SLUICE_VNNI void decode_nibbles(const std::byte* from, int64_t stride, int64_t columns,
                                std::byte* out) {
  const __m512i low = _mm512_set1_epi8(15), minus = _mm512_set1_epi8(kMinus);
  for (int64_t i = 0; i < columns / 2; i += 16, out += 512) {
    __m512i parts[4];
    load_parts(from + i, stride, parts);
    for (int r = 0; r < 4; ++r) {
      const __m512i a = _mm512_and_si512(parts[r], low),
                    b = _mm512_and_si512(_mm512_srli_epi16(parts[r], 4), low);
      _mm512_store_si512(out + 64 * r, _mm512_sub_epi8(a, minus));
      _mm512_store_si512(out + 256 + 64 * r, _mm512_sub_epi8(b, minus));
    }
  }
}

// Of 64 columns, bits 2 j and 2 j + 1 of 16 bytes are columns 16 j and following.
SLUICE_VNNI inline void decode_pairs(const std::byte* from, int64_t stride, int64_t columns,
                                     std::byte* out) {
  const __m512i field = _mm512_set1_epi8(3), one = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < columns / 4; i += 16, out += 1024) {
    __m512i parts[4];
    load_parts(from + i, stride, parts);
    for (int r = 0; r < 4; ++r) {
      for (int j = 0; j < 4; ++j) {
        const __m512i code =
            _mm512_and_si512(_mm512_srli_epi16(parts[r], static_cast<unsigned>(2 * j)), field);
        _mm512_store_si512(out + 256 * j + 64 * r, _mm512_sub_epi8(code, one));
      }
    }
  }
}

// Four bits choose four bytes of -1 and 1.
SLUICE_VNNI inline void decode_bits(const std::byte* from, int64_t stride, int64_t columns,
                                    std::byte* out) {
  alignas(64) int8_t table[64];
  for (int i = 0; i < 64; ++i) table[i] = (i / 4) >> (i % 4) & 1 ? 1 : -1;
  const __m512i signs = _mm512_load_si512(table);
  for (int64_t i = 0; i < columns / 8; i += 16, out += 2048) {
    __m512i parts[4];
    load_parts(from + i, stride, parts);
    for (int r = 0; r < 4; ++r) {
      for (int j = 0; j < 8; ++j) {
        const __m512i four = _mm512_srli_epi32(parts[r], static_cast<unsigned>(4 * j));
        _mm512_store_si512(out + 512 * r + 64 * j, _mm512_permutexvar_epi32(four, signs));
      }
    }
  }
}

inline void decode(Codes codes, const std::byte* from, int64_t stride, int64_t columns,
                   std::byte* out) {
  switch (codes) {
    case Codes::bytes:
      return decode_bytes(from, stride, columns, out);
    case Codes::nibbles:
      return decode_nibbles<8>(from, stride, columns, out);
    case Codes::nibbles_from_0:
      return decode_nibbles<0>(from, stride, columns, out);
    case Codes::pairs:
      return decode_pairs(from, stride, columns, out);
    case Codes::bits:
      return decode_bits(from, stride, columns, out);
  }
}

}  // namespace sluice::engine::tiles

#endif
