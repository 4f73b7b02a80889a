#include "sluice/bundle/packed.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "sluice/base/test_error.h"

namespace sluice::bundle {
namespace packed_test {

std::vector<float> random_values(size_t count, uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.01f, 0.3f);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

std::vector<float> unpacked(Format format, int64_t rows, int64_t columns,
                            std::span<const std::byte> bytes) {
  std::vector<float> out(static_cast<size_t>(rows * columns));
  unpack(view_packed(format, rows, columns, bytes, "w"), out);
  return out;
}

std::vector<float> round_trip(Format format, int64_t rows, int64_t columns,
                              std::span<const float> values) {
  return unpacked(format, rows, columns, pack(format, values, rows, columns));
}

double relative_error(std::span<const float> a, std::span<const float> b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += std::pow(static_cast<double>(a[i]) - b[i], 2);
    size += std::pow(static_cast<double>(a[i]), 2);
  }
  return std::sqrt(error / size);
}

TEST(Packed, NamesAreFoundAgain) {
  EXPECT_EQ(all_formats().size(), 10u);
  for (Format format : all_formats()) EXPECT_EQ(format_from_name(format_name(format)), format);
  EXPECT_FALSE(format_from_name("i3"));
  EXPECT_FALSE(format_from_name(""));
}

TEST(Packed, StoredSizeFollowsFromTheShape) {
  for (Format format : all_formats()) {
    SCOPED_TRACE(format_name(format));
    for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 1},
                                        {3, 31},
                                        {2, 32},
                                        {5, 33},
                                        {1, 64},
                                        {4, 65},
                                        {2, 300}}) {
      const auto values = random_values(static_cast<size_t>(rows * columns));
      const auto bytes = pack(format, values, rows, columns);
      EXPECT_EQ(static_cast<int64_t>(bytes.size()), stored_bytes(format, {rows, columns}));
      const Shape stack = stored_shape(format, {7, rows, columns});
      EXPECT_EQ(stack[0], 7);
      EXPECT_EQ(numel(stack) * dtype_size(stored_dtype(format)),
                7 * static_cast<int64_t>(bytes.size()));
    }
  }
}

TEST(Packed, BitsPerWeightAreWhatTheNamesSay) {
  const auto bits = [](Format format) {
    return 8.0 * static_cast<double>(stored_bytes(format, {4096, 4096})) / (4096.0 * 4096.0);
  };
  EXPECT_NEAR(bits(Format::i8), 8, 0.01);
  EXPECT_NEAR(bits(Format::i8_group), 8.5, 0.01);
  EXPECT_NEAR(bits(Format::i4_group), 4.5, 0.01);
  EXPECT_NEAR(bits(Format::i4_group_min), 5, 0.01);
  EXPECT_NEAR(bits(Format::ternary), 2, 0.01);
  EXPECT_NEAR(bits(Format::binary), 1, 0.01);
  EXPECT_NEAR(bits(Format::binary2), 2, 0.02);
  EXPECT_NEAR(bits(Format::mixed), 1.5, 0.02);
}

TEST(Packed, ErrorsOfNormalWeightsAreThoseOfGoodQuantizers) {
  // Least-squares optima for a normal distribution: ternary 0.44, binary 0.60, four levels 0.34.
  const std::pair<Format, double> bounds[] = {
      {Format::f32, 0},          {Format::bf16, 0.002},     {Format::i8, 0.01},
      {Format::i8_group, 0.006}, {Format::i4_group, 0.088}, {Format::i4_group_min, 0.08},
      {Format::ternary, 0.44},   {Format::binary, 0.61},    {Format::binary2, 0.345},
      {Format::mixed, 0.585}};
  const auto values = random_values(16 * 512);
  for (const auto& [format, bound] : bounds) {
    EXPECT_LE(relative_error(values, round_trip(format, 16, 512, values)), bound)
        << format_name(format);
  }
}

TEST(Packed, ValuesThatTheFormatHoldsComeBackExactly) {
  std::mt19937_64 random(3);
  for (const int64_t columns : {1, 5, 31, 32, 64, 100, 257}) {
    const size_t count = static_cast<size_t>(3 * columns);
    std::vector<float> w(count);
    const auto check = [&](Format format) {
      EXPECT_EQ(round_trip(format, 3, columns, w), w) << format_name(format) << " " << columns;
    };
    for (float& v : w) v = 0.37f * static_cast<float>(static_cast<int>(random() % 3) - 1);
    check(Format::ternary);
    for (float& v : w) v = random() % 2 ? 0.37f : -0.37f;
    check(Format::binary);
    check(Format::ternary);
    for (float& v : w) v = static_cast<float>(static_cast<int>(random() % 255) - 127);
    for (size_t r = 0; r < 3; ++r) w[r * static_cast<size_t>(columns)] = 127;
    check(Format::i8);
    for (size_t i = 0; i < count; ++i) {  // both ends in every group
      const size_t c = i % static_cast<size_t>(columns) % 32;
      w[i] = c == 0   ? -8.0f
             : c == 1 ? 7.0f
                      : static_cast<float>(static_cast<int>(random() % 16) - 8);
    }
    if (columns % 32 != 1) check(Format::i4_group);  // both ends need two columns
    for (float& v : w) v += 100;
    if (columns % 32 != 1) check(Format::i4_group_min);
    check(Format::f32);
    check(Format::bf16);
  }
}

TEST(Packed, PackingAgainChangesNothing) {
  for (Format format : all_formats()) {
    if (format == Format::binary2 || format == Format::mixed) continue;  // scales are refitted
    const auto once = round_trip(format, 7, 150, random_values(7 * 150));
    EXPECT_LE(relative_error(once, round_trip(format, 7, 150, once)), 1e-3) << format_name(format);
  }
}

TEST(Packed, ZeroWeightsStayZeroWhereTheFormatHasOne) {
  const std::vector<float> zeros(2 * 70);
  for (Format format : all_formats()) EXPECT_EQ(round_trip(format, 2, 70, zeros), zeros);
}

TEST(Packed, BitLayoutIsAsDocumented) {
  std::vector<float> w(128, -1.0f);
  w[9] = 1;
  const auto binary = pack(Format::binary, w, 1, 128);
  EXPECT_EQ(binary[1], std::byte{2});
  EXPECT_EQ(binary[0], std::byte{0});
  std::fill(w.begin(), w.end(), 0.0f);
  w[64 + 16 * 2 + 3] = 1;  // block 1, byte 3, bits 4-5
  const auto ternary = pack(Format::ternary, w, 1, 128);
  EXPECT_EQ(ternary[16 + 3], std::byte{0x65});
  EXPECT_EQ(ternary[0], std::byte{0x55});
  std::fill(w.begin(), w.end(), -8.0f);
  w[32 + 5] = 7;
  w[32 + 16 + 5] = 1;
  const auto four = pack(Format::i4_group, w, 1, 128);
  EXPECT_EQ(four[16 + 5], std::byte{0x9F});
}

TEST(Packed, SalientColumnsFollowTheGivenImportance) {
  const auto values = random_values(4 * 40);
  std::vector<float> saliency(40, 0.0f);
  saliency[7] = saliency[39] = saliency[20] = saliency[21] = 1;
  const auto bytes = pack(Format::mixed, values, 4, 40, {saliency});
  const PackedMatrix m = view_packed(Format::mixed, 4, 40, bytes, "w");
  EXPECT_EQ(std::vector<uint32_t>(m.salient.begin(), m.salient.end()),
            (std::vector<uint32_t>{7, 20, 21, 39}));
  std::vector<float> out(40);
  unpack_row(m, 2, out);
  for (size_t c : {7u, 20u, 21u, 39u}) EXPECT_NEAR(out[c], values[80 + c], 0.01);
}

TEST(Packed, HeadIsTheLeadingRows) {
  for (Format format : all_formats()) {
    const auto values = random_values(6 * 50);
    const auto bytes = pack(format, values, 6, 50);
    const PackedMatrix all = view_packed(format, 6, 50, bytes, "w");
    std::vector<float> whole(300), part(100);
    unpack(all, whole);
    unpack(all.head(2), part);
    whole.resize(100);
    EXPECT_EQ(part, whole);
    EXPECT_EQ(all.head(0).rows, 0);
  }
}

TEST(Packed, RefusesImpossibleShapes) {
  constexpr int64_t kHuge = int64_t{1} << 62;
  for (Format format : all_formats()) {
    if (format == Format::f32) continue;
    expect_error(Code::shape, "expected [.., rows, columns]", [&] { stored_shape(format, {8}); });
    expect_error(Code::shape, "sizes >= 1", [&] { stored_shape(format, {0, 8}); });
    expect_error(Code::shape, "sizes >= 1", [&] { stored_shape(format, {8, -1}); });
    expect_error(Code::limit, "", [&] { stored_bytes(format, {kHuge, 1 << 20}); });
    expect_error(Code::limit, "", [&] { stored_bytes(format, {4, kHuge}); });
    expect_error(Code::limit, "", [&] { stored_bytes(format, {kHuge, 2, 1 << 20}); });
  }
}

TEST(Packed, RefusesMalformedBytes) {
  for (Format format : all_formats()) {
    SCOPED_TRACE(format_name(format));
    auto bytes = pack(format, random_values(3 * 70), 3, 70);
    for (size_t size : {size_t{0}, bytes.size() - 1}) {
      expect_error(Code::shape, "layer.w: 3 x 70",
                   [&] { view_packed(format, 3, 70, std::span(bytes).first(size), "layer.w"); });
    }
    expect_error(Code::shape, "takes", [&] { view_packed(format, 4, 70, bytes, "w"); });
    expect_error(Code::shape, "sizes must be >= 1", [&] { view_packed(format, 0, 70, {}, "w"); });
    // All ones: a NaN in every float type.
    const PackedMatrix m = view_packed(format, 3, 70, bytes, "w");
    const size_t scales = format == Format::f32 || format == Format::bf16
                              ? 0
                              : static_cast<size_t>(m.scales - m.codes);
    std::memset(bytes.data() + scales, 0xFF, 4);
    expect_error(Code::numeric, "not finite", [&] { view_packed(format, 3, 70, bytes, "w"); });
    EXPECT_NO_THROW(view_packed(format, 3, 70, bytes, "w", true));
  }
}

// The checks look at eight bytes at a time: one bad number is found wherever it is, and its
// neighbours at the edge of what is good are not taken for it.
TEST(Packed, FindsTheOneBadNumberAnywhere) {
  constexpr int64_t kRows = 3, kColumns = 21;
  const auto with = [](Format format, size_t at, auto value) {
    auto bytes = pack(format, std::vector<float>(kRows * kColumns, 1.0f), kRows, kColumns);
    std::memcpy(bytes.data() + at, &value, sizeof value);
    view_packed(format, kRows, kColumns, bytes, "w");
  };
  for (size_t i = 0; i < kRows * kColumns; ++i) {
    SCOPED_TRACE(i);
    for (const uint16_t bad : {0x7F80, 0xFF80, 0x7FC0, 0xFFFF})
      expect_error(Code::numeric, "not finite", [&] { with(Format::bf16, 2 * i, bad); });
    for (const uint16_t good : {0x7F7F, 0xFF7F, 0x8000, 0x0000, 0x007F})
      EXPECT_NO_THROW(with(Format::bf16, 2 * i, good));
    for (const uint32_t bad : {0x7F800000u, 0xFF800001u, 0x7FFFFFFFu})
      expect_error(Code::numeric, "not finite", [&] { with(Format::f32, 4 * i, bad); });
    for (const uint32_t good : {0x7F7FFFFFu, 0xFF7FFFFFu, 0x80000000u, 0x007FFFFFu})
      EXPECT_NO_THROW(with(Format::f32, 4 * i, good));
    const size_t row = i / kColumns,
                 stride = static_cast<size_t>(code_stride(Format::i8, kColumns));
    const size_t at = row * stride + i % kColumns;
    expect_error(Code::format, "row " + std::to_string(row),
                 [&] { with(Format::i8, at, std::byte{0x80}); });
    for (const int good : {0x81, 0x7F, 0x00, 0xFF, 0x01})
      EXPECT_NO_THROW(with(Format::i8, at, static_cast<std::byte>(good)));
  }
}

TEST(Packed, RefusesImpossibleCodes) {
  auto ternary = pack(Format::ternary, random_values(2 * 70), 2, 70);
  ternary[40] = std::byte{0x0C};
  expect_error(Code::format, "ternary code 3",
               [&] { view_packed(Format::ternary, 2, 70, ternary, "w"); });
  auto eight = pack(Format::i8, random_values(2 * 70), 2, 70);
  eight[100] = std::byte{0x80};
  expect_error(Code::format, "row 1: code -128",
               [&] { view_packed(Format::i8, 2, 70, eight, "w"); });
  auto mixed = pack(Format::mixed, random_values(2 * 70), 2, 70);
  for (const uint32_t column : {0u, 70u, ~0u}) {
    std::memcpy(mixed.data() + mixed.size() - 4, &column, 4);
    expect_error(Code::format, "salient column 7",
                 [&] { view_packed(Format::mixed, 2, 70, mixed, "w"); });
  }
  std::vector<std::byte> shifted(mixed.size() + 1);
  expect_error(Code::format, "not aligned",
               [&] { view_packed(Format::mixed, 2, 70, std::span(shifted).subspan(1), "w"); });
}

TEST(Packed, RefusesWeightsItCannotHold) {
  std::vector<float> w(64, 1.0f);
  for (Format format : all_formats()) {
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      w[33] = bad;
      expect_error(Code::numeric, "weight 33", [&] { pack(format, w, 2, 32); });
    }
    w[33] = 1;
    expect_error(Code::shape, "64 values for a matrix of 2 x 31", [&] { pack(format, w, 2, 31); });
  }
  w[33] = 1e30f;
  expect_error(Code::limit, "does not fit 16 bits", [&] { pack(Format::i8_group, w, 2, 32); });
  expect_error(Code::limit, "does not fit 16 bits", [&] { pack(Format::i4_group, w, 2, 32); });
  expect_error(Code::limit, "does not fit 16 bits", [&] { pack(Format::i4_group_min, w, 2, 32); });
  EXPECT_NO_THROW(pack(Format::i8, w, 2, 32));
  w[33] = std::numeric_limits<float>::max();
  expect_error(Code::limit, "bf16", [&] { pack(Format::bf16, w, 2, 32); });
  for (Format format :
       {Format::i8, Format::ternary, Format::binary, Format::binary2, Format::mixed})
    EXPECT_NO_THROW(pack(format, w, 2, 32)) << format_name(format);
}

TEST(Packed, TinyWeightsDoNotOverflowTheirCodes) {
  std::vector<float> w(64, 190 * std::numeric_limits<float>::denorm_min());
  for (Format format : all_formats())
    for (float v : round_trip(format, 2, 32, w)) EXPECT_TRUE(std::isfinite(v) && v < 1e-30f);
}

TEST(QuantizeActivations, RoundsToTheNearestCode) {
  const std::vector<float> x = {1.27f, -1.27f, 0.005f, 0.015f, 0.0f, -0.634f};
  int8_t codes[6];
  const float scale = quantize_activations(x, codes);
  EXPECT_FLOAT_EQ(scale, 0.01f);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(codes[i] * scale, x[i], 0.5001 * scale);
  EXPECT_EQ(codes[0], 127);
  EXPECT_EQ(codes[1], -127);
}

TEST(QuantizeActivations, ZerosAndBadValues) {
  int8_t codes[3] = {1, 1, 1};
  EXPECT_EQ(quantize_activations(std::vector<float>{0, -0.0f, 0}, codes), 0);
  EXPECT_EQ(codes[0], 0);
  for (float bad : {std::nanf(""), std::numeric_limits<float>::infinity()})
    EXPECT_TRUE(std::isnan(quantize_activations(std::vector<float>{1, bad, 2}, codes)));
  const float tiny = 190 * std::numeric_limits<float>::denorm_min();
  quantize_activations(std::vector<float>{tiny, -tiny, 0}, codes);
  EXPECT_EQ(codes[0], 127);
  EXPECT_EQ(codes[1], -127);
}

TEST(SmallFloats, ConvertBackExactlyAndRoundToEven) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t b = static_cast<uint16_t>(bits);
    if (!std::isnan(f16_to_f32(b))) {
      EXPECT_EQ(f32_to_f16(f16_to_f32(b)), b);
    }
    if (!std::isnan(bf16_to_f32(b))) {
      EXPECT_EQ(f32_to_bf16(bf16_to_f32(b)), b);
    }
  }
  EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(std::nanf("")))));
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::nanf("")))));
  EXPECT_EQ(f32_to_f16(65519.0f), 0x7BFF);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7C00);
  EXPECT_EQ(f32_to_f16(1.0f + 0x1p-11f), 0x3C00);
  EXPECT_EQ(f32_to_f16(1.0f + 3 * 0x1p-11f), 0x3C02);
  EXPECT_EQ(f32_to_f16(0x1p-25f), 0);
  EXPECT_EQ(f32_to_f16(1.5f * 0x1p-25f), 1);
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-8f), 0x3F80);
  EXPECT_EQ(f32_to_bf16(1.0f + 3 * 0x1p-8f), 0x3F82);
}

}  // namespace packed_test
}  // namespace sluice::bundle
