#include "sluice/lab/train/distill.h"

#include "sluice/base/random.h"
#include "sluice/lab/inspect/recorder.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/model/text_testing.h"

namespace sluice::lab {
namespace distill_test {

using namespace testing;  // NOLINT: test helpers

TEST(Recorder, KeepsWhatMatchingSlotsGiveAndTake) {
  Model model = text_model("decoder");
  const at::Tensor x = random_input(model, 2, 1);
  Recorder outputs({"blocks.*.ffn", "norm"});
  Recorder inputs({"blocks.1.ffn.down"}, Recorder::What::inputs);
  Context context;
  context.watcher = &outputs;
  model.forward(x, context);
  ASSERT_EQ(outputs.records().size(), 3U);
  EXPECT_EQ(to_string(outputs.records().at("blocks.1.ffn").sizes()), "2 x 12 x 16");
  context.watcher = &inputs;
  model.forward(x, context);
  Context plain;
  expect_near(model.root->slot("blocks")->slot("1")->slot("ffn")->slot("down")->forward(
                  inputs.records().at("blocks.1.ffn.down"), plain),
              outputs.records().at("blocks.1.ffn"));
}

TEST(Distiller, LossIsZeroForTheTeacherItselfAndNamesWhatDoesNotFit) {
  for (const char* name : {"decoder", "encoder"}) {
    const Model teacher = text_model(name);
    Model student = clone(teacher);
    Distiller distiller(teacher, {.features = {{"blocks.*"}, {"blocks.1.attn", "", 0.5}}});
    const DistillBatch batch{random_input(teacher, 2, 4), {}};
    const DistillLoss same = distiller.loss(student, batch);
    EXPECT_NEAR(same.total.item<double>(), 0, 1e-6);
    const at::NoGradGuard no_grad;
    student.root->slot("blocks")->slot("0")->slot("ffn")->slot("up").as<Linear>().weight *= 0.5;
    const DistillLoss changed = distiller.loss(student, batch);
    EXPECT_GT(changed.features, 1e-4);
    EXPECT_GT(changed.output, 1e-6);
  }
  const Model teacher = text_model("decoder");
  Model student = clone(teacher);
  const DistillBatch batch{random_input(teacher, 2, 4), {}};
  expect_error(Code::usage, "'blocks.*' names 2 slots of the student, 'blocks.0' 1", [&] {
    Distiller(teacher, {.features = {{"blocks.*", "blocks.0"}}}).loss(student, batch);
  });
  expect_error(Code::shape, "blocks.0.ffn.up", [&] {
    Distiller(teacher, {.features = {{"blocks.0.ffn.up", "blocks.0.ffn"}}}).loss(student, batch);
  });
  expect_error(Code::config, "kl, mse, cosine or probabilities",
               [&] { Distiller(teacher, {.output = "l1"}); });
}

TEST(Distiller, DoesNotCountPadding) {
  const Model teacher = text_model("encoder");
  Model student = run_pass(teacher, "prune", with({{"granularity", "neuron"}, {"rate", 0.5}}));
  Distiller distiller(teacher, {.features = {{"blocks.*"}}});
  const at::NoGradGuard no_grad;
  const EvaluationMode evaluation(*student.root);
  const at::Tensor ids = probe_input(teacher, 1, 7, 6);
  const DistillLoss plain = distiller.loss(student, {ids, at::full({1}, 6, at::kLong)});
  const at::Tensor padded = at::cat({ids, at::zeros({1, 4}, ids.options())}, 1);
  const DistillLoss found = distiller.loss(student, {padded, at::full({1}, 6, at::kLong)});
  EXPECT_GT(plain.features, 0);
  EXPECT_NEAR(found.features, plain.features, 1e-5 * plain.features);
}

TEST(Tune, DrawsADamagedStudentBackToItsTeacher) {
  for (const char* name : {"decoder", "encoder"}) {
    const Model teacher = text_model(name);
    Model student = run_pass(teacher, "prune", with({{"granularity", "neuron"}, {"rate", 0.5}}));
    student = run_pass(student, "slice-channels", {});
    Distiller distiller(teacher, {.features = {{"blocks.*"}}});
    TuneOptions options;
    options.steps = 80;
    options.optimizer.rate = 5e-3;
    const auto loss_of_one_batch = [&] {
      const at::NoGradGuard no_grad;
      const EvaluationMode evaluation(*student.root);
      return distiller.loss(student, {probe_input(teacher, 8, 99, 12), {}}).total.item<double>();
    };
    const double before = loss_of_one_batch();
    tune(
        student, distiller,
        [&](int64_t step) {
          return DistillBatch{probe_input(teacher, 8, derive_seed(1, "batch", uint64_t(step)), 12),
                              {}};
        },
        options);
    EXPECT_LT(loss_of_one_batch(), 0.6 * before) << name;
  }
}

/// What the student's gates open of `x`, in evaluation mode.
double open_share(Model& student, const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  const EvaluationMode evaluation(*student.root);
  GateLog log;
  Context context;
  context.gate_log = &log;
  student.forward(x, context);
  return GateBudget(*student.root, {}).open_share(log, {}).item<double>();
}

TEST(Tune, GatesOpenWhatTheBudgetSays) {
  const std::pair<const char*, const char*> cases[] = {
      {"decoder", "neuron"}, {"decoder", "token"}, {"decoder", "head"}, {"encoder", "neuron"}};
  for (const auto& [name, granularity] : cases) {
    SCOPED_TRACE(std::string(name) + " " + granularity);
    const Model teacher = text_model(name);
    Model student = run_pass(teacher, "insert-gates", with({{"granularity", granularity}}));
    const at::Tensor seen = random_input(student, 8, 90);
    EXPECT_EQ(open_share(student, seen), 1);
    Distiller distiller(teacher, {});
    TuneOptions options;
    options.steps = 80;
    options.optimizer.rate = 1e-3;
    options.gates = GateBudgetOptions{.open = 0.5, .weight = 10, .rate = 3e-2};
    tune(
        student, distiller,
        [&](int64_t step) {
          return DistillBatch{random_input(student, 6, static_cast<uint64_t>(step)), {}};
        },
        options);
    EXPECT_NEAR(open_share(student, seen), 0.5, 0.1);
  }
}

TEST(Tune, WithoutABudgetGatesThatCannotMoveAreNoError) {
  const Model teacher = text_model("decoder");
  Model student =
      run_pass(teacher, "insert-gates", with({{"granularity", "neuron"}, {"decision", "top_k"}}));
  Distiller distiller(teacher, {});
  TuneOptions options;
  options.steps = 2;
  const auto batches = [&](int64_t step) {
    return DistillBatch{random_input(student, 2, static_cast<uint64_t>(step)), {}};
  };
  EXPECT_EQ(tune(student, distiller, batches, options).steps, 2);
  options.gates.emplace();
  expect_error(Code::usage, "can learn how much it opens",
               [&] { tune(student, distiller, batches, options); });
}

}  // namespace distill_test
}  // namespace sluice::lab
