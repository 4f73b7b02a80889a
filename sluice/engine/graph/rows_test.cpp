// Rows that leave: results are the reference's, time and meter follow the rows that are there.
#include "sluice/bundle/rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"
#include "sluice/engine/kernel/reference.h"

namespace sluice::engine {
namespace rows_test {

using bundle::Value;
using testing::Model;
using testing::NetworkBuilder;

enum class Mask { none, all, some, one };

/// Rows of `width` random numbers whose last one says whether the row stays.
std::vector<float> masked_input(NetworkBuilder& random, size_t rows, size_t width, Mask mask) {
  auto x = random.normal(rows * width, 1.0);
  const size_t one = static_cast<size_t>(random.pick(0, static_cast<int64_t>(rows) - 1));
  for (size_t r = 0; r < rows; ++r) {
    const bool keep = mask == Mask::all || (mask == Mask::some && random.coin()) ||
                      (mask == Mask::one && r == one);
    x[r * width + width - 1] = keep ? 1.0f : -1.0f;
  }
  return x;
}

void expect_parity(const Model& model, const std::vector<float>& input, int64_t count,
                   const std::string& what) {
  const Network network(model.bundle);
  const auto expected = reference_run(model.bundle, input, count);
  for (const bool fuse : {true, false}) {
    for (const int threads : {1, 2}) {
      Session session(network, {.batch = count, .threads = threads, .fuse = fuse});
      std::vector<float> found(expected.size());
      session.run(input, found);
      // Against the size of all: norms over few or nearly equal numbers magnify rounding.
      double largest = 1;
      for (const float x : expected) largest = std::max(largest, std::abs(double(x)));
      for (size_t i = 0; i < found.size(); ++i)
        ASSERT_NEAR(found[i], expected[i], 1e-3 * largest)
            << what << ", element " << i << ", fuse " << fuse << ", threads " << threads;
    }
  }
}

/// Operators that take rows apart, or are told whose they are, at random.
class RowsBetween {
 public:
  RowsBetween(NetworkBuilder& net, Value positions) : net_(net), positions_(positions) {}

  Value grow(Value x, const std::string& path) {
    const int64_t width = x.shape.back();
    switch (net_.pick(0, 10)) {
      case 0:
        return net_.activation(path + ".act", net_.linear(path, x, net_.pick(1, 40)), "gelu");
      case 1:
        return net_.activation(path + ".act",
                               net_.node("add", path + ".add", {net_.linear(path, x, width), x}));
      case 2:
        return net_.node("layer_norm", path, {x});
      case 3:
        return net_.node("rms_norm", path, {x});
      case 4:
        return net_.node("mul", path + ".mul", {net_.activation(path, x, "sigmoid"), x});
      case 5:  // by a number per row
        return net_.scale(path, net_.node("mul", path + ".mul", {x, positions_}), 1, 0.01f);
      case 6: {
        const Value q = net_.linear(path + ".q", x, 24), k = net_.linear(path + ".k", x, 12),
                    v = net_.linear(path + ".v", x, 12);
        const auto turn = [&](const char* name, const Value& y, int64_t heads) {
          return net_.node("rope", path + name, {y, positions_}, {{"heads", heads}});
        };
        const std::string mask = net_.coin() ? "causal" : "full";
        const Value out =
            net_.node("attention", path + ".attention", {turn(".rq", q, 4), turn(".rk", k, 2), v},
                      {{"heads", int64_t{4}}, {"kv_heads", int64_t{2}}, {"mask", mask}});
        return net_.linear(path + ".o", out, width);
      }
      case 7:
        return net_.node(
            "linear_attention", path,
            {net_.node("softmax", path + ".q", {x}), net_.node("softmax", path + ".k", {x}), x},
            {{"heads", int64_t{1}}});
      case 8:
        return net_.linear(path, x, net_.pick(1, 40), true, 0.05);  // compressed
      case 9: {
        const int64_t out = net_.pick(1, 40);
        const auto weight = net_.normal(static_cast<size_t>(out * width), 0.3);
        net_.builder().tensor(path + ".weight", bundle::Format::i4_group, {out, width},
                              bundle::pack(bundle::Format::i4_group, weight, out, width));
        return net_.builder().node("linear", path, {x}, {}, {{"weight", path + ".weight"}});
      }
      default:
        return net_.node("slice", path, {x}, {{"start", width / 3}});
    }
  }

 private:
  NetworkBuilder& net_;
  Value positions_;
};

class RandomRows : public ::testing::TestWithParam<int> {};

TEST_P(RandomRows, MatchTheReferenceForEveryMask) {
  const uint64_t seed = static_cast<uint64_t>(GetParam());
  NetworkBuilder net(seed);
  const int64_t tokens = net.pick(1, 40), width = net.pick(2, 24), batch = net.pick(1, 4);
  const Value input = net.input({tokens, width + 1});
  const Value x = net.node("slice", "x", {input}, {{"size", width}}),
              keep = net.node("slice", "keep", {input}, {{"start", width}});
  const Value positions = net.node("positions", "positions", {x});
  Value y = net.node("compact_rows", "compact", {x, keep});
  const Value p = net.node("compact_rows", "compact_positions", {positions, keep});
  RowsBetween between(net, p);
  for (int64_t i = net.pick(1, 4); i > 0; --i) y = between.grow(y, "a" + std::to_string(i));
  if (net.coin()) {  // again, from those that are left
    const Value keep2 = net.linear("keep2", y, 1);
    Value z = net.node("compact_rows", "compact2", {y, keep2});
    z = net.linear("z", z, y.shape.back());
    y = net.node("scatter_rows", "scatter2", {y, z, keep2});
  }
  y = net.linear("last", y, width);
  const std::string mode = net.coin() ? "add" : "replace";
  Value out = net.node("scatter_rows", "scatter", {x, y, keep}, {{"mode", mode}});
  if (net.coin()) out = net.node("add", "residual", {out, x});
  const Model model = net.finish(net.linear("head", out, 5));
  for (const Mask mask : {Mask::none, Mask::all, Mask::some, Mask::one}) {
    const auto values = masked_input(net, static_cast<size_t>(batch * tokens),
                                     static_cast<size_t>(width + 1), mask);
    expect_parity(model, values, batch, "seed " + std::to_string(seed));
  }
}
INSTANTIATE_TEST_SUITE_P(Seeds, RandomRows, ::testing::Range(0, 30));

/// Rows that left go on as keys and values: queries of some rows, keys of all.
TEST_P(RandomRows, AttendFromSomeToAll) {
  NetworkBuilder net(static_cast<uint64_t>(GetParam()) + 100);
  const int64_t tokens = net.pick(1, 40), width = 8, batch = net.pick(1, 4);
  const Value input = net.input({tokens, width + 1});
  const Value x = net.node("slice", "x", {input}, {{"size", width}}),
              keep = net.node("slice", "keep", {input}, {{"start", width}});
  const Value left = net.node("compact_rows", "left", {x, keep}),
              positions = net.node("positions", "positions", {x});
  const Value p = net.node("compact_rows", "p", {positions, keep});
  const Value q = net.node("rope", "q", {net.linear("wq", left, 16), p}, {{"heads", int64_t{4}}}),
              k = net.node("rope", "k", {net.linear("wk", x, 8)}, {{"heads", int64_t{2}}});
  bundle::Attributes attrs = {{"heads", int64_t{4}}, {"kv_heads", int64_t{2}}};
  if (net.coin()) attrs["window"] = net.pick(1, 20);
  if (GetParam() % 3 == 0) {
    attrs.erase("window");
    attrs["mask"] = std::string("full");
  }
  const Value y = net.node("attention", "attention", {q, k, net.linear("wv", x, 6), keep}, attrs);
  const Model model =
      net.finish(net.node("scatter_rows", "join", {x, net.linear("o", y, width), keep}));
  for (const Mask mask : {Mask::none, Mask::all, Mask::some, Mask::one}) {
    const auto values = masked_input(net, static_cast<size_t>(batch * tokens),
                                     static_cast<size_t>(width + 1), mask);
    expect_parity(model, values, batch, "seed " + std::to_string(GetParam()));
  }
}

/// Heads that rows leave out: each row looks with those that its mask has above 0.
TEST_P(RandomRows, LookWithSomeHeads) {
  NetworkBuilder net(static_cast<uint64_t>(GetParam()) + 200);
  const int64_t tokens = net.pick(1, 40), width = 8, batch = net.pick(1, 4);
  const Value x = net.input({tokens, width});
  const Value open = net.linear("gate", x, 2);
  bundle::Attributes attrs = {{"heads", int64_t{4}}, {"kv_heads", int64_t{2}}, {"gated", true}};
  if (GetParam() % 3 == 0) attrs["mask"] = std::string("full");
  const Value y =
      net.node("attention", "attention",
               {net.linear("q", x, 16), net.linear("k", x, 8), net.linear("v", x, 6), open}, attrs);
  const Model model = net.finish(net.linear("o", y, width));
  const auto values = net.normal(static_cast<size_t>(batch * tokens * width), 1.0);
  expect_parity(model, values, batch, "seed " + std::to_string(GetParam()));
}

/// Samples leave a convolutional network at its first head.
Model early_exit(uint64_t seed) {
  NetworkBuilder net(seed);
  const Value input = net.input({3, 8, 8});
  Value x = net.activation("relu1", net.conv("conv1", input, 6, 3));
  const Value first = net.linear("head1", net.node("global_avg_pool", "pool1", {x}), 5);
  const Value keep = net.linear("confidence", first, 1);
  Value y = net.node("compact_rows", "exit", {x, keep});
  y = net.activation("relu2", net.batch_norm("bn2", net.conv("conv2", y, 11, 3, 2)));
  const Value z = net.conv("conv3", y, 11, 3);
  y = net.activation("relu3", net.node("add", "add3", {z, y}));
  y = net.node("max_pool2d", "pool", {y}, {{"kernel", int64_t{2}}});
  y = net.linear("head2", net.node("flatten", "flat", {y}), 5);
  return net.finish(net.node("scatter_rows", "join", {first, y, keep}));
}

TEST(RowsThatLeave, SamplesLeaveAConvolutionalNetwork) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    const Model model = early_exit(seed);
    for (const int64_t batch : {1, 2, 7, 30}) {
      NetworkBuilder random(seed + 100);
      expect_parity(model, random.normal(static_cast<size_t>(batch * 3 * 64), 1.0), batch,
                    "seed " + std::to_string(seed));
    }
  }
}

TEST(RowsThatLeave, AChunkThatIsNotFullHasNoMoreSamples) {
  const Model model = early_exit(3);
  const Network network(model.bundle);
  Session session(network, {.batch = 9, .threads = 2});
  NetworkBuilder random(4);
  const auto input = random.normal(9 * 3 * 64, 1.0);
  std::vector<float> all(45), some(45, -1.0f);
  session.run(input, all);
  session.run(input, some, 4);
  for (size_t i = 0; i < 20; ++i) EXPECT_NEAR(some[i], all[i], 1e-5);
  EXPECT_THAT(std::vector(some.begin() + 20, some.end()), ::testing::Each(-1.0f));
}

/// keep is the input's last column; two layers between, `counting` wide.
Model block(int64_t tokens, int64_t width) {
  NetworkBuilder net(9);
  const Value input = net.input({tokens, width + 1});
  const Value x = net.node("slice", "x", {input}, {{"size", width}}),
              keep = net.node("slice", "keep", {input}, {{"start", width}});
  Value y = net.node("compact_rows", "compact", {x, keep});
  y = net.linear("down", net.activation("relu", net.linear("up", y, 4 * width)), width);
  return net.finish(net.node("scatter_rows", "scatter", {x, y, keep}));
}

TEST(RowsThatLeave, TheMeterCountsTheRowsThatAreThere) {
  const int64_t tokens = 20, width = 16, batch = 5;
  const Model model = block(tokens, width);
  const Network network(model.bundle);
  for (const int threads : {1, 2}) {
    Session session(network, {.batch = batch, .threads = threads});
    NetworkBuilder random(1);
    for (const Mask mask : {Mask::none, Mask::all, Mask::some}) {
      const auto x = masked_input(random, static_cast<size_t>(batch * tokens),
                                  static_cast<size_t>(width + 1), mask);
      int64_t kept = 0;
      for (size_t r = 0; r < static_cast<size_t>(batch * tokens); ++r)
        kept += x[r * static_cast<size_t>(width + 1) + static_cast<size_t>(width)] > 0;
      std::vector<float> out(static_cast<size_t>(batch * tokens * width));
      Meter meter;
      session.run(x, out, {.meter = &meter});
      EXPECT_EQ(meter.macs(), kept * width * 4 * width * 2);
      if (mask == Mask::none) {
        for (const Meter::Entry& e : meter.entries()) {
          if (e.path == "up" || e.path == "down") {
            EXPECT_EQ(e.bytes, 0) << e.path;
          }
        }
      }
    }
  }
}

TEST(RowsThatLeave, GarbageInRowsThatLeftDoesNotComeBack) {
  const int64_t tokens = 24, width = 8;
  const Model model = block(tokens, width);
  const Network network(model.bundle);
  Session session(network, {.batch = 1, .threads = 1});
  NetworkBuilder random(2);
  auto x =
      masked_input(random, static_cast<size_t>(tokens), static_cast<size_t>(width + 1), Mask::some);
  std::vector<float> clean(static_cast<size_t>(tokens * width)), again(clean.size());
  session.run(x, clean);
  auto bad = x;
  for (size_t r = 0; r < static_cast<size_t>(tokens); ++r) {
    float* row = &bad[r * static_cast<size_t>(width + 1)];
    row[width] = 1;
    std::fill(row, row + width, NAN);
  }
  session.run(bad, again);
  session.run(x, again);
  EXPECT_EQ(again, clean);
}

TEST(RowsThatLeave, TheBudgetIsThatOfAllRows) {
  const Model model = block(10, 8);
  const Network network(model.bundle);
  Session session(network, {.batch = 1, .threads = 1});
  std::vector<float> x(90, -1.0f), out(80);
  Budget budget;
  budget.macs_per_sample = network.cost().macs - 1;
  EXPECT_THROW(session.run(x, out, {.budget = &budget}), Error);
}

TEST(RowsThatLeave, EmbeddingsSayWhichIdIsWrong) {
  NetworkBuilder net(5);
  const Value ids = net.input({3});
  net.tensor("table", {7, 4}, net.normal(28, 1.0));
  const Model model =
      net.finish(net.builder().node("embedding", "tokens", {ids}, {}, {{"weight", "table"}}));
  Session session(Network(model.bundle), {.batch = 1});
  std::vector<float> out(12);
  session.run(std::vector<float>{0, 6, 3}, out);
  try {
    session.run(std::vector<float>{0, 7, 3}, out);
    FAIL() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::numeric);
    EXPECT_STREQ(e.what(), "tokens: id 7 in row 1; expected an integer from 0 to 6");
  }
}

}  // namespace rows_test
}  // namespace sluice::engine
