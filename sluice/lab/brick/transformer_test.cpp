#include "sluice/lab/brick/transformer.h"

#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/embedding.h"
#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/brick/norms.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace transformer_test {

using namespace testing;  // NOLINT: test helpers
using ::testing::ElementsAre;

/// Names and options of tiny models of each kind, all sizes different.
std::vector<std::pair<std::string, Json>> tiny_models() {
  const Json decoder = {{"vocab", 23}, {"layers", 2},   {"width", 12}, {"heads", 3},
                        {"ffn", 10},   {"context", 16}, {"block", 7},  {"init_std", 0.3}};
  const auto with = [&](std::initializer_list<std::pair<const char*, Json>> changes) {
    Json options = decoder;
    for (const auto& [key, value] : changes) options[key] = value;
    return options;
  };
  return {
      {"decoder", decoder},
      {"decoder", with({{"heads", 6},
                        {"kv_heads", 2},
                        {"head_dim", 4},
                        {"window", 3},
                        {"tied", false},
                        {"qk_norm", true}})},
      {"decoder", with({{"norm", "layer"},
                        {"positions", "learned"},
                        {"gated", false},
                        {"activation", "gelu_tanh"},
                        {"bias", true}})},
      {"encoder", with({{"normalize", false}})},
      {"encoder", with({{"positions", "rope"},
                        {"head_dim", 6},
                        {"order", "pre"},
                        {"norm", "rms"},
                        {"pooling", "first"}})},
  };
}

Model tiny(size_t index, uint64_t seed = 3) {
  const auto [name, options] = tiny_models().at(index);
  Model model = make_model(name, options, seed);
  const at::NoGradGuard no_grad;
  for (const auto& [path, tensor] : named_state(*model.root)) {  // norms and biases that matter
    if (tensor.dim() == 1) tensor.add_(random_tensor(tensor.sizes(), ++seed) * 0.3);
  }
  model.root->eval();
  return model;
}

TEST(Attention, IsTheFormulaHeadByHead) {
  AttentionOptions options;
  options.head_dim = 2;
  options.window = 2;
  options.rope = {.dims = 2, .base = 100, .scale = 2};
  BrickPtr brick = make_attention(options, {.width = 4, .heads = 4, .kv_heads = 2, .bias = true});
  brick->to(at::kDouble);
  const auto weight = [&](const char* slot) { return brick->slot(slot).as<Linear>().weight; };
  const auto bias = [&](const char* slot) { return brick->slot(slot).as<Linear>().bias; };
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_tensor({1, 5, 4}, 1).to(at::kDouble);
  const auto turn = [](at::Tensor row, int64_t t) {
    const double angle = static_cast<double>(t) / 2;  // base^0 = 1
    const double a = row[0].item<double>(), b = row[1].item<double>();
    return torch::tensor(
        {a * std::cos(angle) - b * std::sin(angle), b * std::cos(angle) + a * std::sin(angle)},
        at::kDouble);
  };
  at::Tensor mixed = at::zeros({5, 8}, at::kDouble);
  for (int64_t h = 0; h < 4; ++h) {
    for (int64_t t = 0; t < 5; ++t) {
      const auto part = [&](const char* slot, int64_t head, int64_t row) {
        return (at::linear(x[0][row], weight(slot), bias(slot))).narrow(0, 2 * head, 2);
      };
      std::vector<double> scores;
      double sum = 0;
      const int64_t first = std::max<int64_t>(0, t - 1);
      for (int64_t j = first; j <= t; ++j) {
        const double dot =
            turn(part("q", h, t), t).dot(turn(part("k", h / 2, j), j)).item<double>();
        scores.push_back(std::exp(dot / std::sqrt(2)));
        sum += scores.back();
      }
      for (int64_t j = first; j <= t; ++j) {
        mixed[t].narrow(0, 2 * h, 2) +=
            part("v", h / 2, j) * scores[static_cast<size_t>(j - first)] / sum;
      }
    }
  }
  expect_near(run(*brick, x), at::linear(mixed, weight("o")).unsqueeze(0), 1e-12);
}

TEST(Attention, LengthsHideTheRestOfASample) {
  Model model = tiny(3);
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_input(model, 2, 5);
  Context context;
  context.lengths = torch::tensor({4L, 7L});
  const at::Tensor both = model.forward(x, context);
  Context alone;
  expect_near(both[0], model.forward(x.narrow(0, 0, 1).narrow(1, 0, 4), alone)[0], 1e-6);
  expect_near(both[1], model.forward(x.narrow(0, 1, 1), alone)[0], 1e-6);
}

TEST(Decoder, RowsDependOnThePastOnly) {
  Model model = tiny(0);
  const at::Tensor x = random_input(model, 1, 5);
  at::Tensor other = x.clone();
  other.narrow(1, 4, 3) = (other.narrow(1, 4, 3) + 1).remainder(23);
  const at::Tensor a = run(model, x), b = run(model, other);
  expect_near(a.narrow(1, 0, 4), b.narrow(1, 0, 4), 1e-6);
  EXPECT_GT((a - b).abs().max().item<double>(), 1e-3);
  EXPECT_THAT(a.sizes().vec(), ElementsAre(1, 7, 23));
  expect_near(run(model, x.to(at::kLong)), a, 0);
  EXPECT_THAT(run(model, at::zeros({2, 16})).sizes().vec(), ElementsAre(2, 16, 23));
  expect_error(Code::limit, "17 tokens; its context is 16", [&] {
    run(model, at::zeros({1, 17}));
  });
  expect_error(Code::shape, "embed (embedding)", [&] { run(model, at::full({1, 2}, 23)); });
}

TEST(Transformers, GradientsAreThoseOfFiniteDifferences) {
  for (size_t i = 0; i < tiny_models().size(); ++i) {
    Model model = tiny(i);
    model.root->to(at::kDouble);
    const at::Tensor ids = random_input(model, 2, 8).narrow(1, 0, 5);
    Context context;
    const at::Tensor weights =
        random_tensor(model.forward(ids, context).sizes(), 4).to(at::kDouble);
    const auto loss = [&] { return (model.forward(ids, context) * weights).sum(); };
    loss().backward();
    for (const auto& item : model.root->named_parameters()) {
      at::Tensor parameter = item.value();
      const at::Tensor direction = random_tensor(parameter.sizes(), 9).to(at::kDouble);
      const double found = (parameter.grad() * direction).sum().item<double>();
      const at::NoGradGuard no_grad;
      const double step = 1e-6;
      parameter += step * direction;
      const double high = loss().item<double>();
      parameter -= 2 * step * direction;
      const double low = loss().item<double>();
      parameter += step * direction;
      const double expected = (high - low) / (2 * step);
      EXPECT_NEAR(found, expected, 1e-5 * std::max(1.0, std::abs(expected))) << i << item.key();
    }
  }
}

TEST(Transformers, ReloadToTheSameFunction) {
  const TempDirectory folder;
  for (size_t i = 0; i < tiny_models().size(); ++i) {
    Model model = tiny(i);
    model.tokenizer = R"({"model": {}})";
    model.task.stop_tokens = {2};
    save_bundle(model, folder / "m.safetensors");
    Model loaded = load_model(folder / "m.safetensors");
    EXPECT_EQ(spec_of(*loaded.root), spec_of(*model.root));
    EXPECT_EQ(loaded.tokenizer, model.tokenizer);
    EXPECT_EQ(loaded.task.stop_tokens, model.task.stop_tokens);
    const at::Tensor x = random_input(model, 2, 7);
    EXPECT_TRUE(at::equal(run(loaded, x), run(model, x)));
    Model copy = clone(loaded);
    EXPECT_TRUE(at::equal(run(copy, x), run(model, x)));
  }
}

TEST(Transformers, GraphAndBricksAgreeOnCostAndMeter) {
  for (size_t i = 0; i < tiny_models().size(); ++i) {
    Model model = tiny(i);
    bundle::Builder builder;
    lower(model, builder);
    const auto info = bundle::check_graph(builder.graph(), "test");
    EXPECT_EQ(info.total.macs, model.cost().macs) << i;
    EXPECT_EQ(info.total.params, model.cost().params) << i;
    EXPECT_EQ(info.total.weight_bytes, model.cost().weight_bytes) << i;
    Meter meter;
    Context context;
    context.meter = &meter;
    model.forward(random_input(model, 3, 1), context);
    EXPECT_EQ(meter.macs(), 3 * model.cost().macs) << i;
  }
}

TEST(Decoder, ATiedHeadIsOneParameterEverywhere) {
  Model model = tiny(0);
  const auto count = [](const Model& m) {
    int64_t total = 0;
    for (const at::Tensor& p : m.root->parameters()) total += p.numel();
    return total;
  };
  EXPECT_EQ(count(model), model.cost().params);
  Model copy = clone(model);
  EXPECT_EQ(count(copy), count(model));
  const at::Tensor x = random_input(model, 1, 2);
  Context context;
  copy.forward(x, context).sum().backward();
  at::Tensor table = copy.root->slot("embed").as<Embedding>().weight;
  {
    const at::NoGradGuard no_grad;
    table -= 0.5 * table.grad();  // what an optimizer does
  }
  bundle::Builder builder;
  lower(copy, builder);
  int64_t tables = 0;
  for (const auto& [name, spec] : builder.graph().tensors) tables += spec.shape == Shape{23, 12};
  EXPECT_EQ(tables, 1);
  std::map<std::string, at::Tensor> state;
  for (const auto& [path, tensor] : named_state(*copy.root)) state[path] = tensor;
  load_state(*model.root, state);
  EXPECT_TRUE(at::equal(run(model, x), run(copy, x)));
}

TEST(TransformerBlock, AnEmptyBranchAddsNothing) {
  Model model = tiny(0);
  const at::Tensor x = random_input(model, 1, 2);
  Model less = clone(model);
  for (const SlotRef& ref : walk(*less.root, "blocks.1.*")) ref.slot->exchange(nullptr);
  auto blocks = std::make_shared<Sequential>();
  blocks->append("0", less.root->slot("blocks")->slot("0").get());
  Model shorter = clone(less);
  shorter.root->slot("blocks").exchange(blocks);
  expect_near(run(less, x), run(shorter, x), 0);
}

TEST(MakeModel, RefusesTransformersThatAreNone) {
  expect_error(Code::config, "did you mean 'decoder'", [] { make_model("decode", {}, 1); });
  expect_error(Code::config, "vocab of decoder: missing", [] { make_model("decoder", {}, 1); });
  expect_error(Code::config, "'layer'", [] {
    make_model("decoder", {{"vocab", 9}, {"layer", 3}}, 1);
  });
  expect_error(Code::config, "3 do not divide the width 128", [] {
    make_model("encoder", {{"vocab", 9}, {"heads", 3}}, 1);
  });
  expect_error(Code::shape, "do not divide", [] {
    make_model("decoder", {{"vocab", 9}, {"heads", 4}, {"kv_heads", 3}}, 1);
  });
  expect_error(Code::config, "tied", [] {
    make_model("encoder", {{"vocab", 9}, {"tied", true}}, 1);
  });
}

#if SLUICE_HAS_ENGINE
TEST(EngineParity, HoldsForTransformers) {
  for (size_t i = 0; i < tiny_models().size(); ++i) {
    Model model = tiny(i);
    EXPECT_LE(engine_error(model, random_input(model, 3, 50)), 1e-5) << i;
  }
}
#endif

}  // namespace transformer_test
}  // namespace sluice::lab
