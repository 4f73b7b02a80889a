// For tests: what packed_accumulate.h says of sums of integers.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "sluice/bundle/packed.h"

namespace sluice::engine::testing {

/// How far the sum of these rows may be from exact in a column, beside what rounding of floats
/// does.
inline double sums_off_by(const bundle::PackedMatrix& m, std::span<const int32_t> list,
                          std::span<const float> factors, size_t column) {
  using bundle::Format;
  const bool bytes = m.format == Format::i8 || m.format == Format::i8_group;
  if (!bytes && m.format != Format::i4_group && m.format != Format::i4_group_min) return 0;
  double factor = 0, scale = m.format == Format::i8 ? 1 : 0;  // the largest
  for (size_t j = 0; j < list.size(); ++j) {
    if (factors[j] == 0) continue;
    const std::byte* at = m.scales + list[j] * m.scale_stride;
    double size = std::fabs(factors[j]);
    if (m.format == Format::i8) {
      float mine;
      std::memcpy(&mine, at, 4);
      size *= std::fabs(mine);
    } else {
      uint16_t half;
      std::memcpy(&half, at + 2 * (column / bundle::kGroup), 2);
      scale = std::max<double>(scale, std::fabs(bundle::f16_to_f32(half)));
    }
    factor = std::max(factor, size);
  }
  return static_cast<double>(list.size()) * factor * scale / 65534 * (bytes ? 128 : 8);
}

}  // namespace sluice::engine::testing
