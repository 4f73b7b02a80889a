#include "sluice/lab/brick/nested.h"

#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace nested_test {

using namespace testing;  // NOLINT: test helpers
using ::testing::ElementsAre;
using Ints = std::vector<int64_t>;

at::Tensor run_size(Brick& brick, const at::Tensor& x, int64_t size, Meter* meter = nullptr) {
  Context context;
  context.size = size;
  context.meter = meter;
  return brick.forward(x, context);
}

NestedConv2d small_conv(NestedSizes sizes) {
  return {{.inputs = 4, .outputs = 6, .kernel = 3, .padding = 1, .bias = false},
          {.present = true},
          std::move(sizes)};
}

TEST(NestedLinear, RunsTheLeadingPartAndMetersIt) {
  NestedLinear layer(6, 4, true, {3, {1, 2, 4}, {2, 4, 6}});
  const at::NoGradGuard no_grad;
  for (int64_t size = 0; size < 3; ++size) {
    const int64_t rows = Ints{1, 2, 4}[size_t(size)], columns = Ints{2, 4, 6}[size_t(size)];
    const at::Tensor x = random_tensor({5, columns}, 3);
    Meter meter;
    const at::Tensor found = run_size(layer, x, size, &meter);
    const at::Tensor w =
        layer.weight.index({at::indexing::Slice(0, rows), at::indexing::Slice(0, columns)});
    expect_near(found, at::linear(x, w.contiguous(), layer.bias.narrow(0, 0, rows)));
    EXPECT_EQ(meter.macs(), 5 * rows * columns);
    BrickPtr alone = layer.pick(size);
    expect_near(run(*alone, x), found);
    EXPECT_EQ(alone->cost({columns}).macs, rows * columns);
  }
  const at::Tensor x = random_tensor({2, 6}, 4);
  expect_near(run_size(layer, x, -1), run_size(layer, x, 2));
}

TEST(NestedLinear, SaysWhatDoesNotFit) {
  NestedLinear layer(6, 4, true, {2, {2, 4}, {3, 6}});
  expect_error(Code::shape, "size 0 takes 3 of 6 inputs, found 6", [&] {
    run_size(layer, random_tensor({1, 6}, 1), 0);
  });
  expect_error(Code::usage, "size 2; the network has 2", [&] {
    run_size(layer, random_tensor({1, 6}, 1), 2);
  });
  expect_error(Code::usage, "size -2", [&] { run_size(layer, random_tensor({1, 6}, 1), -2); });
  expect_error(Code::config, "rows of nested_linear: expected 1 to 4, found 5", [] {
    NestedLinear(6, 4, true, {2, {2, 5}, {}});
  });
  expect_error(Code::config, "columns of nested_linear: 1 entries for 2 sizes", [] {
    NestedLinear(6, 4, true, {2, {2, 4}, {6}});
  });
  expect_error(Code::config, "sizes of nested_linear: expected 1 to 256", [] {
    NestedLinear(6, 4, true, {257, {}, {}});
  });
  expect_error(Code::config, "missing; its outputs are nested", [&] {
    layer.set_sizes({1, {}, {}});
  });
  NestedLinear whole(6, 4, true, {1, {}, {}});
  expect_error(Code::config, "it always has all outputs", [&] { whole.set_sizes({1, {3}, {}}); });
}

TEST(NestedConv2d, HasStatisticsOfItsOwnForEachSize) {
  NestedConv2d conv = small_conv({2, {3, 6}, {2, 4}});
  const at::Tensor x = random_tensor({8, 2, 5, 5}, 1);
  conv.train();
  for (int i = 0; i < 3; ++i) run_size(conv, x, 0);
  EXPECT_GT(conv.running_mean[0].narrow(0, 0, 3).abs().min().item<double>(), 0);
  EXPECT_EQ(conv.running_mean[0].narrow(0, 3, 3).abs().max().item<double>(), 0);
  EXPECT_EQ(conv.running_mean[1].abs().max().item<double>(), 0);
  conv.begin_estimate();
  run_size(conv, x, 1 - 1);
  conv.end_estimate();
  conv.eval();
  // One batch, averaged alone: its own statistics, so the outputs are normal.
  const at::NoGradGuard no_grad;
  const at::Tensor y = run_size(conv, x, 0);
  expect_near(y.mean({0, 2, 3}), at::zeros({3}), 1e-4);
  expect_near(y.var({0, 2, 3}, true), at::ones({3}), 1e-2);
}

TEST(NestedConv2d, PickedSizesComputeTheSame) {
  const at::NoGradGuard no_grad;
  for (const bool norm : {true, false}) {
    NestedConv2d conv(
        {.inputs = 4, .outputs = 6, .kernel = 3, .stride = 2, .padding = 1, .bias = !norm},
        {.present = norm}, {3, {1, 3, 6}, {2, 2, 4}});
    if (norm) {
      conv.norm_weight.copy_(random_tensor({6}, 1));
      conv.norm_bias.copy_(random_tensor({6}, 2));
      conv.running_mean.copy_(random_tensor({3, 6}, 3));
      conv.running_var.copy_(random_tensor({3, 6}, 4).abs() + 0.3);
    }
    conv.eval();
    for (int64_t size = 0; size < 3; ++size) {
      const at::Tensor x = random_tensor({2, size == 2 ? 4 : 2, 5, 7}, 9);
      Meter meter;
      const at::Tensor found = run_size(conv, x, size, &meter);
      BrickPtr alone = conv.pick(size);
      expect_near(run(*alone, x), found, 1e-5);
      EXPECT_EQ(meter.macs(), 2 * alone->cost({x.size(1), 5, 7}).macs);
    }
  }
}

TEST(NestedConv2d, GradientsReachOnlyTheLeadingPart) {
  NestedConv2d conv = small_conv({2, {3, 6}, {2, 4}});
  run_size(conv, random_tensor({3, 2, 4, 4}, 5), 0).square().sum().backward();
  const at::Tensor grad = conv.weight.grad();
  const auto part = grad.narrow(0, 0, 3).narrow(1, 0, 2);
  EXPECT_GT(part.abs().sum().item<double>(), 0);
  EXPECT_EQ(grad.count_nonzero().item<int64_t>(), part.count_nonzero().item<int64_t>());
}

TEST(NestedConv2d, OtherSizesStartWithTheStatisticsOfTheLast) {
  const at::NoGradGuard no_grad;
  NestedConv2d conv = small_conv({2, {3, 6}, {}});
  conv.running_mean.copy_(random_tensor({2, 6}, 3));
  const at::Tensor last = conv.running_mean[1].clone();
  conv.set_sizes({3, {2, 3, 6}, {}});
  ASSERT_EQ(conv.named_buffers()["running_mean"].size(0), 3);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(conv.running_mean[i].equal(last));
  expect_error(Code::unsupported, "2 groups", [] {
    NestedConv2d({.inputs = 4, .outputs = 4, .groups = 2}, {}, {1, {}, {}});
  });
}

TEST(NestedConv2d, MasksStandForOtherUnitsThanTheLeadingOnes) {
  const at::NoGradGuard no_grad;
  NestedConv2d conv = small_conv({2, {3, 6}, {2, 4}});
  conv.eval();
  at::Tensor mask = at::zeros({6});
  mask[1] = mask[4] = 1;
  const std::map<int64_t, at::Tensor> masks = {{6, mask}};
  Context context;
  context.size = 0;
  context.unit_masks = &masks;
  const at::Tensor y = conv.forward(random_tensor({2, 4, 5, 5}, 2), context);
  EXPECT_THAT((y.abs().sum({0, 2, 3}) > 0).to(at::kLong).sum().item<int64_t>(), 2);
  EXPECT_GT(y.select(1, 4).abs().sum().item<double>(), 0);
}

std::shared_ptr<NestedChain> small_chain(std::vector<int64_t> exits, bool pool) {
  auto chain = std::make_shared<NestedChain>(std::move(exits));
  int64_t inputs = 2;
  for (const int64_t outputs : {2, 3, 5}) {
    chain->append(
        fmt::format("conv{}", outputs),
        std::make_shared<Conv2d>(Conv2dOptions{.inputs = inputs, .outputs = outputs, .kernel = 1}));
    inputs = outputs;
  }
  if (pool) chain->append("exit", std::make_shared<Pool2d>("global_avg"));
  chain->check_slots();
  return chain;
}

TEST(NestedChain, RunsTheFirstChildrenThenTheExit) {
  const auto chain = small_chain({1, 2, 3}, true);
  const at::Tensor x = random_tensor({2, 2, 3, 3}, 1);
  EXPECT_THAT(run_size(*chain, x, 0).sizes(), ElementsAre(2, 2));
  EXPECT_THAT(run_size(*chain, x, 1).sizes(), ElementsAre(2, 3));
  EXPECT_THAT(run_size(*chain, x, 2).sizes(), ElementsAre(2, 5));
  EXPECT_THAT(chain->output_shape({2, 3, 3}), ElementsAre(5));
  for (int64_t size = 0; size < 3; ++size) {
    expect_near(run(*chain->pick(size), x), run_size(*chain, x, size));
  }
  EXPECT_THAT(spec_of(*clone(*chain)), ::testing::Eq(spec_of(*chain)));
}

TEST(NestedChain, SaysWhatDoesNotFit) {
  expect_error(Code::config, "exits of nested_chain: expected 1 to 3, found 4", [] {
    small_chain({1, 4}, true);
  });
  expect_error(Code::shape, "ends with 5 x 3 x 3 after 3 children", [] {
    small_chain({1, 3}, false)->output_shape({2, 3, 3});
  });
  expect_error(Code::config, "no children", [] { NestedChain().check_slots(); });
  auto chain = small_chain({}, false);
  chain->append("exit", std::make_shared<Linear>(2, 2));
  expect_error(Code::config, "a brick without weights", [&] { chain->check_slots(); });
}

TEST(Nested, HostileDescriptionsAreRefused) {
  const auto make = [](const char* text) { make_brick(Json::parse(text)); };
  expect_error(Code::config, "rows of nested_linear", [&] {
    make(R"({"kind": "nested_linear", "attributes":
             {"inputs": 2, "outputs": 2, "sizes": 2, "rows": [1, 3]}})");
  });
  expect_error(Code::config, "expected a list of integers", [&] {
    make(R"({"kind": "nested_linear", "attributes":
             {"inputs": 2, "outputs": 2, "sizes": 2, "rows": [1, "a"]}})");
  });
  expect_error(Code::limit, "at most 256", [&] {
    Json rows = Json::array();
    for (int i = 0; i < 300; ++i) rows.push_back(1);
    make_brick({{"kind", "nested_linear"},
                {"attributes", {{"inputs", 2}, {"outputs", 2}, {"sizes", 2}, {"rows", rows}}}});
  });
  expect_error(Code::config, "exits of nested_chain", [&] {
    make(R"({"kind": "nested_chain", "attributes": {"exits": [3]}, "slots": {"a": {"kind":
             "identity"}}})");
  });
}

}  // namespace nested_test
}  // namespace sluice::lab
