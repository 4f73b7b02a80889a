// Sequences that sessions continue: any cut into runs gives what the whole sequence gives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/base/test_error.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"
#include "sluice/engine/kernel/reference.h"

namespace sluice::engine {
namespace sequence_test {

using bundle::Value;
using testing::Model;
using testing::NetworkBuilder;

constexpr int64_t kWords = 50, kWidth = 16;

struct DecoderShape {
  int64_t tokens = 24;
  int64_t cache = 64, window = 0;
  bool recurrent = true;  ///< the second layer is linear attention
  bool last = false;      ///< logits of the last row only
  bool drop = false;      ///< an FFN for some tokens only
  bool sparse = false;    ///< behind attention few inputs count, but for the first three tokens
};

void PrintTo(const DecoderShape& s, std::ostream* out) {
  *out << "cache " << s.cache << ", window " << s.window << (s.recurrent ? ", recurrent" : "")
       << (s.last ? ", last row" : "") << (s.drop ? ", drops tokens" : "")
       << (s.sparse ? ", sparse" : "");
}

/// A small decoder; its weights do not depend on `tokens`.
Model decoder(const DecoderShape& s) {
  NetworkBuilder net(21);
  const Value ids = net.input({s.tokens});
  net.tensor("words", {kWords, kWidth}, net.normal(size_t(kWords * kWidth), 1.0));
  Value x = net.builder().node("embedding", "words", {ids}, {}, {{"weight", "words"}});
  for (const std::string layer : {"l0", "l1"}) {
    const Value h = net.node("rms_norm", layer + ".norm1", {x});
    const Value qkv = net.linear(layer + ".qkv", h, 2 * kWidth, false);
    const auto part = [&](const char* name, int64_t start, int64_t size) {
      return net.node("slice", layer + name, {qkv}, {{"start", start}, {"size", size}});
    };
    Value y;
    if (layer == "l1" && s.recurrent) {
      const Value decay =
          net.activation(layer + ".sigmoid", net.linear(layer + ".decay", h, 2), "sigmoid");
      y = net.node("linear_attention", layer + ".attention",
                   {part(".q", 0, 8), part(".k", 8, 8), part(".v", 16, 16), decay},
                   {{"heads", int64_t{2}}, {"carry", true}});
    } else {
      const Value q = net.node("rope", layer + ".rq", {part(".q", 0, 16)}, {{"heads", int64_t{4}}}),
                  k = net.node("rope", layer + ".rk", {part(".k", 16, 8)}, {{"heads", int64_t{2}}});
      y = net.node("attention", layer + ".attention", {q, k, part(".v", 24, 8)},
                   {{"heads", int64_t{4}},
                    {"kv_heads", int64_t{2}},
                    {"cache", s.cache},
                    {"window", s.window}});
    }
    if (s.sparse) {
      net.tensor(layer + ".turned", {kWidth, kWidth}, net.normal(size_t(kWidth * kWidth), 0.3));
      y = net.builder().node(
          "sparse_input_linear", layer + ".sparse", {y},
          {{"select", std::string("topk")}, {"k", int64_t{4}}, {"dense_first", int64_t{3}}},
          {{"weight", layer + ".turned"}});
    } else {
      y = net.linear(layer + ".o", y, kWidth);
    }
    x = net.node("add", layer + ".add1", {y, x});
    Value z = net.node("rms_norm", layer + ".norm2", {x});
    const Value keep = net.linear(layer + ".keep", z, 1);
    if (s.drop) z = net.node("compact_rows", layer + ".compact", {z, keep});
    const Value gate = net.activation(layer + ".silu", net.linear(layer + ".gate", z, 40), "silu");
    z = net.linear(layer + ".down",
                   net.node("mul", layer + ".mul", {gate, net.linear(layer + ".up", z, 40)}),
                   kWidth);
    x = s.drop ? net.node("scatter_rows", layer + ".scatter", {x, z, keep},
                          {{"mode", std::string("add")}})
               : net.node("add", layer + ".add2", {x, z});
  }
  if (s.last) x = net.node("pool_rows", "last", {x}, {{"kind", std::string("last")}});
  return net.finish(net.linear("head", x, kWords));
}

std::vector<float> random_ids(uint64_t seed, int64_t count) {
  NetworkBuilder random(seed);
  std::vector<float> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(float(random.pick(0, kWords - 1)));
  return ids;
}

void expect_rows(std::span<const float> found, std::span<const float> expected) {
  for (size_t i = 0; i < expected.size(); ++i)
    ASSERT_NEAR(found[i], expected[i], 2e-4 * (1 + std::abs(expected[i]))) << "element " << i;
}

Code code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.code();
  }
  return Code::internal;
}

class Sequences : public ::testing::TestWithParam<DecoderShape> {};

TEST_P(Sequences, RaggedPiecesOfABatchMatchTheReference) {
  constexpr int64_t kTotal = 24, kBatch = 3;
  DecoderShape whole = GetParam(), piece = GetParam();
  whole.tokens = kTotal;
  whole.last = false;
  whole.cache = 64;
  piece.tokens = 7;
  const Model reference = decoder(whole), model = decoder(piece);
  const Network network(model.bundle);
  for (const int threads : {1, 2}) {
    Session session(network, {.batch = kBatch, .threads = threads, .sequences = true});
    NetworkBuilder random(5);
    for (int round = 0; round < 2; ++round) {
      session.reset();
      std::vector<std::vector<float>> ids, expected;
      for (uint64_t s = 0; s < kBatch; ++s) {
        ids.push_back(random_ids(s + 10 * uint64_t(round), kTotal));
        expected.push_back(reference_run(reference.bundle, ids.back(), 1));
      }
      std::vector<int64_t> done(kBatch, 0);
      while (*std::min_element(done.begin(), done.end()) < kTotal) {
        std::vector<float> input, output(size_t(kBatch * 7 * kWords));
        std::vector<int64_t> tokens;
        for (size_t s = 0; s < kBatch; ++s) {
          tokens.push_back(
              std::min(random.coin() ? random.pick(0, 7) : int64_t{1}, kTotal - done[s]));
          input.insert(input.end(), ids[s].begin() + done[s],
                       ids[s].begin() + done[s] + tokens.back());
        }
        session.run_tokens(input, output, tokens);
        size_t row = 0;
        for (size_t s = 0; s < kBatch; ++s) {
          const size_t first = size_t(done[s]), count = size_t(tokens[s]);
          done[s] += tokens[s];
          EXPECT_EQ(session.position(int64_t(s)), done[s]);
          if (piece.last) {
            if (count > 0)
              expect_rows(std::span(output).subspan(s * kWords, kWords),
                          std::span(expected[s]).subspan((first + count - 1) * kWords, kWords));
            continue;
          }
          expect_rows(std::span(output).subspan(row * kWords, count * kWords),
                      std::span(expected[s]).subspan(first * kWords, count * kWords));
          row += count;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Decoders, Sequences,
    ::testing::Values(DecoderShape{}, DecoderShape{.recurrent = false}, DecoderShape{.window = 5},
                      DecoderShape{.cache = 11, .window = 5},
                      DecoderShape{.cache = 11, .window = 5, .recurrent = false},
                      DecoderShape{.last = true}, DecoderShape{.drop = true},
                      DecoderShape{.sparse = true},
                      DecoderShape{.recurrent = false, .last = true, .drop = true}));

TEST_P(Sequences, LastRowsAreThoseOfAllRows) {
  constexpr int64_t kBatch = 3, kTokens = 7;
  DecoderShape shape = GetParam();
  if (shape.last) GTEST_SKIP() << "the network pools";
  shape.tokens = kTokens;
  const Model model = decoder(shape);
  const Network network(model.bundle);
  for (const int64_t most : {int64_t{0}, int64_t{1}, int64_t{3}}) {
    Session all(network, {.batch = kBatch, .threads = 1, .sequences = true});
    Session some(network, {.batch = kBatch, .threads = 2, .sequences = true, .last_rows = most});
    NetworkBuilder random(7);
    for (int step = 0; step < 8; ++step) {
      std::vector<int64_t> tokens, last, first;
      int64_t rows = 0, wanted = 0;
      for (int64_t s = 0; s < kBatch; ++s) {
        tokens.push_back(random.pick(0, random.coin() ? 1 : kTokens));
        last.push_back(random.pick(0, std::min(tokens.back(), most > 0 ? most : kTokens)));
        first.push_back(rows + tokens.back() - last.back());
        rows += tokens.back();
        wanted += last.back();
      }
      const auto ids = random_ids(uint64_t(step), rows);
      std::vector<float> expected(size_t(rows * kWords)), found(size_t(wanted * kWords));
      all.run_tokens(ids, expected, tokens);
      some.run_tokens(ids, found, tokens, {.last = last});
      size_t row = 0;
      for (size_t s = 0; s < kBatch; ++s) {
        expect_rows(
            std::span(found).subspan(row * kWords, size_t(last[s]) * kWords),
            std::span(expected).subspan(size_t(first[s]) * kWords, size_t(last[s]) * kWords));
        row += size_t(last[s]);
      }
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Sequences, GoBackAsIfLaterRowsHadNeverRun) {
  DecoderShape shape = GetParam();
  if (shape.last) GTEST_SKIP() << "the network pools";
  shape.tokens = 7;
  const Model model = decoder(shape);
  const Network network(model.bundle);
  Session session(network, {.batch = 2, .threads = 1, .sequences = true}),
      fresh(network, {.batch = 2, .threads = 1, .sequences = true});
  const auto run = [&](Session& s, const std::vector<float>& ids, int64_t sample) {
    std::vector<float> output(ids.size() * size_t(kWords));
    std::vector<int64_t> tokens(2, 0);
    tokens[size_t(sample)] = int64_t(ids.size());
    s.run_tokens(ids, output, tokens);
    return output;
  };
  if (shape.recurrent) {
    EXPECT_EQ(session.rewind_limit(), 0);
    run(session, random_ids(1, 3), 1);
    EXPECT_ERROR(session.rewind(1, 2), Code::unsupported, "cannot go back to 2");
    return;
  }
  // Through more rows than a window's cache holds.
  const int64_t most = shape.window > 0 ? shape.cache - shape.window + 1 : 7;
  EXPECT_GE(session.rewind_limit(), most);
  for (uint64_t round = 0; round < 8; ++round) {
    const int64_t sample = int64_t(round % 2), kept = session.position(sample) + 3;
    const auto first = random_ids(10 + round, 3), refused = random_ids(20 + round, 4),
               next = random_ids(30 + round, 2);
    run(session, first, sample);
    run(fresh, first, sample);
    run(session, refused, sample);
    session.rewind(sample, kept);
    EXPECT_EQ(session.position(sample), kept);
    expect_rows(run(session, next, sample), run(fresh, next, sample));
  }
  EXPECT_ERROR(session.rewind(0, session.position(0) + 1), Code::usage, "expected 0 to");
  EXPECT_ERROR(session.rewind(2, 0), Code::usage, "sample 2");
  session.rewind(0, 0);
  fresh.reset(0);
  const auto again = random_ids(3, 5);
  expect_rows(run(session, again, 0), run(fresh, again, 0));
}

TEST(Sequence, RowsThatNobodyWantsAreNotComputed) {
  const Model model = decoder({.tokens = 8, .recurrent = false});
  const Network network(model.bundle);
  Session last(network, {.batch = 2, .threads = 1, .sequences = true, .last_rows = 1});
  const auto ids = random_ids(1, 11);
  std::vector<float> out(2 * kWords);
  Meter meter;
  last.run_tokens(ids, out, std::vector<int64_t>{8, 3}, {.meter = &meter});
  // Behind the last attention two rows go on; the keys and values of all are needed.
  const int64_t before = (16 * 32 + 16 * 16 + 3 * 16 * 40 + 16) + 16 * 32,
                attention = 2 * 4 * (4 + 4), behind = 16 * 16 + 3 * 16 * 40 + 16 + 16 * kWords;
  EXPECT_EQ(meter.macs(), 11 * before + (36 + 6) * attention + 2 * behind);
  meter.reset();
  const std::vector<int64_t> none{0, 0};
  last.run_tokens(ids, {}, std::vector<int64_t>{4, 4}, {.meter = &meter, .last = none});
  EXPECT_EQ(meter.macs(), 8 * before + (9 + 10 + 11 + 12 + 4 + 5 + 6 + 7) * attention);
}

TEST(Sequence, RefusesLastRowsThatAreNotThere) {
  const Model model = decoder({.tokens = 4}), pooled = decoder({.tokens = 4, .last = true});
  const Network network(model.bundle), pools(pooled.bundle);
  Session session(network, {.batch = 2, .sequences = true, .last_rows = 2});
  const auto ids = random_ids(1, 8);
  std::vector<float> out(8 * kWords);
  const auto run = [&](Session& s, std::vector<int64_t> tokens, std::vector<int64_t> last) {
    return code_of([&] { s.run_tokens(ids, out, tokens, {.last = last}); });
  };
  EXPECT_EQ(run(session, {4, 4}, {3, 1}), Code::shape);
  EXPECT_EQ(run(session, {4, 1}, {1, 2}), Code::shape);
  EXPECT_EQ(run(session, {4, 4}, {1, -1}), Code::shape);
  EXPECT_EQ(run(session, {4, 4}, {1}), Code::shape);
  EXPECT_EQ(session.position(0), 0);
  EXPECT_EQ(code_of([&] { session.run(ids, out); }), Code::state);
  Session plain(pools, {.batch = 2, .sequences = true});
  EXPECT_EQ(run(plain, {4, 4}, {1, 1}), Code::usage);
  EXPECT_EQ(code_of([&] { Session(network, {.last_rows = 1}); }), Code::usage);
  EXPECT_EQ(code_of([&] { Session(pools, {.sequences = true, .last_rows = 1}); }), Code::usage);
}

TEST(Sequence, RunGoesOnWhereTheLastRunEnded) {
  const Model reference = decoder({.tokens = 12}), model = decoder({.tokens = 4});
  const Network network(model.bundle);
  Session session(network, {.batch = 1, .threads = 1});
  const auto ids = random_ids(1, 12);
  const auto expected = reference_run(reference.bundle, ids, 1);
  std::vector<float> out(4 * kWords);
  for (size_t i = 0; i < 3; ++i) {
    session.run(std::span(ids).subspan(4 * i, 4), out);
    expect_rows(out, std::span(expected).subspan(4 * i * kWords, 4 * kWords));
  }
  EXPECT_EQ(session.position(0), 12);
  session.reset(0);
  session.run(std::span(ids).first(4), out);
  expect_rows(out, std::span(expected).first(4 * kWords));
}

TEST(Sequence, RefusesToOutgrowItsCacheBeforeComputing) {
  const Model model = decoder({.tokens = 4, .cache = 6});
  Session session(Network(model.bundle), {.batch = 2, .threads = 1, .sequences = true});
  EXPECT_EQ(session.capacity(), 6);
  EXPECT_GT(session.state_bytes(), 0);
  const auto ids = random_ids(1, 8);
  std::vector<float> out(8 * kWords);
  const std::vector<int64_t> four{4, 1}, three{1, 3}, wrong{1, 5}, many{1, 1, 1};
  session.run_tokens(ids, out, four);
  EXPECT_EQ(code_of([&] {
              session.run_tokens(ids, out, std::vector<int64_t>{3, 1});
            }),
            Code::limit);
  session.run_tokens(ids, out, three);
  EXPECT_EQ(session.position(0), 5);
  EXPECT_EQ(session.position(1), 4);
  EXPECT_EQ(code_of([&] { session.run(ids, out); }), Code::limit);
  session.reset();
  EXPECT_EQ(code_of([&] { session.run_tokens(ids, out, wrong); }), Code::shape);
  EXPECT_EQ(code_of([&] { session.run_tokens(ids, out, many); }), Code::shape);
  EXPECT_EQ(code_of([&] { session.run_tokens(std::span(ids).first(4), out, four); }), Code::shape);
  EXPECT_EQ(code_of([&] { session.run_tokens(ids, std::span(out).first(249), four); }),
            Code::shape);
  EXPECT_EQ(code_of([&] { session.position(2); }), Code::usage);
  EXPECT_EQ(code_of([&] { session.reset(-1); }), Code::usage);
  EXPECT_EQ(session.position(0), 0);
}

TEST(Sequence, AfterAFailureOnlyAResetHelps) {
  const Model model = decoder({.tokens = 4});
  Session session(Network(model.bundle), {.batch = 1, .threads = 1, .sequences = true});
  const auto ids = random_ids(1, 4);
  std::vector<float> out(4 * kWords);
  const std::vector<int64_t> two{2};
  session.run_tokens(ids, out, two);
  const std::vector<float> bad{1, 99};
  EXPECT_EQ(code_of([&] { session.run_tokens(bad, out, two); }), Code::numeric);
  EXPECT_EQ(code_of([&] { session.run_tokens(ids, out, two); }), Code::state);
  EXPECT_EQ(code_of([&] { session.reset(0); }), Code::state);
  session.reset();
  session.run_tokens(ids, out, two);
}

TEST(Sequence, NeedsTheOptionAndANetworkOfRows) {
  const Model model = decoder({.tokens = 4});
  Session plain(Network(model.bundle), {.batch = 1, .threads = 1});
  std::vector<float> out(4 * kWords);
  const std::vector<int64_t> one{1};
  EXPECT_EQ(code_of([&] { plain.run_tokens(random_ids(1, 1), out, one); }), Code::state);
  const Model image = testing::make_resnet({.in_channels = 3, .size = 8, .width = 4, .blocks = 1});
  try {
    Session session(Network(image.bundle), {.batch = 1, .sequences = true});
    FAIL() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::unsupported);
    EXPECT_THAT(e.what(), ::testing::HasSubstr("needs every row in its place"));
  }
}

TEST(Sequence, TheMeterFollowsTheTokensAndTheCache) {
  const Model model = decoder({.tokens = 8, .recurrent = false});
  const Network network(model.bundle);
  Session session(network, {.batch = 2, .threads = 2, .sequences = true});
  const auto ids = random_ids(1, 16);
  std::vector<float> out(16 * kWords);
  Meter meter;
  const int64_t linear = 2 * (16 * 32 + 16 * 16 + 3 * 16 * 40 + 16) + 16 * kWords;
  session.run_tokens(ids, out, std::vector<int64_t>{8, 3}, {.meter = &meter});
  const int64_t pair = 2 * 4 * (4 + 4);  // both layers
  // Nothing reads the decision which tokens to drop, but it is in the graph.
  EXPECT_EQ(meter.macs(), 11 * linear + (36 + 6) * pair);
  meter.reset();
  session.run_tokens(ids, out, std::vector<int64_t>{1, 1}, {.meter = &meter});
  EXPECT_EQ(meter.macs(), 2 * linear + (9 + 4) * pair);
}

}  // namespace sequence_test
}  // namespace sluice::engine
