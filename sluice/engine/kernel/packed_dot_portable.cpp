// Products with packed weights through Highway, for processors without a path of their own: codes
// unpack to int8 (or floats) in strips that stay in the first-level cache, and these meet the
// activations.
#include <algorithm>
#include <cstring>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/packed_dot_path.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/packed_dot_portable.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#ifndef SLUICE_ENGINE_KERNEL_PACKED_DOT_PORTABLE_ONCE_
#define SLUICE_ENGINE_KERNEL_PACKED_DOT_PORTABLE_ONCE_
namespace sluice::engine {

inline constexpr int64_t kStrip = 512;  // columns; a multiple of every group and block

// A prepared row: header, values (floats or int8 codes, zeros up to whole strips), then the
// activations of the salient columns in the same type.
// Of codes that meet weights with a minimum, the sum of each group of 32 besides.
struct PortablePlaces {
  int64_t padded, values = sizeof(DotHeader), salient, sums, end;
  bool codes;
};

inline bool stored_as_float(bundle::Format format) {
  return format == bundle::Format::f32 || format == bundle::Format::bf16;
}

inline PortablePlaces portable_places(bundle::Format format, DotKind kind, int64_t columns) {
  PortablePlaces p;
  p.codes = kind == DotKind::i8 && !stored_as_float(format);
  const int64_t each = p.codes ? 1 : 4;
  p.padded = (columns + kStrip - 1) / kStrip * kStrip;
  p.salient = p.values + p.padded * each;
  const int64_t salient =
      format == bundle::Format::mixed ? (bundle::salient_columns(columns) + 63) / 64 * 64 : 0;
  p.sums = p.salient + salient * each;
  p.end = p.sums;
  if (p.codes && format == bundle::Format::i4_group_min)
    p.end += (p.padded / 32 * static_cast<int64_t>(sizeof(int32_t)) + 63) / 64 * 64;
  return p;
}

}  // namespace sluice::engine
#endif

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

// Exact sum of products of two runs of int8; count is at most kStrip.
HWY_INLINE int32_t DotCodes(const int8_t* HWY_RESTRICT a, const int8_t* HWY_RESTRICT b,
                            size_t count) {
#if HWY_TARGET == HWY_SCALAR
  int32_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += int32_t{a[i]} * b[i];
  return sum;
#else
  const hn::ScalableTag<int32_t> d32;
  const hn::Repartition<int16_t, decltype(d32)> d16;
  const hn::Rebind<int8_t, decltype(d16)> d8;
  const size_t lanes = hn::Lanes(d8);
  auto even = hn::Zero(d32), odd = hn::Zero(d32);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    even = hn::ReorderWidenMulAccumulate(d32, hn::PromoteTo(d16, hn::LoadU(d8, a + i)),
                                         hn::PromoteTo(d16, hn::LoadU(d8, b + i)), even, odd);
  }
  int32_t sum = hn::GetLane(hn::SumOfLanes(d32, hn::Add(even, odd)));
  for (; i < count; ++i) sum += int32_t{a[i]} * b[i];
  return sum;
#endif
}

// Products of one run of floats with kRows others. Each sum is added up in the same order whatever
// the number of rows is.
template <int kRows>
HWY_INLINE void DotFloats(const float* HWY_RESTRICT a, const float* const* b, size_t count,
                          float* HWY_RESTRICT result) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  V even[kRows], odd[kRows];
  for (int r = 0; r < kRows; ++r) even[r] = odd[r] = hn::Zero(d);
  size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    const V first = hn::LoadU(d, a + i), second = hn::LoadU(d, a + i + lanes);
    for (int r = 0; r < kRows; ++r) {
      even[r] = hn::MulAdd(first, hn::LoadU(d, b[r] + i), even[r]);
      odd[r] = hn::MulAdd(second, hn::LoadU(d, b[r] + i + lanes), odd[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even[r], odd[r])));
    for (size_t k = i; k < count; ++k) sum += a[k] * b[r][k];
    result[r] = sum;
  }
}

// Integer codes of columns first..first+count-1; first is a multiple of kStrip. `plane` chooses
// between the bit planes of binary-2. At most 63 codes behind `count` are written too.
HWY_INLINE void Decode(Format format, const std::byte* row, int64_t plane_bytes, int64_t plane,
                       int64_t first, int64_t count, int8_t* HWY_RESTRICT out) {
  switch (format) {
    case Format::i8:
    case Format::i8_group:
      std::memcpy(out, row + first, static_cast<size_t>(count));
      return;
    case Format::i4_group:
    case Format::i4_group_min: {
      const int minus = format == Format::i4_group ? 8 : 0;
      const auto* from = reinterpret_cast<const uint8_t*>(row + first / 2);
      for (int64_t g = 0; g * 32 < count; ++g) {
        for (int64_t k = 0; k < 16; ++k) {
          out[32 * g + k] = static_cast<int8_t>((from[16 * g + k] & 15) - minus);
          out[32 * g + 16 + k] = static_cast<int8_t>((from[16 * g + k] >> 4) - minus);
        }
      }
      return;
    }
    case Format::ternary: {
      const auto* from = reinterpret_cast<const uint8_t*>(row + first / 4);
      for (int64_t b = 0; b * 64 < count; ++b) {
        for (int64_t j = 0; j < 4; ++j)
          for (int64_t k = 0; k < 16; ++k)
            out[64 * b + 16 * j + k] = static_cast<int8_t>((from[16 * b + k] >> (2 * j) & 3) - 1);
      }
      return;
    }
    case Format::binary:
    case Format::binary2:
    case Format::mixed: {
      const auto* from = reinterpret_cast<const uint8_t*>(row + plane * plane_bytes + first / 8);
      for (int64_t i = 0; i < count; i += 8) {
        for (int64_t k = 0; k < 8; ++k)
          out[i + k] = static_cast<int8_t>((from[i / 8] >> k & 1) * 2 - 1);
      }
      return;
    }
    case Format::f32:
    case Format::bf16:
      break;
  }
}

// scale * code + least as floats.
template <class D, class C>
HWY_INLINE void StoreScaled(D d, C codes, hn::Vec<D> scale, hn::Vec<D> least, float* to) {
  const hn::RebindToSigned<D> whole;
  hn::StoreU(hn::MulAdd(hn::ConvertTo(d, hn::PromoteTo(whole, codes)), scale, least), d, to);
}

HWY_INLINE void Widen(const int8_t* HWY_RESTRICT from, int64_t count, float scale,
                      float* HWY_RESTRICT to) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto by = hn::Set(d, scale), none = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) StoreScaled(d, hn::LoadU(d8, from + i), by, none, to + i);
  for (; i < count; ++i) to[i] = scale * static_cast<float>(from[i]);
}

// Values of columns first..first+count-1 of a format with groups of 32; as Decode, behind `count`
// too.
HWY_INLINE void GroupWeights(const PackedMatrix& w, const std::byte* codes, const std::byte* scales,
                             int64_t first, int64_t count, float* HWY_RESTRICT out) {
  const hn::CappedTag<float, 16> d;
  const hn::Rebind<uint8_t, decltype(d)> d8;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const bool with_least = w.format == Format::i4_group_min;
  const int64_t groups = (w.columns + 31) / 32;
  for (int64_t at = 0; at < count; at += 32) {
    const int64_t g = (first + at) / 32;
    const float scale = bundle::f16_to_f32(Load<uint16_t>(scales + 2 * g));
    if (w.format == Format::i8_group) {
      Widen(reinterpret_cast<const int8_t*>(codes + first + at), std::min<int64_t>(32, count - at),
            scale, out + at);
      continue;
    }
    const float least =
        with_least ? bundle::f16_to_f32(Load<uint16_t>(scales + 2 * (groups + g))) : -8 * scale;
    const auto by = hn::Set(d, scale), from_least = hn::Set(d, least);
    const auto* from = reinterpret_cast<const uint8_t*>(codes + (first + at) / 2);
    for (int64_t k = 0; k < 16; k += lanes) {
      const auto both = hn::LoadU(d8, from + k);
      StoreScaled(d, hn::And(both, hn::Set(d8, uint8_t{15})), by, from_least, out + at + k);
      StoreScaled(d, hn::ShiftRight<4>(both), by, from_least, out + at + 16 + k);
    }
  }
}

HWY_INLINE void FloatWeights(Format format, const std::byte* row, int64_t first, int64_t count,
                             float* HWY_RESTRICT out) {
  if (format == Format::f32) {
    std::memcpy(out, row + 4 * first, static_cast<size_t>(count) * 4);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = uint32_t{Load<uint16_t>(row + 2 * (first + i))} << 16;
    std::memcpy(out + i, &bits, 4);
  }
}

// What one row of weights, unpacked strip by strip, gives for every row of x.
struct Row {
  const PackedMatrix& w;
  const DotInput& x;
  const PortablePlaces p;
  const std::byte* codes = nullptr;
  const std::byte* scales = nullptr;
  double sums[kMaxDotBatch][2];

  const int8_t* XCodes(int64_t b, int64_t at) const {
    return reinterpret_cast<const int8_t*>(x.data + b * x.stride + p.values) + at;
  }
  const float* XFloats(int64_t b, int64_t at) const {
    return reinterpret_cast<const float*>(x.data + b * x.stride + p.values) + at;
  }

  // Adds the products of `count` floats with x from column `at` on, several rows of x at a time.
  HWY_INLINE void AddFloats(int64_t plane, int64_t at, const float* f, int64_t count) {
    const auto n = static_cast<size_t>(count);
    float found[4];
    int64_t b = 0;
    for (; b + 4 <= x.batch; b += 4) {
      const float* rows[] = {XFloats(b, at), XFloats(b + 1, at), XFloats(b + 2, at),
                             XFloats(b + 3, at)};
      DotFloats<4>(f, rows, n, found);
      for (int64_t r = 0; r < 4; ++r) sums[b + r][plane] += static_cast<double>(found[r]);
    }
    for (; b + 2 <= x.batch; b += 2) {
      const float* rows[] = {XFloats(b, at), XFloats(b + 1, at)};
      DotFloats<2>(f, rows, n, found);
      for (int64_t r = 0; r < 2; ++r) sums[b + r][plane] += static_cast<double>(found[r]);
    }
    if (b < x.batch) {
      const float* rows[] = {XFloats(b, at)};
      DotFloats<1>(f, rows, n, found);
      sums[b][plane] += static_cast<double>(found[0]);
    }
  }

  // The sum of x's codes in a group.
  HWY_INLINE double Sum(int64_t b, int64_t group) const {
    return Load<int32_t>(x.data + b * x.stride + p.sums + 4 * group);
  }

  HWY_INLINE void Strip(int64_t first, int64_t count) {
    HWY_ALIGN int8_t q[kStrip + 64];
    HWY_ALIGN float f[kStrip + 64];
    if (stored_as_float(w.format)) {
      FloatWeights(w.format, codes, first, count, f);
      return AddFloats(0, first, f, count);
    }
    const bool grouped = w.format == Format::i8_group || w.format == Format::i4_group ||
                         w.format == Format::i4_group_min;
    if (grouped && !p.codes) {
      GroupWeights(w, codes, scales, first, count, f);
      return AddFloats(0, first, f, count);
    }
    const int64_t planes = w.format == Format::binary2 ? 2 : 1;
    for (int64_t plane = 0; plane < planes; ++plane) {
      Decode(w.format, codes, bit_plane_bytes(w.columns), plane, first, count, q);
      if (!p.codes) {
        Widen(q, count, 1.0f, f);
        AddFloats(plane, first, f, count);
        continue;
      }
      if (!grouped) {
        for (int64_t b = 0; b < x.batch; ++b)
          sums[b][plane] += DotCodes(q, XCodes(b, first), static_cast<size_t>(count));
        continue;
      }
      const int64_t groups = (w.columns + 31) / 32;
      for (int64_t at = 0; at < count; at += 32) {
        const int64_t g = (first + at) / 32, n = std::min<int64_t>(32, count - at);
        const float s = bundle::f16_to_f32(Load<uint16_t>(scales + 2 * g));
        const float m = w.format == Format::i4_group_min
                            ? bundle::f16_to_f32(Load<uint16_t>(scales + 2 * (groups + g)))
                            : 0.0f;
        for (int64_t b = 0; b < x.batch; ++b) {
          sums[b][0] += s * static_cast<double>(
                                DotCodes(q + at, XCodes(b, first + at), static_cast<size_t>(n)));
          if (w.format == Format::i4_group_min) sums[b][0] += m * Sum(b, g);
        }
      }
    }
  }

  HWY_INLINE double Salient(int64_t b) const {
    const auto* q = reinterpret_cast<const int8_t*>(codes + bit_plane_bytes(w.columns));
    const std::byte* xs = x.data + b * x.stride + p.salient;
    double sum = 0;
    for (int64_t k = 0; k < bundle::salient_columns(w.columns); ++k) {
      const double value = p.codes ? reinterpret_cast<const int8_t*>(xs)[k]
                                   : static_cast<double>(reinterpret_cast<const float*>(xs)[k]);
      sum += q[k] * value;
    }
    return sum;
  }

  HWY_INLINE void Finish(int64_t k, float* y, int64_t y_stride) const {
    for (int64_t b = 0; b < x.batch; ++b) {
      double sum = sums[b][0];
      if (w.scale_stride == 4 && w.format != Format::i8_group && w.format != Format::i4_group &&
          w.format != Format::i4_group_min)
        sum *= Load<float>(scales);
      if (w.format == Format::binary2)
        sum = Load<float>(scales) * sum + Load<float>(scales + 4) * sums[b][1];
      if (w.format == Format::mixed)
        sum = Load<float>(scales) * Salient(b) + Load<float>(scales + 4) * sum;
      const float scale = reinterpret_cast<const DotHeader*>(x.data + b * x.stride)->scale;
      y[b * y_stride + k] = scale * static_cast<float>(sum);
    }
  }
};

bool IsAvx512() { return HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL; }
bool HasAvx2() { return HWY_TARGET == HWY_AVX2 || IsAvx512(); }

void RunRows(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
             int64_t y_stride) {
  Row row{w, x, portable_places(w.format, x.kind, w.columns), nullptr, nullptr, {}};
  for (int64_t k = 0; k < rows.count; ++k) {
    const int64_t o = rows.at(k);
    row.codes = w.codes + o * w.code_stride;
    row.scales = w.scales + o * w.scale_stride;
    std::memset(row.sums, 0, sizeof row.sums);
    for (int64_t first = 0; first < w.columns; first += kStrip)
      row.Strip(first, std::min(kStrip, w.columns - first));
    row.Finish(k, y, y_stride);
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {
namespace {

HWY_EXPORT(RunRows);
HWY_EXPORT(IsAvx512);
HWY_EXPORT(HasAvx2);

int64_t stride(bundle::Format format, DotKind kind, int64_t columns) {
  return portable_places(format, kind, columns).end;
}

void prepare(const bundle::PackedMatrix& w, DotKind kind, const float* x, std::byte* out) {
  const PortablePlaces p = portable_places(w.format, kind, w.columns);
  const size_t columns = static_cast<size_t>(w.columns);
  std::memset(out + p.values, 0, static_cast<size_t>(p.end - p.values));
  DotHeader header;
  float* floats = reinterpret_cast<float*>(out + p.values);
  int8_t* codes = reinterpret_cast<int8_t*>(out + p.values);
  if (p.codes) {
    header.scale = bundle::quantize_activations({x, columns}, codes);
    int8_t* salient = reinterpret_cast<int8_t*>(out + p.salient);
    for (size_t k = 0; k < w.salient.size(); ++k)
      salient[k] = std::exchange(codes[w.salient[k]], int8_t{0});
    auto* sums = reinterpret_cast<int32_t*>(out + p.sums);
    for (int64_t g = 0; p.end > p.sums && g < p.padded / 32; ++g) {
      for (int64_t i = 0; i < 32; ++i) sums[g] += codes[32 * g + i];
    }
  } else {
    if (kind == DotKind::i8) {
      // The codes as floats: made at the end of the place, widened from its start.
      int8_t* small = codes + 3 * p.padded;
      header.scale = bundle::quantize_activations({x, columns}, small);
      for (size_t i = 0; i < columns; ++i) floats[i] = small[i];
      std::fill(floats + columns, floats + p.padded, 0.0f);
    } else {
      for (size_t i = 0; i < columns; ++i)
        floats[i] = kind == DotKind::bf16 ? bundle::bf16_to_f32(bundle::f32_to_bf16(x[i])) : x[i];
    }
    float* salient = reinterpret_cast<float*>(out + p.salient);
    for (size_t k = 0; k < w.salient.size(); ++k)
      salient[k] = std::exchange(floats[w.salient[k]], 0.0f);
  }
  std::memcpy(out, &header, sizeof header);
}

void run(const bundle::PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
         int64_t y_stride) {
  HWY_DYNAMIC_DISPATCH(RunRows)(w, x, rows, y, y_stride);
}

}  // namespace

// (hwy::SupportedTargets() would ask the CPU each time, which in a virtual machine takes longer
// than a small product.)
bool chosen_target_is_avx512() { return HWY_DYNAMIC_DISPATCH(IsAvx512)(); }
bool chosen_target_has_avx2() { return HWY_DYNAMIC_DISPATCH(HasAvx2)(); }

const DotPath& portable_dot() {
  static constexpr DotPath path{stride, prepare, run};
  return path;
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
