#include "sluice/bundle/packed.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "sluice/base/error.h"

namespace sluice::bundle {
namespace {

constexpr std::array<Format, 10> kFormats = {
    Format::f32,          Format::bf16,    Format::i8,     Format::i8_group, Format::i4_group,
    Format::i4_group_min, Format::ternary, Format::binary, Format::binary2,  Format::mixed};
constexpr std::array<std::string_view, 10> kNames = {
    "f32", "bf16", "i8", "i8-32", "i4-32", "i4-32-min", "ternary", "binary", "binary-2", "mixed"};
constexpr int64_t kMaxColumns = (int64_t{1} << 31) - 1;

int64_t groups_of(int64_t columns) { return (columns + kGroup - 1) / kGroup; }
int64_t bit_bytes(int64_t columns) { return (columns + 63) / 64 * 8; }

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

int int8_at(const std::byte* row, int64_t i) { return static_cast<int8_t>(row[i]); }
int bit_at(const std::byte* row, int64_t i) { return static_cast<int>(row[i / 8]) >> (i % 8) & 1; }
float sign_at(const std::byte* row, int64_t i) { return bit_at(row, i) ? 1.0f : -1.0f; }
int nibble_at(const std::byte* row, int64_t i) {
  const int64_t in_group = i % kGroup;
  const int both = static_cast<int>(row[i / kGroup * 16 + in_group % 16]);
  return in_group < 16 ? both & 15 : both >> 4;
}
int pair_at(const std::byte* row, int64_t i) {
  return static_cast<int>(row[i / 64 * 16 + i % 16]) >> (2 * (i % 64 / 16)) & 3;
}

void check_codes(const PackedMatrix& m, const std::string& what) {
  if (m.format == Format::i8 || m.format == Format::i8_group || m.format == Format::mixed) {
    const bool mixed = m.format == Format::mixed;
    const int64_t skip = mixed ? bit_bytes(m.columns) : 0;
    const int64_t count = mixed ? static_cast<int64_t>(m.salient.size()) : m.columns;
    for (int64_t r = 0; r < m.rows; ++r) {
      const std::byte* row = m.codes + r * m.code_stride + skip;
      // Eight at a time: a byte is 0x80 where the other seven bits are 0 and the sign is 1.
      constexpr uint64_t kSigns = 0x8080808080808080u;
      uint64_t found = 0;
      int64_t i = 0;
      for (; i + 8 <= count; i += 8) {
        const uint64_t word = load<uint64_t>(row + i);
        found |= word & ~((word & ~kSigns) + ~kSigns) & kSigns;
      }
      bool bad = found != 0;
      for (; i < count; ++i) bad |= row[i] == std::byte{0x80};
      if (bad) fail(Code::format, "{}: row {}: code -128; expected -127 to 127", what, r);
    }
  }
  if (m.format == Format::ternary) {
    for (int64_t r = 0; r < m.rows; ++r) {
      const std::byte* row = m.codes + r * m.code_stride;
      uint64_t bad = 0;
      for (int64_t i = 0; i < m.code_stride; i += 8) {
        const uint64_t word = load<uint64_t>(row + i);
        bad |= word & word >> 1 & 0x5555555555555555u;
      }
      if (bad) fail(Code::format, "{}: row {}: ternary code 3; expected 0, 1 or 2", what, r);
    }
  }
  for (size_t i = 0; i < m.salient.size(); ++i) {
    if (m.salient[i] >= static_cast<uint64_t>(m.columns) ||
        (i > 0 && m.salient[i] <= m.salient[i - 1])) {
      fail(Code::format, "{}: salient column {} is {}; expected ascending numbers below {}", what,
           i, m.salient[i], m.columns);
    }
  }
}

/// Whether a number's exponent is all ones, of numbers of sizeof(Word) bytes: adding the exponent's
/// lowest bit then carries into the sign's place, and no further. Eight bytes at a time, because
/// every weight of a file passes here before it is used.
template <class Word>
bool any_not_finite(const std::byte* data, int64_t bytes, Word exponent) {
  constexpr uint64_t kEach = ~uint64_t{0} / static_cast<Word>(-1);  // 1 in every number
  const uint64_t mask = kEach * exponent,
                 lowest = kEach * static_cast<Word>(exponent & (~exponent + 1)),
                 sign = kEach * static_cast<Word>(Word{1} << (8 * sizeof(Word) - 1));
  uint64_t carried[4] = {};
  int64_t at = 0;
  for (; at + 32 <= bytes; at += 32)
    for (int64_t lane = 0; lane < 4; ++lane)
      carried[lane] |= (load<uint64_t>(data + at + 8 * lane) & mask) + lowest;
  for (; at < bytes; at += static_cast<int64_t>(sizeof(Word)))
    carried[0] |=
        static_cast<uint64_t>(load<Word>(data + at) & exponent) + (lowest & static_cast<Word>(-1));
  return ((carried[0] | carried[1] | carried[2] | carried[3]) & sign) != 0;
}

template <class Word>
void check_finite(const std::byte* plane, int64_t stride, int64_t rows, Word exponent,
                  std::string_view kind, const std::string& what) {
  constexpr int64_t size = sizeof(Word);
  if (stride % size == 0 && !any_not_finite(plane, rows * stride, exponent)) return;
  const auto not_finite = [&](const std::byte* at) {
    return (load<Word>(at) & exponent) == exponent;
  };
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i * size < stride; ++i) {
      if (not_finite(plane + r * stride + i * size))
        fail(Code::numeric, "{}: row {}: {} {} is not finite", what, r, kind, i);
    }
  }
}

constexpr uint32_t kF32 = 0x7F800000;
constexpr uint16_t kF16 = 0x7C00, kBf16 = 0x7F80;

void check_scales(const PackedMatrix& m, const std::string& what) {
  switch (m.format) {
    case Format::f32:
      return check_finite(m.codes, m.code_stride, m.rows, kF32, "value", what);
    case Format::bf16:
      return check_finite(m.codes, m.code_stride, m.rows, kBf16, "value", what);
    case Format::i8_group:
    case Format::i4_group:
    case Format::i4_group_min:
      return check_finite(m.scales, m.scale_stride, m.rows, kF16, "scale", what);
    default:
      return check_finite(m.scales, m.scale_stride, m.rows, kF32, "scale", what);
  }
}

}  // namespace

std::string_view format_name(Format format) { return kNames[static_cast<size_t>(format)]; }

std::optional<Format> format_from_name(std::string_view name) {
  for (Format format : kFormats)
    if (format_name(format) == name) return format;
  return std::nullopt;
}

std::span<const Format> all_formats() { return kFormats; }

DType stored_dtype(Format format) {
  if (format == Format::f32) return DType::f32;
  if (format == Format::bf16) return DType::bf16;
  return format == Format::mixed ? DType::u32 : DType::u8;
}

int64_t salient_columns(int64_t columns) {
  return std::min(columns, ((columns + 15) / 16 + 3) / 4 * 4);
}

int64_t code_stride(Format format, int64_t columns) {
  switch (format) {
    case Format::f32:
      return 4 * columns;
    case Format::bf16:
      return 2 * columns;
    case Format::i8:
      return columns;
    case Format::i8_group:
      return groups_of(columns) * kGroup;
    case Format::i4_group:
    case Format::i4_group_min:
      return groups_of(columns) * kGroup / 2;
    case Format::ternary:
      return 2 * bit_bytes(columns);
    case Format::binary:
      return bit_bytes(columns);
    case Format::binary2:
      return 2 * bit_bytes(columns);
    case Format::mixed:
      return bit_bytes(columns) + (salient_columns(columns) + 3) / 4 * 4;
  }
  SLUICE_CHECK(!"every format is above");
  return 0;
}

int64_t scale_stride(Format format, int64_t columns) {
  switch (format) {
    case Format::f32:
    case Format::bf16:
      return 0;
    case Format::i8:
    case Format::ternary:
    case Format::binary:
      return 4;
    case Format::i8_group:
    case Format::i4_group:
      return 2 * groups_of(columns);
    case Format::i4_group_min:
      return 4 * groups_of(columns);
    case Format::binary2:
    case Format::mixed:
      return 8;
  }
  SLUICE_CHECK(!"every format is above");
  return 0;
}

namespace {

int64_t matrix_bytes(Format format, int64_t rows, int64_t columns) {
  if (columns > kMaxColumns)
    fail(Code::limit, "{} columns in format {}; at most {} are allowed", columns,
         format_name(format), kMaxColumns);
  const int64_t each = code_stride(format, columns) + scale_stride(format, columns);
  const int64_t list = format == Format::mixed ? 4 * salient_columns(columns) : 0;
  return checked_add(checked_mul(rows, each, "bytes"), list, "bytes");
}

}  // namespace

Shape stored_shape(Format format, const Shape& logical) {
  if (format == Format::f32) return logical;
  if (logical.size() < 2 || *std::min_element(logical.begin(), logical.end()) < 1)
    fail(Code::shape, "format {}: expected [.., rows, columns] with sizes >= 1, found {}",
         format_name(format), to_string(logical));
  if (format == Format::bf16) return logical;
  Shape stored(logical.begin(), logical.end() - 2);
  stored.push_back(matrix_bytes(format, logical[logical.size() - 2], logical.back()) /
                   dtype_size(stored_dtype(format)));
  return stored;
}

int64_t stored_bytes(Format format, const Shape& logical) {
  return checked_mul(numel(stored_shape(format, logical), "tensor"),
                     dtype_size(stored_dtype(format)), "bytes");
}

PackedMatrix PackedMatrix::head(int64_t count) const {
  SLUICE_CHECK(count >= 0 && count <= rows);
  PackedMatrix view = *this;
  view.rows = count;
  return view;
}

PackedMatrix view_packed(Format format, int64_t rows, int64_t columns,
                         std::span<const std::byte> bytes, const std::string& what, bool trusted) {
  if (rows < 1 || columns < 1)
    fail(Code::shape, "{}: {} x {} in format {}; sizes must be >= 1", what, rows, columns,
         format_name(format));
  const int64_t expected = matrix_bytes(format, rows, columns);
  if (static_cast<uint64_t>(expected) != bytes.size())
    fail(Code::shape, "{}: {} x {} in format {} takes {} bytes, found {}", what, rows, columns,
         format_name(format), expected, bytes.size());
  PackedMatrix m;
  m.format = format;
  m.rows = rows;
  m.columns = columns;
  m.codes = bytes.data();
  m.code_stride = code_stride(format, columns);
  m.scales = m.codes + rows * m.code_stride;
  m.scale_stride = scale_stride(format, columns);
  if (format == Format::mixed) {
    const std::byte* list = m.scales + rows * m.scale_stride;
    if (reinterpret_cast<uintptr_t>(list) % alignof(uint32_t) != 0)
      fail(Code::format,
           "{}: the bytes of a mixed matrix are not aligned to 4; write the file anew", what);
    m.salient = {reinterpret_cast<const uint32_t*>(list),
                 static_cast<size_t>(salient_columns(columns))};
  }
  if (!trusted) {
    check_codes(m, what);
    check_scales(m, what);
  }
  return m;
}

void unpack_row(const PackedMatrix& m, int64_t row, std::span<float> out) {
  SLUICE_CHECK(row >= 0 && row < m.rows && static_cast<int64_t>(out.size()) == m.columns);
  const std::byte* codes = m.codes + row * m.code_stride;
  const std::byte* scales = m.scales + row * m.scale_stride;
  const int64_t groups = groups_of(m.columns);
  const auto f16_scale = [&](int64_t g) { return f16_to_f32(load<uint16_t>(scales + 2 * g)); };
  const auto each = [&](auto value) {
    for (int64_t i = 0; i < m.columns; ++i) out[static_cast<size_t>(i)] = value(i);
  };
  const float s = m.scale_stride == 4 || m.scale_stride == 8 ? load<float>(scales) : 0.0f;
  switch (m.format) {
    case Format::f32:
      std::memcpy(out.data(), codes, out.size_bytes());
      return;
    case Format::bf16:
      return each([&](int64_t i) { return bf16_to_f32(load<uint16_t>(codes + 2 * i)); });
    case Format::i8:
      return each([&](int64_t i) { return s * static_cast<float>(int8_at(codes, i)); });
    case Format::i8_group:
      return each(
          [&](int64_t i) { return f16_scale(i / kGroup) * static_cast<float>(int8_at(codes, i)); });
    case Format::i4_group:
      return each([&](int64_t i) {
        return f16_scale(i / kGroup) * static_cast<float>(nibble_at(codes, i) - 8);
      });
    case Format::i4_group_min:
      return each([&](int64_t i) {
        return f16_scale(i / kGroup) * static_cast<float>(nibble_at(codes, i)) +
               f16_scale(groups + i / kGroup);
      });
    case Format::ternary:
      return each([&](int64_t i) { return s * static_cast<float>(pair_at(codes, i) - 1); });
    case Format::binary:
      return each([&](int64_t i) { return s * sign_at(codes, i); });
    case Format::binary2: {
      const float s2 = load<float>(scales + 4);
      const std::byte* second = codes + m.code_stride / 2;
      return each([&](int64_t i) { return s * sign_at(codes, i) + s2 * sign_at(second, i); });
    }
    case Format::mixed: {
      const float s1 = load<float>(scales + 4);
      each([&](int64_t i) { return s1 * sign_at(codes, i); });
      const std::byte* eight = codes + bit_bytes(m.columns);
      for (size_t k = 0; k < m.salient.size(); ++k)
        out[m.salient[k]] = s * static_cast<float>(int8_at(eight, static_cast<int64_t>(k)));
      return;
    }
  }
}

void unpack(const PackedMatrix& m, std::span<float> out) {
  SLUICE_CHECK(static_cast<int64_t>(out.size()) == checked_mul(m.rows, m.columns, "values"));
  for (int64_t r = 0; r < m.rows; ++r)
    unpack_row(m, r,
               out.subspan(static_cast<size_t>(r * m.columns), static_cast<size_t>(m.columns)));
}

float quantize_activations(std::span<const float> x, int8_t* codes) {
  float top = 0;
  bool finite = true;
  for (float v : x) {
    finite &= std::isfinite(v);
    top = std::max(top, std::fabs(v));
  }
  const float scale = finite ? top / 127.0f : std::nanf("");
  if (!(scale > 0)) {
    std::fill(codes, codes + x.size(), int8_t{0});
    return scale;
  }
  for (size_t i = 0; i < x.size(); ++i)  // tiny scales are coarse: the quotient may exceed 127
    codes[i] = static_cast<int8_t>(std::clamp(std::nearbyint(x[i] / scale), -127.0f, 127.0f));
  return scale;
}

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = uint32_t{bits} >> 15 << 31, exponent = bits >> 10 & 31, rest = bits & 1023;
  if (exponent == 0) {  // zero and subnormals: rest x 2^-24
    const float value = static_cast<float>(rest) * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | rest << 13);
}

uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return sign | 0x7E00;   // NaN
  if (magnitude >= 0x477FF000) return sign | 0x7C00;  // 65520 and more round to infinity
  if (magnitude < 0x38800000) {                       // below 2^-14: a multiple of 2^-24
    return static_cast<uint16_t>(
        sign | static_cast<uint16_t>(std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24f)));
  }
  const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1) - (112u << 23);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace sluice::bundle
