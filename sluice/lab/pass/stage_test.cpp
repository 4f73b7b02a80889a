#include "sluice/lab/pass/stage.h"

#include "sluice/base/temp_directory.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/pass/pass.h"

namespace sluice::lab {
namespace stage_test {

using namespace testing;  // NOLINT: test helpers

at::Tensor run(Model& model, const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  model.root->eval();
  Context context;
  return model.forward(x, context);
}

Model convnet() { return small_model("convnet", 3, {{"widths", {4, 6}}, {"hidden", 10}}); }

TEST(Stages, GoOneAfterAnotherAndComeTogetherAgain) {
  Model model = convnet();
  std::vector<std::string> names;
  for (const auto& slot : model.root->slots()) names.push_back(slot->name());
  const at::Tensor x = random_input(model, 3, 1), expected = run(model, x);
  for (const std::vector<std::string>& before :
       {std::vector<std::string>{}, {names[1]}, {names[2], names[5]}}) {
    std::vector<Model> stages = split(model, before);
    ASSERT_EQ(stages.size(), before.size() + 1);
    at::Tensor y = x;
    for (Model& stage : stages) {
      EXPECT_EQ(stage.input_shape, Shape(y.sizes().begin() + 1, y.sizes().end()));
      y = run(stage, y);
    }
    EXPECT_TRUE(at::equal(y, expected));
    Model whole = assemble(stages);
    EXPECT_EQ(spec_of(*whole.root), spec_of(*model.root));
    EXPECT_TRUE(at::equal(run(whole, x), expected));
    EXPECT_EQ(whole.task.labels, model.task.labels);
    EXPECT_EQ(whole.task.mean, model.task.mean);
    // Parts are networks of their own: they share nothing, and are saved and read.
    const at::NoGradGuard no_grad;
    for (const at::Tensor& parameter : stages[0].root->parameters()) at::Tensor(parameter).zero_();
    EXPECT_TRUE(at::equal(run(model, x), expected));
  }
  const TempDirectory folder;
  Model tail = split(model, {names[2]})[1];
  save_bundle(tail, folder / "tail.safetensors");
  Model loaded = load_model(folder / "tail.safetensors");
  const at::Tensor features = random_input(tail, 2, 4);
  EXPECT_TRUE(at::equal(run(loaded, features), run(tail, features)));
}

TEST(Stages, OneTakesThePlaceOfAnother) {
  Model model = convnet();
  const std::string second = model.root->slots()[4]->name();
  std::vector<Model> stages = split(model, {second}),
                     others = split(small_model("convnet", 9, {{"widths", {4, 6}}, {"hidden", 10}}),
                                    {second});
  substitute(stages, 0, others[0]);
  Model mixed = assemble(stages);
  const at::Tensor x = random_input(model, 2, 1);
  EXPECT_TRUE(at::equal(run(mixed, x), run(stages[1], run(others[0], x))));
  EXPECT_FALSE(at::equal(run(mixed, x), run(model, x)));
  EXPECT_EQ(mixed.task.labels, model.task.labels);
  // The same part twice: its slots get names of their own.
  Model square = small_model("mlp", 4, {{"hidden", {8, 8}}});
  std::vector<Model> parts = split(square, {"fc2", "fc3"});
  parts.insert(parts.begin() + 1, clone(parts[1]));
  Model deeper = assemble(parts);
  EXPECT_TRUE(deeper.root->has_slot("fc2_2"));
  const at::Tensor y = random_input(square, 2, 3);
  EXPECT_TRUE(
      at::equal(run(deeper, y), run(parts[3], run(parts[1], run(parts[1], run(parts[0], y))))));
}

TEST(Stages, RefuseWhatDoesNotFit) {
  Model model = small_model("mlp", 4, {{"hidden", {8, 6}}});
  expect_error(Code::usage, "the nearest is 'fc2'", [&] { split(model, {"fc22"}); });
  expect_error(Code::usage, "behind the first one",
               [&] { split(model, {model.root->slots()[0]->name()}); });
  expect_error(Code::usage, "behind 'fc3'", [&] { split(model, {"fc3", "fc2"}); });
  expect_error(Code::unsupported, "expected a sequential",
               [&] { split(small_model("vit", 1), {}); });
  PassInput input;
  input.options = {{"widths", {0.5, 1}}};
  Model nested = run_pass(model, "nest", input);
  expect_error(Code::usage, "2 sizes; keep one first", [&] { split(nested, {"fc2"}); });
  std::vector<Model> stages = split(model, {"fc2"});
  expect_error(Code::usage, "stage 2; there are 2", [&] { substitute(stages, 2, model); });
  expect_error(Code::shape, "the replacement makes", [&] { substitute(stages, 0, model); });
  expect_error(Code::shape, "stage 1 takes 8, stage 0 gives 4", [&] {
    assemble({model, stages[1]});
  });
  expect_error(Code::usage, "no stages", [] { assemble({}); });
}

}  // namespace stage_test
}  // namespace sluice::lab
