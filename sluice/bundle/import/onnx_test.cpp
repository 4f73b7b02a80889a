// What the ONNX reader makes of graphs, and what it refuses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/import/onnx/testing.h"

namespace sluice::bundle {
namespace onnx_test {

using onnx::Attribute;
using onnx::Message;
using onnx::testing::build;
using onnx::testing::bytes_of;
using onnx::testing::Graph;
using onnx::testing::operators;
using ::testing::ElementsAre;

std::vector<float> ones(size_t count, float value = 1) { return std::vector<float>(count, value); }

TEST(Onnx, TakesTheBatchOutOfAConvolutionalNetwork) {
  Graph graph;
  graph.input("x", {-1, 3, 8, 8}).reals("w", {4, 3, 3, 3}, ones(108)).reals("b", {4}, ones(4));
  graph.node("Conv", {"x", "w", "b"}, {"c"}, {{"pads", std::vector<int64_t>{1, 1, 1, 1}}});
  graph.node("Relu", {"c"}, {"r"}).node("GlobalAveragePool", {"r"}, {"p"});
  graph.node("Flatten", {"p"}, {"f"}).reals("fc", {5, 4}, ones(20)).output("y");
  graph.node("Gemm", {"f", "fc"}, {"y"}, {{"transB", int64_t{1}}});
  const auto built = build(graph.model());
  EXPECT_EQ(built.bundle.graph().inputs[0].shape, (Shape{3, 8, 8}));
  EXPECT_EQ(built.result.outputs[0].shape, Shape{5});
  EXPECT_THAT(operators(built.bundle),
              ElementsAre("conv2d", "activation", "global_avg_pool", "linear"));
  EXPECT_TRUE(built.bundle.graph().tensors.count("w"));  // initializers keep their names
}

TEST(Onnx, PacksConvolutionsInI8AndRoundsWherePaying) {
  const auto values = [](size_t count) {
    std::vector<float> result(count);
    for (size_t i = 0; i < count; ++i) result[i] = std::sin(static_cast<float>(i));
    return result;
  };
  Graph graph;
  graph.input("x", {1, 3, 8, 8}).reals("first", {8, 3, 3, 3}, values(216)).output("y");
  graph.node("Conv", {"x", "first"}, {"a"}, {{"strides", std::vector<int64_t>{2, 2}}});
  graph.reals("each", {8, 1, 3, 2}, values(48));
  graph.node("Conv", {"a", "each"}, {"b"}, {{"group", int64_t{8}}});
  graph.reals("wide", {16, 8, 1, 2}, values(256)).reals("bias", {16}, values(16));
  graph.node("Conv", {"b", "wide", "bias"}, {"c"}, {{"pads", std::vector<int64_t>{1, 1, 1, 1}}});
  graph.node("GlobalAveragePool", {"c"}, {"d"}).node("Flatten", {"d"}, {"e"});
  graph.reals("fc", {5, 16}, values(80));
  graph.node("Gemm", {"e", "fc"}, {"y"}, {{"transB", int64_t{1}}});
  OnnxOptions options;
  options.weights = Format::i8;
  options.round_activations = true;
  const auto rounded = build(graph.model(), options);
  options.round_activations = false;
  const auto built = build(graph.model(), options);
  const auto attribute = [](const Node& node) {
    return attr_string(node.attrs, "activations", "f32");
  };
  std::vector<std::string> found;
  for (const Node& node : rounded.bundle.graph().nodes)
    if (node.tensors.count("weight")) found.push_back(attribute(node));
  EXPECT_THAT(found, ElementsAre("f32", "f32", "f32", "i8"));  // 16 products are too few
  for (const Node& node : built.bundle.graph().nodes) EXPECT_EQ(attribute(node), "f32");
  for (const char* name : {"first", "each", "wide", "fc"})
    EXPECT_EQ(built.bundle.graph().tensors.at(name).format, "i8") << name;
  EXPECT_EQ(built.bundle.graph().tensors.at("bias").format, "f32");
  EXPECT_EQ(built.bundle.graph().tensors.at("each").shape, (Shape{8, 6}));
  const auto plain = build(graph.model());
  EXPECT_EQ(built.bundle.info().total.macs, plain.bundle.info().total.macs);
  EXPECT_EQ(built.bundle.info().total.params, plain.bundle.info().total.params);
  for (size_t i = 0; i < 3; ++i) {
    const Node &packed = built.bundle.graph().nodes[i], &node = plain.bundle.graph().nodes[i];
    EXPECT_EQ(built.bundle.info().shapes.at(packed.output),
              plain.bundle.info().shapes.at(node.output));
  }
  // Other formats are of linear layers alone.
  options.weights = Format::i4_group;
  const auto four = build(graph.model(), options);
  EXPECT_EQ(four.bundle.graph().tensors.at("wide").format, "f32");
  EXPECT_EQ(four.bundle.graph().tensors.at("fc").format, "i4-32");
}

TEST(Onnx, ComputesWhatHangsOnShapesAlone) {
  Graph graph;  // x reshaped to [batch, 2, 6 / 2] by way of its shape
  graph.input("x", {1, 6}).integers("zero", {1}, {0}).integers("two", {1}, {2});
  graph.node("Shape", {"x"}, {"s"}).node("Gather", {"s", "zero"}, {"n"}, {{"axis", int64_t{0}}});
  graph.integers("one", {1}, {1}).node("Gather", {"s", "one"}, {"w"}, {{"axis", int64_t{0}}});
  graph.node("Div", {"w", "two"}, {"h"})
      .node("Concat", {"n", "two", "h"}, {"t"}, {{"axis", int64_t{0}}});
  graph.node("Reshape", {"x", "t"}, {"y"})
      .node("Transpose", {"y"}, {"z"}, {{"perm", std::vector<int64_t>{0, 2, 1}}});
  graph.output("z");
  const auto built = build(graph.model());
  EXPECT_THAT(operators(built.bundle), ElementsAre("reshape", "transpose"));
  EXPECT_EQ(built.result.outputs[0].shape, (Shape{3, 2}));
}

TEST(Onnx, JoinsWhatTheEngineHasOneOperatorFor) {
  Graph graph;
  graph.input("x", {1, 2, 4, 4}).reals("w", {2, 2, 1, 1}, {1, 2, 3, 4});
  graph.reals("half", {1}, {0.5f}).reals("three", {}, {3}).reals("six", {}, {6});
  graph.node("Conv", {"x", "w"}, {"c"}).node("Mul", {"half", "c"}, {"m"});
  graph.node("Add", {"m", "half"}, {"a"}).node("Add", {"a", "three"}, {"s"});
  graph.node("Clip", {"s"}, {"k"}, {{"min", 0.0f}, {"max", 6.0f}});
  graph.node("Mul", {"a", "k"}, {"h"}).node("Div", {"h", "six"}, {"y"}).output("y");
  const auto built = build(graph.model(9));
  EXPECT_THAT(operators(built.bundle), ElementsAre("conv2d", "activation"));
  const auto weight = built.bundle.tensor("w").f32();
  EXPECT_THAT(std::vector(weight.begin(), weight.end()), ElementsAre(0.5f, 1, 1.5f, 2));
}

TEST(Onnx, FindsLayerNormsGeluAndSilu) {
  Graph graph;
  graph.input("x", {1, 3, 4}).reals("eps", {}, {1e-5f}).reals("two", {}, {2});
  const std::vector<Attribute> last{{"axes", std::vector<int64_t>{-1}}};
  graph.node("ReduceMean", {"x"}, {"mean"}, last).node("Sub", {"x", "mean"}, {"d"});
  graph.node("Pow", {"d", "two"}, {"sq"}).node("ReduceMean", {"sq"}, {"var"}, last);
  graph.node("Add", {"var", "eps"}, {"ve"})
      .node("Sqrt", {"ve"}, {"sd"})
      .node("Div", {"d", "sd"}, {"n"});
  graph.reals("g", {4}, ones(4, 2)).reals("b", {4}, ones(4)).node("Mul", {"n", "g"}, {"ng"});
  graph.node("Add", {"ng", "b"}, {"ln"});
  graph.reals("root", {}, {1.41421356f}).reals("one", {}, {1}).reals("half", {}, {0.5f});
  graph.node("Div", {"ln", "root"}, {"e0"})
      .node("Erf", {"e0"}, {"e1"})
      .node("Add", {"e1", "one"}, {"e2"});
  graph.node("Mul", {"ln", "e2"}, {"e3"}).node("Mul", {"e3", "half"}, {"gelu"});
  graph.node("Sigmoid", {"gelu"}, {"sg"}).node("Mul", {"gelu", "sg"}, {"y"}).output("y");
  const auto built = build(graph.model());
  EXPECT_THAT(operators(built.bundle), ElementsAre("layer_norm", "activation", "activation"));
  EXPECT_EQ(built.bundle.graph().nodes[0].tensors.size(), 2u);
  EXPECT_EQ(attr_string(built.bundle.graph().nodes[1].attrs, "kind", ""), "gelu");
  EXPECT_EQ(attr_string(built.bundle.graph().nodes[2].attrs, "kind", ""), "silu");
}

TEST(Onnx, CarriesAnInputThatIsAnOutput) {
  Graph graph;
  graph.input("x", {1, 2}).input("state", {1, 2}).output("y").output("next");
  graph.node("Add", {"x", "state"}, {"next"}).node("Neg", {"next"}, {"y"});
  OnnxOptions options;
  options.carries["state"] = "next";
  const auto built = build(graph.model(), options);
  ASSERT_EQ(built.bundle.graph().carries.size(), 1u);
  EXPECT_EQ(built.bundle.graph().carries[0].input, "state");
  options.carries = {{"nobody", "next"}};
  EXPECT_ERROR(build(graph.model(), options), Code::usage, "'nobody'");
}

TEST(Onnx, ChoosesABranchThatIsKnown) {
  const auto branch = [](const char* op) {
    Graph inner;
    inner.node(op, {"x"}, {"r"}).output("r");
    return inner.message;
  };
  Graph graph;
  graph.input("x", {1, 2}).input("rate", {}).output("y").reals("limit", {}, {8000});
  graph.node("Greater", {"rate", "limit"}, {"fast"});
  Message node = onnx::node_message("If", "if", {"fast"}, {"y"});
  for (const auto& [name, op] : {std::pair{"then_branch", "Exp"}, {"else_branch", "Neg"}}) {
    Message attribute;
    attribute.bytes(1, name).message(6, branch(op)).integer(20, 5);
    node.message(5, attribute);
  }
  graph.message.message(1, node);
  OnnxOptions options;
  options.values["rate"] = 16000;
  const auto built = build(graph.model(), options);
  EXPECT_EQ(attr_string(built.bundle.graph().nodes[0].attrs, "kind", ""), "exp");
  EXPECT_ERROR(build(graph.model()), Code::unsupported, "must be a constant");
}

TEST(Onnx, AsksForSizesThatTheFileLeavesOpen) {
  Graph graph;
  graph.input("x", {-1, 3, -1}).node("Relu", {"x"}, {"y"}).output("y");
  EXPECT_ERROR(build(graph.model()), Code::usage, "--input x=");
  OnnxOptions options;
  options.inputs["x"] = {1, 3, 7};
  EXPECT_EQ(build(graph.model(), options).result.outputs[0].shape, (Shape{3, 7}));
  options.inputs["x"] = {1, 4, 7};
  EXPECT_ERROR(build(graph.model(), options), Code::shape, "does not fit");
}

TEST(Onnx, ReadsExternalDataOnlyBeneathTheModelsFolder) {
  TempDirectory directory;
  std::filesystem::create_directory(directory / "model");
  for (const char* name : {"model/data.bin", "outside.bin"}) {
    std::ofstream file(directory / name, std::ios::binary);
    const float values[2] = {1, 2};
    file.write(reinterpret_cast<const char*>(values), sizeof values);
  }
  std::filesystem::create_symlink(directory / "outside.bin", directory / "model/link.bin");
  const auto model = [&](const std::string& location, const std::string& offset = "0",
                         const std::string& length = "8") {
    Message tensor;
    tensor.integer(1, 2).integer(2, 1).bytes(8, "w").integer(14, 1);
    for (const auto& [key, value] :
         {std::pair{"location", location}, {"offset", offset}, {"length", length}})
      tensor.message(13, Message().bytes(1, key).bytes(2, value));
    Graph graph;
    graph.input("x", {1, 2}).node("Add", {"x", "w"}, {"y"}).output("y");
    graph.message.message(5, tensor);
    return graph.model();
  };
  const std::string folder = directory / "model";
  EXPECT_EQ(build(model("data.bin"), {}, folder).bundle.graph().nodes.size(), 1u);
  for (const std::string& escaping : {std::string("../outside.bin"), directory / "outside.bin",
                                      std::string("link.bin"), std::string("a/../../outside.bin")})
    EXPECT_ERROR(build(model(escaping), {}, folder), Code::format, "beneath");
  EXPECT_ERROR(build(model("none.bin"), {}, folder), Code::missing, "none.bin");
  EXPECT_ERROR(build(model("data.bin", "4"), {}, folder), Code::format, "bytes 4 to 12");
  EXPECT_ERROR(build(model("data.bin", "-1"), {}, folder), Code::format, "'offset'");
  EXPECT_ERROR(build(model("data.bin", "0", "4"), {}, folder), Code::format, "takes 8 bytes");
  EXPECT_ERROR(build(model("data.bin")), Code::unsupported, "in another file");
}

Graph relu() {
  Graph graph;
  graph.input("x", {1, 3}).node("Relu", {"x"}, {"y"}).output("y");
  return graph;
}

Message raw_tensor(std::initializer_list<int64_t> dims, int64_t type, const std::string& bytes) {
  Message tensor;
  for (const int64_t size : dims) tensor.integer(1, size);
  return tensor.integer(2, type).bytes(8, "w").bytes(9, bytes);
}

std::string with_tensor(const Message& tensor) {
  Graph graph;
  graph.input("x", {1, 2}).node("Add", {"x", "w"}, {"y"}).output("y");
  graph.message.message(5, tensor);
  return graph.model();
}

/// One node between x and y.
std::string with_node(const std::string& op, const std::vector<Attribute>& attributes,
                      const Shape& x = {1, 2, 4, 4}, const std::vector<std::string>& more = {},
                      int64_t opset = 13) {
  Graph graph;
  std::vector<std::string> inputs{"x"};
  inputs.insert(inputs.end(), more.begin(), more.end());
  graph.input("x", x).reals("w", {2, 2, 3, 3}, ones(36)).integers("big", {1}, {int64_t{1} << 60});
  graph.integers("two", {2}, {2, 2}).integers("none", {1}, {0}).reals("r", {1}, {2.0f});
  graph.node(op, inputs, {"y"}, attributes).output("y");
  return graph.model(opset);
}

std::string nested(int depth) {
  Graph inner;
  inner.node("Relu", {"x"}, {"r"}).output("r");
  Message graph = inner.message;
  for (int i = 0; i < depth; ++i) {
    Message attribute, node = onnx::node_message("If", "n", {"c"}, {"r"});
    node.message(5, attribute.bytes(1, "then_branch").message(6, graph).integer(20, 5));
    graph = Message().message(1, node);
  }
  return onnx::model_message(graph, 13, "test").text();
}

TEST(Onnx, RefusesMalformedFilesWithOneClearError) {
  struct Case {
    const char* name;
    std::string bytes;
    Code code;
    const char* words;
  };
  const std::string good = relu().model();
  Graph cycle, twice, lost, unmade, initialized_twice, empty_name;
  cycle.input("x", {1, 2}).node("Add", {"x", "b"}, {"a"}).node("Relu", {"a"}, {"b"}).output("b");
  twice.input("x", {1, 2}).node("Relu", {"x"}, {"y"}).node("Neg", {"x"}, {"y"}).output("y");
  lost.input("x", {1, 2}).node("Add", {"x", "weight"}, {"y"}).output("y");
  unmade.input("x", {1, 2}).node("Relu", {"x"}, {"y"}).output("z");
  initialized_twice.input("x", {1, 2}).reals("w", {1}, {1}).reals("w", {1}, {2});
  initialized_twice.node("Add", {"x", "w"}, {"y"}).output("y");
  Graph endless = relu(), far = relu(), zero, negative, ranked;
  zero.input("x", {1, 0}).node("Relu", {"x"}, {"y"}).output("y");
  ranked.input("x", {1, 1, 1, 1, 1, 1, 1, 1, 1}).node("Relu", {"x"}, {"y"}).output("y");
  negative.input("x", {1, 2})
      .integers("s", {2}, {-5, 2})
      .node("Reshape", {"x", "s"}, {"y"})
      .output("y");
  Graph recurrent;
  recurrent.input("x", {3, 1, 2}).input("h", {2}).reals("w", {1, 6, 2}, ones(12));
  recurrent.reals("r", {1, 6, 2}, ones(12));
  recurrent.node("GRU", {"x", "w", "r", "", "", "h"}, {"y"}, {{"hidden_size", int64_t{2}}});
  recurrent.output("y");
  Graph huge;
  huge.input("x", {1, 1LL << 40}).node("Relu", {"x"}, {"y"}).output("y");
  const auto foreign = [] {
    Message node = onnx::node_message("Attention", "n", {"x"}, {"y"});
    node.bytes(7, "com.microsoft");
    Graph graph;
    graph.input("x", {1, 2}).output("y");
    graph.message.message(1, node);
    return graph.model();
  };
  const auto list = [](std::initializer_list<int64_t> values) {
    return std::vector<int64_t>(values);
  };
  const Case cases[] = {
      {"nothing", "", Code::format, "empty"},
      {"another format", std::string("GGUF\x03\x00\x00\x00", 8), Code::format, "wire type 7"},
      {"cut in a length", good.substr(0, good.size() - 3), Code::format, "are left"},
      {"cut in a number", good + "\x08", Code::format, "does not end"},
      {"an endless number", "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Code::format,
       "more than 64 bits"},
      {"a length beyond the end", "\x3a\xff\xff\xff\xff\x0f", Code::format, "are left"},
      {"a group", "\x0b", Code::format, "wire type 3"},
      {"field 0", std::string("\x02\x00", 2), Code::format, "field number 0"},
      {"no graph", Message().integer(1, 8).text(), Code::format, "no graph"},
      {"two graphs", good + good, Code::format, "second graph"},
      {"a graph that is a number", Message().integer(7, 1).text(), Code::format, "wire type"},
      {"an old operator set", relu().model(8), Code::unsupported, "operator set 8"},
      {"a new operator set", relu().model(99), Code::unsupported, "operator set 99"},
      {"no operator set", Message().message(7, relu().message).text(), Code::unsupported,
       "operator set 0"},
      {"functions", good + Message().bytes(25, "f").text(), Code::format, "functions"},
      {"a name that is no text", with_tensor(Message().bytes(8, "\xff\xfe")), Code::format,
       "UTF-8"},
      {"graphs too deep", nested(40), Code::format, "deep"},
      {"a cycle", cycle.model(), Code::missing, "cycle"},
      {"a lost initializer", lost.model(), Code::missing, "'weight'"},
      {"an output that nobody makes", unmade.model(), Code::missing, "'z'"},
      {"a value made twice", twice.model(), Code::format, "made twice"},
      {"two initializers of a name", initialized_twice.model(), Code::format, "two initializers"},
      {"a dimension of 0", zero.model(), Code::shape, "nothing in it"},
      {"nine dimensions", ranked.model(), Code::format, "more than 8 dimensions"},
      {"an input too large", huge.model(), Code::limit, "elements"},
      {"a tensor that overflows", with_tensor(raw_tensor({1LL << 40, 1LL << 40}, 1, "")),
       Code::limit, "does not fit 63 bits"},
      {"a negative size", with_tensor(raw_tensor({-2}, 1, "12345678")), Code::shape, "negative"},
      {"too few bytes", with_tensor(raw_tensor({2}, 1, "1234")), Code::format, "takes 8 bytes"},
      {"too many bytes", with_tensor(raw_tensor({1}, 1, "12345678")), Code::format,
       "takes 4 bytes"},
      {"strings", with_tensor(raw_tensor({1}, 8, "")), Code::dtype, "string"},
      {"an unknown type", with_tensor(raw_tensor({1}, 77, "1234")), Code::dtype, "type 77"},
      {"values of no whole number",
       with_tensor(Message().integer(1, 1).integer(2, 1).bytes(8, "w").bytes(4, "123")),
       Code::format, "no whole number"},
      {"segments", with_tensor(Message().bytes(3, "")), Code::format, "segments"},
      {"an unknown operator", with_node("Frobnicate", {}), Code::unsupported, "not read"},
      {"a foreign operator", foreign(), Code::unsupported, "com.microsoft"},
      {"an attribute of another type", with_node("Softmax", {{"axis", 1.5f}}), Code::format,
       "'axis'"},
      {"an axis too far", with_node("Softmax", {{"axis", int64_t{9}}}), Code::shape, "dimension 9"},
      {"a missing input", with_node("Conv", {}), Code::format, "input 1 is missing"},
      {"a window too large",
       with_node("Conv", {{"pads", list({0, 0, 1LL << 40, 0})}}, {1, 2, 4, 4}, {"w"}), Code::limit,
       "padding out of range"},
      {"a stride of 0", with_node("Conv", {{"strides", list({0, 1})}}, {1, 2, 4, 4}, {"w"}),
       Code::limit, "stride"},
      {"a weight for other channels", with_node("Conv", {}, {1, 5, 4, 4}, {"w"}), Code::shape,
       "channels"},
      {"a batch", with_node("Conv", {}, {3, 2, 4, 4}, {"w"}), Code::unsupported, "batch of 3"},
      {"a shape of another size", with_node("Reshape", {}, {1, 2, 4, 4}, {"two"}), Code::shape,
       "elements"},
      {"a negative shape", negative.model(), Code::shape, "size -5"},
      {"an expansion without end", with_node("Expand", {}, {1, 1}, {"big"}), Code::limit,
       "repetitions"},
      {"an expansion to nothing", with_node("Expand", {}, {1, 1}, {"none"}), Code::shape, "size 0"},
      {"a shape of floats", with_node("Reshape", {}, {1, 2}, {"r"}), Code::dtype, "integers"},
      {"a permutation that repeats", with_node("Transpose", {{"perm", list({0, 0, 1, 2})}}),
       Code::shape, "twice"},
      {"an index too far", with_node("Gather", {{"axis", int64_t{1}}}, {1, 2}, {"big"}),
       Code::shape, "index"},
      {"a split that does not fit",
       with_node("Split", {{"axis", int64_t{2}}}, {1, 2, 4, 4}, {"two"}), Code::shape,
       "2 parts for 1 outputs"},
      {"blocks of 0", with_node("DepthToSpace", {{"blocksize", int64_t{0}}}), Code::shape,
       "blocks"},
      {"an unknown mode",
       with_node("Pad", {{"mode", std::string("wrap")}, {"pads", list({0, 0, 0, 0, 0, 0, 0, 1})}},
                 {1, 2, 4, 4}, {}, 9),
       Code::unsupported, "wrap"},
      {"a recurrent state of another shape", recurrent.model(14), Code::shape,
       "initial state 2; expected 1 x 1 x 2"},
      {"a recurrent layer without weights",
       with_node("LSTM", {{"hidden_size", int64_t{2}}}, {1, 1, 2}), Code::format,
       "input 1 is missing"},
  };
  for (const Case& each : cases)
    expect_error(
        each.code, each.words, [&] { build(each.bytes); }, each.name);
}

TEST(Onnx, LimitsWhatIsComputedWhileReading) {
  Graph graph;
  graph.input("x", {1, 1}).integers("s", {2}, {3000, 3000}).node("ConstantOfShape", {"s"}, {"c"});
  graph.node("Add", {"x", "c"}, {"y"}).output("y");
  OnnxOptions options;
  options.folded_elements = 1 << 20;
  EXPECT_ERROR(build(graph.model(), options), Code::limit, "too many numbers");
  // Nothing is in it, but whoever walks the second dimension would never come back.
  Graph hollow;
  hollow.input("x", {1, 2}).reals("e", {0, int64_t{1} << 60}, {});
  hollow.integers("from", {1}, {0}).integers("to", {1}, {int64_t{1} << 59});
  hollow.integers("axis", {1}, {1}).integers("step", {1}, {2});
  hollow.node("Slice", {"e", "from", "to", "axis", "step"}, {"c"});
  hollow.node("Concat", {"x", "c"}, {"y"}, {{"axis", int64_t{0}}}).output("y");
  EXPECT_ERROR(build(hollow.model()), Code::limit, "too many numbers");
}

}  // namespace onnx_test
}  // namespace sluice::bundle
