// Surgery on transformers.
#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/embedding.h"
#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/brick/norms.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/quant/quant_embedding.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace text_pass_test {

using namespace testing;  // NOLINT: test helpers

Model text_model(const std::string& name, Json changes = Json::object(), uint64_t seed = 3) {
  Json options = {{"vocab", 40}, {"layers", 2},   {"width", 16}, {"heads", 4},     {"head_dim", 6},
                  {"ffn", 14},   {"context", 16}, {"block", 9},  {"init_std", 0.3}};
  for (const auto& [key, value] : changes.items()) options[key] = value;
  Model model = make_model(name, options, seed);
  const at::NoGradGuard no_grad;
  for (const auto& [path, tensor] : named_state(*model.root)) {
    if (tensor.dim() == 1) tensor.add_(random_tensor(tensor.sizes(), ++seed) * 0.3);
  }
  model.root->eval();
  return model;
}

std::vector<Model> text_models() {
  return {text_model("decoder", {{"kv_heads", 2}}),
          text_model("decoder", {{"tied", false},
                                 {"norm", "layer"},
                                 {"gated", false},
                                 {"bias", true},
                                 {"activation", "gelu"}}),
          text_model("encoder")};
}

void expect_engine_agrees(Model& model) {
#if SLUICE_HAS_ENGINE
  EXPECT_LE(engine_error(model, random_input(model, 2, 50)), 1e-5);
#endif
}

TEST(PruneTransformers, MasksCloseNeuronsAndHeadsAndSlicingRemovesThem) {
  for (Model& model : text_models()) {
    for (const char* score : {"magnitude", "random", "activation"}) {
      Model masked = model;
      for (const char* unit : {"neuron", "head"}) {
        PassInput input = with({{"granularity", unit}, {"rate", 0.5}, {"score", score}});
        input.calibration = random_input(model, 3, 8);
        masked = run_pass(masked, "prune", input);
      }
      EXPECT_EQ(masked.cost().params, model.cost().params);
      EXPECT_GT(relative_error(run(masked, random_input(model, 2, 1)),
                               run(model, random_input(model, 2, 1))),
                1e-3);
      expect_engine_agrees(masked);
      Model sliced = run_pass(masked, "slice-channels", {});
      expect_equal_and_reloadable(masked, sliced, score);
      expect_engine_agrees(sliced);
      const Brick& block = *sliced.root->slot("blocks")->slot("0");
      EXPECT_EQ(block.slot("ffn")->slot("down").as<Linear>().inputs(), 7);
      EXPECT_TRUE(block.slot("ffn")->slot("neuron_gate").empty());
      const int64_t kv =
          model.root->slot("blocks")->slot("0")->slot("attn")->slot("k").as<Linear>().outputs() / 6;
      EXPECT_EQ(block.slot("attn")->slot("k").as<Linear>().outputs(), kv / 2 * 6);
      EXPECT_EQ(block.slot("attn")->slot("o").as<Linear>().inputs(), 12);
      EXPECT_LT(sliced.cost().macs, model.cost().macs);
    }
  }
}

TEST(PruneTransformers, KeepsWhatMattersMost) {
  Model model = text_model("decoder");
  const at::NoGradGuard no_grad;
  auto& ffn = model.root->slot("blocks")->slot("0")->slot("ffn").as<Ffn>();
  for (const int64_t neuron : {3L, 9L})
    ffn.slot("down").as<Linear>().weight.select(1, neuron) *= 50;
  for (const char* score : {"magnitude", "activation"}) {
    PassInput input = with({{"granularity", "neuron"}, {"rate", 0.8}, {"score", score}});
    input.calibration = random_input(model, 3, 8);
    const Model pruned = run_pass(model, "prune", input);
    Brick& after = *pruned.root->slot("blocks")->slot("0")->slot("ffn");
    const at::Tensor mask = after.channel_mask(after.channel_groups().at(0));
    EXPECT_EQ(mask.sum().item<float>(), 3) << score;
    EXPECT_EQ(mask[3].item<float>() + mask[9].item<float>(), 2) << score;
  }
  expect_error(Code::usage, "no group of channels", [&] {
    run_pass(model, "prune", with({{"granularity", "channel"}}));
  });
  expect_error(Code::usage, "needs calibration data", [&] {
    run_pass(model, "prune", with({{"granularity", "head"}, {"score", "activation"}}));
  });
  expect_error(Code::config, "'neuron' or 'head'", [&] {
    run_pass(model, "prune", with({{"granularity", "heads"}}));
  });
}

TEST(PruneTransformers, LastUnitsStay) {
  Model model = text_model("decoder");
  for (const char* unit : {"neuron", "head"}) {
    model = run_pass(model, "prune", with({{"granularity", unit}, {"rate", 1.0}}));
  }
  const Model sliced = run_pass(model, "slice-channels", {});
  expect_equal_and_reloadable(model, sliced, "one of each");
}

TEST(FoldNorm, PutsScalesAndShiftsIntoTheLayersThatReadThem) {
  for (Model& model : text_models()) {
    Model folded = run_pass(model, "fold-norm", {});
    expect_equal_and_reloadable(model, folded, "folded");
    expect_engine_agrees(folded);
    const Json paths = folded.provenance.back()["report"]["folded"];
    const bool encoder = model.task.kind == "embed";
    const bool tied = !encoder && model.root->slot("head").empty();
    EXPECT_EQ(paths.size(), encoder ? 0U : tied ? 4U : 5U);
  }
}

TEST(RotateResidual, ChangesWeightsAndNoOutput) {
  for (const bool tied : {true, false}) {
    Model model = text_model("decoder", {{"tied", tied}, {"qk_norm", true}, {"bias", true}});
    const Model rotated = run_pass(model, "rotate-residual", with({{"seed", 5}}));
    expect_equal_and_reloadable(model, rotated, "rotated");
    const at::Tensor before = model.root->slot("embed").as<Embedding>().weight;
    const at::Tensor after = rotated.root->slot("embed").as<Embedding>().weight;
    EXPECT_GT(relative_error(after, before), 0.5);
    EXPECT_NEAR(after.norm().item<double>(), before.norm().item<double>(), 1e-3);
  }
  expect_error(Code::unsupported, "layer_norm", [] {
    run_pass(text_model("decoder", {{"norm", "layer"}}), "rotate-residual", {});
  });
  expect_error(Code::unsupported, "text_encoder",
               [] { run_pass(text_model("encoder"), "rotate-residual", {}); });
}

TEST(QuantizeTransformers, PacksLayersTablesAndTiedHeads) {
  for (Model& model : text_models()) {
    for (const char* format : {"bf16", "i8", "i8-32", "i4-32", "ternary"}) {
      Model packed = run_pass(model, "quantize", with({{"format", format}}));
      const bool table =
          dynamic_cast<const QuantEmbedding*>(packed.root->slot("embed").get().get()) != nullptr;
      EXPECT_EQ(table, std::string(format) != "ternary");
      EXPECT_LT(packed.cost().weight_bytes, model.cost().weight_bytes);
      EXPECT_EQ(packed.cost().params, model.cost().params);
      const TempDirectory folder;
      save_bundle(packed, folder / "m.safetensors");
      Model loaded = load_model(folder / "m.safetensors");
      const at::Tensor x = random_input(model, 2, 4);
      EXPECT_TRUE(at::equal(run(loaded, x), run(packed, x))) << format;
#if SLUICE_HAS_ENGINE
      EXPECT_LE(engine_error(packed, x), 1e-4) << format;
#endif
      Model back = run_pass(packed, "dequantize", {});
      EXPECT_LE(relative_error(run(back, x), run(packed, x)), 1e-5);
    }
  }
}

TEST(PassesOnTransformers, KeepFunctionWhereTheySaySo) {
  for (Model& model : text_models()) {
    Model masked = run_pass(model, "prune", with({{"granularity", "neuron"}, {"rate", 0.3}}));
    for (const PassEntry* pass : all_passes()) {
      const std::string& name = pass->info.name;  // nest and add-lora take no masks: their tests
      if (!pass->info.keeps_function || name == "rotate-residual" || name == "nest" ||
          name == "add-exits" || name == "add-lora" || name.starts_with("test-"))
        continue;
      expect_equal_and_reloadable(masked, run_pass(masked, pass->info.name, {}), pass->info.name);
    }
  }
}

}  // namespace text_pass_test
}  // namespace sluice::lab
