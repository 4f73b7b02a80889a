#include "sluice/bundle/rows.h"

#include <gtest/gtest.h>

#include <limits>

#include "sluice/base/test_error.h"
#include "sluice/bundle/bundle.h"

namespace sluice::bundle {
namespace rows_test {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

class RowGraph : public ::testing::Test {
 protected:
  RowGraph() {
    b.tensor("w", {6, 6}, std::vector<float>(36, 0.5f));
    b.tensor("keep.w", {1, 6}, std::vector<float>(6, 0.5f));
    b.tensor("s", {4}, std::vector<float>(4, 2.0f));
    x = b.input("x", {4, 6});
    keep = b.node("linear", "keep", {x}, {}, {{"weight", "keep.w"}});
    other = b.node("linear", "other", {x}, {}, {{"weight", "keep.w"}});
    y = b.node("compact_rows", "compact", {x, keep});
  }
  Builder b;
  Value x, keep, other, y;
};

TEST_F(RowGraph, RowWiseOperatorsMayStandBetweenCompactAndScatter) {
  Value z = b.node("linear", "fc", {y}, {}, {{"weight", "w"}});
  z = b.node("activation", "relu", {b.node("layer_norm", "norm", {z})},
             {{"kind", std::string("relu")}});
  z = b.node("add", "add", {z, y});
  z = b.node("scatter_rows", "scatter", {x, z, keep});
  b.output(b.node("add", "residual", {x, z}));
  const Bundle bundle = Bundle::parse(b.bytes(), "model", {});
  const RowSets& rows = *bundle.info().rows;
  EXPECT_EQ(rows.sets.at(keep.name).per_sample, 4);
  EXPECT_EQ(rows.of.at(y.name), keep.name);
  EXPECT_EQ(rows.of.count(z.name), 0u);
}

TEST_F(RowGraph, RowsAreCompactedAgainAndPutBackOneByOne) {
  const Value keep2 = b.node("linear", "keep2", {y}, {}, {{"weight", "keep.w"}});
  const Value z = b.node("compact_rows", "compact2", {y, keep2});
  expect_error(Code::shape, "expected those that compact_rows kept by '" + keep.name + "'", [&] {
    b.node("scatter_rows", "wrong", {x, z, keep});
  });
  const Value back = b.node("scatter_rows", "scatter2", {y, z, keep2});
  b.output(b.node("scatter_rows", "scatter", {x, back, keep}));
  EXPECT_NO_THROW(Bundle::parse(b.bytes(), "model", {}));
}

TEST_F(RowGraph, RefusesOperatorsThatNeedEveryRow) {
  expect_error(Code::shape, "has the rows kept by", [&] { b.node("flatten", "flat", {y}); });
  expect_error(Code::shape, "needs every row in its place", [&] {
    b.node("scale", "scale", {y}, {}, {{"scale", "s"}});
  });
  expect_error(Code::shape, "needs every row", [&] { b.node("positions", "positions", {y}); });
  expect_error(Code::shape, "needs every row", [&] { b.node("rope", "rope", {y}); });
}

TEST_F(RowGraph, RefusesToMixRowsThatAreNotTogether) {
  expect_error(Code::shape, "has all rows; compact both with the same keep", [&] {
    b.node("add", "add", {y, x});
  });
  const Value z = b.node("compact_rows", "compact2", {x, other});
  expect_error(Code::shape, "compact both with the same keep", [&] {
    b.node("mul", "mul", {y, z});
  });
  expect_error(Code::shape, "compact both with the same keep", [&] {
    b.node("compact_rows", "again", {y, other});
  });
  expect_error(Code::shape, "expected those that compact_rows kept", [&] {
    b.node("scatter_rows", "scatter", {x, z, keep});
  });
  expect_error(Code::shape, "expected those that compact_rows kept", [&] {
    b.node("scatter_rows", "scatter", {x, x, keep});
  });
}

TEST_F(RowGraph, QueriesMayBeSomeOfTheKeysRows) {
  const Attributes heads = {{"heads", int64_t{1}}};
  const Value out = b.node("attention", "some", {y, x, x, keep}, heads);
  EXPECT_NO_THROW(b.node("scatter_rows", "join", {x, out, keep}));
  expect_error(Code::shape, "compact both with the same keep", [&] {
    b.node("attention", "no", {y, x, x}, heads);
  });
  expect_error(Code::shape, "expected those that compact_rows kept by", [&] {
    b.node("attention", "no", {x, x, x, keep}, heads);
  });
  expect_error(Code::shape, "compact both with the same keep", [&] {
    b.node("attention", "no", {y, x, y, keep}, heads);
  });
  EXPECT_NO_THROW(b.node("attention", "full", {y, x, x, keep},
                         {{"heads", int64_t{1}}, {"mask", std::string("full")}}));
}

TEST_F(RowGraph, RefusesAnOutputWhoseRowsLeft) {
  expect_error(Code::shape, "scatter them into the others", [&] { b.output(y); });
}

TEST_F(RowGraph, WholeSamplesMayLeaveAndTheirRowsAfterThem) {
  const Value pooled = b.node("pool_rows", "pool", {x});
  const Value exit = b.node("linear", "exit", {pooled}, {}, {{"weight", "keep.w"}});
  const Value left = b.node("compact_rows", "samples", {x, exit});
  // Any operator works on the samples that are left.
  b.node("flatten", "flat", {left});
  const Value keep2 = b.node("linear", "keep2", {left}, {}, {{"weight", "keep.w"}});
  const Value rows = b.node("compact_rows", "rows", {left, keep2});
  const Value mean = b.node("pool_rows", "mean", {rows});
  b.output(b.node("scatter_rows", "back", {pooled, mean, exit}));
  EXPECT_NO_THROW(Bundle::parse(b.bytes(), "model", {}));
  const Value sample_keep = b.node("pool_rows", "sample_keep", {keep2});
  expect_error(Code::shape, "compact both with the same keep", [&] {
    b.node("compact_rows", "no", {rows, sample_keep});
  });
  const Value from_rows = b.node("linear", "k", {mean}, {}, {{"weight", "keep.w"}});
  EXPECT_NO_THROW(b.node("compact_rows", "more", {left, from_rows}));
}

struct Mistake {
  const char* op;
  std::vector<Shape> inputs;
  Attributes attrs;
  std::map<std::string, Shape> tensors;
  Code code;
  const char* words;
};

TEST(RowOperators, RefuseHostileSpecs) {
  const std::string odd = "odd";
  const auto n = [](int64_t v) { return v; };
  const std::vector<Mistake> mistakes = {
      {"compact_rows", {{4, 6}, {5}}, {}, {}, Code::shape, "expected 4 or 4 x 1"},
      {"compact_rows", {{4, 6}, {4, 2}}, {}, {}, Code::shape, "expected 4 or 4 x 1"},
      {"compact_rows", {{4, 6}, {4, 1, 1}}, {}, {}, Code::shape, "expected 4 or 4 x 1"},
      {"scatter_rows", {{4, 6}, {4, 5}, {4}}, {}, {}, Code::shape, "same shape"},
      {"scatter_rows", {{4, 6}, {4, 6}, {4}}, {{"mode", odd}}, {}, Code::shape, "'mode'"},
      {"pool_rows", {{4}}, {}, {}, Code::shape, "[T,D]"},
      {"pool_rows", {{4, 6}}, {{"kind", odd}}, {}, Code::shape, "'kind'"},
      {"rms_norm", {{4, 6}}, {}, {{"weight", {4}}}, Code::shape, "expected 6"},
      {"rms_norm", {{4, 6}}, {{"eps", -1.0}}, {}, Code::shape, "'eps'"},
      {"embedding", {{4, 1}}, {}, {{"weight", {9, 5}}}, Code::shape, "[T]"},
      {"embedding", {{4}}, {}, {{"weight", {9}}}, Code::shape, "[V,D]"},
      {"embedding", {{4}}, {}, {{"weight", {0, 5}}}, Code::shape, "[V,D]"},
      {"slice", {{4, 6}}, {{"start", n(6)}}, {}, Code::shape, "'start'"},
      {"slice", {{4, 6}}, {{"start", n(2)}, {"size", n(5)}}, {}, Code::shape, "'size'"},
      {"slice", {{4, 6}}, {{"start", n(-1)}}, {}, Code::shape, "'start'"},
      {"slice", {{4, 6}}, {{"start", n(1)}, {"size", kHuge}}, {}, Code::shape, "'size'"},
      {"rope", {{4, 6}}, {{"heads", n(4)}}, {}, Code::shape, "do not divide into 4 heads"},
      {"rope", {{4, 6}}, {{"heads", n(0)}}, {}, Code::shape, "'heads'"},
      {"rope", {{4, 6}}, {{"heads", n(2)}}, {}, Code::shape, "even number"},
      {"rope", {{4, 6}}, {{"dims", n(8)}}, {}, Code::shape, "'dims'"},
      {"rope", {{4, 6}}, {{"base", 0.0}}, {}, Code::shape, "'base'"},
      {"rope", {{4, 6}, {5}}, {}, {}, Code::shape, "positions: expected 4"},
      {"attention", {{4, 6}, {4, 6}, {4, 6}}, {}, {}, Code::shape, "'heads'"},
      {"attention",
       {{4, 6}, {4, 6}, {4, 6}},
       {{"heads", n(3)}, {"kv_heads", n(2)}},
       {},
       Code::shape,
       "does not divide"},
      {"attention", {{4, 6}, {4, 6}, {5, 6}}, {{"heads", n(3)}}, {}, Code::shape, "v: expected"},
      {"attention", {{4, 6}, {5, 6}, {5, 6}}, {{"heads", n(3)}}, {}, Code::shape, "k: expected"},
      {"attention", {{4, 6}, {4, 4}, {4, 6}}, {{"heads", n(3)}}, {}, Code::shape, "k: expected 6"},
      {"attention",
       {{4, 6}, {4, 6}, {4, 6}},
       {{"heads", n(3)}, {"cache", n(3)}},
       {},
       Code::shape,
       "at least the 4 rows"},
      {"attention",
       {{4, 6}, {4, 6}, {4, 6}},
       {{"heads", n(3)}, {"cache", kHuge}},
       {},
       Code::shape,
       "'cache'"},
      {"attention",
       {{4, 1 << 20}, {4, 1 << 20}, {4, 1 << 20}},
       {{"heads", n(1)}, {"cache", n(1 << 20)}},
       {},
       Code::limit,
       "'cache'"},
      {"attention",
       {{4, 6}, {4, 6}, {4, 6}},
       {{"heads", n(3)}, {"mask", odd}},
       {},
       Code::shape,
       "'mask'"},
      {"attention",
       {{4, 6}, {4, 6}, {4, 6}},
       {{"heads", n(3)}, {"mask", std::string("full")}, {"cache", n(8)}},
       {},
       Code::shape,
       "need mask causal"},
      {"attention",
       {{4, 6}, {4, 6}, {4, 6}},
       {{"heads", n(3)}, {"gated", true}},
       {},
       Code::shape,
       "'gated'"},
      {"attention",
       {{4, 6}, {4, 6}, {4, 6}, {4, 1}},
       {{"heads", n(3)}, {"gated", true}},
       {},
       Code::shape,
       "open heads: expected 4 x 3"},
      {"attention",
       {{4, 6}, {5, 6}, {5, 6}, {4, 3}},
       {{"heads", n(3)}, {"mask", std::string("full")}, {"gated", true}},
       {},
       Code::shape,
       "'gated'"},
      {"attention",
       {{4, 6}, {5, 6}, {5, 6}, {4, 1}},
       {{"heads", n(3)}, {"mask", std::string("full")}},
       {},
       Code::shape,
       "queries are some of the 5 rows"},
      {"attention",
       {{4, 6}, {4, 6}, {4, 6}},
       {{"heads", n(3)}, {"scale", -1.0}},
       {},
       Code::shape,
       "'scale'"},
      {"linear_attention",
       {{4, 6}, {4, 6}, {4, 6}, {4, 2}},
       {{"heads", n(3)}},
       {},
       Code::shape,
       "decay"},
      {"linear_attention",
       {{4, 6}, {4, 3}, {4, 6}},
       {{"heads", n(3)}},
       {},
       Code::shape,
       "shape of q"},
      {"linear_attention",
       {{4, 6}, {4, 6}, {4, 6}},
       {{"heads", n(3)}, {"carry", n(1)}},
       {},
       Code::shape,
       "expected a boolean"},
      {"linear_attention",
       {{1, 1 << 20}, {1, 1 << 20}, {1, 1 << 20}},
       {{"heads", n(1)}},
       {},
       Code::limit,
       "state"},
  };
  for (const Mistake& m : mistakes) {
    Node node{m.op, "path", {}, "out", m.attrs, {}};
    std::map<std::string, Shape> shapes;
    std::map<std::string, TensorSpec> tensors;
    for (const Shape& shape : m.inputs) {
      node.inputs.push_back("x" + std::to_string(shapes.size()));
      shapes[node.inputs.back()] = shape;
    }
    for (const auto& [role, shape] : m.tensors) {
      node.tensors[role] = "tensor." + role;
      tensors["tensor." + role] = {"tensor." + role, "f32", DType::f32, shape, {}};
    }
    SCOPED_TRACE(std::string(m.op) + " " + m.words);
    expect_error(m.code, m.words, [&] { check_node(node, shapes, tensors, "test"); });
  }
}

}  // namespace rows_test
}  // namespace sluice::bundle
