#include "sluice/engine/kernel/packed_accumulate.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "sluice/engine/kernel/packed_accumulate_testing.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace packed_accumulate_test {

using bundle::Format;
using bundle::PackedMatrix;
using testing::for_each_target;
using testing::Guarded;
using testing::random_floats;
using testing::sums_off_by;

/// A matrix in memory that ends where its last byte ends and starts at an odd address.
struct Packed {
  std::vector<std::byte> memory;
  PackedMatrix view;
  std::vector<float> values;

  Packed(Format format, int64_t rows, int64_t columns, std::mt19937_64& random) {
    const auto original = random_floats(random, static_cast<size_t>(rows * columns));
    const auto bytes = bundle::pack(format, original, rows, columns);
    const size_t shift = format == Format::mixed ? 4 : 1;
    memory.resize(bytes.size() + shift);
    std::copy(bytes.begin(), bytes.end(), memory.begin() + static_cast<std::ptrdiff_t>(shift));
    view = bundle::view_packed(format, rows, columns, std::span(memory).subspan(shift), "test");
    values.resize(original.size());
    bundle::unpack(view, values);
  }
};

std::vector<int32_t> random_rows(std::mt19937_64& random, size_t rows, size_t count) {
  std::vector<int32_t> list(count);
  for (int32_t& r : list) r = static_cast<int32_t>(random() % rows);
  return list;
}

void run(const Packed& m, const RowList& rows, const RowFactors& factors, float* y, size_t stride,
         int threads) {
  std::vector<std::byte> scratch(static_cast<size_t>(packed_accumulate_scratch(m.view, threads)));
  packed_accumulate(m.view, rows, factors, y, stride, scratch.data(), threads);
}

TEST(PackedAccumulate, MatchesTheSumOfUnpackedRowsInEveryFormat) {
  std::mt19937_64 random(1);
  for_each_target([&] {
    for (const Format format : bundle::all_formats()) {
      for (const size_t columns : {1, 31, 33, 64, 100, 2117}) {
        const size_t rows = 1 + random() % (columns == 64 ? 700 : 30);
        const Packed m(format, int64_t(rows), int64_t(columns), random);
        for (const size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{8}, size_t{21}}) {
          for (const size_t tokens : {1, 2, 5, 17}) {
            if (columns > 100 && (tokens > 2 || count != 21)) continue;
            const auto list = random_rows(random, rows, count);
            auto factors = random_floats(random, tokens * (count + 3));
            for (float& f : factors) f = random() % 3 ? f : 0.0f;
            const size_t stride = columns + 5;
            Guarded y(tokens * stride);
            const auto start = random_floats(random, tokens * stride);
            std::copy(start.begin(), start.end(), y.data());
            run(m, {list.data(), count}, {factors.data(), tokens, count + 3}, y.data(), stride, 1);
            ASSERT_TRUE(y.intact());
            for (size_t t = 0; t < tokens; ++t) {
              for (size_t c = 0; c < stride; ++c) {
                double want = start[t * stride + c], size = std::fabs(want);
                for (size_t j = 0; j < count && c < columns; ++j) {
                  const double term = double(factors[t * (count + 3) + j]) *
                                      m.values[size_t(list[j]) * columns + c];
                  want += term;
                  size += std::fabs(term);
                }
                const double rounding =
                    c < columns ? sums_off_by(m.view, list,
                                              std::span(factors).subspan(t * (count + 3), count), c)
                                : 0;
                ASSERT_NEAR(y.data()[t * stride + c], want, 1e-6 * size + rounding + 1e-30)
                    << bundle::format_name(format) << " " << columns << " " << count;
              }
            }
          }
        }
      }
    }
  });
}

TEST(PackedAccumulate, DoesNotDependOnTheNumberOfThreads) {
  std::mt19937_64 random(2);
  for (const Format format : {Format::f32, Format::i8, Format::i8_group, Format::i4_group,
                              Format::i4_group_min, Format::ternary}) {
    const Packed m(format, 600, 4133, random);
    const auto list = random_rows(random, 600, 35);
    const auto factors = random_floats(random, 3 * 35);
    std::vector<float> once(3 * 4133);
    run(m, {list.data(), 35}, {factors.data(), 3, 35}, once.data(), 4133, 1);
    for (const int threads : {2, 3, 7}) {
      std::vector<float> y(3 * 4133);
      run(m, {list.data(), 35}, {factors.data(), 3, 35}, y.data(), 4133, threads);
      EXPECT_EQ(y, once) << threads;
    }
  }
}

TEST(PackedAccumulate, ThreadsThatShareOutTheRowsChangeNoBit) {
  std::mt19937_64 random(7);
  for (const Format format : {Format::i8, Format::i8_group, Format::i4_group}) {
    for (const int64_t columns : {96, 4133}) {
      const Packed m(format, 2500, columns, random);
      for (const size_t count : {size_t{1000}, size_t{2499}}) {
        std::vector<int32_t> list(count);
        for (size_t j = 0; j < count; ++j) list[j] = int32_t(j * 2500 / count);
        auto factors = random_floats(random, count);
        for (float& f : factors) f = random() % 3 ? f : 0.0f;
        factors[count / 2] = 1e31f;  // its block adds up in floats
        const auto start = random_floats(random, size_t(columns));
        std::vector<float> once = start;
        run(m, {list.data(), count}, {factors.data(), 1, count}, once.data(), size_t(columns), 1);
        for (const int threads : {2, 3, 4, 6, 8}) {
          std::vector<float> y = start;
          run(m, {list.data(), count}, {factors.data(), 1, count}, y.data(), size_t(columns),
              threads);
          EXPECT_EQ(y, once) << bundle::format_name(format) << " " << threads << " " << count;
        }
      }
    }
  }
}

TEST(PackedAccumulate, WithoutAListTakesTheFirstRows) {
  std::mt19937_64 random(3);
  const Packed m(Format::f32, 3, 2, random);
  const std::vector<float> factors{2, 0, -1};
  std::vector<float> y{1, 1};
  run(m, {nullptr, 3}, {factors.data(), 1, 3}, y.data(), 2, 1);
  for (size_t c = 0; c < 2; ++c) EXPECT_FLOAT_EQ(y[c], 1 + 2 * m.values[c] - m.values[4 + c]);
}

TEST(PackedAccumulate, NanAndInfinityReachEveryColumnAndZeroReachesNone) {
  std::mt19937_64 random(4);
  for_each_target([&] {
    for (const Format format :
         {Format::f32, Format::i8, Format::i8_group, Format::i4_group, Format::i4_group_min}) {
      const Packed m(format, 12, 40, random);
      std::vector<float> factors(12, 0.0f), y(40, 2.0f);
      run(m, {nullptr, 12}, {factors.data(), 1, 12}, y.data(), 40, 1);
      EXPECT_THAT(y, ::testing::Each(2.0f));
      factors[3] = INFINITY;
      run(m, {nullptr, 12}, {factors.data(), 1, 12}, y.data(), 40, 1);
      for (const float v : y) EXPECT_FALSE(std::isfinite(v)) << bundle::format_name(format);
      std::fill(y.begin(), y.end(), 2.0f);
      factors[3] = 1;
      factors[9] = NAN;
      run(m, {nullptr, 12}, {factors.data(), 1, 12}, y.data(), 40, 1);
      EXPECT_THAT(y, ::testing::Each(::testing::IsNan())) << bundle::format_name(format);
    }
  });
}

// Rows that add up as integers share a step: which do must not follow from who else is there.
TEST(PackedAccumulate, NeitherZerosNorOtherTokensNorCutsAtRangesChangeABit) {
  std::mt19937_64 random(6);
  constexpr size_t kCount = 2 * kSumRange - 40, kColumns = 40, kTokens = 18;
  for_each_target([&] {
    for (const Format format :
         {Format::i8, Format::i8_group, Format::i4_group, Format::i4_group_min}) {
      const Packed m(format, int64_t(kCount), kColumns, random);
      auto factors = random_floats(random, kTokens * kCount);
      for (float& f : factors) f = random() % 3 ? f : 0.0f;
      factors[5 * kCount + 300] = INFINITY;
      std::vector<float> together(kTokens * kColumns), alone(together), cut(together);
      run(m, {nullptr, kCount}, {factors.data(), kTokens, kCount}, together.data(), kColumns, 1);
      for (size_t t = 0; t < kTokens; ++t) {
        std::vector<int32_t> list;
        std::vector<float> mine;
        for (size_t j = 0; j < kCount; ++j) {
          if (factors[t * kCount + j] == 0) continue;
          list.push_back(int32_t(j));
          mine.push_back(factors[t * kCount + j]);
        }
        run(m, {list.data(), list.size()}, {mine.data(), 1, 0}, alone.data() + t * kColumns,
            kColumns, 1);
        const auto at = std::lower_bound(list.begin(), list.end(), int32_t(kSumRange));
        const auto before = size_t(at - list.begin());
        run(m, {list.data(), before}, {mine.data(), 1, 0}, cut.data() + t * kColumns, kColumns, 1);
        run(m, {list.data() + before, list.size() - before}, {mine.data() + before, 1, 0},
            cut.data() + t * kColumns, kColumns, 1);
      }
      const auto bits = [](const std::vector<float>& y) {
        std::vector<uint32_t> result(y.size());
        std::memcpy(result.data(), y.data(), y.size() * sizeof(float));
        return result;
      };
      EXPECT_EQ(bits(alone), bits(together)) << bundle::format_name(format);
      EXPECT_EQ(bits(cut), bits(together)) << bundle::format_name(format);
    }
  });
}

TEST(PackedAccumulate, IntegersOfWholeBlocksDoNotOverflow) {
  for_each_target([&] {
    // All codes and coefficients at their largest.
    constexpr size_t kAll = 256;
    const std::vector<float> values(kAll * 160, -8.0f);
    for (const Format format :
         {Format::i8, Format::i8_group, Format::i4_group, Format::i4_group_min}) {
      const auto bytes = bundle::pack(format, values, int64_t(kAll), 160);
      const PackedMatrix m = bundle::view_packed(format, int64_t(kAll), 160, bytes, "test");
      const std::vector<float> factors(kAll, 3.0f);
      std::vector<float> y(160), row(160);
      bundle::unpack_row(m, 0, row);
      packed_accumulate(m, {nullptr, kAll}, {factors.data(), 1, kAll}, y.data(), 160, nullptr, 1);
      for (size_t c = 0; c < 160; ++c) EXPECT_NEAR(y[c], 768 * row[c], 1e-3 * 768 * 8);
    }
  });
}

TEST(PackedAccumulate, PartsOfColumnsCoverThemAllInOrder) {
  for (const size_t columns : {1, 32, 33, 4096, 5000}) {
    for (const size_t parts : {1, 2, 3, 16}) {
      EXPECT_EQ(column_part(columns, 0, parts), 0u);
      EXPECT_EQ(column_part(columns, parts, parts), columns);
      for (size_t p = 0; p < parts; ++p)
        EXPECT_LE(column_part(columns, p, parts), column_part(columns, p + 1, parts));
    }
  }
}

}  // namespace packed_accumulate_test
}  // namespace sluice::engine
