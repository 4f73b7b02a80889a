#include "sluice/bundle/graph.h"

#include <gtest/gtest.h>

#include <limits>

#include "sluice/base/test_error.h"
#include "sluice/bundle/testing.h"

namespace sluice::bundle {
namespace graph_test {

using testing::small_network;

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, text.npos) << from;
  return at == text.npos ? text : text.replace(at, from.size(), to);
}

TEST(CheckGraph, GivesEveryShapeAndTheCost) {
  const Graph graph = small_network().graph();
  const GraphInfo info = check_graph(graph, "test");
  EXPECT_EQ(info.shapes.at("image"), (Shape{2, 4, 4}));
  EXPECT_EQ(info.shapes.at(graph.outputs[0]), Shape{3});
  EXPECT_EQ(info.shapes.size(), 7u);
  ASSERT_EQ(info.node_costs.size(), 6u);
  EXPECT_EQ(info.node_costs[0].macs, 36 * 16);
  EXPECT_EQ(info.node_costs[0].params, 38);
  EXPECT_EQ(info.total.macs, 36 * 16 + 6);
  EXPECT_EQ(info.total.params, 38 + 4 + 9);
  EXPECT_EQ(info.total.weight_bytes, 4 * (38 + 8 + 9));
}

TEST(CheckGraph, SharedTensorsCountOnceInTheTotal) {
  Builder b;
  b.tensor("w", {4, 4}, testing::ramp(16));
  Value x = b.input("x", {4});
  x = b.node("linear", "a", {x}, {}, {{"weight", "w"}});
  x = b.node("linear", "b", {x}, {}, {{"weight", "w"}});
  b.output(x);
  const GraphInfo info = check_graph(b.graph(), "test");
  EXPECT_EQ(info.node_costs[0].params, 16);
  EXPECT_EQ(info.node_costs[1].params, 16);
  EXPECT_EQ(info.total.params, 16);
  EXPECT_EQ(info.total.weight_bytes, 64);
  EXPECT_EQ(info.total.macs, 32);
}

TEST(CheckGraph, RefusesWhatAHostileFileCouldClaim) {
  struct Case {
    const char* name;
    void (*change)(Graph&);
    Code code;
    const char* words;
  };
  const std::vector<Case> cases = {
      {"no input", [](Graph& g) { g.inputs.clear(); }, Code::format, "no input"},
      {"no output", [](Graph& g) { g.outputs.clear(); }, Code::format, "no output"},
      {"input twice", [](Graph& g) { g.inputs.push_back(g.inputs[0]); }, Code::format,
       "two inputs are called 'image'"},
      {"input without shape", [](Graph& g) { g.inputs[0].shape = {}; }, Code::shape,
       "expected 1 to 8"},
      {"input of rank 9", [](Graph& g) { g.inputs[0].shape = Shape(9, 1); }, Code::shape,
       "9 dimensions"},
      {"input with zero", [](Graph& g) { g.inputs[0].shape[1] = 0; }, Code::shape,
       "dimensions must be >= 1"},
      {"negative input", [](Graph& g) { g.inputs[0].shape[1] = -4; }, Code::shape,
       "dimensions must be >= 1"},
      {"huge input",
       [](Graph& g) {
         g.inputs[0].shape = {1LL << 40, 1LL << 40};
       },
       Code::limit, "more than 2147483648 elements"},
      {"nameless input", [](Graph& g) { g.inputs[0].name = ""; }, Code::format, "empty"},
      {"input with a line break", [](Graph& g) { g.inputs[0].name = "a\nb"; }, Code::format,
       "control characters"},
      {"unknown output", [](Graph& g) { g.outputs = {"nope"}; }, Code::missing,
       "output 'nope' is made by no node"},
      {"input as output", [](Graph& g) { g.outputs = {"image"}; }, Code::missing,
       "output 'image' is made by no node"},
      {"output twice", [](Graph& g) { g.outputs.push_back(g.outputs[0]); }, Code::format,
       "listed twice"},
      {"value from later", [](Graph& g) { std::swap(g.nodes[0], g.nodes[1]); }, Code::missing,
       "node 'block.norm' (batch_norm): input 'v0' is made by no earlier node"},
      {"value of itself", [](Graph& g) { g.nodes[0].inputs = {g.nodes[0].output}; }, Code::missing,
       "made by no earlier node"},
      {"value made twice", [](Graph& g) { g.nodes[3].output = "v0"; }, Code::format,
       "output 'v0' was made before"},
      {"value named like the input", [](Graph& g) { g.nodes[0].output = "image"; }, Code::format,
       "was made before"},
      {"path twice", [](Graph& g) { g.nodes[1].path = g.nodes[0].path; }, Code::format,
       "two nodes have the path 'block.conv'"},
      {"empty path", [](Graph& g) { g.nodes[0].path = ""; }, Code::format, "path is empty"},
      {"empty segment", [](Graph& g) { g.nodes[0].path = "a..b"; }, Code::format, "empty segment"},
      {"endless path", [](Graph& g) { g.nodes[0].path = std::string(5000, 'a'); }, Code::limit,
       "5000 bytes"},
      {"escape in path", [](Graph& g) { g.nodes[0].path = "a\x1b[2J"; }, Code::format, "a\\x1b[2J"},
      {"unlisted tensor", [](Graph& g) { g.tensors.erase("block.conv.bias"); }, Code::missing,
       "bias is tensor 'block.conv.bias', which the graph does not list"},
      {"misshapen tensor", [](Graph& g) { g.tensors.at("block.conv.bias").shape = {7}; },
       Code::shape, "bias 'block.conv.bias': expected 2, found 7"},
      {"negative tensor", [](Graph& g) { g.tensors.at("block.conv.bias").shape = {-2}; },
       Code::shape, "negative dimension"},
      {"overflowing tensor",
       [](Graph& g) {
         g.tensors.at("block.conv.bias").shape = {1LL << 40, 1LL << 40};
       },
       Code::limit, "63 bits"},
      {"unknown format", [](Graph& g) { g.tensors.at("block.conv.weight").format = "i4-group"; },
       Code::unsupported, "tensor 'block.conv.weight' has format 'i4-group'"},
      {"format against dtype",
       [](Graph& g) { g.tensors.at("block.conv.weight").dtype = DType::bf16; }, Code::dtype,
       "expected dtype F32, found BF16"},
      {"misnamed tensor", [](Graph& g) { g.tensors.at("block.conv.weight").name = "other"; },
       Code::format, "is listed as"},
  };
  for (const Case& c : cases) {
    Graph graph = small_network().graph();
    c.change(graph);
    expect_error(
        c.code, c.words, [&] { check_graph(graph, "test"); }, c.name);
  }
}

TEST(CheckGraph, MacsMayNotOverflow) {
  // 2^14 channels, a window of 2^9 x 2^9 and 2^15 x 2^15 places: 2^62 MACs a node.
  Graph graph;
  graph.inputs = {{"x", {1 << 14, 1, 1}}};
  graph.tensors["w"] = {"w", "f32", DType::f32, {1, 1 << 14, 1 << 9, 1 << 9}, {}};
  const Node node{"conv2d", "a", {"x"}, "a", {{"padding", int64_t{16639}}}, {{"weight", "w"}}};
  graph.nodes = {node};
  graph.outputs = {"a"};
  EXPECT_EQ(check_graph(graph, "test").total.macs, int64_t{1} << 62);
  graph.nodes.push_back(node);
  graph.nodes[1].path = graph.nodes[1].output = "b";
  expect_error(Code::limit, "test: MACs", [&] { check_graph(graph, "test"); });
  graph.nodes = {node};
  graph.tensors["w"].shape[0] = 2;
  expect_error(Code::limit, "node 'a' (conv2d): MACs", [&] { check_graph(graph, "test"); });
}

TEST(GraphJson, RoundTripsEveryAttributeType) {
  Graph graph = small_network().graph();
  graph.nodes[0].attrs = {{"b", true},
                          {"d", 0.1},
                          {"i", std::numeric_limits<int64_t>::min()},
                          {"id", std::vector<double>{1.0, 2.5}},
                          {"ii", std::vector<int64_t>{1, -2}},
                          {"none", std::vector<int64_t>{}},
                          {"s", std::string("quote \" and\nline")},
                          {"whole", 2.0}};
  graph.tensors.begin()->second.xxh64 = 0x0123456789abcdefULL;
  const std::string json = graph_to_json(graph);
  const Graph copy = graph_from_json(json, "test");
  EXPECT_EQ(graph_to_json(copy), json);
  EXPECT_EQ(copy.nodes[0].attrs, graph.nodes[0].attrs);
  EXPECT_EQ(copy.nodes[0].tensors, graph.nodes[0].tensors);
  EXPECT_EQ(copy.nodes[2].inputs, graph.nodes[2].inputs);
  EXPECT_EQ(copy.tensors.begin()->second.xxh64, 0x0123456789abcdefULL);
  EXPECT_EQ(copy.outputs, graph.outputs);
}

TEST(GraphJson, NumbersThatJsonLacksAreRefusedOnWriting) {
  Graph graph = small_network().graph();
  graph.nodes[0].attrs = {{"eps", std::numeric_limits<double>::infinity()}};
  expect_error(Code::numeric, "attribute 'eps'", [&] { graph_to_json(graph); });
}

TEST(GraphJson, RefusesEveryMalformation) {
  const std::string good = graph_to_json(small_network().graph());
  struct Case {
    const char *from, *to;
    Code code;
    const char* words;
  };
  const std::vector<Case> cases = {
      {R"("version":1)", R"("version":2)", Code::unsupported, "graph version 2"},
      {R"("version":1)", R"("version":2,"more":[])", Code::unsupported, "graph version 2"},
      {R"("version":1)", R"("version":0)", Code::format, "start at 1"},
      {R"("version":1)", R"("version":"1")", Code::format, "expected an integer"},
      {R"("version":1,)", "", Code::format, "key 'version' is not there"},
      {R"("version":1)", R"("version":1,"extra":1)", Code::format, "unknown key 'extra'"},
      {R"("version":1)", R"("version":1,"version":1)", Code::format, "version"},
      {R"("inputs":[)", R"("input":[)", Code::format, "unknown key 'input'"},
      {R"("shape":[2,4,4])", R"("shape":[2,4.0,4])", Code::format, "expected an integer"},
      {R"("shape":[2,4,4])", R"("shape":[2,-4,4])", Code::format, "negative"},
      {R"("shape":[2,4,4])", R"("shape":[2,99999999999999999999,4])", Code::format,
       "expected an integer"},
      {R"("shape":[2,4,4])", R"("shape":[2,18446744073709551615,4])", Code::format,
       "expected an integer"},
      {R"("shape":[2,4,4])", R"("shape":[1,1,1,1,1,1,1,1,1])", Code::limit, "9 entries; at most 8"},
      {R"("shape":[2,4,4])", R"("shape":4)", Code::format, "expected a list"},
      {R"("name":"image")", R"("name":7)", Code::format, "expected text, found number"},
      {R"("outputs":["v5"])", R"("outputs":"v5")", Code::format, "key 'outputs': expected a list"},
      {R"("outputs":["v5"])", R"("outputs":[5])", Code::format, "expected text"},
      {R"({"op":"conv2d",)", R"({)", Code::format, "node 0: key 'op' is not there"},
      {R"({"op":"conv2d",)", R"({"op":"conv2d","id":1,)", Code::format, "node 0: unknown key 'id'"},
      {R"({"op":"conv2d",)", R"(5,{"op":"conv2d",)", Code::format,
       "node 0: expected an object, found number"},
      {R"("in":["image"])", R"("in":"image")", Code::format,
       "node 0 'block.conv', key 'in': expected a list"},
      {R"("attrs":{"padding":1})", R"("attrs":[])", Code::format,
       "key 'attrs': expected an object"},
      {R"({"padding":1})", R"({"padding":null})", Code::format,
       "attribute 'padding': expected a number"},
      {R"({"padding":1})", R"({"padding":["1"]})", Code::format,
       "attribute 'padding': expected a list of numbers"},
      {R"({"padding":1})", R"({"padding":[[1]]})", Code::format,
       "attribute 'padding': expected a list of numbers"},
      {R"({"padding":1})", R"({"padding":[[[1]]]})", Code::format, "deeper than 6"},
      {R"({"padding":1})", R"({"padding":18446744073709551615})", Code::format,
       "expected an integer of 64 bits"},
      {R"("tensors":{"bias":"block.conv.bias")", R"("tensors":{"bias":1)", Code::format,
       "tensor role 'bias': expected text"},
      {R"("format":"f32","dtype":"F32")", R"("format":1,"dtype":"F32")", Code::format,
       "key 'format'"},
      {R"("dtype":"F32")", R"("dtype":"F33")", Code::format, "unknown element type 'F33'"},
      {R"("format":"f32",)", "", Code::format, "key 'format' is not there"},
      {R"("xxh64":")", R"("xxh64":"0)", Code::format, "16 hexadecimal digits"},
      {R"("xxh64":")", R"("xxh65":")", Code::format, "unknown key 'xxh65'"},
  };
  for (const Case& c : cases)
    expect_error(
        c.code, c.words, [&] { graph_from_json(replaced(good, c.from, c.to), "test"); }, c.to);
  for (const char* text : {"", "[]", "null", "{", "1 2"})
    EXPECT_THROW(graph_from_json(text, "test"), Error) << text;
}

TEST(GraphJson, EveryTruncationIsRefused) {
  const std::string good = graph_to_json(small_network().graph());
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_THROW(graph_from_json(good.substr(0, size), "test"), Error) << size;
}

TEST(Attributes, GettersConvertOnlyIntegersToNumbers) {
  const Attributes attrs = {{"i", int64_t{3}}, {"d", 0.5}, {"s", std::string("x")}};
  EXPECT_EQ(attr_int(attrs, "i", 0), 3);
  EXPECT_EQ(attr_int(attrs, "absent", 7), 7);
  EXPECT_EQ(attr_double(attrs, "i", 0), 3.0);
  EXPECT_EQ(attr_double(attrs, "d", 0), 0.5);
  EXPECT_EQ(attr_string(attrs, "s", ""), "x");
  EXPECT_EQ(attr_ints(attrs, "i", 2, 0), (std::vector<int64_t>{3, 3}));
  EXPECT_EQ(attr_ints(attrs, "absent", 2, 1), (std::vector<int64_t>{1, 1}));
  expect_error(Code::shape, "'d': expected an integer", [&] { attr_int(attrs, "d", 0); });
  expect_error(Code::shape, "'s': expected a number", [&] { attr_double(attrs, "s", 0); });
}

}  // namespace graph_test
}  // namespace sluice::bundle
