// Operators that networks for text add: each in a graph, against the reference, in any number of
// rows.
#include <gtest/gtest.h>

#include <cmath>

#include "sluice/base/test_error.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"
#include "sluice/engine/kernel/reference.h"

namespace sluice::engine {
namespace text_test {

using bundle::Value;
using testing::Model;
using testing::NetworkBuilder;

constexpr int64_t kTokens = 9, kWords = 40;

/// All rows at once, and as sequences of several lengths, are what the reference computes. The
/// network takes rows apart.
void expect_parity(const Model& model, double tolerance = 1e-5) {
  NetworkBuilder random(3);
  std::vector<float> ids;
  for (int64_t i = 0; i < kTokens; ++i) ids.push_back(float(random.pick(0, kWords - 1)));
  const auto expected = reference_run(model.bundle, ids, 1);
  const Network network(model.bundle);
  for (const int64_t rows : {kTokens, int64_t{4}, int64_t{1}}) {
    Session session(network, {.batch = 1, .threads = 1, .sequences = true});
    std::vector<float> found(expected.size());
    const size_t count = size_t(rows) * (expected.size() / kTokens);
    session.run_tokens(std::span(ids).first(size_t(rows)), found, std::vector{rows});
    for (size_t i = 0; i < count; ++i)
      ASSERT_NEAR(found[i], expected[i], tolerance * (1 + std::abs(expected[i])))
          << rows << " rows, element " << i;
  }
}

Value words(NetworkBuilder& net, int64_t width) {
  net.tensor("words", {kWords, width}, net.normal(size_t(kWords * width), 1.0));
  return net.builder().node("embedding", "words", {net.input({kTokens})}, {},
                            {{"weight", "words"}});
}

TEST(Text, L2NormalizeOfRowsAndOfAPooledVector) {
  NetworkBuilder rows(1);
  expect_parity(rows.finish(rows.node("l2_normalize", "norm", {words(rows, 33)})));

  NetworkBuilder pooled(2);
  const Value mean = pooled.node("pool_rows", "pool", {words(pooled, 33)});
  const Model model = pooled.finish(pooled.node("l2_normalize", "norm", {mean}));
  const Network network(model.bundle);
  Session session(network, {.batch = 2, .sequences = true});
  const std::vector<float> ids{1, 2, 3, 4, 5};
  std::vector<float> out(66);
  session.run_tokens(ids, out, std::vector<int64_t>{2, 3});
  for (size_t s = 0; s < 2; ++s) {
    double squares = 0;
    for (size_t i = 0; i < 33; ++i) squares += double(out[s * 33 + i]) * out[s * 33 + i];
    EXPECT_NEAR(squares, 1, 1e-5);
  }
}

TEST(Text, RmsNormOfEachHead) {
  NetworkBuilder net(4);
  const Value x = words(net, 36);
  net.tensor("weight", {9}, net.uniform(9, 0.5f, 1.5f));
  expect_parity(net.finish(net.builder().node("rms_norm", "norm", {x}, {{"heads", int64_t{4}}},
                                              {{"weight", "weight"}})));
  NetworkBuilder bad(4);
  const Value y = words(bad, 36);
  EXPECT_ERROR(bad.node("rms_norm", "norm", {y}, {{"heads", int64_t{5}}}), Code::shape,
               "5 does not divide 36");
}

TEST(Text, RopeWithAFactorPerPair) {
  for (const char* layout : {"half", "interleaved"}) {
    NetworkBuilder net(5);
    const Value x = words(net, 32);
    net.tensor("factors", {4}, {1, 1.5f, 4, 32});
    expect_parity(net.finish(net.builder().node(
        "rope", "rope", {x},
        {{"heads", int64_t{2}}, {"dims", int64_t{8}}, {"layout", std::string(layout)}},
        {{"factors", "factors"}})));
  }
  NetworkBuilder net(5);
  const Value x = words(net, 32);
  net.tensor("factors", {16}, std::vector<float>(16, 0.0f));
  const Model model =
      net.finish(net.builder().node("rope", "rope", {x}, {}, {{"factors", "factors"}}));
  const Network network(model.bundle);
  EXPECT_ERROR(Session(network, {.sequences = true}), Code::numeric, "factors");
}

TEST(Text, EmbeddingFromPackedTables) {
  for (const bundle::Format format : bundle::all_formats()) {
    NetworkBuilder net(6);
    const auto values = net.normal(size_t(kWords * 64), 1.0);
    net.builder().tensor("words", format, {kWords, 64}, bundle::pack(format, values, kWords, 64));
    expect_parity(net.finish(net.builder().node("embedding", "words", {net.input({kTokens})}, {},
                                                {{"weight", "words"}})));
  }
}

TEST(Text, GeluTanhAloneAndBehindALinearLayer) {
  NetworkBuilder net(7);
  const Value x = words(net, 24);
  const Value y = net.activation("a", x, "gelu_tanh");
  expect_parity(net.finish(net.activation("b", net.linear("l", y, 40), "gelu_tanh")), 1e-4);
}

}  // namespace text_test
}  // namespace sluice::engine
