#include "sluice/engine/kernel/linear_attention.h"

#include <gmock/gmock.h>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace linear_attention_test {

using testing::for_each_target;
using testing::Guarded;
using testing::random_floats;

struct Sequence {
  std::vector<float> q, k, v, decay;
  int64_t rows;
};

Sequence random_sequence(std::mt19937_64& random, const LinearAttentionSpec& spec, int64_t rows) {
  const size_t keys = static_cast<size_t>(rows * spec.heads * spec.key_width),
               values = static_cast<size_t>(rows * spec.heads * spec.value_width);
  Sequence s{random_floats(random, keys),
             random_floats(random, keys),
             random_floats(random, values),
             {},
             rows};
  if (spec.decay == Decay::head)
    s.decay = random_floats(random, static_cast<size_t>(rows * spec.heads), 0.2f, 1);
  if (spec.decay == Decay::channel) s.decay = random_floats(random, keys, 0.2f, 1);
  return s;
}

std::vector<double> reference(const LinearAttentionSpec& spec, const Sequence& s) {
  std::vector<double> out(s.v.size());
  for (int64_t h = 0; h < spec.heads; ++h) {
    std::vector<double> state(static_cast<size_t>(spec.key_width * spec.value_width));
    for (int64_t t = 0; t < s.rows; ++t) {
      const size_t token = static_cast<size_t>(t * spec.heads + h);
      for (size_t i = 0; i < static_cast<size_t>(spec.key_width); ++i) {
        const size_t at = token * static_cast<size_t>(spec.key_width) + i;
        const double decay = spec.decay == Decay::none   ? 1.0
                             : spec.decay == Decay::head ? s.decay[token]
                                                         : s.decay[at];
        for (size_t j = 0; j < static_cast<size_t>(spec.value_width); ++j) {
          const size_t value = token * static_cast<size_t>(spec.value_width) + j;
          double& x = state[i * static_cast<size_t>(spec.value_width) + j];
          x = decay * x + double(s.k[at]) * s.v[value];
          out[value] += spec.scale * double(s.q[at]) * x;
        }
      }
    }
  }
  return out;
}

std::vector<float> run(const LinearAttentionSpec& spec, const Sequence& s,
                       const std::vector<int64_t>& pieces, int threads = 1) {
  const Buffer scratch(linear_attention_scratch_bytes(spec, threads), false);
  const Buffer state(linear_attention_state_bytes(spec), false);
  std::fill_n(state.data(), state.bytes(), std::byte{0xFF});
  Guarded out(s.v.size());
  int64_t done = 0;
  for (const int64_t rows : pieces) {
    LinearAttentionRows piece;
    piece.q = s.q.data() + done * spec.heads * spec.key_width;
    piece.k = s.k.data() + done * spec.heads * spec.key_width;
    piece.v = s.v.data() + done * spec.heads * spec.value_width;
    if (spec.decay == Decay::head) piece.decay = s.decay.data() + done * spec.heads;
    if (spec.decay == Decay::channel)
      piece.decay = s.decay.data() + done * spec.heads * spec.key_width;
    piece.out = out.data() + done * spec.heads * spec.value_width;
    piece.rows = rows;
    piece.state = state.floats();
    piece.fresh = done == 0;
    linear_attention(spec, {&piece, 1}, threads, scratch.data());
    done += rows;
  }
  EXPECT_TRUE(out.intact());
  return {out.span().begin(), out.span().end()};
}

LinearAttentionSpec random_spec(std::mt19937_64& random) {
  const auto pick = [&](std::vector<int64_t> from) { return from[random() % from.size()]; };
  LinearAttentionSpec spec;
  spec.heads = pick({1, 2, 5});
  spec.key_width = pick({1, 3, 16, 33});
  spec.value_width = pick({1, 7, 16, 32, 50});
  spec.decay = std::array{Decay::none, Decay::head, Decay::channel}[random() % 3];
  spec.scale = 0.5f;
  return spec;
}

TEST(LinearAttention, MatchesTheReference) {
  std::mt19937_64 random(1);
  for_each_target([&] {
    for (int i = 0; i < 40; ++i) {
      const LinearAttentionSpec spec = random_spec(random);
      const Sequence s = random_sequence(random, spec, 1 + int64_t(random() % 30));
      const auto found = run(spec, s, {s.rows});
      const auto expected = reference(spec, s);
      for (size_t e = 0; e < found.size(); ++e)
        ASSERT_NEAR(found[e], expected[e], 1e-4 * (1 + std::abs(expected[e])));
    }
  });
}

TEST(LinearAttention, PiecesAndThreadsGiveTheSameBits) {
  std::mt19937_64 random(2);
  for_each_target([&] {
    for (int i = 0; i < 10; ++i) {
      const LinearAttentionSpec spec = random_spec(random);
      const Sequence s = random_sequence(random, spec, 23);
      const auto whole = run(spec, s, {23});
      EXPECT_EQ(run(spec, s, {1, 1, 9, 3, 9}), whole);
      EXPECT_EQ(run(spec, s, {23}, 2), whole);
      EXPECT_EQ(run(spec, s, {11, 12}, 7), whole);
    }
  });
}

TEST(LinearAttention, NanStaysInItsHeadAndInLaterRows) {
  std::mt19937_64 random(3);
  for_each_target([&] {
    LinearAttentionSpec spec;
    spec.heads = 2;
    spec.key_width = spec.value_width = 4;
    spec.decay = Decay::head;
    Sequence s = random_sequence(random, spec, 10);
    s.k[5 * 8 + 4] = NAN;  // row 5, head 1
    const auto out = run(spec, s, {10});
    for (size_t r = 0; r < 10; ++r) {
      EXPECT_TRUE(std::isfinite(out[r * 8])) << r;
      EXPECT_EQ(std::isfinite(out[r * 8 + 4]), r < 5) << r;
    }
  });
}

TEST(LinearAttention, NoRowsLeaveTheStateAlone) {
  LinearAttentionSpec spec;
  spec.key_width = spec.value_width = 2;
  std::vector<float> state(64, 3.0f);
  LinearAttentionRows none;
  none.state = state.data();
  EXPECT_EQ(linear_attention(spec, {&none, 1}, 2, nullptr).macs, 0);
  EXPECT_THAT(state, ::testing::Each(3.0f));
}

}  // namespace linear_attention_test
}  // namespace sluice::engine
