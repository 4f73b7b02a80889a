#include "sluice/engine/kernel/spark_attention.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "sluice/base/normal_quantile.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace spark_attention_test {

using testing::for_each_target;
using testing::Guarded;
using testing::random_floats;
using Spec = SparkAttentionSpec;

struct Sequence {
  std::vector<float> q, k, v;
  int64_t rows;
};

Sequence random_sequence(std::mt19937_64& random, const Spec& spec, int64_t rows) {
  const auto floats = [&](int64_t count) {
    return random_floats(random, static_cast<size_t>(count), -2, 2);
  };
  const int64_t width = spec.heads * (spec.split + spec.rest);
  return {floats(rows * width), floats(rows * width), floats(rows * spec.heads * spec.value_width),
          rows};
}

struct Expected {
  std::vector<double> out;
  std::vector<std::vector<int64_t>> kept;  ///< by row and head
  double margin = 1e9;                     ///< between any score and its threshold
};

/// In double precision, one query at a time, from the definition.
Expected reference(const Spec& spec, const Sequence& s) {
  Expected result;
  result.out.resize(static_cast<size_t>(s.rows * spec.heads * spec.value_width));
  const int64_t width = spec.split + spec.rest;
  const auto dot = [&](int64_t r, int64_t j, int64_t h, int64_t first, int64_t count) {
    double sum = 0;
    for (int64_t i = first; i < first + count; ++i)
      sum += double(s.q[size_t((r * spec.heads + h) * width + i)]) *
             s.k[size_t((j * spec.heads + h) * width + i)];
    return sum / std::sqrt(double(count));
  };
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t h = 0; h < spec.heads; ++h) {
      std::vector<double> a;
      double mean = 0, variance = 0, bound = -1e300;
      const double n = double(r + 1);
      for (int64_t j = 0; j <= r; ++j) a.push_back(dot(r, j, h, 0, spec.split));
      for (const double x : a) mean += x / n;
      for (const double x : a) variance += (x - mean) * (x - mean) / std::max(1.0, n - 1);
      if (r + 1 > spec.tokens)
        bound = mean + std::sqrt(variance) * normal_quantile(1 - double(spec.tokens) / n);
      std::vector<int64_t> kept;
      for (int64_t j = 0; j <= r; ++j) {
        if (a[size_t(j)] >= bound) kept.push_back(j);
        result.margin = std::min(result.margin, std::abs(a[size_t(j)] - bound));
      }
      double top = -1e300, sum = 0;
      for (const int64_t j : kept) top = std::max(top, a[size_t(j)]);
      for (const int64_t j : kept) sum += std::exp(a[size_t(j)] - top);
      for (const int64_t j : kept) {
        const double weight = std::exp(a[size_t(j)] - top) / sum *
                              std::log1p(std::exp(dot(r, j, h, spec.split, spec.rest)));
        for (int64_t i = 0; i < spec.value_width; ++i)
          result.out[size_t((r * spec.heads + h) * spec.value_width + i)] +=
              weight * s.v[size_t((j * spec.heads + h) * spec.value_width + i)];
      }
      result.kept.push_back(std::move(kept));
    }
  }
  return result;
}

/// The sequence in pieces of these lengths, through a cache if there is one.
std::vector<float> run(const Spec& spec, const Sequence& s, const std::vector<int64_t>& pieces,
                       int threads, Work* work = nullptr) {
  const int64_t longest = *std::max_element(pieces.begin(), pieces.end());
  const Buffer scratch(spark_scratch_bytes(spec, longest, threads), false);
  const Buffer cache(std::max<int64_t>(1, spec.cache > 0 ? spark_cache_bytes(spec) : 0), false);
  std::fill_n(cache.data(), cache.bytes(), std::byte{0xFF});  // NaN
  Guarded out(static_cast<size_t>(s.rows * spec.heads * spec.value_width));
  int64_t done = 0;
  for (const int64_t rows : pieces) {
    SparkAttentionRows piece;
    piece.q = s.q.data() + done * spec.heads * (spec.split + spec.rest);
    piece.k = s.k.data() + done * spec.heads * (spec.split + spec.rest);
    piece.v = s.v.data() + done * spec.heads * spec.value_width;
    piece.out = out.data() + done * spec.heads * spec.value_width;
    piece.rows = rows;
    piece.seen = done;
    piece.cache = cache.data();
    const Work one = spark_attention(spec, {&piece, 1}, threads, scratch.data());
    if (work) work->macs += one.macs, work->bytes += one.bytes;
    done += rows;
  }
  EXPECT_TRUE(out.intact());
  return {out.span().begin(), out.span().end()};
}

Spec random_spec(std::mt19937_64& random) {
  const auto pick = [&](std::vector<int64_t> from) { return from[random() % from.size()]; };
  Spec spec;
  spec.heads = pick({1, 2, 3});
  spec.split = pick({1, 2, 8, 16, 17, 32});
  spec.rest = pick({1, 3, 8, 16, 33});
  spec.value_width = pick({1, 5, 16, 48, 70, 128});
  spec.tokens = pick({1, 4, 10, 30, 100});
  return spec;
}

// Random shapes; with a cache in pieces of any length; on any number of threads; what was
// multiplied is what was counted.
TEST(SparkAttention, IsTheDefinitionHoweverItIsCut) {
  std::mt19937_64 random(1);
  for_each_target([&] {
    for (int i = 0; i < 40; ++i) {
      Spec spec = random_spec(random);
      std::vector<int64_t> pieces;
      int64_t rows = 0;
      for (int p = 0; p < 5; ++p) {
        pieces.push_back(p % 2 == 0 ? 1 + int64_t(random() % 50) : 1);
        rows += pieces.back();
      }
      const Sequence s = random_sequence(random, spec, rows);
      const Expected expected = reference(spec, s);
      if (expected.margin < 1e-5) continue;  // what rounding decides
      SCOPED_TRACE(::testing::Message()
                   << spec.heads << " heads of " << spec.split << " + " << spec.rest << ", "
                   << spec.value_width << ", " << rows << " rows, " << spec.tokens << " tokens");
      int64_t macs = 0;
      for (size_t r = 0; r < expected.kept.size(); ++r)
        macs += (int64_t(r) / spec.heads + 1) * spec.split +
                std::ssize(expected.kept[r]) * (spec.rest + spec.value_width);
      std::vector<float> first;
      for (const int64_t cache : {int64_t{0}, rows + int64_t(random() % 3)}) {
        spec.cache = cache;
        for (const int threads : {1, 3}) {
          Work work;
          const auto found =
              run(spec, s, cache > 0 ? pieces : std::vector<int64_t>{rows}, threads, &work);
          for (size_t e = 0; e < found.size(); ++e)
            ASSERT_NEAR(found[e], expected.out[e], 2e-5 * (1 + std::abs(expected.out[e])))
                << "element " << e << ", cache " << cache;
          EXPECT_EQ(work.macs, macs);
          if (threads == 1) first = found;
          EXPECT_EQ(found, first);  // to the bit
        }
      }
    }
  });
}

// Columns and values that are not kept may be anything: nobody reads them.
TEST(SparkAttention, WhatIsNotKeptIsNotRead) {
  std::mt19937_64 random(2);
  for_each_target([&] {
    Spec spec{2, 8, 8, 16, 6, 0};
    Sequence s = random_sequence(random, spec, 60);
    const Expected expected = reference(spec, s);
    ASSERT_GT(expected.margin, 1e-5);
    // Of the last row's: the earlier rows of this test are not looked at.
    const int64_t width = spec.split + spec.rest;
    int64_t spoiled = 0;
    for (int64_t h = 0; h < spec.heads; ++h) {
      const auto& kept = expected.kept[size_t(59 * spec.heads + h)];
      for (int64_t j = 0; j < 60; ++j) {
        if (std::ranges::count(kept, j)) continue;
        ++spoiled;
        float* key = s.k.data() + (j * spec.heads + h) * width;
        std::fill(key + spec.split, key + width, std::nanf(""));
        std::fill_n(s.v.data() + (j * spec.heads + h) * spec.value_width, spec.value_width,
                    std::nanf(""));
      }
    }
    EXPECT_GT(spoiled, 80);
    for (const int64_t cache : {0, 64}) {
      spec.cache = cache;
      const auto found = run(spec, s, {60}, 1);
      for (size_t e = size_t(59 * spec.heads * spec.value_width); e < found.size(); ++e)
        ASSERT_NEAR(found[e], expected.out[e], 2e-5 * (1 + std::abs(expected.out[e])));
    }
  });
}

TEST(SparkAttention, ScoresThatAreNoNumbersGiveNoneAndTouchNoOtherRow) {
  std::mt19937_64 random(3);
  for_each_target([&] {
    const Spec spec{1, 4, 4, 8, 5, 0};
    Sequence s = random_sequence(random, spec, 20);
    const auto before = run(spec, s, {20}, 1);
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      Sequence broken = s;
      broken.k[size_t(12 * 8)] = bad;  // the predictor's part of key 12
      const auto after = run(spec, broken, {20}, 1);
      for (int64_t r = 0; r < 20; ++r) {
        for (int64_t i = 0; i < 8; ++i) {
          const float found = after[size_t(r * 8 + i)];
          if (r < 12) {
            EXPECT_EQ(found, before[size_t(r * 8 + i)]);
          } else {
            EXPECT_TRUE(std::isnan(found)) << "row " << r;
          }
        }
      }
    }
    // All scores alike: no one is above their mean, and nothing is kept.
    Sequence flat = s;
    std::fill(flat.k.begin(), flat.k.end(), 0.5f);
    for (const float x : run(spec, flat, {20}, 1)) EXPECT_TRUE(std::isfinite(x));
  });
}

}  // namespace spark_attention_test
}  // namespace sluice::engine
