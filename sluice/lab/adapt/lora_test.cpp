#include "sluice/lab/adapt/lora.h"

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/model/text_testing.h"
#include "sluice/lab/train/distill.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace lora_test {

using namespace testing;  // NOLINT: test helpers

/// As after training: B is not 0.
void learn(Model& model) {
  for (const auto& item : model.root->named_parameters()) {
    if (!path_matches("**.lora_b", item.key())) continue;
    at::Tensor values = item.value().detach();
    fill_uniform(values, 0.3, std::hash<std::string>()(item.key()));
  }
}

int64_t parameters_that_learn(const Model& model) {
  int64_t count = 0;
  for (const auto& item : model.root->named_parameters()) {
    count += item.value().requires_grad() ? item.value().numel() : 0;
  }
  return count;
}

TEST(LoraLinear, AddsTheProductOfItsTwoMatrices) {
  auto base = std::make_shared<Linear>(5, 3);
  auto layer = LoraLinear::of(base, 2, 0.5);
  const at::Tensor x = random_tensor({2, 4, 5}, 1);
  EXPECT_TRUE(at::equal(run(*layer, x), run(*base, x)));
  {
    const at::NoGradGuard no_grad;
    layer->lora_b.copy_(random_tensor({3, 2}, 2));
  }
  const at::Tensor weight = base->weight + 0.5 * layer->lora_b.mm(layer->lora_a);
  expect_near(run(*layer, x), at::linear(x, weight, base->bias), 1e-6);
  expect_near(run(*layer->folded(), x), run(*layer, x), 1e-6);
  EXPECT_FALSE(layer->base().weight.requires_grad());
  EXPECT_FALSE(layer->base().bias.requires_grad());
  EXPECT_EQ(layer->cost({4, 5}).macs, 4 * (15 + 2 * (5 + 3)));
  Meter meter;
  Context context;
  context.meter = &meter;
  layer->forward(x, context);
  EXPECT_EQ(meter.macs(), 2 * layer->cost({4, 5}).macs);
}

TEST(LoraLinear, RefusesWhatDoesNotFit) {
  expect_error(Code::config, "rank of lora_linear", [] { LoraLinear({4, 4, 0}); });
  expect_error(Code::config, "scale of lora_linear", [] { LoraLinear({4, 4, 1, NAN}); });
  expect_error(Code::config, "base", [] {
    make_brick({{"kind", "lora_linear"},
                {"attributes", {{"inputs", 4}, {"outputs", 4}, {"rank", 2}}},
                {"slots", {{"base", nullptr}}}});
  });
  expect_error(Code::config, "4 -> 4, found 5 -> 4", [] {
    make_brick({{"kind", "lora_linear"},
                {"attributes", {{"inputs", 4}, {"outputs", 4}, {"rank", 2}}},
                {"slots",
                 {{"base",
                   {{"kind", "linear"},
                    {"attributes", {{"inputs", 5}, {"outputs", 4}}},
                    {"slots", Json::object()}}}}}});
  });
}

TEST(Lora, FreshOnesChangeNothingAndFoldingKeepsWhatTheyLearnt) {
  for (const char* name : {"decoder", "encoder"}) {
    const Model model = text_model(name);
    Model adapted = run_pass(model, "add-lora", with({{"rank", 3}, {"scale", 2.0}}));
    expect_equal_and_reloadable(model, adapted, "fresh side paths");
    learn(adapted);
    const at::Tensor x = random_input(model, 2, 4);
    EXPECT_GT(relative_error(run(adapted, x), run(const_cast<Model&>(model), x)), 0.01);
#if SLUICE_HAS_ENGINE
    EXPECT_LT(engine_error(adapted, x), 1e-5);
#endif
    Model folded = run_pass(adapted, "fold-lora", {});
    expect_equal_and_reloadable(adapted, folded, "folded");
    EXPECT_EQ(folded.cost().macs, model.cost().macs);
    EXPECT_EQ(folded.cost().params, model.cost().params);
    EXPECT_EQ(run_pass(folded, "fold-lora", {}).provenance.back()["report"]["layers"].size(), 0u);
  }
}

TEST(Lora, ReloadedLayersStillDoNotLearn) {
  const Model adapted = run_pass(text_model(), "add-lora", with({{"slots", "blocks.*.attn.*"}}));
  const Model other = clone(adapted);
  // All but q, k, v and o of two blocks, and with them rank 8 of each.
  EXPECT_EQ(parameters_that_learn(other), adapted.cost().params - 2 * 4 * 16 * 16);
  expect_error(Code::usage, "has a side path already", [&] {
    run_pass(adapted, "add-lora", with({{"slots", "blocks.*.attn.**"}}));
  });
  expect_error(Code::unsupported, "no linear layer", [&] {
    run_pass(adapted, "add-lora", with({{"slots", "norm"}}));
  });
  const Model masked = run_pass(text_model(), "prune", with({{"granularity", "neuron"}}));
  expect_error(Code::usage, "blocks.0.ffn.down are masked",
               [&] { run_pass(masked, "add-lora", {}); });
  EXPECT_NO_THROW(run_pass(masked, "add-lora", with({{"slots", "blocks.*.attn.*"}})));
}

TEST(Lora, LearnsWhileTheLayerStays) {
  const Model teacher = text_model();
  Model student = run_pass(teacher, "add-lora", with({{"rank", 4}}));
  {
    const at::NoGradGuard no_grad;  // what it has to mend
    student.root->slot("blocks")
        ->slot("0")
        ->slot("ffn")
        ->slot("up")
        .as<LoraLinear>()
        .base()
        .weight *= 0.7;
  }
  for (const auto& item : student.root->named_parameters()) {
    if (!path_matches("**.lora_*", item.key())) at::Tensor(item.value()).set_requires_grad(false);
  }
  const Model start = clone(student);
  Distiller distiller(teacher, {});
  const TuneResult result =
      tune(student, distiller,
           [&](int64_t step) {
             return DistillBatch{random_input(teacher, 4, static_cast<uint64_t>(step)), {}};
           },
           {.steps = 60, .optimizer = {.kind = "adamw", .rate = 1e-2}});
  EXPECT_LT(result.last_loss, 0.6 * result.first_loss);
  const auto before = start.root->named_parameters();
  for (const auto& item : student.root->named_parameters()) {
    const bool side = path_matches("**.lora_*", item.key());
    EXPECT_EQ(at::equal(item.value(), before[item.key()]), !side) << item.key();
  }
}

}  // namespace lora_test
}  // namespace sluice::lab
