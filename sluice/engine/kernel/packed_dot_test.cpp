#include "sluice/engine/kernel/packed_dot.h"

#include <cstdlib>
#include <cstring>
#include <limits>

#include "sluice/base/machine.h"
#include "sluice/base/test_error.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/instruction_set.h"
#include "sluice/engine/kernel/onednn.h"
#include "sluice/engine/kernel/packed_tiles.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace packed_dot_test {

using bundle::Format;
using bundle::PackedMatrix;
using testing::for_each_target;
using testing::Guarded;
using testing::random_floats;

constexpr DotKind kKinds[] = {DotKind::f32, DotKind::bf16, DotKind::i8};

// A matrix at an odd address (mixed: aligned to 4, as it must be), behind and before guard bytes.
struct Weights {
  std::vector<uint32_t> memory;
  std::vector<float> values;
  PackedMatrix matrix;

  Weights(Format format, int64_t rows, int64_t columns, uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto bytes = bundle::pack(
        format, random_floats(random, static_cast<size_t>(rows * columns)), rows, columns);
    memory.resize(bytes.size() / 4 + 3);
    std::byte* at =
        reinterpret_cast<std::byte*>(memory.data() + 1) + (format == Format::mixed ? 0 : 1);
    std::memcpy(at, bytes.data(), bytes.size());
    matrix = bundle::view_packed(format, rows, columns, {at, bytes.size()}, "w");
    values.resize(static_cast<size_t>(rows * columns));
    bundle::unpack(matrix, values);
  }
};

std::vector<double> rounded(DotKind kind, std::span<const float> x) {
  std::vector<double> result(x.begin(), x.end());
  if (kind == DotKind::bf16)
    for (double& v : result) v = bundle::bf16_to_f32(bundle::f32_to_bf16(static_cast<float>(v)));
  if (kind == DotKind::i8) {
    std::vector<int8_t> codes(x.size());
    const double scale = bundle::quantize_activations(x, codes.data());
    for (size_t i = 0; i < x.size(); ++i) result[i] = scale * codes[i];
  }
  return result;
}

void expect_products(const Weights& w, DotKind kind, std::span<const float> x, int64_t x_stride,
                     int64_t batch, std::span<const int32_t> rows, std::span<const float> y,
                     int64_t y_stride) {
  const size_t columns = static_cast<size_t>(w.matrix.columns);
  for (int64_t b = 0; b < batch; ++b) {
    const auto xs = rounded(kind, x.subspan(static_cast<size_t>(b * x_stride), columns));
    for (size_t k = 0; k < rows.size(); ++k) {
      double sum = 0, size = 0;
      for (size_t i = 0; i < columns; ++i) {
        const double product = xs[i] * w.values[static_cast<size_t>(rows[k]) * columns + i];
        sum += product;
        size += std::fabs(product);
      }
      ASSERT_NEAR(y[static_cast<size_t>(b * y_stride) + k], sum, 4e-6 * size + 1e-30)
          << "row " << rows[k] << " of x " << b;
    }
  }
}

Buffer scratch_for(const PackedMatrix& w, DotKind kind, int64_t batch) {
  return Buffer(dot_scratch_bytes(w.format, kind, w.columns, batch));
}

std::vector<int32_t> all_rows(int64_t rows) {
  std::vector<int32_t> list;
  for (int64_t r = 0; r < rows; ++r) list.push_back(static_cast<int32_t>(r));
  return list;
}

TEST(PackedDot, EveryFormatAndKindMatchesTheReference) {
  for_each_target([] {
    std::mt19937_64 random(5);
    for (const Format format : bundle::all_formats()) {
      for (const DotKind kind : kKinds) {
        SCOPED_TRACE(std::string(bundle::format_name(format)) + " kind " +
                     std::to_string(int(kind)));
        for (const int64_t columns :
             {1, 7, 16, 31, 32, 33, 63, 64, 65, 100, 130, 255, 257, 511, 512, 513, 700, 1100}) {
          const int64_t rows = 1 + static_cast<int64_t>(random() % 5),
                        batch = 1 + static_cast<int64_t>(random() % 8), x_stride = columns + 3,
                        y_stride = rows + 2;
          SCOPED_TRACE(columns);
          const Weights w(format, rows, columns, random());
          const auto x = random_floats(random, static_cast<size_t>(batch * x_stride + 1));
          const std::span<const float> xs = std::span(x).subspan(1);
          Guarded y(static_cast<size_t>((batch - 1) * y_stride + rows));
          const Buffer scratch = scratch_for(w.matrix, kind, batch);
          const DotInput input =
              prepare_dot(w.matrix, kind, xs.data(), x_stride, batch, scratch.data());
          packed_dot(w.matrix, input, y.data(), y_stride, 1);
          expect_products(w, kind, xs, x_stride, batch, all_rows(rows), y.span(), y_stride);
          EXPECT_TRUE(y.intact());
          if (::testing::Test::HasFatalFailure()) return;
        }
      }
    }
  });
}

TEST(PackedDot, EveryBatchGivesTheNumbersOfOneRowAtATime) {
  for_each_target([] {
    std::mt19937_64 random(6);
    for (const Format format : bundle::all_formats()) {
      for (const DotKind kind : kKinds) {
        for (const int64_t columns : {5, 300, 1100}) {
          const Weights w(format, 9, columns, 1);
          const auto x = random_floats(random, static_cast<size_t>(8 * columns));
          for (int64_t batch = 0; batch <= kMaxDotBatch; ++batch) {
            std::vector<float> together(8 * 9, -1.0f), alone(9);
            const Buffer scratch = scratch_for(w.matrix, kind, 8);
            packed_dot(w.matrix,
                       prepare_dot(w.matrix, kind, x.data(), columns, batch, scratch.data()),
                       together.data(), 9, 1);
            for (int64_t b = 0; b < batch; ++b) {
              const float* row = x.data() + columns * b;
              packed_dot(w.matrix, prepare_dot(w.matrix, kind, row, columns, 1, scratch.data()),
                         alone.data(), 9, 1);
              for (size_t o = 0; o < 9; ++o)
                ASSERT_EQ(together[static_cast<size_t>(b) * 9 + o], alone[o])
                    << bundle::format_name(format) << " " << columns;
            }
          }
        }
      }
    }
  });
}

// Rows that go side by side, those left over, and lists of them.
TEST(PackedDot, RowsTogetherGiveTheNumbersOfEachAlone) {
  for_each_target([] {
    std::mt19937_64 random(11);
    for (const Format format : bundle::all_formats()) {
      for (const DotKind kind : kKinds) {
        for (const int64_t columns : {1, 33, 95, 300, 1100}) {
          const Weights w(format, 11, columns, random());
          const auto x = random_floats(random, static_cast<size_t>(columns));
          const Buffer scratch = scratch_for(w.matrix, kind, 1);
          const DotInput input = prepare_dot(w.matrix, kind, x.data(), columns, 1, scratch.data());
          float alone[11];
          for (int64_t o = 0; o < 11; ++o)
            packed_dot_range(w.matrix, input, o, o + 1, alone + o, 1);
          for (int64_t rows = 1; rows <= 11; ++rows) {
            const auto count = static_cast<size_t>(rows);
            Guarded y(count);
            packed_dot_range(w.matrix, input, 11 - rows, 11, y.data(), rows);
            for (size_t k = 0; k < count; ++k) ASSERT_EQ(y.span()[k], alone[11 - count + k]);
            std::vector<int32_t> list(count);
            for (int32_t& o : list) o = static_cast<int32_t>(random() % 11);
            packed_dot_rows(w.matrix, input, list, y.data(), rows);
            for (size_t k = 0; k < count; ++k)
              ASSERT_EQ(y.span()[k], alone[static_cast<size_t>(list[k])])
                  << bundle::format_name(format) << ", " << columns << " columns, row " << k
                  << " of " << rows;
            EXPECT_TRUE(y.intact());
          }
        }
      }
    }
  });
}

TEST(PackedDot, ListsOfRowsMayRepeatAndJump) {
  for_each_target([] {
    std::mt19937_64 random(7);
    const std::vector<int32_t> rows = {11, 0, 3, 3, 10, 1};
    for (const Format format : bundle::all_formats()) {
      const Weights w(format, 12, 150, 2);
      const auto x = random_floats(random, 3 * 150);
      const Buffer scratch = scratch_for(w.matrix, DotKind::i8, 3);
      const DotInput input = prepare_dot(w.matrix, DotKind::i8, x.data(), 150, 3, scratch.data());
      Guarded y(18);
      packed_dot_rows(w.matrix, input, rows, y.data(), 6);
      expect_products(w, DotKind::i8, x, 150, 3, rows, y.span(), 6);
      packed_dot_rows(w.matrix, input, {}, nullptr, 0);
      EXPECT_TRUE(y.intact());
    }
  });
}

TEST(PackedDot, ThreadsAndRangesChangeNoBit) {
  for_each_target([] {
    std::mt19937_64 random(8);
    for (const Format format : bundle::all_formats()) {
      for (const DotKind kind : kKinds) {
        const Weights w(format, 37, 200, 3);
        const auto x = random_floats(random, 5 * 200);
        const Buffer scratch = scratch_for(w.matrix, kind, 5);
        const DotInput input = prepare_dot(w.matrix, kind, x.data(), 200, 5, scratch.data());
        std::vector<float> one(5 * 37), other(5 * 37);
        packed_dot(w.matrix, input, one.data(), 37, 1);
        for (const int threads : {2, 3, 64}) {
          packed_dot(w.matrix, input, other.data(), 37, threads);
          EXPECT_EQ(one, other);
        }
        packed_dot_range(w.matrix, input, 0, 20, other.data(), 37);
        packed_dot_range(w.matrix, input, 20, 20, nullptr, 37);
        packed_dot_range(w.matrix, input, 20, 37, other.data() + 20, 37);
        EXPECT_EQ(one, other);
      }
    }
  });
}

TEST(PackedDot, OneInputServesTheHeadAndOtherMatrices) {
  std::mt19937_64 random(9);
  const Weights a(Format::i4_group, 20, 96, 4), b(Format::i4_group, 7, 96, 5);
  const auto x = random_floats(random, 96);
  const Buffer scratch = scratch_for(a.matrix, DotKind::i8, 1);
  const DotInput input = prepare_dot(a.matrix, DotKind::i8, x.data(), 96, 1, scratch.data());
  std::vector<float> y(7);
  packed_dot(b.matrix, input, y.data(), 7, 1);
  expect_products(b, DotKind::i8, x, 96, 1, all_rows(7), y, 7);
  packed_dot(a.matrix.head(5), input, y.data(), 7, 1);
  expect_products(a, DotKind::i8, x, 96, 1, all_rows(5), y, 7);
}

// With int8 activations and one scale per row nothing but the last two products is rounded.
TEST(PackedDot, IntegerSumsAreExact) {
  for_each_target([] {
    constexpr int64_t kColumns = 3000;
    std::mt19937_64 random(10);
    for (const Format format : {Format::i8, Format::ternary, Format::binary}) {
      const Weights w(format, 3, kColumns, 6);
      auto x = random_floats(random, kColumns);
      std::vector<int8_t> codes(kColumns);
      const float x_scale = bundle::quantize_activations(x, codes.data());
      const Buffer scratch = scratch_for(w.matrix, DotKind::i8, 1);
      float y[3];
      packed_dot(w.matrix,
                 prepare_dot(w.matrix, DotKind::i8, x.data(), kColumns, 1, scratch.data()), y, 3,
                 1);
      for (size_t o = 0; o < 3; ++o) {
        float scale;
        std::memcpy(&scale, w.matrix.scales + 4 * o, 4);
        int64_t sum = 0;
        for (size_t i = 0; i < kColumns; ++i)
          sum += std::lround(w.values[o * kColumns + i] / scale) * codes[i];
        EXPECT_FLOAT_EQ(y[o], x_scale * (scale * static_cast<float>(sum)));
      }
    }
  });
}

TEST(PackedDot, LongRowsOfExtremeCodesDoNotOverflow) {
  constexpr int64_t kColumns = (int64_t{1} << 21) + 96;  // 127 x 127 x 2 M does not fit 32 bits
  const std::vector<float> ones(kColumns, 1.0f);
  for (const Format format :
       {Format::i8, Format::i8_group, Format::ternary, Format::binary, Format::mixed}) {
    const auto bytes = bundle::pack(format, ones, 1, kColumns);
    const PackedMatrix w = bundle::view_packed(format, 1, kColumns, bytes, "w");
    for_each_target([&] {
      const Buffer scratch = scratch_for(w, DotKind::i8, 1);
      float y = 0;
      packed_dot(w, prepare_dot(w, DotKind::i8, ones.data(), kColumns, 1, scratch.data()), &y, 1,
                 1);
      EXPECT_NEAR(y, kColumns, 1e-3 * kColumns) << bundle::format_name(format);
    });
  }
}

// Sums of neighbours in 16 bits, which saturate, hold the largest codes of either sign.
TEST(PackedDot, NeighboursOfExtremeCodesDoNotSaturate) {
  constexpr int64_t kColumns = 5000;
  for_each_target([] {
    for (const Format format : bundle::all_formats()) {
      for (const float weight : {-1.0f, 1.0f}) {
        for (const float value : {-1.0f, 1.0f}) {
          const std::vector<float> weights(kColumns, weight);
          const auto bytes = bundle::pack(format, weights, 1, kColumns);
          const PackedMatrix w = bundle::view_packed(format, 1, kColumns, bytes, "w");
          for (const int64_t batch : {1, 2, 4}) {
            const std::vector<float> x(static_cast<size_t>(batch * kColumns), value);
            const Buffer scratch = scratch_for(w, DotKind::i8, batch);
            std::vector<float> y(static_cast<size_t>(batch));
            packed_dot(w, prepare_dot(w, DotKind::i8, x.data(), kColumns, batch, scratch.data()),
                       y.data(), 1, 1);
            for (const float sum : y)
              EXPECT_NEAR(sum, weight * value * kColumns, 1e-3 * kColumns)
                  << bundle::format_name(format) << ", batch " << batch;
          }
        }
      }
    }
  });
}

TEST(PackedDot, BadActivationsStayInTheirRow) {
  for_each_target([] {
    for (const Format format : bundle::all_formats()) {
      for (const DotKind kind : kKinds) {
        const Weights w(format, 4, 70, 7);
        for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
          std::vector<float> x(3 * 70, 0.5f), y(12);
          x[70 + 33] = bad;
          std::fill(x.begin() + 140, x.end(), 0.0f);
          const Buffer scratch = scratch_for(w.matrix, kind, 3);
          packed_dot(w.matrix, prepare_dot(w.matrix, kind, x.data(), 70, 3, scratch.data()),
                     y.data(), 4, 1);
          for (size_t o = 0; o < 4; ++o) {
            EXPECT_TRUE(std::isfinite(y[o]));
            EXPECT_FALSE(std::isfinite(y[4 + o]));
            EXPECT_EQ(y[8 + o], 0);
          }
        }
      }
    }
  });
}

// In a process of its own: the limit is for good.
TEST(LimitToAvx2, LeavesNothingBetterInUse) {
  if (describe_machine().isa == "generic") GTEST_SKIP() << "no AVX2";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto limited = [] {
    limit_to_avx2();
    return dot_name() == "sluice gemv avx2" && !tiles_usable() &&
           !onednn::product_usable(onednn::ProductType::i8) && describe_machine().isa == "avx2";
  };
  EXPECT_EXIT(std::exit(limited() ? 0 : 1), ::testing::ExitedWithCode(0), "");
}

TEST(PackedDot, RefusesUnknownKinds) {
  EXPECT_EQ(dot_kind_from_name("i8"), DotKind::i8);
  expect_error(Code::unsupported, "activations 'f16'", [] { dot_kind_from_name("f16"); });
}

}  // namespace packed_dot_test
}  // namespace sluice::engine
