#include "sluice/engine/kernel/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/elementwise.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/rows.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

void RmsNorm(const float* in, const float* weight, float eps, float* out, size_t rows,
             size_t width) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  for (size_t r = 0; r < rows; ++r, in += width, out += width) {
    V even = hn::Zero(d), odd = hn::Zero(d);
    size_t i = 0;
    for (; i + 2 * lanes <= width; i += 2 * lanes) {
      const V a = hn::LoadU(d, in + i), b = hn::LoadU(d, in + i + lanes);
      even = hn::MulAdd(a, a, even);
      odd = hn::MulAdd(b, b, odd);
    }
    float squares = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
    for (; i < width; ++i) squares += in[i] * in[i];
    const float factor = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
    const V scale = hn::Set(d, factor);
    for (i = 0; i + lanes <= width; i += lanes) {
      V x = hn::Mul(hn::LoadU(d, in + i), scale);
      if (weight) x = hn::Mul(x, hn::LoadU(d, weight + i));
      hn::StoreU(x, d, out + i);
    }
    for (; i < width; ++i) out[i] = in[i] * factor * (weight ? weight[i] : 1.0f);
  }
}

/// out[i] += a[i]
void Accumulate(const float* a, float* out, size_t count) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(hn::Add(hn::LoadU(d, out + i), hn::LoadU(d, a + i)), d, out + i);
  for (; i < count; ++i) out[i] += a[i];
}

/// (cos, sin)[half] times (cos, sin)[half]: the angles add.
void AddAngles(const float* other, float* angles, size_t half) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= half; i += lanes) {
    const V c = hn::LoadU(d, angles + i), s = hn::LoadU(d, angles + half + i),
            oc = hn::LoadU(d, other + i), os = hn::LoadU(d, other + half + i);
    hn::StoreU(hn::NegMulAdd(s, os, hn::Mul(c, oc)), d, angles + i);
    hn::StoreU(hn::MulAdd(s, oc, hn::Mul(c, os)), d, angles + half + i);
  }
  for (; i < half; ++i) {
    const float c = angles[i], s = angles[half + i];
    angles[i] = c * other[i] - s * other[half + i];
    angles[half + i] = s * other[i] + c * other[half + i];
  }
}

void Turn(const float* in, const float* angles, size_t half, bool interleaved, float* out) {
  const D d;
  const size_t lanes = hn::Lanes(d), step = interleaved ? 2 : 1, other = interleaved ? 1 : half;
  size_t i = 0;
  for (; i + lanes <= half; i += lanes) {
    const V c = hn::LoadU(d, angles + i), s = hn::LoadU(d, angles + half + i);
    V a, b;
    if (interleaved) {
      hn::LoadInterleaved2(d, in + 2 * i, a, b);
    } else {
      a = hn::LoadU(d, in + i);
      b = hn::LoadU(d, in + half + i);
    }
    const V x = hn::NegMulAdd(b, s, hn::Mul(a, c)), y = hn::MulAdd(b, c, hn::Mul(a, s));
    if (interleaved) {
      hn::StoreInterleaved2(x, y, d, out + 2 * i);
    } else {
      hn::StoreU(x, d, out + i);
      hn::StoreU(y, d, out + half + i);
    }
  }
  for (; i < half; ++i) {
    const float c = angles[i], s = angles[half + i];
    const float a = in[step * i], b = in[step * i + other];
    out[step * i] = a * c - b * s;
    out[step * i + other] = b * c + a * s;
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(RmsNorm);
HWY_EXPORT(Accumulate);
HWY_EXPORT(AddAngles);
HWY_EXPORT(Turn);

void compact_rows(const float* x, const float* keep, size_t width, const LiveRows& before,
                  LiveRows& after, float* out) {
  const int64_t unit = after.per_sample / before.per_sample;
  int64_t next = 0;
  for (int64_t s = 0; s < before.samples; ++s) {
    after.start[s] = next;
    const int64_t end = before.start[s + 1] * unit;
    int64_t row = before.start[s] * unit;
    while (row < end) {
      if (!(keep[row] > 0)) {
        ++row;
        continue;
      }
      // Neighbours move together; towards the front, so that out may be x.
      const int64_t first = row;
      for (; row < end && keep[row] > 0; ++row) after.source[next + row - first] = row;
      const int64_t count = row - first;
      float* to = out + static_cast<size_t>(next) * width;
      const float* from = x + static_cast<size_t>(first) * width;
      if (to != from) std::memmove(to, from, static_cast<size_t>(count) * width * sizeof(float));
      next += count;
    }
  }
  after.start[before.samples] = next;
  after.count = next;
}

void scatter_rows(const float* base, const float* y, size_t width, const LiveRows& before,
                  const LiveRows& after, bool add, float* out) {
  const size_t rows = static_cast<size_t>(before.count * (after.per_sample / before.per_sample));
  if (out != base && rows > 0) std::memcpy(out, base, rows * width * sizeof(float));
  for (int64_t i = 0; i < after.count; ++i, y += width) {
    float* to = out + static_cast<size_t>(after.source[i]) * width;
    if (add) {
      HWY_DYNAMIC_DISPATCH(Accumulate)(y, to, width);
    } else {
      std::memcpy(to, y, width * sizeof(float));
    }
  }
}

void pool_rows(const float* x, size_t width, const LiveRows& rows, int64_t unit,
               const LiveRows& outer, Pool kind, float* out) {
  for (int64_t s = 0; s < outer.samples; ++s) {
    if (outer.start[s] == outer.start[s + 1]) continue;
    const int64_t first = rows.start[s] * unit, count = rows.start[s + 1] * unit - first;
    float* to = out + static_cast<size_t>(outer.start[s]) * width;
    if (count == 0) {
      std::fill(to, to + width, 0.0f);
      continue;
    }
    const int64_t from = kind == Pool::last ? first + count - 1 : first;
    std::memcpy(to, x + static_cast<size_t>(from) * width, width * sizeof(float));
    if (kind != Pool::mean) continue;
    for (int64_t r = 1; r < count; ++r)
      HWY_DYNAMIC_DISPATCH(Accumulate)(x + static_cast<size_t>(first + r) * width, to, width);
    scale_all(to, 1.0f / static_cast<float>(count), to, width);
  }
}

void rms_norm(const float* in, const float* weight, float eps, float* out, size_t rows,
              size_t width) {
  HWY_DYNAMIC_DISPATCH(RmsNorm)(in, weight, eps, out, rows, width);
}

void l2_normalize(const float* in, float eps, float* out, size_t rows, size_t width) {
  for (size_t r = 0; r < rows; ++r, in += width, out += width) {
    double squares = 0;  // of f32: exact enough and without overflow
    for (size_t i = 0; i < width; ++i) squares += static_cast<double>(in[i]) * in[i];
    const float least =
        std::max(eps, std::numeric_limits<float>::min());  // whose inverse is finite
    const double length = std::max(std::sqrt(squares), static_cast<double>(least));
    scale_all(in, static_cast<float>(1 / length), out, width);
  }
}

namespace {

size_t row_of(float id, size_t count, size_t row, const std::string& what) {
  if (!(id >= 0 && id < static_cast<float>(count) && id == std::floor(id))) {
    fail(Code::numeric, "{}: id {} in row {}; expected an integer from 0 to {}", what, id, row,
         count - 1);
  }
  return static_cast<size_t>(id);
}

}  // namespace

void embed(const float* ids, const float* table, size_t count, size_t width,
           const std::string& what, float* out, size_t rows) {
  for (size_t r = 0; r < rows; ++r, out += width)
    std::memcpy(out, table + row_of(ids[r], count, r, what) * width, width * sizeof(float));
}

void embed(const float* ids, const bundle::PackedMatrix& table, const std::string& what, float* out,
           size_t rows) {
  const size_t count = static_cast<size_t>(table.rows), width = static_cast<size_t>(table.columns);
  for (size_t r = 0; r < rows; ++r, out += width)
    bundle::unpack_row(table, static_cast<int64_t>(row_of(ids[r], count, r, what)), {out, width});
}

void slice_rows(const float* in, size_t width, size_t start, size_t size, float* out, size_t rows) {
  for (size_t r = 0; r < rows; ++r)
    std::memcpy(out + r * size, in + r * width + start, size * sizeof(float));
}

Rope::Rope(size_t dims, double base, double scale, bool interleaved, std::span<const float> factors)
    : dims_(dims), interleaved_(interleaved) {
  const size_t half = dims / 2;
  for (size_t i = 0; i < half; ++i)
    frequency_.push_back(std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(dims)) /
                         (scale * (factors.empty() ? 1.0 : factors[i])));
  digits_.resize(kDigits * kBase * dims_);
  float* to = digits_.data();
  double weight = 1;
  for (size_t digit = 0; digit < kDigits; ++digit, weight *= kBase) {
    for (size_t value = 0; value < kBase; ++value, to += dims_) {
      for (size_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(value) * weight * frequency_[i];
        to[i] = static_cast<float>(std::cos(angle));
        to[half + i] = static_cast<float>(std::sin(angle));
      }
    }
  }
}

void Rope::apply(const float* in, size_t heads, size_t width, double position, float* scratch,
                 float* out, size_t start) const {
  constexpr double kTabled = kBase * kBase * kBase;
  const size_t half = dims_ / 2;
  if (position >= 0 && position < kTabled && position == std::floor(position)) {
    size_t rest = static_cast<size_t>(position);
    std::memcpy(scratch, digits_.data() + rest % kBase * dims_, dims_ * sizeof(float));
    for (size_t digit = 1; digit < kDigits; ++digit) {
      rest /= kBase;
      if (rest == 0) break;
      HWY_DYNAMIC_DISPATCH(AddAngles)
      (digits_.data() + (digit * kBase + rest % kBase) * dims_, scratch, half);
    }
  } else {
    for (size_t i = 0; i < half; ++i) {
      scratch[i] = static_cast<float>(std::cos(position * frequency_[i]));
      scratch[half + i] = static_cast<float>(std::sin(position * frequency_[i]));
    }
  }
  for (size_t h = 0; h < heads; ++h, in += width, out += width) {
    HWY_DYNAMIC_DISPATCH(Turn)(in + start, scratch, half, interleaved_, out + start);
    const size_t end = start + dims_;
    if (out != in && start > 0) std::memcpy(out, in, start * sizeof(float));
    if (out != in && width > end) std::memcpy(out + end, in + end, (width - end) * sizeof(float));
  }
}

std::shared_ptr<const Rope> shared_rope(size_t dims, double base, double scale, bool interleaved,
                                        std::vector<float> factors) {
  static std::mutex mutex;
  static std::map<std::tuple<size_t, double, double, bool, std::vector<float>>,
                  std::weak_ptr<const Rope>>
      tables;
  std::lock_guard lock(mutex);
  auto& slot = tables[{dims, base, scale, interleaved, factors}];
  if (auto table = slot.lock()) return table;
  auto table = std::make_shared<const Rope>(dims, base, scale, interleaved, factors);
  slot = table;
  return table;
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
