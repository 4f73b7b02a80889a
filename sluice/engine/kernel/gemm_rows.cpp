// Plain loops, compiled once per vector target: the compiler vectorises them (-O3).
#include "sluice/engine/kernel/gemm_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/packed_dot_path.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/gemm_rows.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using bundle::Format;
using bundle::PackedMatrix;

template <class T>
HWY_INLINE T Load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

float LargestMagnitude(const float* HWY_RESTRICT x, int64_t count) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto top = hn::Zero(d), zero = hn::Zero(d);  // zero: x - x, NaN where x is not finite
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    top = hn::Max(top, hn::Abs(v));
    zero = hn::Add(zero, hn::Sub(v, v));
  }
  float most = hn::GetLane(hn::MaxOfLanes(d, top)), check = hn::GetLane(hn::SumOfLanes(d, zero));
  for (; i < count; ++i) {
    most = std::max(most, std::fabs(x[i]));
    check += x[i] - x[i];
  }
  return check == 0 ? most : std::bit_cast<float>(0x7FC00000u);
}

void QuantizeBy(const float* HWY_RESTRICT x, float factor, int64_t count,
                int8_t* HWY_RESTRICT codes) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto by = hn::Set(d, factor), low = hn::Set(d, -127.0f), high = hn::Set(d, 127.0f);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto q = hn::Clamp(hn::Round(hn::Mul(hn::LoadU(d, x + i), by)), low, high);
    hn::StoreU(hn::DemoteTo(d8, hn::ConvertTo(di, q)), d8, codes + i);
  }
  for (; i < count; ++i)
    codes[i] = static_cast<int8_t>(std::clamp(std::nearbyint(x[i] * factor), -127.0f, 127.0f));
}

float QuantizeRow(const float* HWY_RESTRICT x, int64_t count, int8_t* HWY_RESTRICT codes) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const float scale = LargestMagnitude(x, count) / 127.0f;
  if (!(scale > 0)) {
    std::memset(codes, 0, static_cast<size_t>(count));
    return scale;
  }
  const auto divisor = hn::Set(d, scale);
  const auto low = hn::Set(d, -127.0f), high = hn::Set(d, 127.0f);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto q = hn::Clamp(hn::Round(hn::Div(hn::LoadU(d, x + i), divisor)), low, high);
    hn::StoreU(hn::DemoteTo(d8, hn::ConvertTo(di, q)), d8, codes + i);
  }
  for (; i < count; ++i)
    codes[i] = static_cast<int8_t>(std::clamp(std::nearbyint(x[i] / scale), -127.0f, 127.0f));
  return scale;
}

void Bf16Row(const float* HWY_RESTRICT x, int64_t count, uint16_t* HWY_RESTRICT out) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<uint16_t, decltype(d)> d16;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    const auto bits = hn::BitCast(du, v), upper = hn::ShiftRight<16>(bits);
    const auto rounded = hn::ShiftRight<16>(
        hn::Add(bits, hn::Add(hn::Set(du, 0x7FFF), hn::And(upper, hn::Set(du, 1)))));
    const auto ordered = hn::RebindMask(du, hn::Eq(v, v));
    const auto result = hn::IfThenElse(ordered, rounded, hn::Or(upper, hn::Set(du, 0x40)));
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, result)), d16, out + i);
  }
  for (; i < count; ++i) out[i] = bundle::f32_to_bf16(x[i]);
}

void RoundBf16(const float* HWY_RESTRICT x, int64_t count, float* HWY_RESTRICT out) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
    bits = (bits & 0x7FFFFFFF) > 0x7F800000 ? bits : rounded;
    std::memcpy(out + i, &bits, 4);
  }
}

void Widen(const int8_t* HWY_RESTRICT x, int64_t count, float* HWY_RESTRICT out) {
  for (int64_t i = 0; i < count; ++i) out[i] = x[i];
}

void ScaleSums(float* HWY_RESTRICT y, float scale, const float* HWY_RESTRICT scales,
               const float* HWY_RESTRICT bias, int64_t count) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto sums = hn::ConvertTo(d, hn::BitCast(di, hn::LoadU(d, y + i)));
    const auto value = hn::Mul(hn::Mul(hn::LoadU(d, scales + i), sums), hn::Set(d, scale));
    hn::StoreU(bias ? hn::Add(value, hn::LoadU(d, bias + i)) : value, d, y + i);
  }
  for (; i < count; ++i) {
    int32_t sum;
    std::memcpy(&sum, y + i, 4);
    y[i] = scales[i] * static_cast<float>(sum) * scale + (bias ? bias[i] : 0.0f);
  }
}

// Columns of whole groups; `out` has room for them.
HWY_INLINE void UnpackNibbles(const uint8_t* HWY_RESTRICT codes, const std::byte* scales,
                              const std::byte* minima, float minus, int64_t groups,
                              float* HWY_RESTRICT out) {
  for (int64_t g = 0; g < groups; ++g) {
    const float s = bundle::f16_to_f32(Load<uint16_t>(scales + 2 * g));
    const float m = minima ? bundle::f16_to_f32(Load<uint16_t>(minima + 2 * g)) : 0.0f;
    for (int64_t k = 0; k < 16; ++k) {
      const int code = codes[16 * g + k];
      out[32 * g + k] = s * (static_cast<float>(code & 15) - minus) + m;
      out[32 * g + 16 + k] = s * (static_cast<float>(code >> 4) - minus) + m;
    }
  }
}

HWY_INLINE void UnpackPairs(const uint8_t* HWY_RESTRICT codes, float s, int64_t blocks,
                            float* HWY_RESTRICT out) {
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t j = 0; j < 4; ++j)
      for (int64_t k = 0; k < 16; ++k)
        out[64 * b + 16 * j + k] = s * static_cast<float>((codes[16 * b + k] >> (2 * j) & 3) - 1);
  }
}

template <bool kAdd>
HWY_INLINE void UnpackBits(const std::byte* bits, float s, int64_t words, float* HWY_RESTRICT out) {
  for (int64_t w = 0; w < words; ++w) {
    const uint64_t word = Load<uint64_t>(bits + 8 * w);
    for (int64_t half = 0; half < 2; ++half) {
      const uint32_t part = static_cast<uint32_t>(word >> (32 * half));
      for (uint32_t k = 0; k < 32; ++k) {
        const float value = part >> k & 1 ? s : -s;
        float& to = out[64 * w + 32 * half + k];
        to = kAdd ? to + value : value;
      }
    }
  }
}

// `out` has room for the columns rounded up to 64.
void UnpackRow(const PackedMatrix& m, int64_t row, float* HWY_RESTRICT out) {
  const std::byte* codes = m.codes + row * m.code_stride;
  const std::byte* scales = m.scales + row * m.scale_stride;
  const auto* bytes = reinterpret_cast<const uint8_t*>(codes);
  const auto* eight = reinterpret_cast<const int8_t*>(codes);
  const int64_t groups = (m.columns + 31) / 32, words = (m.columns + 63) / 64;
  switch (m.format) {
    case Format::f32:
      std::memcpy(out, codes, static_cast<size_t>(m.columns) * 4);
      return;
    case Format::bf16:
      for (int64_t i = 0; i < m.columns; ++i) {
        const uint32_t bits = uint32_t{Load<uint16_t>(codes + 2 * i)} << 16;
        std::memcpy(out + i, &bits, 4);
      }
      return;
    case Format::i8: {
      const float s = Load<float>(scales);
      for (int64_t i = 0; i < m.columns; ++i) out[i] = s * static_cast<float>(eight[i]);
      return;
    }
    case Format::i8_group:
      for (int64_t g = 0; g < groups; ++g) {
        const float s = bundle::f16_to_f32(Load<uint16_t>(scales + 2 * g));
        for (int64_t k = 0; k < 32; ++k)
          out[32 * g + k] = s * static_cast<float>(eight[32 * g + k]);
      }
      return;
    case Format::i4_group:
      return UnpackNibbles(bytes, scales, nullptr, 8, groups, out);
    case Format::i4_group_min:
      return UnpackNibbles(bytes, scales, scales + 2 * groups, 0, groups, out);
    case Format::ternary:
      return UnpackPairs(bytes, Load<float>(scales), words, out);
    case Format::binary:
      return UnpackBits<false>(codes, Load<float>(scales), words, out);
    case Format::binary2:
      UnpackBits<false>(codes, Load<float>(scales), words, out);
      return UnpackBits<true>(codes + m.code_stride / 2, Load<float>(scales + 4), words, out);
    case Format::mixed: {
      UnpackBits<false>(codes, Load<float>(scales + 4), words, out);
      const float s = Load<float>(scales);
      for (size_t k = 0; k < m.salient.size(); ++k)
        out[m.salient[k]] = s * static_cast<float>(eight[8 * words + static_cast<int64_t>(k)]);
      return;
    }
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(QuantizeRow);
HWY_EXPORT(LargestMagnitude);
HWY_EXPORT(QuantizeBy);
HWY_EXPORT(Bf16Row);
HWY_EXPORT(RoundBf16);
HWY_EXPORT(Widen);
HWY_EXPORT(ScaleSums);
HWY_EXPORT(UnpackRow);

float quantize_row(const float* x, int64_t count, int8_t* codes) {
  return HWY_DYNAMIC_DISPATCH(QuantizeRow)(x, count, codes);
}

float largest_magnitude(const float* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(LargestMagnitude)(x, count);
}

void quantize_by(const float* x, float factor, int64_t count, int8_t* codes) {
  HWY_DYNAMIC_DISPATCH(QuantizeBy)(x, factor, count, codes);
}

void bf16_row(const float* x, int64_t count, uint16_t* out) {
  HWY_DYNAMIC_DISPATCH(Bf16Row)(x, count, out);
}

float round_row(DotKind kind, const float* x, int64_t count, float* out) {
  if (kind == DotKind::f32) std::memcpy(out, x, static_cast<size_t>(count) * sizeof(float));
  if (kind == DotKind::bf16) HWY_DYNAMIC_DISPATCH(RoundBf16)(x, count, out);
  if (kind != DotKind::i8) return 1;
  // The codes at the end of the place, widened from its start.
  int8_t* codes = reinterpret_cast<int8_t*>(out) + 3 * count;
  const float scale = quantize_row(x, count, codes);
  constexpr int64_t kPart = 256;
  int8_t part[kPart];
  for (int64_t i = 0; i < count; i += kPart) {
    const int64_t n = std::min(kPart, count - i);
    std::memcpy(part, codes + i, static_cast<size_t>(n));
    HWY_DYNAMIC_DISPATCH(Widen)(part, n, out + i);
  }
  return scale;
}

void scale_sums(float* y, float scale, const float* scales, const float* bias, int64_t count) {
  HWY_DYNAMIC_DISPATCH(ScaleSums)(y, scale, scales, bias, count);
}

void unpack_rows(const bundle::PackedMatrix& m, int64_t first, int64_t count, float* out) {
  const auto unpack = HWY_DYNAMIC_DISPATCH(UnpackRow);
  const int64_t whole = m.format == bundle::Format::f32 || m.format == bundle::Format::bf16 ||
                                m.format == bundle::Format::i8
                            ? m.columns
                            : (m.columns + 63) / 64 * 64;
  const bool exact = whole == m.columns;
  // A row's padding runs over into the next row, which is written afterwards; the last row has none
  // behind it.
  for (int64_t r = 0; r < count; ++r) {
    if (exact || (count - 1 - r) * m.columns >= whole) {
      unpack(m, first + r, out + r * m.columns);
    } else {
      bundle::unpack_row(m, first + r, {out + r * m.columns, static_cast<size_t>(m.columns)});
    }
  }
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
