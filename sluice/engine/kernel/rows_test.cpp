#include "sluice/engine/kernel/rows.h"

#include <gmock/gmock.h>

#include <limits>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace rows_test {

using testing::for_each_target;
using testing::Guarded;
using testing::random_floats;

/// A row set with its memory.
struct Set {
  std::vector<int64_t> start, source;
  LiveRows rows;
  Set(int64_t samples, int64_t per_sample)
      : start(static_cast<size_t>(samples + 1)), source(static_cast<size_t>(samples * per_sample)) {
    rows = {0, samples, per_sample, start.data(), source.data()};
  }
  static Set samples(int64_t count) {
    Set set(count, 1);
    for (int64_t s = 0; s <= count; ++s) set.start[static_cast<size_t>(s)] = s;
    set.rows.count = count;
    return set;
  }
};

TEST(Rows, CompactThenScatterPutsEveryRowBack) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 200; ++i) {
    const int64_t samples = 1 + int64_t(random() % 4), tokens = 1 + int64_t(random() % 9);
    const size_t width = 1 + random() % 20, rows = static_cast<size_t>(samples * tokens);
    const Set all = Set::samples(samples);
    Set left(samples, tokens);
    std::vector<float> x = random_floats(random, rows * width), keep(rows);
    const int kind = i % 4;  // none, all, some, some with NaN
    for (float& k : keep)
      k = kind == 0 ? -1.0f : kind == 1 ? 0.5f : random() % 2 ? 1.0f : kind == 3 ? NAN : 0.0f;
    std::vector<float> packed = x;  // in place
    compact_rows(packed.data(), keep.data(), width, all.rows, left.rows, packed.data());
    const auto kept = std::count_if(keep.begin(), keep.end(), [](float k) { return k > 0; });
    ASSERT_EQ(left.rows.count, kept);
    ASSERT_EQ(left.start.back(), kept);
    for (size_t r = 0, next = 0; r < rows; ++r) {
      if (!(keep[r] > 0)) continue;
      ASSERT_EQ(left.source[next], static_cast<int64_t>(r));
      ASSERT_TRUE(std::equal(&x[r * width], &x[r * width] + width, &packed[next * width]));
      ++next;
    }
    for (float& p : packed) p *= 2;
    Guarded out(rows * width);
    scatter_rows(x.data(), packed.data(), width, all.rows, left.rows, i % 2 == 0, out.data());
    ASSERT_TRUE(out.intact());
    std::vector<float> again = x;
    scatter_rows(again.data(), packed.data(), width, all.rows, left.rows, i % 2 == 0, again.data());
    for (size_t e = 0; e < x.size(); ++e) {
      const bool changed = keep[e / width] > 0;
      const float want = !changed ? x[e] : i % 2 == 0 ? x[e] + 2 * x[e] : 2 * x[e];
      ASSERT_EQ(out.data()[e], want);
      ASSERT_EQ(again[e], want);
    }
  }
}

TEST(Rows, CompactsRowsOfSamplesThatAreLeft) {
  // Three samples of two rows; the second sample left, then single rows do.
  Set samples(3, 1), rows(3, 2);
  const Set all = Set::samples(3);
  std::vector<float> x{1, 2, 3, 4, 5, 6};
  const float exit[] = {1, 0, 1}, keep[] = {0, 1, 1, 1};
  compact_rows(x.data(), exit, 2, all.rows, samples.rows, x.data());
  compact_rows(x.data(), keep, 1, samples.rows, rows.rows, x.data());
  EXPECT_THAT(std::vector(x.begin(), x.begin() + 3), ::testing::ElementsAre(2, 5, 6));
  EXPECT_THAT(rows.start, ::testing::ElementsAre(0, 1, 1, 3));
  std::vector<float> mean(2);
  pool_rows(x.data(), 1, rows.rows, 1, samples.rows, Pool::mean, mean.data());
  EXPECT_THAT(mean, ::testing::ElementsAre(2, 5.5f));
  pool_rows(x.data(), 1, rows.rows, 1, samples.rows, Pool::first, mean.data());
  EXPECT_THAT(mean, ::testing::ElementsAre(2, 5));
}

TEST(Rows, PoolsWholeSamplesAndGivesZerosForEmptyOnes) {
  std::mt19937_64 random(2);
  for_each_target([&] {
    const auto x = random_floats(random, 2 * 3 * 21);
    const Set all = Set::samples(2);
    for (const Pool kind : {Pool::mean, Pool::first, Pool::last}) {
      Guarded out(42);
      pool_rows(x.data(), 21, all.rows, 3, all.rows, kind, out.data());
      ASSERT_TRUE(out.intact());
      for (size_t s = 0; s < 2; ++s) {
        for (size_t i = 0; i < 21; ++i) {
          const float* row = &x[s * 63 + i];
          const double want = kind == Pool::first  ? row[0]
                              : kind == Pool::last ? row[42]
                                                   : (double(row[0]) + row[21] + row[42]) / 3;
          EXPECT_NEAR(out.data()[s * 21 + i], want, 1e-6);
        }
      }
    }
    Set none(2, 3);
    const std::vector<float> keep(6, 0.0f);
    std::vector<float> packed = x, zeros(42, 7.0f);
    compact_rows(packed.data(), keep.data(), 21, all.rows, none.rows, packed.data());
    pool_rows(packed.data(), 21, none.rows, 1, all.rows, Pool::mean, zeros.data());
    EXPECT_THAT(zeros, ::testing::Each(0.0f));
  });
}

TEST(Rows, RmsNormMatchesItsFormula) {
  std::mt19937_64 random(3);
  for_each_target([&] {
    for (const size_t width : {1, 2, 15, 16, 33, 100}) {
      const size_t rows = random() % 4;
      const auto x = random_floats(random, rows * width), weight = random_floats(random, width);
      Guarded out(rows * width);
      for (const bool weighted : {true, false}) {
        rms_norm(x.data(), weighted ? weight.data() : nullptr, 1e-5f, out.data(), rows, width);
        ASSERT_TRUE(out.intact());
        for (size_t r = 0; r < rows; ++r) {
          double squares = 0;
          for (size_t i = 0; i < width; ++i) squares += double(x[r * width + i]) * x[r * width + i];
          const double factor = 1 / std::sqrt(squares / double(width) + 1e-5);
          for (size_t i = 0; i < width; ++i)
            ASSERT_NEAR(out.data()[r * width + i],
                        x[r * width + i] * factor * (weighted ? weight[i] : 1), 1e-5);
        }
      }
    }
    std::vector<float> bad{1, NAN, 2, 3};
    rms_norm(bad.data(), nullptr, 0, bad.data(), 2, 2);
    EXPECT_TRUE(std::isnan(bad[0]) && std::isnan(bad[1]));
    EXPECT_TRUE(std::isfinite(bad[2]) && std::isfinite(bad[3]));
  });
}

TEST(Rows, EmbeddingRefusesWhatIsNoId) {
  const std::vector<float> table{1, 2, 3, 4, 5, 6};
  std::vector<float> out(4);
  const std::vector<float> good{2, 0};
  embed(good.data(), table.data(), 3, 2, "emb", out.data(), 2);
  EXPECT_THAT(out, ::testing::ElementsAre(5, 6, 1, 2));
  for (const float id : {-1.0f, 3.0f, 0.5f, 1e30f, NAN, std::numeric_limits<float>::infinity()}) {
    try {
      embed(&id, table.data(), 3, 2, "emb", out.data(), 1);
      FAIL() << id << " was taken";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::numeric);
      EXPECT_THAT(e.what(), ::testing::HasSubstr("expected an integer from 0 to 2"));
    }
  }
}

TEST(Rows, L2NormalizeGivesLengthOneAndKeepsZeros) {
  std::mt19937_64 random(8);
  for (const size_t width : {1, 3, 17, 384}) {
    auto x = testing::random_floats(random, 3 * width);
    std::fill(x.begin() + std::ptrdiff_t(width), x.begin() + std::ptrdiff_t(2 * width), 0.0f);
    for (size_t i = 2 * width; i < 3 * width; ++i) x[i] *= 1e25f;  // squares leave f32
    std::vector<float> y(x.size());
    l2_normalize(x.data(), 0, y.data(), 3, width);
    for (size_t r = 0; r < 3; ++r) {
      double squares = 0;
      for (size_t i = r * width; i < (r + 1) * width; ++i) squares += double(y[i]) * y[i];
      EXPECT_NEAR(squares, r == 1 ? 0 : 1, 1e-5) << "width " << width << " row " << r;
    }
  }
  const std::vector<float> small{3e-3f, 4e-3f};
  std::vector<float> y(2);
  l2_normalize(small.data(), 0.5f, y.data(), 1, 2);
  EXPECT_FLOAT_EQ(y[0], 6e-3f);  // no longer than eps: divided by eps
}

TEST(Rows, SliceTakesColumns) {
  const std::vector<float> x{1, 2, 3, 4, 5, 6};
  std::vector<float> out(4);
  slice_rows(x.data(), 3, 1, 2, out.data(), 2);
  EXPECT_THAT(out, ::testing::ElementsAre(2, 3, 5, 6));
}

TEST(Rope, TurnsPairsByPositionTimesFrequency) {
  std::mt19937_64 random(4);
  for_each_target([&] {
    for (const bool interleaved : {false, true}) {
      for (const size_t dims : {2, 6, 32, 50, 64}) {
        const size_t width = dims + (random() % 2) * 3, heads = 1 + random() % 3;
        const double base = 10000, scale = dims == 6 ? 4 : 1;
        const Rope rope(dims, base, scale, interleaved);
        const auto x = random_floats(random, heads * width);
        std::vector<float> scratch(rope.scratch());
        // Beyond the tables, and between whole numbers, it computes what it needs.
        for (const double position : {0.0, 1.0, 127.0, 128.0, 20000.0, 2097151.0, 2.5, 3e6, -3.0}) {
          Guarded out(heads * width);
          rope.apply(x.data(), heads, width, position, scratch.data(), out.data());
          ASSERT_TRUE(out.intact());
          for (size_t h = 0; h < heads; ++h) {
            std::vector<double> want(x.begin() + std::ptrdiff_t(h * width),
                                     x.begin() + std::ptrdiff_t((h + 1) * width));
            for (size_t i = 0; i < dims / 2; ++i) {
              const double angle =
                  position / scale * std::pow(base, -2.0 * double(i) / double(dims));
              const size_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + dims / 2;
              const double p = x[h * width + a], q = x[h * width + b];
              want[a] = p * std::cos(angle) - q * std::sin(angle);
              want[b] = q * std::cos(angle) + p * std::sin(angle);
            }
            for (size_t i = 0; i < width; ++i)
              ASSERT_NEAR(out.data()[h * width + i], want[i], 4e-6)
                  << "dims " << dims << " position " << position << " column " << i;
          }
          std::vector<float> same = x;
          rope.apply(same.data(), heads, width, position, scratch.data(), same.data());
          EXPECT_TRUE(std::equal(same.begin(), same.end(), out.data()));
        }
        std::vector<float> bad(heads * width);
        rope.apply(x.data(), heads, width, NAN, scratch.data(), bad.data());
        EXPECT_TRUE(std::isnan(bad[0]));
      }
    }
  });
}

}  // namespace rows_test
}  // namespace sluice::engine
