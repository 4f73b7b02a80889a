// Networks of several sizes: nested convolutions, blocks and exits that a size leaves out.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "sluice/base/error.h"
#include "sluice/base/test_error.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"
#include "sluice/engine/kernel/reference.h"

namespace sluice::engine {
namespace sizes_test {

using bundle::Attributes;
using bundle::Value;
using testing::Model;
using testing::NetworkBuilder;
using Ints = std::vector<int64_t>;

/// stem -> two residual blocks of nested width, the second of which a size may leave out ->
/// classes. Sizes: {4 channels, without}, {4, with}, {8, with}. `only`: that size alone, of
/// ordinary layers.
struct Nested {
  NetworkBuilder net{7};
  int only = -1;
  const Ints widths{4, 4, 8}, runs{0, 1, 1};

  Value conv(const std::string& path, const Value& x, int64_t out, bool rows, bool columns) {
    const int64_t in = 8;
    auto weight = net.normal(static_cast<size_t>(out * in * 9), 0.2);
    auto scale = net.normal(static_cast<size_t>(3 * out), 1.0);
    auto bias = net.normal(static_cast<size_t>(3 * out), 0.3);
    Attributes attrs{{"padding", int64_t{1}}};
    if (only < 0) {
      if (rows) attrs["rows"] = widths;
      if (columns) attrs["columns"] = widths;
      net.tensor(path + ".weight", {out, in, 3, 3}, weight);
      net.tensor(path + ".scale", {3, out}, scale);
      net.tensor(path + ".bias", {3, out}, bias);
      return net.builder().node(
          "prefix_conv2d", path, {x}, attrs,
          {{"weight", path + ".weight"}, {"scale", path + ".scale"}, {"bias", path + ".bias"}});
    }
    // The same by hand: weights of what is left out are 0, the size's scale in the others.
    const int64_t width = widths[static_cast<size_t>(only)];
    std::vector<float> own_bias(static_cast<size_t>(out));
    for (int64_t o = 0; o < out; ++o) {
      const bool here = !rows || o < width;
      const auto table = static_cast<size_t>(only * out + o);
      own_bias[static_cast<size_t>(o)] = here ? bias[table] : 0;
      for (int64_t k = 0; k < in * 9; ++k) {
        const bool read = here && (!columns || k / 9 < width);
        weight[static_cast<size_t>(o * in * 9 + k)] *= read ? scale[table] : 0;
      }
    }
    net.tensor(path + ".weight", {out, in, 3, 3}, weight);
    net.tensor(path + ".bias", {out}, own_bias);
    return net.builder().node("conv2d", path, {x}, attrs,
                              {{"weight", path + ".weight"}, {"bias", path + ".bias"}});
  }

  Value block(const std::string& path, const Value& x) {
    Value y = net.activation(path + ".act1", conv(path + ".conv1", x, 8, true, false));
    y = conv(path + ".conv2", y, 8, false, true);
    return net.activation(path + ".act2", net.node("add", path + ".add", {x, y}));
  }

  Model make() {
    Value x = net.activation("act", net.conv("stem", net.input({3, 9, 7}), 8, 3));
    x = block("b0", x);
    const Value y = block("b1", x);
    if (only < 0) {
      Ints choice;
      for (const int64_t on : runs) choice.push_back(on ? 0 : 1);
      x = net.builder().node("size_switch", "b1.switch", {y, x}, {{"choice", choice}});
    } else if (runs[static_cast<size_t>(only)]) {
      x = y;
    }
    return net.finish(net.linear("fc", net.node("global_avg_pool", "pool", {x}), 5));
  }
};

TEST(Sizes, EachIsTheSmallNetworkByItself) {
  const Model nested = Nested().make();
  const Network network(nested.bundle);
  const auto input = NetworkBuilder(3).normal(static_cast<size_t>(6 * 3 * 9 * 7), 1.0);
  const bundle::GraphSizes table =
      bundle::graph_sizes(nested.bundle.graph(), nested.bundle.info(), "test");
  ASSERT_EQ(table.count, 3);
  for (const int threads : {1, 2}) {
    Session session(network, {.batch = 6, .threads = threads});
    ASSERT_EQ(session.sizes(), 3);
    for (const int64_t size : {2, 0, 1, 0, 2}) {
      Nested alone;
      alone.only = static_cast<int>(size);
      const auto expected = reference_run(alone.make().bundle, input, 6);
      std::vector<float> found(expected.size());
      Meter meter;
      session.run(input, found, {.meter = &meter, .size = size});
      for (size_t i = 0; i < found.size(); ++i)
        ASSERT_NEAR(found[i], expected[i], 1e-4 * (1 + std::abs(expected[i]))) << size;
      EXPECT_EQ(meter.macs(), 6 * table.macs[static_cast<size_t>(size)]) << size;
      for (const Meter::Entry& entry : meter.entries())
        EXPECT_FALSE(size == 0 && entry.path.starts_with("b1.conv") && entry.macs > 0);
    }
    Budget budget;
    budget.macs_per_sample = table.macs[1];
    std::vector<float> a(30), b(30);
    session.run(input, a, {.budget = &budget});
    session.run(input, b, {.size = 1});
    EXPECT_EQ(a, b);
  }
}

TEST(Sizes, TheLastOneMatchesTheReference) {
  const Model nested = Nested().make();
  const auto input = NetworkBuilder(4).normal(static_cast<size_t>(2 * 3 * 9 * 7), 1.0);
  const auto expected = reference_run(nested.bundle, input, 2);
  for (const bool fuse : {true, false}) {
    Session session(Network(nested.bundle), {.batch = 2, .threads = 1, .fuse = fuse});
    std::vector<float> found(expected.size());
    session.run(input, found);
    for (size_t i = 0; i < found.size(); ++i)
      ASSERT_NEAR(found[i], expected[i], 1e-4 * (1 + std::abs(expected[i])));
  }
}

/// Three branches, one of which runs; a view in between.
TEST(Sizes, ASwitchTakesAnyOfItsInputsAndOnlyThatOneRuns) {
  NetworkBuilder net(8);
  const Value x = net.input({2, 3});
  const Value flat = net.node("flatten", "flat", {x});
  const Value a = net.linear("a", flat, 4), b = net.linear("b", flat, 4),
              c = net.linear("c", net.activation("c.act", b), 4);
  const Model model =
      net.finish(net.builder().node("size_switch", "out", {a, b, c}, {{"choice", Ints{1, 0, 2}}}));
  Session session(Network(model.bundle), {.batch = 1, .threads = 1});
  const std::vector<float> input{1, 2, 3, -1, -2, -3};
  std::map<int64_t, std::vector<std::string>> ran;
  std::vector<std::vector<float>> outputs;
  for (const int64_t size : {0, 1, 2}) {
    Meter meter;
    std::vector<float> output(4);
    session.run(input, output, {.meter = &meter, .size = size});
    outputs.push_back(output);
    for (const Meter::Entry& entry : meter.entries())
      if (entry.macs > 0) ran[size].push_back(entry.path);
  }
  EXPECT_EQ(ran[0], std::vector<std::string>{"b"});
  EXPECT_EQ(ran[1], std::vector<std::string>{"a"});
  EXPECT_EQ(ran[2], (std::vector<std::string>{"b", "c"}));
  EXPECT_NE(outputs[0], outputs[1]);
  EXPECT_NE(outputs[0], outputs[2]);
}

/// Rows that a threshold lets through, inputs and neurons that a selector keeps, all with a number
/// per size; `only`: that size alone.
struct Selected {
  NetworkBuilder net{11};
  int only = -1;

  template <class T>
  void put(Attributes& attrs, const std::string& name, std::vector<T> list) {
    if (only < 0) {
      attrs[name] = list;
    } else {
      attrs[name] = list[static_cast<size_t>(only)];
    }
  }
  Model make(const std::string& select) {
    const Value x = net.input({6, 12});
    Attributes rows, inputs{{"select", select}, {"dense_first", int64_t{1}}},
        neurons{{"select", select}, {"rank", std::string("magnitude")}};
    put<double>(rows, "value", {0.5, 0, -1e9});
    for (Attributes* attrs : {&inputs, &neurons}) {
      if (select == "topk") put<int64_t>(*attrs, "k", {2, 5, 100});
      if (select == "threshold") put<double>(*attrs, "threshold", {1.0, 0.3, -1});
      if (select == "statistical") put<double>(*attrs, "keep", {0.2, 0.6, 1.0});
    }
    net.tensor("w", {12, 12}, net.normal(144, 0.3));
    net.tensor("up", {20, 12}, net.normal(240, 0.3));
    net.tensor("down", {20, 12}, net.normal(240, 0.3));
    const Value score = net.node("slice", "score", {x}, {{"size", int64_t{1}}});
    const Value keep = net.node("threshold", "keep", {score}, rows);
    Value y = net.builder().node("sparse_input_linear", "linear", {x}, inputs, {{"weight", "w"}});
    const Value packed = net.node("compact_rows", "pack", {y, keep});
    const Value h = net.builder().node("sparse_ffn", "ffn", {packed}, neurons,
                                       {{"up", "up"}, {"down", "down"}});
    return net.finish(net.node("scatter_rows", "back", {y, h, keep}));
  }
};

TEST(Sizes, ThresholdsAndSelectorsMayHaveANumberForEach) {
  const auto input = NetworkBuilder(5).normal(static_cast<size_t>(4 * 6 * 12), 1.0);
  for (const char* select : {"topk", "threshold", "statistical"}) {
    const Model all = Selected().make(select);
    const Network network(all.bundle);
    const bundle::GraphSizes table =
        bundle::graph_sizes(all.bundle.graph(), all.bundle.info(), "test");
    ASSERT_EQ(table.count, 3);
    for (const int threads : {1, 2}) {
      Session session(network, {.batch = 4, .threads = threads});
      ASSERT_EQ(session.sizes(), 3);
      int64_t last = 0;
      for (const int64_t size : {0, 1, 2}) {
        Selected alone;
        alone.only = static_cast<int>(size);
        const auto expected = reference_run(alone.make(select).bundle, input, 4);
        std::vector<float> found(expected.size());
        Meter meter;
        session.run(input, found, {.meter = &meter, .size = size});
        for (size_t i = 0; i < found.size(); ++i)
          ASSERT_NEAR(found[i], expected[i], 1e-4 * (1 + std::abs(expected[i])))
              << select << " " << size;
        EXPECT_LE(meter.macs(), 4 * table.macs[static_cast<size_t>(size)]) << select << size;
        EXPECT_GT(meter.macs(), last) << select << size;
        last = meter.macs();
      }
      EXPECT_EQ(last, 4 * network.cost().macs);
      std::vector<float> whole(input.size()), chosen(input.size());
      session.run(input, whole);
      session.run(input, chosen, {.size = 2});
      EXPECT_EQ(whole, chosen);
    }
  }
  // With top-k a size's bound is certain, so a budget can choose by it.
  const Model all = Selected().make("topk");
  const auto macs = bundle::graph_sizes(all.bundle.graph(), all.bundle.info(), "test").macs;
  EXPECT_LT(macs[0], macs[1]);
  Session session(Network(all.bundle), {.batch = 4, .threads = 1});
  Budget budget;
  budget.macs_per_sample = macs[1];
  std::vector<float> a(input.size()), b(input.size());
  session.run(input, a, {.budget = &budget});
  session.run(input, b, {.size = 1});
  EXPECT_EQ(a, b);
}

/// Size 0 gives its input, size 1 what attention with a cache makes of it.
Model skips_attention() {
  NetworkBuilder net(9);
  const Value x = net.input({4, 8});
  const Value y = net.builder().node("attention", "attn", {x, x, x},
                                     {{"heads", int64_t{2}}, {"cache", int64_t{16}}});
  return net.finish(net.builder().node("size_switch", "out", {y, x}, {{"choice", Ints{1, 0}}}));
}

TEST(Sizes, ASequenceDoesNotReadACacheThatASmallerSizeLeftOut) {
  const Model model = skips_attention();
  Session session(Network(model.bundle), {.batch = 2, .threads = 1, .sequences = true});
  const auto input = NetworkBuilder(3).normal(2 * 8, 1.0);
  std::vector<float> output(input.size());
  const auto run = [&](std::vector<int64_t> tokens, int64_t size) {
    session.run_tokens(input, output, tokens, {.size = size});
  };
  run({1, 1}, 1);
  run({1, 0}, 0);
  run({0, 1}, 1);  // the other sequence has all its rows
  EXPECT_ERROR(run({1, 0}, 1), Code::state, "size 1 runs 'attn', which another size left out");
  run({1, 0}, 0);  // the smaller one goes on
  session.reset(0);
  run({1, 0}, 1);
  EXPECT_EQ(
      std::vector<float>(output.begin(), output.begin() + 8),
      std::vector<float>(input.begin(), input.begin() + 8));  // alone, attention gives the row
  run({1, 1}, 1);
}

TEST(Sizes, ASequenceThatGoesBackIsWholeAgain) {
  const Model model = skips_attention();
  const Network network(model.bundle);
  const auto input = NetworkBuilder(3).normal(8 * 8, 1.0);
  const auto rows = [&](Session& session, size_t first, int64_t count, int64_t size) {
    std::vector<float> output(static_cast<size_t>(count) * 8);
    session.run_tokens(std::span(input).subspan(8 * first, output.size()), output, {&count, 1},
                       {.size = size});
    return output;
  };
  Session plain(network, {.batch = 1, .threads = 1, .sequences = true}),
      session(network, {.batch = 1, .threads = 1, .sequences = true});
  rows(plain, 0, 3, 1);
  const auto expected = rows(plain, 3, 2, 1);
  rows(session, 0, 3, 1);
  rows(session, 5, 2, 0);
  EXPECT_ERROR(rows(session, 3, 2, 1), Code::state, "rewind() the sequence");
  session.rewind(0, 4);  // not far enough
  EXPECT_ERROR(rows(session, 3, 2, 1), Code::state, "size 1 runs 'attn'");
  session.rewind(0, 3);
  EXPECT_EQ(rows(session, 3, 2, 1), expected);
  // And what lies behind the place it went back to is forgotten.
  session.rewind(0, 2);
  rows(session, 5, 2, 0);
  session.rewind(0, 3);
  EXPECT_ERROR(rows(session, 3, 2, 1), Code::state, "size 1 runs 'attn'");
}

TEST(Sizes, RefuseASwitchOverWhatCountsRows) {
  NetworkBuilder net(9);
  const Value x = net.input({4, 8});
  const Value keep = net.node("slice", "keep", {x}, {{"size", int64_t{1}}});
  const Value few = net.linear("few", net.node("compact_rows", "compact", {x, keep}), 8);
  const Value y =
      net.node("scatter_rows", "scatter", {x, few, keep}, {{"mode", std::string("add")}});
  const Model model =
      net.finish(net.builder().node("size_switch", "out", {y, x}, {{"choice", Ints{1, 0}}}));
  EXPECT_ERROR(Session(Network(model.bundle), {.batch = 1}), Code::unsupported,
               "compact (compact_rows): some sizes");
}

}  // namespace sizes_test
}  // namespace sluice::engine
