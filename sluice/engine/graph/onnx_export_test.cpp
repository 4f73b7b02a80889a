// Bundles that go out as ONNX and come back compute the same.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "sluice/base/test_error.h"
#include "sluice/bundle/export/onnx.h"
#include "sluice/bundle/import/onnx.h"
#include "sluice/bundle/import/onnx/model.h"
#include "sluice/engine/graph/test_networks.h"
#include "sluice/engine/kernel/reference.h"

namespace sluice::engine {
namespace onnx_export_test {

using bundle::Value;
using testing::Model;
using testing::NetworkBuilder;

Model back(const Model& model, const bundle::OnnxOptions& options = {}) {
  const std::string bytes = bundle::onnx_bytes(model.bundle);
  const auto source =
      bundle::onnx::parse_model(std::as_bytes(std::span(bytes)), "exported.onnx", "");
  bundle::Builder builder;
  bundle::build_onnx(source, options, builder);
  return Model(builder.bytes(), "back");
}

void expect_same(const Model& model, const std::string& what, double tolerance = 1e-5) {
  const Model again = back(model);
  NetworkBuilder random(5);
  std::vector<std::vector<float>> inputs;
  for (const Value& input : model.bundle.graph().inputs)
    inputs.push_back(random.uniform(size_t(2 * numel(input.shape)), -1, 1));
  const std::vector<std::span<const float>> in(inputs.begin(), inputs.end());
  const auto expected = reference_run_all(model.bundle, in, 2),
             found = reference_run_all(again.bundle, in, 2);
  ASSERT_EQ(found.size(), expected.size()) << what;
  for (size_t o = 0; o < expected.size(); ++o) {
    EXPECT_EQ(again.bundle.info().shapes.at(again.bundle.graph().outputs[o]),
              model.bundle.info().shapes.at(model.bundle.graph().outputs[o]))
        << what;
    for (size_t i = 0; i < expected[o].size(); ++i)
      ASSERT_NEAR(found[o][i], expected[o][i], tolerance * (1 + std::abs(expected[o][i])))
          << what << ", output " << o << ", element " << i;
  }
}

TEST(OnnxExport, ConvolutionalNetworksComeBackNodeForNodeAndBitForBit) {
  const Model model = testing::make_resnet({.in_channels = 3, .size = 12, .width = 4, .blocks = 1});
  const Model again = back(model);
  std::vector<std::string> before, after;
  for (const auto& node : model.bundle.graph().nodes) before.push_back(node.op);
  for (const auto& node : again.bundle.graph().nodes) after.push_back(node.op);
  EXPECT_EQ(after, before);
  for (const auto& [name, spec] : model.bundle.graph().tensors) {
    const auto* stored = again.bundle.file().find(name);
    ASSERT_TRUE(stored) << name;
    EXPECT_TRUE(std::ranges::equal(stored->f32(), model.bundle.tensor(name).f32())) << name;
  }
  expect_same(model, "resnet");
}

TEST(OnnxExport, LayersComeBack) {
  NetworkBuilder net(2);
  Value x = net.input({4, 9, 8});
  x = net.conv("conv", x, 6, 3, 2, true, 2, 1);
  for (const char* kind : {"relu", "gelu", "silu", "sigmoid", "tanh", "hard_swish", "gelu_tanh"})
    net.builder().output(net.activation(kind, x, kind));
  x = net.scale("scale", x, 6);
  net.tensor("up", {6, 2, 2, 3}, net.normal(72, 0.5));
  const Value up = net.builder().node("conv_transpose2d", "up", {x},
                                      {{"stride", int64_t{2}},
                                       {"padding", std::vector<int64_t>{0, 1}},
                                       {"output_padding", std::vector<int64_t>{1, 0}},
                                       {"groups", int64_t{2}}},
                                      {{"weight", "up"}});
  net.builder().output(
      net.node("max_pool2d", "max", {up},
               {{"kernel", int64_t{3}}, {"stride", int64_t{2}}, {"padding", int64_t{1}}}));
  net.builder().output(
      net.node("avg_pool2d", "avg", {up},
               {{"kernel", int64_t{2}}, {"stride", int64_t{1}}, {"padding", int64_t{1}}}));
  const Value pooled = net.node("global_avg_pool", "pool", {x});
  net.builder().output(net.node("mul", "gate", {x, pooled}));
  net.builder().output(net.node("mul", "one", {x, net.linear("g", pooled, 1)}));
  net.builder().output(net.node("threshold", "threshold", {pooled}, {{"value", 0.1}}));
  net.builder().output(net.node("softmax", "softmax", {net.linear("fc", pooled, 5)}));
  const Value rows = net.node("reshape", "rows", {x}, {{"shape", std::vector<int64_t>{6, 20}}});
  Value y = net.node("layer_norm", "norm", {net.linear("rows.fc", rows, 12)});
  net.builder().output(net.node("rms_norm", "rms", {y}));
  net.builder().output(net.node("l2_normalize", "l2", {y}));
  y = net.builder().node("attention", "attention", {y, y, y},
                         {{"heads", int64_t{3}}, {"mask", std::string("full")}});
  y = net.builder().node("attention", "causal", {y, y, y}, {{"heads", int64_t{2}}});
  net.builder().output(net.node("pool_rows", "first", {y}, {{"kind", std::string("first")}}));
  expect_same(net.finish(net.node("pool_rows", "mean", {y})), "layers", 2e-5);
}

TEST(OnnxExport, ArraysAndRecurrentLayersComeBack) {
  NetworkBuilder net(3);
  const Value x = net.input({3, 4}), h = net.builder().input("h", {5}),
              c = net.builder().input("c", {5});
  for (const int64_t gates : {4, 3}) {
    const std::string op = gates == 4 ? "lstm" : "gru";
    net.tensor(op + ".w", {gates * 5, 4}, net.normal(size_t(gates * 20), 0.5));
    net.tensor(op + ".r", {gates * 5, 5}, net.normal(size_t(gates * 25), 0.5));
    net.tensor(op + ".b", {gates * 5}, net.normal(size_t(gates * 5), 0.5));
    net.tensor(op + ".n", {5}, net.normal(5, 0.5));
    std::map<std::string, std::string> tensors{
        {"weight", op + ".w"}, {"recurrent", op + ".r"}, {"bias", op + ".b"}};
    if (gates == 3) tensors["recurrent_bias"] = op + ".n";
    std::vector<Value> inputs{x, h};
    if (gates == 4) inputs.push_back(c);
    net.builder().output(net.builder().node(op, op, inputs, {{"reverse", gates == 3}}, tensors));
  }
  const auto kind = [](const char* name) {
    return bundle::Attributes{{"kind", std::string(name)}};
  };
  const Value turned = net.node("transpose", "turned", {x}, {{"perm", std::vector<int64_t>{1, 0}}});
  const Value padded = net.node("pad", "pad", {turned},
                                {{"before", std::vector<int64_t>{1, 0}},
                                 {"after", std::vector<int64_t>{0, 2}},
                                 {"value", 0.5}});
  const Value some = net.node("gather", "some", {padded},
                              {{"axis", int64_t{0}}, {"indices", std::vector<int64_t>{3, 1, 1}}});
  const Value both = net.node("concat", "both", {some, padded}, {{"axis", int64_t{0}}});
  const Value part =
      net.node("slice", "part", {both}, {{"axis", int64_t{0}}, {"start", int64_t{2}}});
  net.builder().output(
      net.node("matmul", "product", {part, part}, {{"transpose_b", true}, {"scale", 0.5}}));
  net.tensor("row", {1, 5}, net.normal(5, 1));
  net.tensor("whole", {4, 5}, net.normal(20, 1));
  const Value constant = net.builder().node("constant", "constant", {x}, {}, {{"value", "whole"}});
  net.builder().output(
      net.node("concat", "with.constant", {constant, part}, {{"axis", int64_t{0}}}));
  Value y =
      net.builder().node("binary", "sub", {part},
                         {{"kind", std::string("sub")}, {"reversed", true}}, {{"other", "row"}});
  y = net.node("binary", "h", {y, h}, kind("max"));
  net.builder().output(
      net.node("where", "where", {net.node("binary", "less", {y, h}, kind("less")), y, h}));
  for (const char* name :
       {"exp", "abs", "neg", "erf", "square", "softplus", "sign", "trunc", "not"})
    net.builder().output(net.node("unary", name, {y}, kind(name)));
  for (const char* name : {"linear", "clip", "leaky_relu", "hard_sigmoid", "elu", "shrink"}) {
    bundle::Attributes attrs = kind(name);
    attrs["alpha"] = 0.3;
    attrs["beta"] = 0.6;
    net.builder().output(net.node("unary", name, {y}, attrs));
  }
  for (const char* name : {"sum", "mean", "max", "min", "argmax"}) {
    bundle::Attributes attrs = kind(name);
    attrs["axes"] = std::vector<int64_t>{1};
    net.builder().output(net.node("reduce", name, {y}, attrs));
  }
  bundle::Attributes attrs = kind("prod");
  attrs["axes"] = std::vector<int64_t>{0};
  expect_same(net.finish(net.node("reduce", "prod", {y}, attrs)), "arrays", 2e-5);
}

/// An encoder of `tokens` ids with learned positions, two heads and a pooled vector.
Model encoder(int64_t tokens, const char* pool, const char* mask = "full") {
  NetworkBuilder net(6);
  const Value ids = net.builder().input("tokens", {tokens});
  net.tensor("words", {11, 6}, net.normal(66, 1));
  net.tensor("places", {9, 6}, net.normal(54, 1));
  const Value at = net.node("positions", "positions", {ids});
  Value x = net.node("add", "sum",
                     {net.builder().node("embedding", "words", {ids}, {}, {{"weight", "words"}}),
                      net.builder().node("embedding", "places", {at}, {}, {{"weight", "places"}})});
  x = net.node("layer_norm", "norm", {x});
  const Value mixed = net.builder().node("attention", "attention", {x, x, x},
                                         {{"heads", int64_t{2}}, {"mask", std::string(mask)}});
  x = net.node("add", "after", {net.linear("o", mixed, 6), x});
  x = net.activation("gelu", net.linear("up", x, 10), "gelu");
  const Value vector = net.node("pool_rows", "pool", {x}, {{"kind", std::string(pool)}});
  return net.finish(net.node("l2_normalize", "unit", {vector}));
}

// A model made for 7 tokens, read back for 4, is the same network made for 4.
TEST(OnnxExport, EncodersGoOutForTextsOfAnyLength) {
  std::vector<std::vector<float>> ids{{3, 0, 10, 2, 3, 4, 4, 9}};
  const std::vector<std::span<const float>> in(ids.begin(), ids.end());
  for (const char* pool : {"mean", "first", "last"}) {
    bundle::OnnxOptions options;
    options.inputs["tokens"] = {1, 4};
    const Model again = back(encoder(7, pool), options), four = encoder(4, pool);
    const auto expected = reference_run_all(four.bundle, in, 2)[0],
               found = reference_run_all(again.bundle, in, 2)[0];
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_NEAR(found[i], expected[i], 1e-5) << pool << " " << i;
  }
  // What looks back only is written with its mask, for as many as it was made for.
  bundle::OnnxOptions options;
  options.inputs["tokens"] = {1, 4};
  EXPECT_ERROR(back(encoder(7, "mean", "causal"), options), Code::shape, "7");
}

TEST(OnnxExport, RefusesWhatOnnxCannotHold) {
  NetworkBuilder net(4);
  const Value x = net.input({6});
  const Value first =
      net.node("slice", "first", {x}, {{"start", int64_t{0}}, {"size", int64_t{1}}});
  const Value keep = net.node("threshold", "keep", {first});
  const Value kept = net.node("compact_rows", "rows", {x, keep});
  const Model nested = net.finish(net.node("scatter_rows", "back", {x, kept, keep}));
  EXPECT_ERROR(bundle::onnx_bytes(nested.bundle), Code::unsupported, "'rows' (compact_rows)");
  NetworkBuilder cached(5);
  const Value y = cached.input({4, 6});
  const Model decoder = cached.finish(cached.node("attention", "attention", {y, y, y},
                                                  {{"heads", int64_t{2}}, {"cache", int64_t{8}}}));
  EXPECT_ERROR(bundle::onnx_bytes(decoder.bundle), Code::unsupported, "cache");
}

}  // namespace onnx_export_test
}  // namespace sluice::engine
