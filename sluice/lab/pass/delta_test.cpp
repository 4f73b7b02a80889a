#include "sluice/lab/pass/delta.h"

#include <gmock/gmock.h>
#include <torch/types.h>

#include "sluice/base/json.h"
#include "sluice/lab/train/train_testing.h"

namespace sluice::lab {
namespace delta_test {

using testing::expect_same_state;

PassInput with(Json options) {
  PassInput input;
  input.options = std::move(options);
  return input;
}

/// The model after some steps.
Model tuned(const Model& base, int64_t steps = 15) {
  Model model = clone(base);
  auto feed = testing::train_feed();
  TrainOptions options;
  options.steps = steps;
  options.batch = 32;
  options.title = "";
  options.seed = uint64_t(steps);
  Trainer(model, feed, options).run();
  return model;
}

TEST(ApplyDelta, GivesTheTunedNetworkAndTheBaseAgain) {
  const TempDirectory folder;
  const Model base = testing::small_resnet();  // batch norm statistics are part of it
  const Model after = tuned(base);
  const std::string file = folder / "d.safetensors";
  bundle::write_delta(file, make_delta(base, after, {.density = 1}));
  Model there = run_pass(base, "apply-delta", with({{"file", file}}));
  expect_same_state(*there.root, *after.root);
  Model back = run_pass(there, "apply-delta", with({{"file", file}, {"scale", -1}}));
  expect_same_state(*back.root, *base.root);
  const Json report = back.provenance.back()["report"];
  EXPECT_EQ(report["exact"], report["entries"]);
  // Through files as well.
  save_bundle(there, folder / "there.safetensors");
  expect_same_state(*run_pass(load_model(folder / "there.safetensors"), "apply-delta",
                              with({{"file", file}, {"scale", -1}}))
                         .root,
                    *base.root);
}

TEST(ApplyDelta, SparseOnesOfOneBaseAddUp) {
  const TempDirectory folder;
  const Model base = testing::small_mlp();
  bundle::DeltaSummary summary;
  bundle::write_delta(folder / "a", make_delta(base, tuned(base, 15),
                                               {.density = 0.05, .pattern = "fc1.**"}, &summary));
  EXPECT_EQ(summary.kept, std::llround(0.05 * double(summary.weights)));
  bundle::write_delta(folder / "b",
                      make_delta(base, tuned(base, 10), {.density = 0.5, .pattern = "fc2.**"}));
  Model both = run_pass(run_pass(base, "apply-delta", with({{"file", folder / "a"}})),
                        "apply-delta", with({{"file", folder / "b"}}));
  Model first_off = run_pass(both, "apply-delta", with({{"file", folder / "a"}, {"scale", -1}}));
  Model none = run_pass(first_off, "apply-delta", with({{"file", folder / "b"}, {"scale", -1}}));
  expect_same_state(*none.root, *base.root);
  // A few of the weights that changed most do more good than none.
  bundle::write_delta(folder / "c", make_delta(base, tuned(base, 60), {.density = 0.2}));
  Model model = clone(base), few = run_pass(base, "apply-delta", with({{"file", folder / "c"}}));
  EXPECT_LT(evaluate(few, testing::test_feed()).loss, evaluate(model, testing::test_feed()).loss);
}

TEST(ApplyDelta, KnowsItsBase) {
  const TempDirectory folder;
  const Model base = testing::small_mlp();
  const std::string file = folder / "d";
  bundle::write_delta(file, make_delta(base, tuned(base), {}));
  const auto apply = [&](const Model& model, Json options = Json::object()) {
    options["file"] = file;
    return run_pass(model, "apply-delta", with(options));
  };
  expect_error(Code::config, "it is of another model: its base has the digest",
               [&] { apply(testing::small_mlp(/*seed=*/6)); });
  expect_error(Code::config, "force=true", [&] { apply(tuned(base)); });
  EXPECT_NO_THROW(apply(tuned(base), {{"force", true}}));
  expect_error(Code::missing, "this one has no floats 'fc",
               [&] { apply(testing::small_resnet()); });
  expect_error(Code::shape, "it is of another model: 'fc1.bias' is 16 there, 8 here", [&] {
    apply(make_model("mlp", {{"hidden", {8}}}, testing::blobs(), 5));
  });
  // Once something else was done, the weights are no longer the base's and its deltas'.
  Model changed = apply(base);
  changed = run_pass(changed, "prune", with({{"rate", 0.5}}));
  expect_error(Code::config, "another model", [&] { apply(changed, {{"scale", -1}}); });
  expect_error(Code::config, "scale", [&] { apply(base, {{"scale", "much"}}); });
  expect_error(Code::missing, "none.safetensors", [&] {
    run_pass(base, "apply-delta", with({{"file", "none.safetensors"}}));
  });
  expect_error(Code::shape, "they differ at",
               [&] { make_delta(base, testing::small_resnet(), {}); });
  expect_error(Code::numeric, "its difference makes", [&] { apply(base, {{"scale", 1e300}}); });
}

}  // namespace delta_test
}  // namespace sluice::lab
