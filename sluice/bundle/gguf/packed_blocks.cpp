#include "sluice/bundle/gguf/packed_blocks.h"

#include <algorithm>
#include <cstring>

#include "sluice/base/error.h"

namespace sluice::bundle::gguf {
namespace {

struct Pair {
  Format format;
  uint32_t type;
  int64_t scales;  ///< bytes in front of a block's codes
  int64_t codes;
};
constexpr Pair kPairs[] = {{Format::f32, kF32, 0, 4},
                           {Format::bf16, kBF16, 0, 2},
                           {Format::i8_group, kQ8_0, 2, 32},
                           {Format::i4_group, kQ4_0, 2, 16},
                           {Format::i4_group_min, kQ4_1, 4, 16}};

const Pair& pair_of(Format format) {
  const auto it = std::ranges::find(kPairs, format, &Pair::format);
  SLUICE_CHECK(it != std::end(kPairs));
  return *it;
}

}  // namespace

std::optional<uint32_t> type_of(Format format) {
  const auto it = std::ranges::find(kPairs, format, &Pair::format);
  return it == std::end(kPairs) ? std::nullopt : std::optional(it->type);
}

std::optional<Format> format_of(uint32_t type) {
  const auto it = std::ranges::find(kPairs, type, &Pair::type);
  return it == std::end(kPairs) ? std::nullopt : std::optional(it->format);
}

std::vector<std::byte> to_blocks(const PackedMatrix& m) {
  const Pair& pair = pair_of(m.format);
  if (pair.scales == 0) return {m.codes, m.codes + m.rows * m.code_stride};
  SLUICE_CHECK(m.columns % kGroup == 0);
  const int64_t groups = m.columns / kGroup, parts = pair.scales / 2;
  std::vector<std::byte> out(static_cast<size_t>(m.rows * groups * (pair.scales + pair.codes)));
  std::byte* to = out.data();
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t part = 0; part < parts; ++part, to += 2)
        std::memcpy(to, m.scales + r * m.scale_stride + 2 * (part * groups + g), 2);
      std::memcpy(to, m.codes + r * m.code_stride + g * pair.codes,
                  static_cast<size_t>(pair.codes));
      to += pair.codes;
    }
  }
  return out;
}

std::optional<std::vector<std::byte>> from_blocks(uint32_t type, std::span<const std::byte> blocks,
                                                  int64_t rows, int64_t columns) {
  const Pair& pair = pair_of(*format_of(type));
  if (pair.scales == 0) return std::vector<std::byte>(blocks.begin(), blocks.end());
  SLUICE_CHECK(columns % kGroup == 0);
  const int64_t groups = columns / kGroup, parts = pair.scales / 2,
                codes = code_stride(pair.format, columns),
                scales = scale_stride(pair.format, columns);
  std::vector<std::byte> out(static_cast<size_t>(stored_bytes(pair.format, {rows, columns})));
  SLUICE_CHECK(out.size() == blocks.size());
  const std::byte* from = blocks.data();
  for (int64_t r = 0; r < rows; ++r) {
    std::byte* row_scales = out.data() + rows * codes + r * scales;
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t part = 0; part < parts; ++part, from += 2)
        std::memcpy(row_scales + 2 * (part * groups + g), from, 2);
      if (type == kQ8_0 && std::find(from, from + pair.codes, std::byte{0x80}) != from + pair.codes)
        return std::nullopt;
      std::memcpy(out.data() + r * codes + g * pair.codes, from, static_cast<size_t>(pair.codes));
      from += pair.codes;
    }
  }
  return out;
}

}  // namespace sluice::bundle::gguf
