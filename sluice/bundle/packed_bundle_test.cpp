// Packed tensors inside bundles: written, checked, counted, shown.
#include <gtest/gtest.h>

#include "sluice/base/json.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/bundle.h"
#include "sluice/bundle/conv2d.h"
#include "sluice/bundle/describe.h"
#include "sluice/bundle/testing.h"

namespace sluice::bundle {
namespace packed_bundle_test {

using testing::ramp;

constexpr int64_t kIn = 70, kOut = 6;

Builder packed_linear(Format format) {
  Builder b;
  const Value x = b.input("x", {kIn});
  b.tensor("fc.weight", format, {kOut, kIn}, pack(format, ramp(kOut * kIn, -1), kOut, kIn));
  b.tensor("fc.bias", {kOut}, ramp(kOut));
  b.output(b.node("linear", "fc", {x}, {}, {{"weight", "fc.weight"}, {"bias", "fc.bias"}}));
  return b;
}

Graph graph_with(const std::string& format, DType dtype, Shape shape) {
  Graph graph = packed_linear(Format::f32).graph();
  TensorSpec& spec = graph.tensors.at("fc.weight");
  spec.format = format;
  spec.dtype = dtype;
  spec.shape = std::move(shape);
  return graph;
}

TEST(PackedBundle, RoundTripsEveryFormat) {
  for (Format format : all_formats()) {
    SCOPED_TRACE(format_name(format));
    const auto bytes = packed_linear(format).bytes();
    const Bundle bundle = Bundle::parse(bytes, "memory", {.verify_checksums = true, .limits = {}});
    const TensorSpec& spec = bundle.graph().tensors.at("fc.weight");
    EXPECT_EQ(spec.shape, (Shape{kOut, kIn}));
    EXPECT_EQ(spec.format, format_name(format));
    const TensorView& stored = bundle.tensor("fc.weight");
    EXPECT_EQ(stored.shape, stored_shape(format, {kOut, kIn}));
    const PackedMatrix matrix = view_packed(format, kOut, kIn, stored.bytes, "fc.weight");
    std::vector<float> values(kOut * kIn);
    unpack(matrix, values);
    EXPECT_NEAR(values.back(), ramp(kOut * kIn, -1).back(), 30);
    EXPECT_EQ(bundle.info().total.params, kOut * kIn + kOut);
    EXPECT_EQ(bundle.info().total.macs, kOut * kIn);
    EXPECT_EQ(bundle.info().total.weight_bytes, stored_bytes(format, {kOut, kIn}) + 4 * kOut);
  }
}

TEST(PackedBundle, RefusesSpecsThatLie) {
  const auto check = [](Code code, const char* words, const Graph& graph) {
    expect_error(code, words, [&] { check_graph(graph, "file"); });
  };
  check(Code::unsupported, "'fc.weight' has format 'i3'; this version reads f32, bf16, i8",
        graph_with("i3", DType::u8, {kOut, kIn}));
  check(Code::unsupported, "format ''", graph_with("", DType::f32, {kOut, kIn}));
  check(Code::dtype, "of format ternary: expected dtype U8, found F32",
        graph_with("ternary", DType::f32, {kOut, kIn}));
  check(Code::dtype, "of format f32: expected dtype F32, found U8",
        graph_with("f32", DType::u8, {kOut, kIn}));
  check(Code::dtype, "expected dtype U32", graph_with("mixed", DType::u8, {kOut, kIn}));
  check(Code::shape, "'fc.weight': format i8", graph_with("i8", DType::u8, {kOut}));
  check(Code::shape, "sizes >= 1", graph_with("i8", DType::u8, {kOut, 0}));
  check(Code::limit, "fc.weight",
        graph_with("i8", DType::u8, {int64_t{1} << 62, int64_t{1} << 40}));
  check(Code::limit, "fc.weight", graph_with("binary", DType::u8, {1, int64_t{1} << 40}));
  check(Code::shape, "expected [O,70]", graph_with("binary", DType::u8, {kOut, kIn + 1}));
  check(Code::shape, "expected [O,70]", graph_with("binary", DType::u8, {2, kOut, kIn}));
}

/// conv2d over [6, 9, 8], weight as given.
Graph convolution(const std::string& format, DType dtype, Shape shape, Attributes attrs) {
  Graph graph;
  graph.inputs = {{"x", {6, 9, 8}}};
  graph.tensors["w"] = {"w", format, dtype, std::move(shape), std::nullopt};
  graph.nodes.push_back({"conv2d", "conv", {"x"}, "y", std::move(attrs), {{"weight", "w"}}});
  graph.outputs = {"y"};
  return graph;
}

TEST(PackedBundle, ConvolutionsInI8HaveTheirKernelAsAnAttribute) {
  const int64_t three = 3;
  const auto shape_of = [](const Graph& graph) {
    return check_graph(graph, "file").shapes.at("y");
  };
  EXPECT_EQ(shape_of(convolution("i8", DType::u8, {4, 54}, {{"kernel", three}})), (Shape{4, 7, 6}));
  EXPECT_EQ(shape_of(convolution("i8", DType::u8, {4, 54},
                                 {{"kernel", three}, {"activations", std::string("i8")}})),
            (Shape{4, 7, 6}));
  const Graph depthwise = convolution(
      "i8", DType::u8, {6, 15}, {{"kernel", std::vector<int64_t>{5, 3}}, {"groups", int64_t{6}}});
  EXPECT_EQ(shape_of(depthwise), (Shape{6, 5, 6}));
  const GraphInfo info = check_graph(depthwise, "file");
  EXPECT_EQ(info.total.macs, 6 * 15 * 5 * 6);
  EXPECT_EQ(info.total.weight_bytes, 6 * 15 + 6 * 4);
  EXPECT_EQ(conv2d_weight_shape(depthwise.nodes[0], depthwise.tensors.at("w")),
            (Shape{6, 1, 5, 3}));
}

TEST(PackedBundle, RefusesConvolutionsThatLie) {
  const int64_t three = 3;
  const struct {
    const char* format;
    DType dtype;
    Shape shape;
    Attributes attrs;
    Code code;
    const char* words;
  } cases[] = {
      {"i8", DType::u8, {4, 54}, {}, Code::shape, "'kernel': expected 1 to"},
      {"i8", DType::u8, {4, 54}, {{"kernel", int64_t{0}}}, Code::shape, "'kernel': expected 1 to"},
      {"i8", DType::u8, {4, 54}, {{"kernel", int64_t{1} << 40}}, Code::shape, "'kernel'"},
      {"i8", DType::u8, {4, 54}, {{"kernel", int64_t{5}}}, Code::shape, "[O,C/groups 5 5]"},
      {"i8", DType::u8, {4, 45}, {{"kernel", three}}, Code::shape, "expected 6 input channels"},
      {"i8",
       DType::u8,
       {4, 54},
       {{"kernel", three}, {"groups", int64_t{2}}},
       Code::shape,
       "expected 3 input channels per group"},
      {"i8", DType::u8, {4, 6, 3, 3}, {{"kernel", three}}, Code::shape, "[O,C/groups 3 3]"},
      {"i8", DType::u8, {4, 54}, {{"kernel", std::string("3")}}, Code::shape, "'kernel'"},
      {"i8", DType::u8, {0, 54}, {{"kernel", three}}, Code::shape, "sizes >= 1"},
      {"i8", DType::u8, {int64_t{1} << 58, 54}, {{"kernel", three}}, Code::limit, "'w'"},
      {"i8-32",
       DType::u8,
       {4, 54},
       {{"kernel", three}},
       Code::unsupported,
       "has format 'i8-32'; a convolution's is f32, or i8"},
      {"bf16", DType::bf16, {4, 6, 3, 3}, {}, Code::unsupported, "has format 'bf16'"},
      {"f32",
       DType::f32,
       {4, 6, 3, 3},
       {{"kernel", three}},
       Code::shape,
       "'kernel': weight 'w' is f32"},
      {"f32",
       DType::f32,
       {4, 6, 3, 3},
       {{"activations", std::string("i8")}},
       Code::unsupported,
       "i8 beside a weight in i8"},
      {"i8",
       DType::u8,
       {4, 54},
       {{"kernel", three}, {"activations", std::string("bf16")}},
       Code::unsupported,
       "found 'bf16'"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.words);
    expect_error(c.code, c.words,
                 [&] { check_graph(convolution(c.format, c.dtype, c.shape, c.attrs), "file"); });
  }
}

TEST(PackedBundle, RefusesPackedTensorsWhereTheOperatorWantsPlainOnes) {
  Builder b;
  const Value x = b.input("x", {kIn});
  const auto bytes = pack(Format::i8, ramp(kIn), 1, kIn);
  b.tensor("w", Format::i8, {1, kIn}, bytes);
  b.tensor("plain", {1, kIn}, ramp(kIn));
  expect_error(Code::unsupported, "bias 'w' has format 'i8'; this operator takes f32 there", [&] {
    b.node("linear", "fc", {x}, {}, {{"weight", "plain"}, {"bias", "w"}});
  });
  expect_error(Code::unsupported, "scale 'w' has format 'i8'", [&] {
    b.node("scale", "s", {x}, {}, {{"scale", "w"}});
  });
  expect_error(Code::unsupported, "attribute 'activations': expected f32, bf16 or i8", [&] {
    b.node("linear", "fc", {x}, {{"activations", std::string("i4")}}, {{"weight", "w"}});
  });
}

TEST(PackedBundle, RefusesFilesWhoseBytesHaveAnotherSize) {
  const Graph graph = packed_linear(Format::i4_group).graph();
  std::vector<std::byte> few(10);
  const TensorView weight{"fc.weight", DType::u8, {10}, few};
  const std::vector<float> bias(kOut);
  const TensorView views[] = {{"fc.bias", DType::f32, {kOut}, std::as_bytes(std::span(bias))},
                              weight};
  const auto bytes =
      safetensors_bytes(views, {{"sluice.version", "1"}, {"sluice.graph", graph_to_json(graph)}});
  expect_error(Code::shape,
               "the graph says 6 x 70 in format i4-32, stored as 324, the file holds 10",
               [&] { Bundle::parse(bytes, "memory", {}); });
}

TEST(PackedBundle, BuilderRefusesWrongBytes) {
  Builder b;
  const auto bytes = pack(Format::ternary, ramp(2 * kIn), 2, kIn);
  expect_error(Code::shape, "tensor 'w': 3 x 70 in format ternary takes", [&] {
    b.tensor("w", Format::ternary, {3, kIn}, bytes);
  });
  auto bad = bytes;
  bad[0] = std::byte{0xFF};
  expect_error(Code::format, "tensor 'w': row 0: ternary code 3", [&] {
    b.tensor("w", Format::ternary, {2, kIn}, bad);
  });
  expect_error(Code::shape, "expected [.., rows, columns]",
               [&] { b.tensor("w", Format::ternary, {2 * kIn}, bytes); });
  b.tensor("w", Format::ternary, {2, kIn}, bytes);
  b.tensor("w", Format::ternary, {2, kIn}, bytes);  // the same once more
  expect_error(Code::usage, "added before", [&] {
    b.tensor("w", Format::ternary, {1, 2, kIn}, bytes);
  });
}

TEST(PackedBundle, StacksOfMatricesAreCheckedOneByOne) {
  Builder b;
  const auto one = pack(Format::i8, ramp(2 * kIn), 2, kIn);
  std::vector<std::byte> stack(one);
  stack.insert(stack.end(), one.begin(), one.end());
  b.tensor("experts", Format::i8, {2, 2, kIn}, stack);
  EXPECT_EQ(stored_bytes(b.graph().tensors.at("experts")), static_cast<int64_t>(stack.size()));
  stack[one.size()] = std::byte{0x80};
  expect_error(Code::format, "code -128", [&] {
    b.tensor("other", Format::i8, {2, 2, kIn}, stack);
  });
}

TEST(PackedBundle, DescriptionShowsFormatShapeAndBytes) {
  const auto bytes = packed_linear(Format::ternary).bytes();
  const Bundle bundle = Bundle::parse(bytes, "memory", {});
  const std::string text = describe_text(bundle);
  EXPECT_NE(text.find("ternary"), text.npos) << text;
  const Json node = describe_json(bundle)["tree"][0];
  const int64_t stored = stored_bytes(Format::ternary, {kOut, kIn});
  EXPECT_EQ(node["params"], kOut * kIn + kOut);
  EXPECT_EQ(node["bytes"], stored + 4 * kOut);
  const Json weight = node["tensors"][1];
  EXPECT_EQ(weight["role"], "weight");
  EXPECT_EQ(weight["format"], "ternary");
  EXPECT_EQ(weight["shape"], (Json{kOut, kIn}));
  EXPECT_EQ(weight["bytes"], stored);
  EXPECT_GT(node["zeros"], 10);  // of weights, not of bytes
  EXPECT_LT(node["zeros"], kOut * kIn);
}

}  // namespace packed_bundle_test
}  // namespace sluice::bundle
