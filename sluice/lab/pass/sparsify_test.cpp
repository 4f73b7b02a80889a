#include "sluice/lab/pass/sparsify.h"

#include <cmath>

#include "sluice/base/json.h"
#include "sluice/bundle/size_choice.h"
#include "sluice/lab/brick/sparse_linear.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace sparsify_test {

using namespace testing;  // NOLINT: test helpers

const std::string kPass = "sparsify-activations";

Model decoder(Json changes = Json::object(), const std::string& name = "decoder") {
  Json options = {{"vocab", 40}, {"layers", 2},   {"width", 32}, {"heads", 4},
                  {"ffn", 48},   {"context", 24}, {"block", 12}, {"init_std", 0.3}};
  for (const auto& [key, value] : changes.items()) options[key] = value;
  Model model = make_model(name, options, 3);
  const at::NoGradGuard no_grad;
  uint64_t seed = 90;
  for (const auto& [path, tensor] : named_state(*model.root)) {
    if (tensor.dim() == 1) tensor.add_(random_tensor(tensor.sizes(), ++seed) * 0.4);
  }
  model.root->eval();
  return model;
}

PassInput input_for(const Model& model, Json options) {
  return calibrated(model, std::move(options), 24);
}

std::vector<std::string> sparse_paths(const Model& model) {
  std::vector<std::string> result;
  for (const SlotRef& ref : walk(*model.root)) {
    if (dynamic_cast<const SparseLinear*>(ref.slot->get().get())) result.push_back(ref.path);
  }
  return result;
}

TEST(SparsifyActivations, KeepsTheShareThatWasAskedFor) {
  for (const char* kind : {"decoder", "encoder"}) {
    const Model model = decoder({{"kv_heads", 2}}, kind);
    for (const char* select : {"threshold", "topk"}) {
      for (const char* score : {"wina", "magnitude"}) {
        Model sparse = run_pass(
            model, kPass,
            input_for(
                model,
                {{"sparsity", 0.5}, {"select", select}, {"score", score}, {"dense_first", 0}}));
        const Json report = sparse.provenance.back()["report"];
        EXPECT_NEAR(report["kept"].get<double>(), 0.5, 0.06) << select << score;
        EXPECT_EQ(sparse_paths(sparse).size(), kind == std::string("decoder") ? 14u : 12u);
        const TempDirectory folder;
        save_bundle(sparse, folder / "m.safetensors");
        Model loaded = load_model(folder / "m.safetensors");
        const at::Tensor x = random_input(sparse, 3, 5);
        EXPECT_TRUE(at::equal(run(loaded, x), run(sparse, x)));
#if SLUICE_HAS_ENGINE
        EXPECT_LE(engine_error(sparse, x), 1e-4) << select << score;
#endif
      }
    }
  }
}

TEST(SparsifyActivations, HarmsLessTheLessItLeavesOut) {
  const Model model = decoder();
  Model dense = clone(model);
  const at::Tensor x = random_input(model, 4, 8), expected = run(dense, x);
  double last = 0;
  for (const double sparsity : {0.0, 0.2, 0.5, 0.9}) {
    Model sparse =
        run_pass(model, kPass, input_for(model, {{"sparsity", sparsity}, {"select", "topk"}}));
    const double error = relative_error(run(sparse, x), expected);
    EXPECT_GE(error, last);
    if (sparsity == 0) {
      EXPECT_LE(error, kEqual);
      EXPECT_TRUE(sparse_paths(sparse).empty());
    } else {
      EXPECT_GT(error, 1e-3);
    }
    last = error;
  }
}

TEST(SparsifyActivations, RotatedColumnsAreOrthogonalAndTheFunctionIsKept) {
  for (const bool tied : {true, false}) {
    const Model model = decoder({{"kv_heads", 2}, {"tied", tied}, {"bias", true}});
    const Model turned = run_pass(model, "rotate-residual", with({{"by", "columns"}}));
    expect_equal_and_reloadable(model, turned, "turned");
#if SLUICE_HAS_ENGINE
    Model checked = clone(turned);
    EXPECT_LE(engine_error(checked, random_input(checked, 2, 3)), 1e-5);
#endif
    for (const char* path :
         {"blocks.0.attn.k", "blocks.1.attn.k", "blocks.0.ffn.gate", "blocks.1.ffn.gate"}) {
      const auto& layer = walk(*turned.root, path).front().slot->as<Linear>();
      const at::Tensor w = layer.weight.detach().to(at::kDouble);
      const at::Tensor products = at::matmul(w.t(), w);
      const at::Tensor off = products - at::diag(at::diagonal(products));
      EXPECT_LE(off.abs().max().item<double>(), 1e-4 * products.abs().max().item<double>()) << path;
    }
    // Three branches lead into another basis; the last one's basis goes on to the head.
    EXPECT_EQ(turned.provenance.back()["report"]["turns"], 3);
    const Model again = run_pass(turned, "rotate-residual", with({{"seed", 4}}));
    expect_equal_and_reloadable(turned, again, "turned again");
  }
}

// Orthogonal columns: what is lost is the sum of the squares of the scores left out.
TEST(SparsifyActivations, ScoresPredictTheErrorOnOrthogonalColumns) {
  const Model turned = run_pass(decoder(), "rotate-residual", with({{"by", "columns"}}));
  const auto& layer = walk(*turned.root, "blocks.1.ffn.gate").front().slot->as<Linear>();
  const at::Tensor norms = column_norms(layer), x = random_tensor({50, 32}, 9);
  const auto sparse = SparseLinear::of(layer, Selector::top(11), norms);
  const at::Tensor left_out = (x * norms).masked_fill(sparse->kept(x), 0);
  const at::Tensor predicted = left_out.square().sum(-1).sqrt();
  Model dense = clone(turned);
  const at::Tensor lost = (run(*sparse, x) - at::linear(x, layer.weight)).norm(2, -1);
  EXPECT_LE(relative_error(lost, predicted), 1e-4);
}

TEST(SparsifyActivations, GreedyBudgetsReachTheTargetAndHelp) {
  const Model model = decoder({{"tied", false}});
  SparsifyOptions options;
  options.exact = true;
  options.dense_first = 0;
  const ActivationSparsifier sparsifier(
      model, input_for(model, Json::object()), options,
      [](const std::string&, const Linear& layer) { return column_norms(layer); });
  const double targets[] = {0.3, 0.6};
  const auto levels = sparsifier.greedy(targets);
  for (size_t t = 0; t < 2; ++t) {
    double sum = 0, total = 0;
    for (size_t i = 0; i < levels[t].size(); ++i) {
      sum += levels[t][i] * sparsifier.sizes()[i];
      total += sparsifier.sizes()[i];
    }
    EXPECT_NEAR(sum / total, targets[t], 1e-6);
    EXPECT_NE(levels[t], sparsifier.uniform(targets[t]));
  }
  Model dense = clone(model), uniform = sparsifier.at(sparsifier.uniform(0.6)),
        greedy = sparsifier.at(levels[1]);
  const at::Tensor x = random_input(model, 8, 8), expected = run(dense, x);
  EXPECT_LT(relative_error(run(greedy, x), expected), relative_error(run(uniform, x), expected));
}

#if SLUICE_HAS_ENGINE
TEST(SparsifyActivations, MeteredCostIsWhatTheEngineExecutes) {
  const Model model = decoder();
  Model sparse = run_pass(
      model, kPass,
      input_for(
          model,
          {{"sparsity", 0.6}, {"budget", "greedy"}, {"rotate", true}, {"select", "threshold"}}));
  bundle::Builder builder;
  lower(sparse, builder);
  const std::vector<std::byte> bytes = builder.bytes();
  const engine::Network network(bundle::Bundle::parse(bytes, "test", {}));
  engine::Session session(network, {.batch = 1, .threads = 1, .sequences = true});
  const at::Tensor x = random_input(sparse, 1, 8);
  Meter lab, executed;
  Context context;
  context.meter = &lab;
  const at::Tensor expected = [&] {
    const at::NoGradGuard no_grad;
    return sparse.forward(x, context);
  }();
  // A token at a time: rows of one run may share columns that one of them asked for.
  std::vector<float> out(40);
  const int64_t tokens = x.size(1);
  for (int64_t t = 0; t < tokens; ++t) {
    session.run_tokens({x.data_ptr<float>() + t, 1}, out, std::vector<int64_t>{1},
                       {.meter = &executed});
  }
  expect_near(torch::tensor(out), expected[0][tokens - 1], 1e-3);
  int64_t compared = 0;
  for (const std::string& path : sparse_paths(sparse)) {
    for (const Meter::Entry& a : lab.entries()) {
      if (a.path != path) continue;
      for (const Meter::Entry& b : executed.entries()) {
        if (b.path == path) {
          EXPECT_EQ(a.macs, b.macs) << path;
          ++compared;
        }
      }
    }
  }
  EXPECT_EQ(compared, static_cast<int64_t>(sparse_paths(sparse).size()));
  EXPECT_GT(compared, 10);
  EXPECT_LT(executed.macs(), tokens * network.cost().macs / sparse.input_shape[0]);
}
#endif

TEST(SparsifyActivations, RefusesWhatItCannotDo) {
  const Model model = decoder();
  const auto with_options = [&](Json options) {
    return [&, options] { run_pass(model, kPass, input_for(model, options)); };
  };
  expect_error(Code::config, "sparsity: expected from 0 to below 1, found 1",
               with_options({{"sparsity", 1.0}}));
  expect_error(Code::config, "found -0.1", with_options({{"sparsity", -0.1}}));
  expect_error(Code::config, "score: expected one of wina, magnitude",
               with_options({{"score", "best"}}));
  expect_error(Code::config, "dense_first", with_options({{"dense_first", -2}}));
  expect_error(Code::usage, "no projection of an attention or feed-forward layer under 'embed'",
               with_options({{"slots", "embed"}}));
  expect_error(Code::usage, "needs calibration data", [&] { run_pass(model, kPass, {}); });
  const Model mlp = small_model("mlp", 1);
  expect_error(Code::usage, "no projection", [&] { run_pass(mlp, kPass, calibrated(mlp)); });
  const Model packed = run_pass(model, "quantize", with({{"format", "i8"}}));
  expect_error(Code::unsupported, "dequantize it first",
               [&] { run_pass(packed, kPass, input_for(packed, Json::object())); });
  const Model masked = run_pass(model, "prune", with({{"granularity", "neuron"}, {"rate", 0.5}}));
  expect_error(Code::unsupported, "slice-channels first",
               [&] { run_pass(masked, kPass, input_for(masked, Json::object())); });
  const Model encoder = decoder(Json::object(), "encoder");
  expect_error(Code::unsupported, "text_encoder", [&] {
    run_pass(encoder, kPass, input_for(encoder, {{"rotate", true}}));
  });
  expect_error(Code::unsupported, "layer_norm", [&] {
    const Model layered = decoder({{"norm", "layer"}});
    run_pass(layered, kPass, input_for(layered, {{"rotate", true}}));
  });
  const Model broken = clone(model);
  walk(*broken.root, "blocks.0.attn_norm").front().slot->get()->parameters().front().detach()[0] =
      NAN;
  expect_error(Code::numeric, "blocks.0.attn.",
               [&] { run_pass(broken, kPass, input_for(broken, Json::object())); });
}

TEST(SparsifyActivations, SeveralSharesMakeANetworkOfSeveralSizes) {
  for (const char* kind : {"decoder", "encoder"}) {
    const Model model = decoder(Json::object(), kind);
    Model dense = clone(model);
    const at::Tensor x = random_input(model, 4, 8), expected = run(dense, x);
    for (const char* select : {"threshold", "topk"}) {
      const Model sized = run_pass(
          model, kPass,
          input_for(model, {{"keep", {0.3, 0.6, 1.0}}, {"select", select}, {"dense_first", 0}}));
      ASSERT_EQ(sized.sizes.size(), 3u);
      EXPECT_EQ(sized.sizes[0].name, "keep30");
      EXPECT_EQ(sized.sizes[2].name, "dense");
      if (kind == std::string("decoder")) {
        EXPECT_LT(bundle::cost_share(sized.sizes, 0), bundle::cost_share(sized.sizes, 1));
        EXPECT_EQ(sized.sizes[2].quality.at("cost_share"), 1);
      } else {
        EXPECT_TRUE(sized.sizes[2].quality.empty()) << "what the engine reads is not known here";
      }
      const Json report = sized.provenance.back()["report"];
      EXPECT_NEAR(report["sizes"][1]["kept"].get<double>(), 0.6, 0.06);
      const TempDirectory folder;
      save_bundle(sized, folder / "m.safetensors");
      Model loaded = load_model(folder / "m.safetensors");
      EXPECT_EQ(loaded.sizes[0].quality, sized.sizes[0].quality);
      EXPECT_LE(relative_error(run(loaded, x), expected), kEqual) << "the last is dense";
      double last = 1e9;
      for (int64_t size = 0; size < 3; ++size) {
        Context context;
        context.size = size;
        const at::NoGradGuard no_grad;
        const double error = relative_error(loaded.forward(x, context), expected);
        EXPECT_LT(error, last);
        last = error;
        const Model picked = run_pass(loaded, "pick-size", with({{"size", std::to_string(size)}}));
        Model one = clone(picked);
        Context again;
        again.size = size;
        expect_near(run(one, x), loaded.forward(x, again), 1e-4);
        EXPECT_EQ(sparse_paths(picked).empty(), size == 2);
      }
    }
  }
}

TEST(SparsifyActivations, RefusesSharesThatMakeNoSizes) {
  const Model model = decoder();
  const auto refused = [&](const Json& keep) {
    const auto error = error_of([&] {
      run_pass(model, kPass, input_for(model, {{"keep", keep}}));
    });
    return error ? std::string(error->what()) : "";
  };
  for (const Json& keep : {Json{0.5, 0.3, 1.0}, Json{0.3, 0.5}, Json{0.0, 1.0}, Json{0.5, 1.5},
                           Json::array(), Json(0.0)}) {
    EXPECT_NE(refused(keep).find("keep: expected a share above 0"), std::string::npos) << keep;
  }
  EXPECT_ERROR(run_pass(model, kPass, input_for(model, {{"keep", 0.5}, {"sparsity", 0.5}})),
               Code::config, "give one of them");
  const Model sized = run_pass(model, kPass, input_for(model, {{"keep", {0.5, 1.0}}}));
  EXPECT_FALSE(error_of([&] { run_pass(sized, "pick-size", with({{"size", "dense"}})); }));
}

}  // namespace sparsify_test
}  // namespace sluice::lab
