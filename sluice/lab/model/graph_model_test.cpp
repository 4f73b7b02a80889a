// Graphs without a description of bricks as models: what they compute, what passes make of them,
// what they refuse.
#include <random>

#include "sluice/base/json.h"
#include "sluice/lab/brick/graph_network.h"
#include "sluice/lab/model/graph_model.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/pass/pass.h"
#include "sluice/lab/train/distill.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace graph_model_test {

using namespace testing;  // NOLINT: test helpers
using bundle::Attributes;
using bundle::Value;

class GraphBuilder {
 public:
  bundle::Builder builder;

  std::string tensor(const std::string& name, const Shape& shape, bool positive = false) {
    std::normal_distribution<float> normal(0, 0.5f);
    std::vector<float> values(static_cast<size_t>(numel(shape)));
    for (float& value : values)
      value = positive ? std::abs(normal(random_)) + 0.3f : normal(random_);
    builder.tensor(name, shape, values);
    return name;
  }
  Value node(const std::string& op, const std::vector<Value>& x, Attributes attrs = {},
             std::map<std::string, std::string> tensors = {}) {
    return builder.node(op, fmt::format("{}.{}:0", op, made_++), x, std::move(attrs),
                        std::move(tensors));
  }
  bundle::Bundle finish(const Value& y, std::vector<std::byte>& bytes) {
    builder.output(y);
    bytes = builder.bytes();
    return bundle::Bundle::parse(bytes, "net.safetensors", {});
  }

 private:
  std::mt19937 random_{7};
  int made_ = 0;
};

Attributes kind(const char* name) { return {{"kind", std::string(name)}}; }

/// Every operator that graphs compute, in one network [2,9,8] -> [5,7].
bundle::Bundle whole(std::vector<std::byte>& bytes) {
  GraphBuilder net;
  const Value image = net.builder.input("x", {2, 9, 8});
  Value x = net.node(
      "conv2d", {image},
      {{"stride", std::vector<int64_t>{2, 1}}, {"padding", std::vector<int64_t>{1, 0}}},
      {{"weight", net.tensor("conv.w", {6, 2, 3, 1})}, {"bias", net.tensor("conv.b", {6})}});
  x = net.node("batch_norm", {x}, {},
               {{"weight", net.tensor("n.w", {6})},
                {"bias", net.tensor("n.b", {6})},
                {"running_mean", net.tensor("n.m", {6})},
                {"running_var", net.tensor("n.v", {6}, true)}});
  x = net.node("activation", {x}, kind("hard_swish"));
  const Value deep = net.node(
      "conv2d", {x},
      {{"groups", int64_t{3}}, {"padding", int64_t{1}}, {"dilation", std::vector<int64_t>{1, 1}}},
      {{"weight", net.tensor("deep.w", {6, 2, 3, 3})}});
  x = net.node("add", {x, deep});
  const Value pooled = net.node("global_avg_pool", {x});
  x = net.node(
      "mul", {x, net.node("unary", {pooled},
                          {{"kind", std::string("hard_sigmoid")}, {"alpha", 0.2}, {"beta", 0.5}})});
  x = net.node("scale", {x}, {}, {{"scale", net.tensor("s", {6})}});
  x = net.node("max_pool2d", {x},
               {{"kernel", int64_t{3}}, {"stride", int64_t{1}}, {"padding", int64_t{1}}});
  x = net.node("avg_pool2d", {x}, {{"kernel", std::vector<int64_t>{1, 2}}});
  x = net.node("pad", {x},
               {{"before", std::vector<int64_t>{0, 1, 0}},
                {"after", std::vector<int64_t>{0, 0, 1}},
                {"value", 0.25}});
  // [6,6,5] -> rows [5,36]
  x = net.node("transpose", {x}, {{"perm", std::vector<int64_t>{2, 0, 1}}});
  x = net.node("reshape", {x}, {{"shape", std::vector<int64_t>{5, 36}}});
  x = net.node("slice", {x}, {{"axis", int64_t{1}}, {"start", int64_t{3}}, {"size", int64_t{16}}});
  x = net.node("gather", {x}, {{"indices", std::vector<int64_t>{0, 3, 2, 1, 9, 15, 4, 8}}});
  x = net.node("linear", {x}, {},
               {{"weight", net.tensor("fc.w", {8, 8})}, {"bias", net.tensor("fc.b", {8})}});
  x = net.node("layer_norm", {x}, {{"eps", 1e-6}},
               {{"weight", net.tensor("ln.w", {8})}, {"bias", net.tensor("ln.b", {8})}});
  // Two heads of attention, by hand.
  Value heads = net.node("reshape", {x}, {{"shape", std::vector<int64_t>{5, 2, 4}}});
  heads = net.node("transpose", {heads}, {{"perm", std::vector<int64_t>{1, 0, 2}}});
  Value weights = net.node("matmul", {heads, heads}, {{"transpose_b", true}, {"scale", 0.5}});
  weights = net.node("softmax", {weights});
  Value mixed = net.node("matmul", {weights, heads});
  mixed = net.node("transpose", {mixed}, {{"perm", std::vector<int64_t>{1, 0, 2}}});
  mixed = net.node("reshape", {mixed}, {{"shape", std::vector<int64_t>{5, 8}}});
  x = net.node("concat", {x, mixed}, {{"axis", int64_t{1}}});
  x = net.node("binary", {x}, {{"kind", std::string("sub")}, {"reversed", true}},
               {{"other", net.tensor("row", {16})}});
  x = net.node("binary",
               {x, net.node("reduce", {x},
                            {{"kind", std::string("mean")}, {"axes", std::vector<int64_t>{1}}})},
               kind("max"));
  x = net.node("unary", {x}, {{"kind", std::string("clip")}, {"alpha", -1.5}, {"beta", 2.0}});
  x = net.node("linear", {x}, {}, {{"weight", net.tensor("head.w", {7, 16})}});
  return net.finish(net.node("softmax", {x}), bytes);
}

TEST(GraphModel, ComputesWhatTheGraphSaysAndComesBackFromAFile) {
  std::vector<std::byte> bytes;
  const bundle::Bundle source = whole(bytes);
  Model model = graph_model(source);
  model.root->eval();
  EXPECT_EQ(model.cost().params, source.info().total.params);
  EXPECT_EQ(model.cost().macs, source.info().total.macs);
  const at::Tensor x = random_input(model, 3, 1);
  const at::Tensor y = run(model, x);
  EXPECT_EQ(y.sizes(), (std::vector<int64_t>{3, 5, 7}));
  expect_near(y.sum(-1), at::ones({3, 5}), 1e-5);
#if SLUICE_HAS_ENGINE
  EXPECT_LT(engine_error(model, x), 1e-5);
  {  // and the graph as it came
    engine::Session session(engine::Network(bundle::Bundle::parse(bytes, "source", {})),
                            {.batch = 3, .threads = 1});
    at::Tensor found = at::empty_like(y);
    session.run({x.data_ptr<float>(), static_cast<size_t>(x.numel())},
                {found.data_ptr<float>(), static_cast<size_t>(found.numel())});
    EXPECT_LT(relative_error(found, y), 1e-5);
  }
#endif
  const TempDirectory folder;
  save_bundle(model, folder / "saved.safetensors");
  Model again = load_model(folder / "saved.safetensors");
  again.root->eval();
  expect_near(run(again, x), y, 0);
  Model copy = clone(model);
  expect_near(run(copy, x), y, 0);
}

TEST(GraphModel, PassesFindItsLayers) {
  std::vector<std::byte> bytes;
  const Model model = graph_model(whole(bytes));
  PassInput input;
  input.options = {{"rate", 0.5}};
  Model pruned = run_pass(model, "prune", input);
  const Json report = pruned.provenance.back()["report"];
  EXPECT_EQ(report["layers"].size(), 4u);
  for (const auto& [path, tensor] : named_state(*pruned.root)) {
    if (!path.ends_with(".weight") || tensor.dim() < 2) continue;
    EXPECT_NEAR((tensor == 0).to(at::kDouble).mean().item<double>(), 0.5, 0.02) << path;
  }
  input.options = {{"format", "i8"}};
  Model packed = run_pass(model, "quantize", input);
  const at::Tensor x = random_input(model, 2, 5);
  Model dense = clone(model);
  EXPECT_LT(relative_error(run(packed, x), run(dense, x)), 0.05);
#if SLUICE_HAS_ENGINE
  EXPECT_LT(engine_error(pruned, x), 1e-5);
  EXPECT_LT(engine_error(packed, x), 1e-4);
#endif
}

TEST(GraphModel, LearnsBackWhatPruningTook) {
  std::vector<std::byte> bytes;
  const Model teacher = graph_model(whole(bytes));
  PassInput input;
  input.options = {{"rate", 0.5}};
  Model student = run_pass(teacher, "prune", input);
  Distiller distiller(teacher, {});
  const at::Tensor samples = random_input(teacher, 32, 9);
  const auto loss = [&] { return distiller.loss(student, {samples, {}}).output; };
  const double before = loss();
  TuneOptions options;
  options.steps = 60;
  options.optimizer.rate = 3e-3;
  tune(
      student, distiller,
      [&](int64_t) {
        return DistillBatch{samples, {}};
      },
      options);
  EXPECT_LT(loss(), before / 4);
}

TEST(GraphModel, SaysWhatNoBrickComputes) {
  std::vector<std::byte> bytes;
  {
    GraphBuilder net;
    const Value x = net.builder.input("x", {4, 3});
    const bundle::Bundle bundle = net.finish(
        net.node("lstm", {x}, {},
                 {{"weight", net.tensor("w", {8, 3})}, {"recurrent", net.tensor("r", {8, 2})}}),
        bytes);
    expect_error(Code::unsupported, "net.safetensors: a graph without a description of bricks",
                 [&] { graph_model(bundle); });
    expect_error(Code::unsupported, "node 'lstm.0:0' (lstm)", [&] { graph_model(bundle); });
  }
  {
    GraphBuilder net;
    const Value x = net.builder.input("x", {4});
    const bundle::Bundle bundle = net.finish(net.node("unary", {x}, kind("sign")), bytes);
    expect_error(Code::unsupported, "kind 'sign'", [&] { graph_model(bundle); });
  }
  {
    GraphBuilder net;
    const Value x = net.builder.input("x", {4}), y = net.builder.input("y", {4});
    const bundle::Bundle bundle = net.finish(net.node("add", {x, y}), bytes);
    expect_error(Code::shape, "2 inputs", [&] { graph_model(bundle); });
  }
  Json attributes = {{"graph", {{"inputs", Json::array()}}}};
  EXPECT_THROW(make_brick({{"kind", "graph_network"}, {"attributes", attributes}}), Error);
  expect_error(Code::config, "kernel of graph_conv", [&] {
    make_brick({{"kind", "graph_conv"},
                {"attributes",
                 {{"inputs", 1},
                  {"outputs", 1},
                  {"kernel", {3}},
                  {"stride", {1, 1}},
                  {"padding", {0, 0}},
                  {"dilation", {1, 1}}}}});
  });
}

}  // namespace graph_model_test
}  // namespace sluice::lab
