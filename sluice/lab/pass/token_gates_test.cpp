// Gates of transformers: inserted, logged, priced, frozen, sliced, and run by the engine.
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/gate/regularizer.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/pass/pass.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace token_gates_test {

using namespace testing;  // NOLINT: test helpers

Model text_model(const std::string& name, Json changes = Json::object()) {
  Json options = {{"vocab", 31},   {"layers", 2}, {"width", 12},   {"heads", 4}, {"kv_heads", 2},
                  {"head_dim", 4}, {"ffn", 20},   {"context", 16}, {"block", 9}, {"init_std", 0.3}};
  if (name == "encoder") options.erase("kv_heads");
  for (const auto& [key, value] : changes.items()) options[key] = value;
  Model model = make_model(name, options, 3);
  const at::NoGradGuard no_grad;
  uint64_t seed = 60;
  for (const auto& [path, tensor] : named_state(*model.root)) {
    if (tensor.dim() == 1) tensor.add_(random_tensor(tensor.sizes(), ++seed) * 0.3);
  }
  model.root->eval();
  return model;
}

/// Gated and plain feed-forward networks, with and without biases, causal and not.
std::vector<Model> text_models() {
  return {text_model("decoder"),
          text_model("decoder", {{"tied", false},
                                 {"norm", "layer"},
                                 {"gated", false},
                                 {"bias", true},
                                 {"activation", "gelu"}}),
          text_model("encoder")};
}

/// Gates whose decisions differ from token to token.
Model gated(const Model& model, Json options) {
  options["bias"] = 0.0;
  Model result = run_pass(model, "insert-gates", with(std::move(options)));
  const at::NoGradGuard no_grad;
  for (const auto& item : result.root->named_parameters()) {
    at::Tensor parameter = item.value();
    if (!path_matches("**.score.**", item.key())) continue;
    fill_uniform(parameter, parameter.dim() == 1 ? 0.3 : 1.5, derive_seed(5, item.key()));
  }
  return result;
}

int64_t metered(Model& model, const at::Tensor& x, at::Tensor* y = nullptr) {
  Meter meter;
  const at::Tensor found = run_size(model, x, -1, &meter);
  if (y != nullptr) *y = found;
  return meter.macs();
}

#if SLUICE_HAS_ENGINE
struct Executed {
  at::Tensor y;
  int64_t macs = 0;
};

Executed executed(Model& model, const at::Tensor& x) {
  bundle::Builder builder;
  lower(model, builder);
  const std::vector<std::byte> bytes = builder.bytes();
  const engine::Network network(bundle::Bundle::parse(bytes, "test", {}));
  engine::Session session(network, {.batch = x.size(0), .threads = 1});
  Executed result{at::empty_like(run(model, x))};
  Meter meter;
  session.run({x.data_ptr<float>(), static_cast<size_t>(x.numel())},
              {result.y.data_ptr<float>(), static_cast<size_t>(result.y.numel())},
              {.meter = &meter});
  result.macs = meter.macs();
  return result;
}

/// A decoder's text, token by token.
Executed decoded(Model& model, const at::Tensor& x) {
  bundle::Builder builder;
  lower(model, builder);
  const std::vector<std::byte> bytes = builder.bytes();
  const engine::Network network(bundle::Bundle::parse(bytes, "test", {}));
  engine::Session session(network, {.batch = 1, .threads = 1, .sequences = true});
  const at::Tensor ids = x.to(at::kFloat).contiguous();
  Executed result{at::empty({1, ids.size(1), 31})};
  Meter meter;
  for (int64_t t = 0; t < ids.size(1); ++t) {
    session.run_tokens({ids.data_ptr<float>() + t, 1}, {result.y.data_ptr<float>() + t * 31, 31},
                       std::vector<int64_t>{1}, {.meter = &meter});
  }
  result.macs = meter.macs();
  return result;
}
#endif

/// What the lab computes and counts, the engine does: for one token at a time to the last
/// multiplication, for several at once as long as `exact`, else with what they share.
void expect_engine_agrees(Model& model, bool exact, const std::string& what) {
  SCOPED_TRACE(what);
  const at::Tensor x = random_input(model, 3, 50);
  at::Tensor y;
  const int64_t counted = metered(model, x, &y);
  EXPECT_LE(counted, 3 * model.cost().macs);
#if SLUICE_HAS_ENGINE
  const Executed whole = executed(model, x);
  EXPECT_LE(relative_error(whole.y, y), 1e-5);
  if (exact) {
    EXPECT_EQ(whole.macs, counted);
  } else {
    EXPECT_GE(whole.macs, counted);
  }
  if (model.root->kind() != "decoder") return;
  const at::Tensor text = x.narrow(0, 0, 1);
  const int64_t alone = metered(model, text, &y);
  const Executed steps = decoded(model, text);
  EXPECT_LE(relative_error(steps.y, y), 1e-5);
  EXPECT_EQ(steps.macs, alone);
#endif
}

// ---- neurons ----

TEST(NeuronGates, StartOpenAndTheModelReloads) {
  for (const Model& model : text_models()) {
    const Model result = run_pass(model, "insert-gates", with({{"granularity", "neuron"}}));
    expect_equal_and_reloadable(model, result, "open");
    const Json report = result.provenance.back().at("report");
    EXPECT_EQ(report.at("gates"), Json({"blocks.0.ffn.neuron_gate", "blocks.1.ffn.neuron_gate"}));
    EXPECT_EQ(report.at("units"), 40);
    EXPECT_EQ(report.at("added_params"), 2 * (12 * 4 + 4 + 4 * 20 + 20));
    expect_error(Code::usage, "no feed-forward network", [&] {
      run_pass(result, "insert-gates", with({{"granularity", "neuron"}}));
    });
  }
}

TEST(NeuronGates, TheEngineLeavesOutWhatTheLabCountsAsClosed) {
  for (const Model& model : text_models()) {
    for (const Json& options :
         {Json{{"decision", "threshold"}}, Json{{"score", "linear"}},
          Json{{"decision", "top_k"}, {"keep", 0.25}},
          Json{{"decision", "statistical_top_k"}, {"keep", 0.3}, {"hidden", 5}}}) {
      Json all = options;
      all["granularity"] = "neuron";
      Model result = gated(model, all);
      expect_engine_agrees(result, false, options.dump());
      if (options.dump().find("top_k") == std::string::npos) {
        EXPECT_LT(metered(result, random_input(result, 3, 50)), 3 * result.cost().macs);
      }
      expect_equal_and_reloadable(result, result, options.dump());
    }
  }
}

TEST(NeuronGates, CostIsThatOfTheGraph) {
  for (const char* decision : {"threshold", "top_k"}) {
    Model model = gated(text_model("decoder"), {{"granularity", "neuron"}, {"decision", decision}});
    bundle::Builder builder;
    lower(model, builder);
    const auto info = bundle::check_graph(builder.graph(), "test");
    EXPECT_EQ(info.total.macs, model.cost().macs);
    EXPECT_EQ(info.total.params, model.cost().params);
    // Half of 20 neurons of three matrices [.., 12], 9 tokens, 2 layers.
    const int64_t least = text_model("decoder").cost().macs - 9 * 2 * 10 * 36;
    if (std::string(decision) == "top_k") {
      EXPECT_EQ(model.cost().macs, least + 2 * 9 * (12 * 4 + 4 * 20));
      EXPECT_EQ(metered(model, random_input(model, 2, 3)), 2 * model.cost().macs);
    }
  }
}

TEST(NeuronGates, LossesSeeWhatAClosedNeuronSaves) {
  Model model = gated(text_model("decoder"), {{"granularity", "neuron"}});
  model.root->train();
  GateLog log;
  Context context;
  context.gate_log = &log;
  const at::Tensor x = random_input(model, 2, 5);
  const at::Tensor y = model.forward(x, context);
  ASSERT_EQ(log.records().size(), 2u);
  const GateRecord& record = log.records()[0];
  EXPECT_EQ(record.path, "blocks.0.ffn.neuron_gate");
  EXPECT_EQ(to_string(record.decision.sizes()), "2 x 9 x 20");
  expect_near(record.unit_macs, at::full({20}, 9.0 * 36));
  const BatchMeans means = batch_means(log, nullptr);
  expect_near(means.means[0].detach(), record.probability.detach().flatten(0, 1).mean(0));
  (y.square().mean() + budget_loss(means, 0.2) + polarization_loss(means) + l1_loss(means) +
   certainty_loss(log) + load_balance_loss(log))
      .backward();
  for (const auto& item : model.root->named_parameters()) {
    if (!path_matches("**.score.**", item.key())) continue;
    const at::Tensor gradient = item.value().grad();
    ASSERT_TRUE(gradient.defined()) << item.key();
    EXPECT_TRUE(gradient.isfinite().all().item<bool>()) << item.key();
    EXPECT_GT(gradient.abs().max().item<double>(), 0) << item.key();
  }
  // Closing everything leaves the biases of down.
  Context forced;
  forced.gates_forced_open = true;
  Model plain = text_model("decoder");
  model.root->eval();
  const at::NoGradGuard no_grad;
  expect_near(model.forward(x, forced), run(plain, x), 1e-5);
}

TEST(NeuronGates, SoftOnesHaveTheGradientOfTheFunction) {
  Model model = gated(text_model("decoder"), {{"granularity", "neuron"}, {"estimator", "sigmoid"}});
  BrickPtr ffn = model.root->slot("blocks")->slot("0")->slot("ffn").get();
  ffn->to(at::kDouble);
  const at::Tensor weights = random_tensor({2, 4, 12}, 9).to(at::kDouble);
  const auto f = [&](const at::Tensor& input) { return run(*ffn, input); };
  const at::Tensor x = random_tensor({2, 4, 12}, 8).to(at::kDouble);
  expect_near(autograd_gradient(f, x, weights), numeric_gradient(f, x, weights), 1e-6);
  expect_error(Code::unsupported, "is soft and never skips", [&] {
    bundle::Builder builder;
    lower(model, builder);
  });
}

TEST(NeuronGates, RowsByThemselvesAreThoseOfTheSample) {
  Model model = gated(text_model("decoder"), {{"granularity", "neuron"}});
  Brick& ffn = *model.root->slot("blocks")->slot("0")->slot("ffn");
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_tensor({2, 4, 12}, 8);
  expect_near(run(ffn, x.flatten(0, 1)), run(ffn, x).flatten(0, 1), 1e-6);
}

TEST(NeuronGates, ScoresThatAreNotNumbersClose) {
  Model model = gated(text_model("decoder", {{"bias", true}}), {{"granularity", "neuron"}});
  Brick& ffn = *model.root->slot("blocks")->slot("0")->slot("ffn");
  const at::NoGradGuard no_grad;
  for (const auto& item : ffn.named_parameters()) {
    if (path_matches("neuron_gate.**.weight", item.key())) at::Tensor(item.value()).fill_(NAN);
  }
  const at::Tensor y = run(ffn, random_tensor({1, 3, 12}, 8));
  expect_near(y, ffn.slot("down").as<Linear>().bias.expand({1, 3, 12}), 0);
}

TEST(NeuronGates, CanBePriced) {
  Model before = gated(text_model("decoder"), {{"granularity", "neuron"}});
  const Model model =
      run_pass(before, "calibrate-gates", calibrated(before, {{"shares", {0.85}}}, 64));
  ASSERT_EQ(model.sizes.size(), 3u);
  EXPECT_NEAR(model.sizes[0].quality.at("cost_share"), 0.85, 0.06);
  expect_equal_and_reloadable(model, model, "priced");
#if SLUICE_HAS_ENGINE
  Model priced = clone(model);
  bundle::Builder builder;
  lower(priced, builder);
  const std::vector<std::byte> bytes = builder.bytes();
  const engine::Network network(bundle::Bundle::parse(bytes, "test", {}));
  engine::Session session(network, {.batch = 4, .threads = 1});
  const at::Tensor x = random_input(priced, 4, 3);
  for (int64_t size = 0; size < 3; ++size) {
    const at::Tensor expected = run_size(priced, x, size);
    at::Tensor y = at::empty_like(expected);
    session.reset();
    session.run({x.data_ptr<float>(), static_cast<size_t>(x.numel())},
                {y.data_ptr<float>(), static_cast<size_t>(y.numel())}, {.size = size});
    EXPECT_LE(relative_error(y, expected), 1e-5) << size;
  }
#endif
}

TEST(NeuronGates, FreezeToAMaskThatIsSlicedAway) {
  for (const Model& model : text_models()) {
    const Model result = gated(model, {{"granularity", "neuron"}});
    const Model frozen = run_pass(result, "freeze-gates", calibrated(result));
    const Json report = frozen.provenance.back().at("report");
    EXPECT_EQ(report.at("units"), 40);
    const int64_t open = report.at("open").get<int64_t>();
    EXPECT_GT(open, 2);
    EXPECT_LT(open, 38);
    const Model sliced = run_pass(frozen, "slice-channels", {});
    expect_equal_and_reloadable(frozen, sliced, "sliced");
    int64_t left = 0;
    for (const SlotRef& ref : walk(*sliced.root, "blocks.*.ffn.down"))
      left += ref.slot->as<Linear>().inputs();
    EXPECT_EQ(left, open);
  }
}

TEST(NeuronGates, KeepTheirInputWhereNormsAreFolded) {
  for (const Model& model : text_models()) {
    const Model result = gated(model, {{"granularity", "neuron"}});
    expect_equal_and_reloadable(result, run_pass(result, "fold-norm", {}), "folded");
  }
  const Model result = gated(text_model("decoder"), {{"granularity", "neuron"}});
  expect_error(Code::unsupported, "freeze-gates first",
               [&] { run_pass(result, "rotate-residual", {}); });
}

TEST(NeuronGates, RefuseWhatHasNoMeaning) {
  const Model model = text_model("decoder");
  const auto insert = [&](Json options) {
    options["granularity"] = "neuron";
    return [&model, options] { run_pass(model, "insert-gates", with(options)); };
  };
  expect_error(Code::config, "keep", insert({{"decision", "top_k"}, {"keep", 0.0}}));
  expect_error(Code::config, "keep", insert({{"decision", "top_k"}, {"keep", NAN}}));
  expect_error(Code::usage, "a threshold has none", insert({{"keep", 0.5}}));
  expect_error(Code::config, "'softmax'", insert({{"decision", "softmax"}}));
  expect_error(Code::config, "'pooled_mlp'", insert({{"score", "pooled_mlp"}}));
  expect_error(Code::usage, "no hidden layer", insert({{"score", "linear"}, {"hidden", 4}}));
  expect_error(Code::config, "use add-exits", [&] {
    run_pass(model, "insert-gates", with({{"granularity", "network"}}));
  });
  expect_error(Code::config, "'neurons'", [&] {
    run_pass(model, "insert-gates", with({{"granularity", "neurons"}}));
  });
  expect_error(Code::usage, "no feed-forward network", [] {
    run_pass(small_model("resnet", 2), "insert-gates", with({{"granularity", "neuron"}}));
  });
  expect_error(Code::usage, "is one of neurons", [] {
    run_pass(small_model("resnet", 2), "insert-gates", with({{"decision", "top_k"}}));
  });
  expect_error(Code::usage, "dequantize first", [&] {
    run_pass(run_pass(model, "quantize", with({{"slots", "blocks.**"}})), "insert-gates",
             with({{"granularity", "neuron"}}));
  });
  const Model result = gated(model, {{"granularity", "neuron"}});
  expect_error(Code::usage, "closes parts of it token by token", [&] {
    run_pass(result, "quantize", with({{"slots", "blocks.*.ffn.up"}}));
  });
  Model packed = run_pass(result, "quantize", with({{"slots", "blocks.**"}}));
  EXPECT_EQ(packed.root->slot("blocks")->slot("0")->slot("attn")->slot("q")->kind(),
            "quant_linear");
  expect_equal_and_reloadable(packed, packed, "packed beside");
}

}  // namespace token_gates_test
}  // namespace sluice::lab
