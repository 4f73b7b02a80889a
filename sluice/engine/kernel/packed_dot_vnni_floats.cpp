// Products of packed weights and float activations with AVX-512: codes become floats in registers.
#include "sluice/engine/kernel/packed_dot_vnni.h"

#if defined(__x86_64__) && defined(__GNUC__)

#define SLUICE_DOT_TARGET SLUICE_VNNI
#define SLUICE_DOT_INLINE SLUICE_VNNI_INLINE
#define SLUICE_DOT_MEMBER SLUICE_VNNI __attribute__((always_inline)) inline

namespace sluice::engine::vnni {
namespace {

using Floats = __m512;
constexpr int kLanes = 16, kHeld = 16;

SLUICE_VNNI_INLINE Floats zeros() { return _mm512_setzero_ps(); }
SLUICE_VNNI_INLINE Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }
using vnni::multiply_add;
SLUICE_VNNI_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  return _mm512_fmadd_ps(a, b, c);
}
SLUICE_VNNI_INLINE Floats multiply_add(__mmask16 chosen, Floats b, Floats c) {
  return _mm512_mask_add_ps(c, chosen, c, b);
}
SLUICE_VNNI_INLINE float total(Floats v) { return _mm512_reduce_add_ps(v); }

SLUICE_VNNI_INLINE Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
SLUICE_VNNI_INLINE Floats broadcast(const float* from) { return _mm512_set1_ps(*from); }
SLUICE_VNNI_INLINE __m128i load16(const std::byte* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
SLUICE_VNNI_INLINE Floats widen(__m128i codes) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}
SLUICE_VNNI_INLINE Floats widen(const std::byte* codes) { return widen(load16(codes)); }
SLUICE_VNNI_INLINE void load_scales(const std::byte* from, int64_t left, float* out) {
  _mm512_store_ps(out, scales16(from, left));
}

#include "sluice/engine/kernel/packed_dot_floats-inl.h"

template <int R>
struct Decode<Format::f32, R> : Plain<R> {
  static constexpr int64_t kChunk = 16, kBytes = 64;
  using Plain<R>::Plain;
  Floats values[R];
  SLUICE_DOT_MEMBER void load(int r, const std::byte* from, int64_t, int64_t left) {
    values[r] = left == 16 ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(first16(left), from);
  }
  SLUICE_DOT_MEMBER Floats part(int r, int) const { return values[r]; }
};

// The 16 at even places, then those at odd ones.
template <int R>
struct Decode<Format::bf16, R> : Plain<R> {
  static constexpr int64_t kChunk = 32, kBytes = 64;
  using Plain<R>::Plain;
  __m512i pairs[R];
  SLUICE_DOT_MEMBER void load(int r, const std::byte* from, int64_t, int64_t left) {
    if (left == 32) {
      pairs[r] = _mm512_loadu_si512(from);
      asm("" : "+v"(pairs[r]));  // or gcc reads memory twice
    } else {
      pairs[r] = _mm512_maskz_loadu_epi16((1u << left) - 1, from);
    }
  }
  SLUICE_DOT_MEMBER Floats part(int r, int p) const {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
    return _mm512_castsi512_ps(p == 0 ? _mm512_slli_epi32(pairs[r], 16)
                                      : _mm512_and_si512(pairs[r], upper));
  }
};

template <int R>
struct Decode<Format::i8, R> : Plain<R> {
  static constexpr int64_t kChunk = 16, kBytes = 16;
  using Plain<R>::Plain;
  Floats values[R];
  SLUICE_DOT_MEMBER void load(int r, const std::byte* from, int64_t, int64_t left) {
    values[r] = widen(left == 16 ? load16(from) : _mm_maskz_loadu_epi8(first16(left), from));
  }
  SLUICE_DOT_MEMBER Floats part(int r, int) const { return values[r]; }
};

template <int R, bool kMin>
struct DecodeI4 : Grouped<R, kMin> {
  static constexpr int64_t kChunk = 32, kBytes = 16;
  using Grouped<R, kMin>::Grouped;
  __m512i codes[R];
  int64_t group = 0;
  SLUICE_DOT_MEMBER void load(int r, const std::byte* from, int64_t i, int64_t) {
    codes[r] = _mm512_cvtepu8_epi32(load16(from));
    group = i / 32 % 16;
  }
  SLUICE_DOT_MEMBER Floats part(int r, int p) const {
    const Floats lane = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const Floats values = kMin ? lane : _mm512_sub_ps(lane, _mm512_set1_ps(8));
    // Indices of vpermps are 4 bits: the code's upper neighbour is ignored.
    const Floats v =
        _mm512_permutexvar_ps(p == 0 ? codes[r] : _mm512_srli_epi32(codes[r], 4), values);
    const Floats factor = broadcast(&this->factors.of[r][group]);
    return kMin ? multiply_add(v, factor, broadcast(&this->minima.of[r][group]))
                : _mm512_mul_ps(v, factor);
  }
};
template <int R>
struct Decode<Format::i4_group, R> : DecodeI4<R, false> {
  using DecodeI4<R, false>::DecodeI4;
};
template <int R>
struct Decode<Format::i4_group_min, R> : DecodeI4<R, true> {
  using DecodeI4<R, true>::DecodeI4;
};

template <int R>
struct Decode<Format::ternary, R> : Plain<R> {
  static constexpr int64_t kChunk = 64, kBytes = 16;
  using Plain<R>::Plain;
  __m512i codes[R];
  SLUICE_DOT_MEMBER void load(int r, const std::byte* from, int64_t, int64_t) {
    codes[r] = _mm512_cvtepu8_epi32(load16(from));
  }
  SLUICE_DOT_MEMBER Floats part(int r, int p) const {
    // The value of the lowest two bits, whatever the next two are.
    const Floats values = _mm512_set_ps(2, 1, 0, -1, 2, 1, 0, -1, 2, 1, 0, -1, 2, 1, 0, -1);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(codes[r], static_cast<unsigned>(2 * p)), values);
  }
};

// Sums of the activations where bits are set.
template <int R>
struct Decode<Format::binary, R> : Plain<R> {
  static constexpr int64_t kChunk = 64, kBytes = 8;
  using Plain<R>::Plain;
  uint64_t bits[R];
  SLUICE_DOT_MEMBER void load(int r, const std::byte* from, int64_t, int64_t) {
    std::memcpy(&bits[r], from, 8);
  }
  SLUICE_DOT_MEMBER __mmask16 part(int r, int p) const {
    return static_cast<__mmask16>(bits[r] >> (16 * p));
  }
};

}  // namespace

void run_floats(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
                int64_t y_stride) {
  run_format<Product, true>(w, x, rows, y, y_stride);
}

}  // namespace sluice::engine::vnni

#endif
