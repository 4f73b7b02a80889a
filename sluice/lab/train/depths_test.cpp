#include "sluice/lab/train/depths.h"

#include "sluice/base/json.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::lab {
namespace depths_test {

using namespace testing;  // NOLINT: test helpers

Model decoder(bool nested) {
  Model model = make_model("decoder",
                           {{"vocab", 20},
                            {"layers", 3},
                            {"width", 16},
                            {"heads", 2},
                            {"ffn", 24},
                            {"context", 8},
                            {"init_std", 0.2}},
                           5);
  return nested ? run_pass(model, "nest", with({{"widths", {1}}, {"depths", {1, 2, 3}}})) : model;
}

/// Ids that count up.
class Counting final : public BatchSource {
 public:
  int64_t count() const override { return 20; }
  using BatchSource::at_step;
  Batch at_step(int64_t step, int64_t, uint64_t, int64_t first, int64_t samples) override {
    const at::Tensor start = (at::arange(first, first + samples, at::kLong) + step).unsqueeze(1);
    const at::Tensor ids = (start + at::arange(9, at::kLong)).remainder(20);
    return {ids.narrow(1, 0, 8).contiguous(), ids.narrow(1, 1, 8).contiguous()};
  }
  void check_batch(int64_t) const override {}
};

TEST(AllDepths, GivesWhatEverySizeOfTheNestedNetworkGives) {
  Model nested = decoder(true);
  nested.root->eval();
  AllDepths all(nested.root, {1, 3});
  const at::Tensor x = random_input(nested, 2, 4);
  const at::NoGradGuard no_grad;
  const at::Tensor found = run(all, x);
  ASSERT_EQ(found.size(1), 2 * x.size(1));
  Context shallow;
  shallow.size = 0;
  expect_near(found.narrow(1, 0, x.size(1)), nested.forward(x, shallow));
  expect_near(found.narrow(1, x.size(1), x.size(1)), run(nested, x));
  EXPECT_EQ(all.output_shape({4}), (Shape{8, 20}));
  bundle::Builder builder;
  expect_error(Code::unsupported, "write the decoder",
               [&] { all.lower(builder, builder.input("x", {4}), "x"); });
  expect_error(Code::config, "ascending numbers from 1 to all 3 blocks", [&] {
    AllDepths(nested.root, {1, 2});
  });
}

TEST(AllDepths, OneStepIsTheMeanOverTheSizes) {
  TrainOptions options;
  options.steps = 1;
  options.batch = 4;
  options.title = "";
  options.optimizer.kind = "sgd";
  Counting source;
  Model by_sizes = decoder(true), at_once = decoder(true);
  TrainHooks hooks;
  hooks.sizes = [](int64_t) { return std::vector<int64_t>{0, 1, 2}; };
  Trainer(by_sizes, source, options, hooks).run();
  const BrickPtr root = at_once.root;
  at_once.root = std::make_shared<AllDepths>(root, std::vector<int64_t>{1, 2, 3});
  RepeatedLabels labels(source, 3);
  Trainer(at_once, labels, options).run();
  const auto expected = named_state(*by_sizes.root), found = named_state(*root);
  ASSERT_EQ(expected.size(), found.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].first, expected[i].first);
    expect_near(found[i].second, expected[i].second, 1e-5);
  }
}

TEST(AllDepths, HeadsOfTheirOwnLearnAndTheDecoderStays) {
  Model model = decoder(false);
  const BrickPtr root = model.root;
  const auto before = clone(*root);
  model.root = std::make_shared<AllDepths>(root, std::vector<int64_t>{1, 2, 3}, true);
  TrainOptions options;
  options.steps = 30;
  options.batch = 4;
  options.title = "";
  options.optimizer = {.kind = "adamw", .rate = 1e-2, .weight_decay = 0};
  Counting source;
  RepeatedLabels labels(source, 3);
  const TrainResult result = Trainer(model, labels, options).run();
  EXPECT_LT(result.curve.back().loss, result.curve.front().loss);
  const auto old = named_state(*before), now = named_state(*root);
  for (size_t i = 0; i < now.size(); ++i) EXPECT_TRUE(at::equal(now[i].second, old[i].second));
}

}  // namespace depths_test
}  // namespace sluice::lab
