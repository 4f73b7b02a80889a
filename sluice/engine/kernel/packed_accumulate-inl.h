// How rows of each packed format become vectors, for inclusion by packed_accumulate.cpp (once per
// target, hence the toggled guard).
#if defined(SLUICE_ENGINE_KERNEL_PACKED_ACCUMULATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_ENGINE_KERNEL_PACKED_ACCUMULATE_INL_H_
#undef SLUICE_ENGINE_KERNEL_PACKED_ACCUMULATE_INL_H_
#else
#define SLUICE_ENGINE_KERNEL_PACKED_ACCUMULATE_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "sluice/engine/kernel/packed_accumulate_pass.h"

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
using DI = hn::RebindToSigned<D>;

// How a format is read: kBlockBytes of codes and kGroupScales scales per 32 columns; Block prepares
// what the columns share, value(v) is the v-th vector. kFolded: the scale belongs into the factors
// instead (as the row's f32 scale of i8 does).
struct ReadF32 {
  static constexpr size_t kBlockBytes = 128, kGroupScales = 0;
  static constexpr bool kFolded = false;
  struct Block {
    const float* p;
    HWY_INLINE Block(const std::byte* codes, const float*)
        : p(reinterpret_cast<const float*>(codes)) {}
    HWY_INLINE V value(size_t v) const { return hn::LoadU(D(), p + v * hn::Lanes(D())); }
  };
};

struct ReadBf16 {
  static constexpr size_t kBlockBytes = 64, kGroupScales = 0;
  static constexpr bool kFolded = false;
  struct Block {
    const uint16_t* p;
    HWY_INLINE Block(const std::byte* codes, const float*)
        : p(reinterpret_cast<const uint16_t*>(codes)) {}
    HWY_INLINE V value(size_t v) const {
      const hn::Rebind<uint16_t, D> d16;
      const hn::RebindToUnsigned<D> du;
      return hn::BitCast(
          D(), hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, p + v * hn::Lanes(D())))));
    }
  };
};

template <bool kGroups>
struct ReadI8 {
  static constexpr size_t kBlockBytes = 32, kGroupScales = kGroups ? 1 : 0;
  static constexpr bool kFolded = kGroups;
  struct Block {
    const int8_t* p;
    HWY_INLINE Block(const std::byte* codes, const float*)
        : p(reinterpret_cast<const int8_t*>(codes)) {}
    HWY_INLINE V value(size_t v) const {
      const hn::Rebind<int8_t, D> d8;
      return hn::ConvertTo(D(), hn::PromoteTo(DI(), hn::LoadU(d8, p + v * hn::Lanes(D()))));
    }
  };
};

// Byte j of a group holds column j below and column j + 16 above.
template <bool kMin>
struct ReadI4 {
  static constexpr size_t kBlockBytes = 16, kGroupScales = kMin ? 2 : 1;
  static constexpr bool kFolded = !kMin;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  // A lane of 16 columns looks its value up among the sixteen that a code can mean; the lookup
  // ignores the bits above the code.
  struct Block {
    V codes, table;
    HWY_INLINE Block(const std::byte* from, const float* s) {
      const hn::Repartition<uint8_t, D> d8;
      HWY_ALIGN static constexpr uint8_t kSpread[64] = {
#define SLUICE_SPREAD(i) i, 128, 128, 128
          SLUICE_SPREAD(0),  SLUICE_SPREAD(1),  SLUICE_SPREAD(2),  SLUICE_SPREAD(3),
          SLUICE_SPREAD(4),  SLUICE_SPREAD(5),  SLUICE_SPREAD(6),  SLUICE_SPREAD(7),
          SLUICE_SPREAD(8),  SLUICE_SPREAD(9),  SLUICE_SPREAD(10), SLUICE_SPREAD(11),
          SLUICE_SPREAD(12), SLUICE_SPREAD(13), SLUICE_SPREAD(14), SLUICE_SPREAD(15)};
#undef SLUICE_SPREAD
      const auto bytes = hn::LoadDup128(d8, reinterpret_cast<const uint8_t*>(from));
      codes = hn::BitCast(D(), hn::TableLookupBytesOr0(bytes, hn::Load(d8, kSpread)));
      table = hn::Iota(D(), kMin ? 0.0f : -8.0f);
      if (kMin) table = hn::MulAdd(table, hn::Set(D(), s[0]), hn::Set(D(), s[kMinimum]));
    }
    HWY_INLINE V value(size_t v) const {
      auto code = hn::BitCast(DI(), codes);
      if (v == 1) code = hn::ShiftRight<4>(code);
      return V{_mm512_permutexvar_ps(code.raw, table.raw)};
    }
  };
#else
  struct Block {
    const uint8_t* p;
    V scale, shift;
    HWY_INLINE Block(const std::byte* codes, const float* s)
        : p(reinterpret_cast<const uint8_t*>(codes)),
          scale(hn::Set(D(), kMin ? s[0] : 1.0f)),
          shift(hn::Set(D(), kMin ? s[kMinimum] : 0.0f)) {}
    HWY_INLINE V value(size_t v) const {
      const hn::Rebind<uint8_t, D> d8;
      const size_t column = v * hn::Lanes(D());
      auto code = hn::PromoteTo(DI(), hn::LoadU(d8, p + column % 16));
      code = column < 16 ? hn::And(code, hn::Set(DI(), 15)) : hn::ShiftRight<4>(code);
      if (kMin) return hn::MulAdd(hn::ConvertTo(D(), code), scale, shift);
      return hn::ConvertTo(D(), hn::Sub(code, hn::Set(DI(), 8)));
    }
  };
#endif
};

/// f16 -> f32
HWY_INLINE void load_scales(const std::byte* scales, float* out, size_t count) {
  const D d;
  const hn::Rebind<hwy::float16_t, D> d16;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  const auto* from = reinterpret_cast<const hwy::float16_t*>(scales);
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(hn::PromoteTo(d, hn::LoadU(d16, from + i)), d, out + i);
  for (; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, scales + 2 * i, 2);
    out[i] = bundle::f16_to_f32(bits);
  }
}

HWY_INLINE void scale_by(float factor, float* values, size_t count) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(hn::Mul(hn::Set(d, factor), hn::LoadU(d, values + i)), d, values + i);
  for (; i < count; ++i) values[i] *= factor;
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // guard
