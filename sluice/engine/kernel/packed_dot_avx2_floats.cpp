// Products of packed weights and float activations with AVX2: codes become floats in registers.
// Codes of less than a byte are taken as 32-bit words, field by field: what one shift brings up
// lies in eight words, and the activations are permuted once into the order that this gives.
#include "sluice/engine/kernel/packed_dot_avx2.h"

#if defined(__x86_64__) && defined(__GNUC__)

#define SLUICE_DOT_TARGET SLUICE_AVX2
#define SLUICE_DOT_INLINE SLUICE_AVX2_INLINE
#define SLUICE_DOT_MEMBER SLUICE_AVX2 __attribute__((always_inline)) inline

namespace sluice::engine::avx2 {
namespace {

using Floats = __m256;
constexpr int kLanes = 8, kHeld = 4;

SLUICE_AVX2_INLINE Floats zeros() { return _mm256_setzero_ps(); }
SLUICE_AVX2_INLINE Floats load_floats(const float* from) { return _mm256_loadu_ps(from); }
SLUICE_AVX2_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  return _mm256_fmadd_ps(a, b, c);
}
SLUICE_AVX2_INLINE float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

SLUICE_AVX2_INLINE Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
SLUICE_AVX2_INLINE Floats broadcast(const float* from) { return _mm256_broadcast_ss(from); }
SLUICE_AVX2_INLINE Floats widen(const std::byte* from) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
SLUICE_AVX2_INLINE void load_scales(const std::byte* from, int64_t left, float* out) {
  _mm256_store_ps(out, scales8(from, left));
  _mm256_store_ps(out + 8, left > 8 ? scales8(from + 16, left - 8) : zeros());
}

#include "sluice/engine/kernel/packed_dot_floats-inl.h"

// Codes of R rows that are read where they lie; those of a chunk that ends early, kBytes for each
// of its columns, from a copy with zeros behind them.
template <int R, int64_t kColumns, int64_t kEach>
struct InPlace {
  static constexpr int64_t kChunk = kColumns, kBytes = kColumns * kEach;
  const std::byte* codes[R];
  alignas(32) std::byte rest[R][kBytes];
  SLUICE_DOT_MEMBER void load(int r, const std::byte* from, int64_t, int64_t left) {
    codes[r] = from;
    if (left == kChunk) return;
    std::memset(rest[r], 0, kBytes);
    std::memcpy(rest[r], from, static_cast<size_t>(left * kEach));
    codes[r] = rest[r];
  }
};

// Codes of R rows in a register each, kPerByte columns a byte, stored in runs of kRun bytes.
template <int R, int64_t kPerByte, int64_t kRun>
struct InRegisters {
  static constexpr int64_t kChunk = 32 * kPerByte, kBytes = 32;
  __m256i codes[R];
  SLUICE_DOT_MEMBER void load(int r, const std::byte* from, int64_t, int64_t left) {
    codes[r] = load_some(from, round_up(left, kRun * kPerByte) / kPerByte);
  }
};

template <int R>
struct Decode<Format::f32, R> : Plain<R>, InPlace<R, 16, 4> {
  using Plain<R>::Plain;
  SLUICE_DOT_MEMBER Floats part(int r, int p) const {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(this->codes[r]) + 8 * p);
  }
};

// Of 16 those at even places, then those at odd ones.
template <int R>
struct Decode<Format::bf16, R> : Plain<R>, InPlace<R, 32, 2> {
  using Plain<R>::Plain;
  SLUICE_DOT_MEMBER Floats part(int r, int p) const {
    const __m256i pairs = avx2::load(this->codes[r] + p / 2 * 32);
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
    return _mm256_castsi256_ps(p % 2 == 0 ? _mm256_slli_epi32(pairs, 16)
                                          : _mm256_and_si256(pairs, upper));
  }
};

template <int R>
struct Decode<Format::i8, R> : Plain<R>, InPlace<R, 32, 1> {
  using Plain<R>::Plain;
  SLUICE_DOT_MEMBER Floats part(int r, int p) const { return widen(this->codes[r] + 8 * p); }
};

// A vector of codes has two groups, one in each half.
template <int R, bool kMin>
struct DecodeI4 : Grouped<R, kMin>, InRegisters<R, 2, 16> {
  using Codes = InRegisters<R, 2, 16>;
  using Grouped<R, kMin>::Grouped;
  Floats factor[R], minimum[R];
  SLUICE_DOT_MEMBER static Floats of_two(const float* groups) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_broadcast_ss(groups)),
                                _mm_broadcast_ss(groups + 1), 1);
  }
  SLUICE_DOT_MEMBER void load(int r, const std::byte* from, int64_t i, int64_t left) {
    Codes::load(r, from, i, left);
    // A code q + 8 with its upper bit flipped is q in four bits of two's complement.
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x88));
    if (!kMin) this->codes[r] = _mm256_xor_si256(this->codes[r], flip);
    factor[r] = of_two(&this->factors.of[r][i / 32 % 16]);
    if (kMin) minimum[r] = of_two(&this->minima.of[r][i / 32 % 16]);
  }
  SLUICE_DOT_MEMBER Floats part(int r, int p) const {
    const __m256i w = this->codes[r];
    if (kMin) {
      const __m256i q = _mm256_and_si256(_mm256_srli_epi32(w, 4 * p), _mm256_set1_epi32(15));
      return _mm256_fmadd_ps(_mm256_cvtepi32_ps(q), factor[r], minimum[r]);
    }
    const __m256i q = _mm256_srai_epi32(_mm256_slli_epi32(w, 28 - 4 * p), 28);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(q), factor[r]);
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
struct Decode<Format::ternary, R> : Plain<R>, InRegisters<R, 4, 16> {
  using Plain<R>::Plain;
  SLUICE_DOT_MEMBER Floats part(int r, int p) const {
    // The value of the lowest two bits, whatever the others are.
    const Floats values = _mm256_set_ps(2, 1, 0, -1, 2, 1, 0, -1);
    return _mm256_permutevar_ps(values, _mm256_srli_epi32(this->codes[r], 2 * p));
  }
};

// Bits as 1 and 0.
template <int R>
struct Decode<Format::binary, R> : Plain<R>, InRegisters<R, 8, 8> {
  using Plain<R>::Plain;
  SLUICE_DOT_MEMBER Floats part(int r, int p) const {
    const Floats sign = _mm256_castsi256_ps(_mm256_slli_epi32(this->codes[r], 31 - p));
    return _mm256_blendv_ps(zeros(), _mm256_set1_ps(1), sign);
  }
};

}  // namespace

void run_floats(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
                int64_t y_stride) {
  run_format<Product, true>(w, x, rows, y, y_stride);
}

}  // namespace sluice::engine::avx2

#endif
