#include "sluice/engine/kernel/attention.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <limits>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace attention_test {

using testing::for_each_target;
using testing::Guarded;
using testing::random_floats;

struct Sequence {
  std::vector<float> q, k, v;
  int64_t rows, keys;
  std::vector<float> open = {};  ///< [rows][kv_heads], empty: all
};

Sequence random_sequence(std::mt19937_64& random, const AttentionSpec& spec, int64_t rows,
                         int64_t keys) {
  const auto floats = [&](int64_t count, float range) {
    return random_floats(random, static_cast<size_t>(count), -range, range);
  };
  return {floats(rows * spec.heads * spec.key_width, 2),
          floats(keys * spec.kv_heads * spec.key_width, 2),
          floats(keys * spec.kv_heads * spec.value_width, 1), rows, keys};
}

/// In double precision, one query at a time.
std::vector<double> reference(const AttentionSpec& spec, const Sequence& s) {
  const int64_t group = spec.heads / spec.kv_heads;
  std::vector<double> out(static_cast<size_t>(s.rows * spec.heads * spec.value_width));
  for (int64_t r = 0; r < s.rows; ++r) {
    const int64_t end = spec.causal ? r + 1 : s.keys;
    const int64_t begin = spec.window > 0 ? std::max<int64_t>(0, end - spec.window) : 0;
    for (int64_t h = 0; h < spec.heads; ++h) {
      if (!s.open.empty() && !(s.open[static_cast<size_t>(r * spec.kv_heads + h / group)] > 0))
        continue;
      std::vector<double> weights;
      double top = -std::numeric_limits<double>::infinity(), sum = 0;
      for (int64_t j = begin; j < end; ++j) {
        double score = 0;
        for (int64_t i = 0; i < spec.key_width; ++i)
          score += double(s.q[static_cast<size_t>((r * spec.heads + h) * spec.key_width + i)]) *
                   s.k[static_cast<size_t>((j * spec.kv_heads + h / group) * spec.key_width + i)];
        weights.push_back(score * spec.scale);
        top = std::max(top, weights.back());
      }
      for (double& w : weights) sum += w = std::exp(w - top);
      for (int64_t j = begin; j < end; ++j)
        for (int64_t i = 0; i < spec.value_width; ++i)
          out[static_cast<size_t>((r * spec.heads + h) * spec.value_width + i)] +=
              weights[static_cast<size_t>(j - begin)] / sum *
              s.v[static_cast<size_t>((j * spec.kv_heads + h / group) * spec.value_width + i)];
    }
  }
  return out;
}

/// The sequence in pieces of these lengths, through a cache if there is one.
std::vector<float> run(const AttentionSpec& spec, const Sequence& s,
                       const std::vector<int64_t>& pieces, int threads = 1) {
  const Buffer scratch(attention_scratch_bytes(spec, threads), false);
  const Buffer cache(std::max<int64_t>(1, attention_cache_bytes(spec)), false);
  std::fill_n(cache.data(), cache.bytes(), std::byte{0xFF});  // NaN in every format
  Guarded out(static_cast<size_t>(s.rows * spec.heads * spec.value_width));
  int64_t done = 0;
  for (const int64_t rows : pieces) {
    AttentionRows piece;
    piece.q = s.q.data() + done * spec.heads * spec.key_width;
    piece.k = s.k.data() + done * spec.kv_heads * spec.key_width;
    piece.v = s.v.data() + done * spec.kv_heads * spec.value_width;
    piece.out = out.data() + done * spec.heads * spec.value_width;
    piece.rows = rows;
    piece.keys = spec.cache > 0 ? rows : s.keys;
    piece.seen = done;
    piece.cache = cache.data();
    if (!s.open.empty()) piece.open = s.open.data() + done * spec.kv_heads;
    attention(spec, {&piece, 1}, threads, scratch.data());
    done += rows;
  }
  EXPECT_TRUE(out.intact());
  EXPECT_EQ(done, s.rows);
  return {out.span().begin(), out.span().end()};
}

void expect_close(const std::vector<float>& found, const std::vector<double>& expected,
                  double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i)
    ASSERT_NEAR(found[i], expected[i], tolerance) << "element " << i;
}

AttentionSpec random_spec(std::mt19937_64& random) {
  const auto pick = [&](std::vector<int64_t> from) { return from[random() % from.size()]; };
  AttentionSpec spec;
  spec.kv_heads = pick({1, 1, 2, 3});
  spec.heads = spec.kv_heads * pick({1, 1, 2, 4, 5, 8});
  spec.key_width = pick({1, 3, 8, 16, 17, 32, 40, 64});
  spec.value_width = pick({spec.key_width, spec.key_width, 1, 5, 16, 48, 70});
  spec.scale = 1.0f / std::sqrt(static_cast<float>(spec.key_width));
  return spec;
}

TEST(Attention, MatchesTheReferenceForEveryShapeAndMask) {
  std::mt19937_64 random(1);
  for_each_target([&] {
    for (int i = 0; i < 60; ++i) {
      AttentionSpec spec = random_spec(random);
      spec.causal = i % 3 != 0;
      if (spec.causal && i % 2 == 0) spec.window = 1 + int64_t(random() % 80);
      const int64_t rows = 1 + int64_t(random() % (i % 5 == 0 ? 200 : 20));
      const int64_t keys = spec.causal ? rows : 1 + int64_t(random() % 150);
      const Sequence s = random_sequence(random, spec, rows, keys);
      SCOPED_TRACE(::testing::Message()
                   << spec.heads << "/" << spec.kv_heads << " heads of " << spec.key_width << ", "
                   << spec.value_width << ", " << rows << " rows, " << keys << " keys, window "
                   << spec.window);
      expect_close(run(spec, s, {rows}), reference(spec, s), 2e-5);
    }
  });
}

TEST(Attention, ASequenceInPiecesIsTheSequence) {
  std::mt19937_64 random(2);
  for_each_target([&] {
    for (int i = 0; i < 20; ++i) {
      AttentionSpec spec = random_spec(random);
      std::vector<int64_t> pieces;
      int64_t rows = 0, longest = 1;
      for (int p = 0; p < 6; ++p) {
        pieces.push_back(p % 2 == 0 ? 1 + int64_t(random() % 40) : 1);
        rows += pieces.back();
        longest = std::max(longest, pieces.back());
      }
      spec.cache = rows + int64_t(random() % 3);
      if (i % 2 == 0) {  // the cache wraps
        spec.window = 1 + int64_t(random() % 30);
        spec.cache = spec.window + longest - 1;
      }
      const Sequence s = random_sequence(random, spec, rows, rows);
      const auto expected = reference(spec, s);
      expect_close(run(spec, s, pieces), expected, 2e-5);
      spec.cache_type = CacheType::bf16;
      expect_close(run(spec, s, pieces), expected, 0.1);
      spec.cache_type = CacheType::f16;
      expect_close(run(spec, s, pieces), expected, 0.01);
    }
  });
}

TEST(Attention, Half16CachesHoldWhatTheyCanExactly) {
  std::mt19937_64 random(3);
  for_each_target([&] {
    for (const CacheType type : {CacheType::bf16, CacheType::f16}) {
      AttentionSpec spec;
      spec.heads = spec.kv_heads = 2;
      spec.key_width = 24;
      spec.value_width = 21;
      spec.cache = 40;
      spec.cache_type = type;
      Sequence s = random_sequence(random, spec, 40, 40);
      // Small multiples of a power of two have few bits.
      for (float& x : s.k) x = std::round(x * 8) / 8;
      for (float& x : s.v) x = std::round(x * 8) / 8;
      expect_close(run(spec, s, {17, 1, 22}), reference(spec, s), 2e-5);
    }
  });
}

TEST(Attention, ClosedHeadsGiveZerosWhateverIsInThem) {
  std::mt19937_64 random(8);
  for_each_target([&] {
    for (int i = 0; i < 40; ++i) {
      AttentionSpec spec = random_spec(random);
      spec.causal = i % 3 != 0;
      if (spec.causal && i % 2 == 0) spec.window = 1 + int64_t(random() % 40);
      const int64_t rows = 1 + int64_t(random() % (i % 5 == 0 ? 150 : 12));
      Sequence s = random_sequence(random, spec, rows, rows);
      const uint64_t share = random() % 5;  // of four: none, .., all open
      for (int64_t j = 0; j < rows * spec.kv_heads; ++j) {
        s.open.push_back(random() % 4 < share ? 0.5f : random() % 2 == 0 ? 0.0f : NAN);
        if (s.open.back() > 0) continue;
        const int64_t r = j / spec.kv_heads, group = spec.heads / spec.kv_heads,
                      h = j % spec.kv_heads * group;
        for (int64_t c = 0; c < group * spec.key_width; ++c)
          s.q[static_cast<size_t>((r * spec.heads + h) * spec.key_width + c)] = NAN;
      }
      SCOPED_TRACE(i);
      const auto expected = reference(spec, s);
      expect_close(run(spec, s, {rows}), expected, 2e-5);
      if (!spec.causal) continue;
      spec.cache = rows + 3;
      std::vector<int64_t> pieces(static_cast<size_t>(rows), 1);
      expect_close(run(spec, s, pieces), expected, 2e-5);
      expect_close(run(spec, s, {rows}, 3), expected, 2e-5);
    }
  });
}

TEST(Attention, CountsWhatOpenHeadsLookAt) {
  std::mt19937_64 random(9);
  AttentionSpec spec;
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.key_width = 2;
  spec.value_width = 3;
  Sequence s = random_sequence(random, spec, 3, 3);
  s.open = {1, 0, 0, 0, 1, 0};  // of the first key head: rows 0 and 2
  std::vector<float> out(3 * 12);
  const Buffer scratch(attention_scratch_bytes(spec, 1));
  AttentionRows piece;
  piece.q = s.q.data();
  piece.k = s.k.data();
  piece.v = s.v.data();
  piece.out = out.data();
  piece.rows = piece.keys = 3;
  piece.open = s.open.data();
  const Work work = attention(spec, {&piece, 1}, 1, scratch.data());
  EXPECT_EQ(work.macs, (1 + 3) * 2 * 5);
  EXPECT_EQ(work.bytes, (3 * 5 + 2 * 2 * 5) * 4);
}

TEST(Attention, DoesNotDependOnTheNumberOfThreads) {
  std::mt19937_64 random(4);
  AttentionSpec spec;
  spec.heads = 6;
  spec.kv_heads = 3;
  spec.key_width = spec.value_width = 32;
  spec.cache = 300;
  const Sequence s = random_sequence(random, spec, 290, 290);
  const auto one = run(spec, s, {200, 1, 89}, 1);
  EXPECT_EQ(run(spec, s, {200, 1, 89}, 2), one);
  EXPECT_EQ(run(spec, s, {200, 1, 89}, 5), one);
}

// Which rows are not finite when one element of row `at` is.
TEST(Attention, KeepsNanAndInfinityToTheRowsThatSeeThem) {
  std::mt19937_64 random(5);
  for_each_target([&] {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      for (const int which : {0, 1, 2}) {
        AttentionSpec spec;
        spec.heads = spec.kv_heads = 1;
        spec.key_width = spec.value_width = 16;
        spec.scale = 0.25f;
        spec.window = 10;
        Sequence s = random_sequence(random, spec, 100, 100);
        const int64_t at = 70;
        std::vector<float>& target = which == 0 ? s.q : which == 1 ? s.k : s.v;
        target[static_cast<size_t>(at * 16 + 3)] = bad;
        if (which == 1) s.q.assign(s.q.size(), 1.0f);  // +infinity stays a large score
        for (const bool pieces : {false, true}) {
          spec.cache = pieces ? 128 : 0;
          const auto out =
              run(spec, s, pieces ? std::vector<int64_t>{60, 1, 30, 9} : std::vector<int64_t>{100});
          for (int64_t r = 0; r < 100; ++r) {
            const bool sees = which == 0 ? r == at : r >= at && r < at + spec.window;
            const auto row = std::span(out).subspan(static_cast<size_t>(r * 16), 16);
            const bool finite =
                std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); });
            ASSERT_EQ(finite, !sees) << "row " << r << ", bad " << bad << " in " << which;
          }
        }
      }
    }
  });
}

TEST(Attention, LargeScoresDoNotOverflow) {
  std::mt19937_64 random(6);
  for_each_target([&] {
    AttentionSpec spec;
    spec.heads = spec.kv_heads = 1;
    spec.key_width = 8;
    spec.value_width = 8;
    Sequence s = random_sequence(random, spec, 150, 150);
    for (float& x : s.q) x *= 1e3f;
    for (float& x : s.k) x *= 1e3f;
    expect_close(run(spec, s, {150}), reference(spec, s), 1e-4);
  });
}

TEST(Attention, NoRowsAreNoWork) {
  AttentionSpec spec;
  spec.key_width = spec.value_width = 4;
  spec.cache = 8;
  const AttentionRows none[2] = {};
  const Work work = attention(spec, none, 4, nullptr);
  EXPECT_EQ(work.macs, 0);
  EXPECT_EQ(work.bytes, 0);
  EXPECT_EQ(attention(spec, {}, 4, nullptr).macs, 0);
}

TEST(Attention, CountsThePairsThatItComputes) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 50; ++i) {
    AttentionSpec spec;
    spec.heads = spec.kv_heads = 1;
    spec.key_width = 2;
    spec.value_width = 3;
    spec.window = int64_t(random() % 9);
    spec.cache = 64;
    const int64_t seen = int64_t(random() % 20), rows = 1 + int64_t(random() % 12);
    int64_t pairs = 0;
    for (int64_t r = 0; r < rows; ++r)
      pairs += spec.window > 0 ? std::min(seen + r + 1, spec.window) : seen + r + 1;
    std::vector<float> data(1000, 0.5f);
    const Buffer cache(attention_cache_bytes(spec)), scratch(attention_scratch_bytes(spec, 1));
    AttentionRows piece{data.data(), data.data(), data.data(), data.data() + 500,
                        rows,        rows,        seen,        cache.data()};
    EXPECT_EQ(attention(spec, {&piece, 1}, 1, scratch.data()).macs, pairs * 5);
  }
}

TEST(Attention, RefusesCachesThatOverflow) {
  AttentionSpec spec;
  spec.cache = int64_t{1} << 40;
  spec.key_width = int64_t{1} << 40;
  EXPECT_THROW(attention_cache_bytes(spec), Error);
}

}  // namespace attention_test
}  // namespace sluice::engine
