#include "sluice/lab/brick/sparse_linear.h"

#include <cmath>

#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace sparse_linear_test {

using namespace testing;  // NOLINT: test helpers

Linear random_layer(int64_t inputs, int64_t outputs, uint64_t seed) {
  Linear layer(inputs, outputs);
  const at::NoGradGuard no_grad;
  layer.weight.copy_(random_tensor({outputs, inputs}, seed));
  layer.bias.copy_(random_tensor({outputs}, seed + 1));
  return layer;
}

std::vector<Selector> selectors() {
  return {Selector{}, Selector::top(4), Selector::top(0), Selector::above(0.5f),
          Selector::share(0.3)};
}

/// A model of one sparse layer over rows [T, inputs].
Model model_of(const std::shared_ptr<SparseLinear>& layer, int64_t tokens) {
  auto root = std::make_shared<Sequential>();
  root->append("layer", layer);
  Model model;
  model.root = root;
  model.input_shape = {tokens, layer->options().inputs};
  model.root->eval();
  return model;
}

TEST(SparseLinear, IsTheDenseLayerOfTheInputsItKeeps) {
  const Linear dense = random_layer(12, 5, 1);
  const at::Tensor x = random_tensor({3, 6, 12}, 2), norm = random_tensor({12}, 3).abs();
  for (const Selector& each : selectors()) {
    for (const at::Tensor& factors : {at::Tensor(), norm}) {
      const auto layer = SparseLinear::of(dense, each, factors);
      const at::Tensor mask = select(x, each, factors).to(at::kFloat);
      expect_near(run(*layer, x), at::linear(x * mask, dense.weight, dense.bias), 1e-5);
      EXPECT_TRUE(at::equal(layer->dense()->weight, dense.weight));
    }
  }
}

TEST(SparseLinear, FirstRowsStayDenseAndNanIsLeftOut) {
  const Linear dense = random_layer(12, 5, 1);
  const auto layer = SparseLinear::of(dense, Selector::top(2), {}, 3);
  const at::Tensor x = random_tensor({2, 6, 12}, 2);
  const at::Tensor found = run(*layer, x), whole = at::linear(x, dense.weight, dense.bias);
  expect_near(found.narrow(1, 0, 3), whole.narrow(1, 0, 3), 1e-5);
  EXPECT_GT(relative_error(found.narrow(1, 3, 3), whole.narrow(1, 3, 3)), 0.1);
  at::Tensor poisoned = x.clone();
  const at::Tensor out = x.abs()[0][5].argmin();
  poisoned[0][5][out] = NAN;
  expect_near(run(*layer, poisoned), found);
}

TEST(SparseLinear, GradientsPassThroughWhatWasKept) {
  const auto layer = SparseLinear::of(random_layer(7, 4, 3), Selector::top(3));
  layer->to(at::kDouble);
  const at::Tensor x = random_tensor({5, 7}, 4).to(at::kDouble);
  const at::Tensor weights = random_tensor({5, 4}, 5).to(at::kDouble);
  const auto f = [&](const at::Tensor& input) { return run(*layer, input); };
  expect_near(autograd_gradient(f, x, weights), numeric_gradient(f, x, weights), 1e-6);
  layer->weight.mutable_grad() = at::Tensor();  // what autograd_gradient left there
  (f(x) * weights).sum().backward();
  const at::Tensor masked = x.masked_fill(layer->kept(x).logical_not(), 0);
  expect_near(layer->weight.grad(), at::matmul(masked.t(), weights), 1e-9);
}

TEST(SparseLinear, MeterCountsWhatWasKeptAndCostTheMost) {
  const auto layer = SparseLinear::of(random_layer(12, 5, 1), Selector::top(4), {}, 2);
  Meter meter;
  Context context;
  context.meter = &meter;
  layer->forward(random_tensor({3, 6, 12}, 2), context);
  EXPECT_EQ(meter.macs(), 3 * (2 * 12 + 4 * 4) * 5);
  EXPECT_EQ(layer->cost({6, 12}).macs, (2 * 12 + 4 * 4) * 5);
  EXPECT_EQ(layer->cost({6, 12}).params, 12 * 5 + 5);
  EXPECT_EQ(SparseLinear::of(random_layer(12, 5, 1), Selector::above(1))->cost({6, 12}).macs,
            6 * 12 * 5);
}

TEST(SparseLinear, ReloadsAndAgreesWithTheEngine) {
  const TempDirectory folder;
  for (const Selector& each : selectors()) {
    for (const bool scored : {false, true}) {
      for (const int64_t first : {0, 2}) {
        const auto layer =
            SparseLinear::of(random_layer(40, 24, 5), each,
                             scored ? random_tensor({40}, 6).abs() : at::Tensor(), first);
        Model model = model_of(layer, 6);
        const at::Tensor x = random_tensor({3, 6, 40}, 7);
        save_bundle(model, folder / "m.safetensors");
        Model loaded = load_model(folder / "m.safetensors");
        EXPECT_EQ(spec_of(*loaded.root), spec_of(*model.root));
        EXPECT_TRUE(at::equal(run(loaded, x), run(model, x))) << selector_json(each).dump();
        bundle::Builder builder;
        lower(model, builder);
        const auto info = bundle::check_graph(builder.graph(), "test");
        EXPECT_EQ(info.total.macs, model.cost().macs);
        EXPECT_EQ(info.total.params, model.cost().params);
#if SLUICE_HAS_ENGINE
        EXPECT_LE(engine_error(model, x), 1e-5) << selector_json(each).dump();
#endif
      }
    }
  }
}

TEST(SparseLinear, RefusesWhatDoesNotFit) {
  const Linear dense = random_layer(4, 3, 1);
  expect_error(Code::shape, "column_norm of sparse_linear: expected 4",
               [&] { SparseLinear::of(dense, {}, torch::ones({3})); });
  expect_error(Code::numeric, "column_norm", [&] {
    SparseLinear::of(dense, {}, torch::tensor({1.f, NAN, 1.f, 1.f}));
  });
  expect_error(Code::numeric, "column_norm", [&] {
    SparseLinear::of(dense, {}, torch::tensor({1.f, -1.f, 1.f, 1.f}));
  });
  expect_error(Code::shape, "expected [.., 4]",
               [&] { SparseLinear::of(dense, {})->output_shape({5}); });
  expect_error(Code::shape, "dense_first counts rows",
               [&] { SparseLinear::of(dense, {}, {}, 1)->output_shape({4}); });
  const Json attributes = {{"inputs", 4}, {"outputs", 3}, {"select", "topk"}};
  expect_error(Code::config, "k of sparse_linear: missing", [&] {
    make_brick({{"kind", "sparse_linear"}, {"attributes", attributes}});
  });
}

TEST(SparseLinear, HasASelectorForEachSizeOfTheNetwork) {
  const Linear dense = random_layer(12, 5, 1);
  const at::Tensor x = random_tensor({3, 6, 12}, 2);
  const std::vector<std::vector<Selector>> lists = {
      {Selector::top(2), Selector::top(6), Selector{}},
      {Selector::above(1.2f), Selector::above(0.4f), Selector{}},
      {Selector::share(0.2), Selector::share(0.7), Selector{}}};
  for (const auto& list : lists) {
    const auto layer = SparseLinear::of(dense, {}, {}, 1);
    layer->set_sizes(list);
    Model model = model_of(layer, 6);
    model.sizes = {{"a", 0, {}}, {"b", 0, {}}, {"c", 0, {}}};
    const TempDirectory folder;
    save_bundle(model, folder / "m.safetensors");
    Model loaded = load_model(folder / "m.safetensors");
    for (const int64_t size : {0, 1, 2, -1}) {
      const auto one =
          SparseLinear::of(dense, list[static_cast<size_t>(size < 0 ? 2 : size)], {}, 1);
      Context context, other;
      context.size = other.size = size;
      const at::Tensor found = layer->forward(x, context);
      expect_near(found, run(*one, x), 1e-6);
      EXPECT_TRUE(at::equal(loaded.root->forward(x, other), found));
#if SLUICE_HAS_ENGINE
      const engine::Network network = engine::Network::open(folder / "m.safetensors");
      engine::Session session(network, {.batch = 3, .threads = 1});
      std::vector<float> y(static_cast<size_t>(found.numel()));
      session.run({x.data_ptr<float>(), static_cast<size_t>(x.numel())}, y, {.size = size});
      expect_near(at::from_blob(y.data(), found.sizes()), found, 1e-5);
#endif
    }
    Context beyond;
    beyond.size = 3;
    EXPECT_ERROR(layer->forward(x, beyond), Code::usage, "size 3; the network has 3");
    EXPECT_TRUE(layer->keeps_all());
  }
  const auto layer = SparseLinear::of(dense, {}, {}, 0);
  EXPECT_ERROR(layer->set_sizes({Selector::top(2), Selector::share(0.5)}), Code::config,
               "select in several ways");
  EXPECT_ERROR(layer->set_sizes({Selector::top(2)}), Code::config, "1 sizes; expected 2");
  EXPECT_ERROR(
      make_brick(
          {{"kind", "sparse_linear"},
           {"attributes",
            {{"inputs", 4}, {"outputs", 2}, {"select", "threshold"}, {"keep", {0.5, 1.0}}}}}),
      Code::config, "a list, but select is 'threshold'");
}

}  // namespace sparse_linear_test
}  // namespace sluice::lab
