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

// ---- tokens ----

std::vector<Model> block_models() {
  std::vector<Model> models = text_models();
  models.push_back(text_model("decoder", {{"window", 4}, {"qk_norm", true}}));
  models.push_back(
      text_model("encoder", {{"positions", "rope"}, {"order", "pre"}, {"norm", "rms"}}));
  models.push_back(small_model("vit", 4));
  return models;
}

TEST(TokenGates, StartOpenAndTheModelReloads) {
  for (const Model& model : block_models()) {
    const Model result = run_pass(model, "insert-gates", with({{"granularity", "token"}}));
    expect_equal_and_reloadable(model, result, "open");
    const Json report = result.provenance.back().at("report");
    EXPECT_EQ(report.at("gates"), Json({"blocks.0.token_gate", "blocks.1.token_gate"}));
    EXPECT_EQ(report.at("units"), 2);
    expect_error(Code::usage, "no transformer block", [&] {
      run_pass(result, "insert-gates", with({{"granularity", "token"}}));
    });
  }
}

TEST(TokenGates, TheEngineComputesTheTokensThatGoThrough) {
  for (const Model& model : block_models()) {
    for (const char* score : {"mlp", "linear"}) {
      Model result = gated(model, {{"granularity", "token"}, {"score", score}});
      expect_engine_agrees(result, true, model.root->kind() + " " + score);
      EXPECT_LT(metered(result, random_input(result, 3, 50)), 3 * result.cost().macs);
      expect_equal_and_reloadable(result, result, score);
      if (model.root->kind() == "vision_transformer") continue;
      Model both = gated(result, {{"granularity", "neuron"}});
      expect_engine_agrees(both, false, model.root->kind() + " and neurons");
    }
  }
}

/// Gates that say the same for every token.
void set_gate(Model& model, const std::string& path, double logit) {
  const at::NoGradGuard no_grad;
  bool found = false;
  for (const auto& item : model.root->named_parameters()) {
    if (!path_matches(path + ".score.**", item.key())) continue;
    // Weights of exactly 0 would be skipped by the engine.
    at::Tensor(item.value()).fill_(item.key().ends_with("bias") ? logit : 1e-4);
    found = true;
  }
  ASSERT_TRUE(found) << path;
}

TEST(TokenGates, AClosedTokenStaysAsItIsAndIsSeenByTheOthers) {
  const Model model = text_model("decoder");
  const Model result =
      run_pass(model, "insert-gates", with({{"granularity", "token"}, {"score", "linear"}}));
  Brick& block = *result.root->slot("blocks")->slot("0");
  Brick& plain = *model.root->slot("blocks")->slot("0");
  const at::NoGradGuard no_grad;
  for (const auto& item : block.named_parameters()) {
    at::Tensor parameter = item.value();
    if (!path_matches("token_gate.**", item.key())) continue;
    parameter.zero_();
    if (parameter.dim() == 2) parameter[0][0] = 1;  // the first number of a token decides
  }
  at::Tensor x = random_tensor({2, 5, 12}, 8);
  const at::Tensor open =
      torch::tensor({{1, 0, 1, 1, 0}, {0, 1, 0, 0, 1}}).to(at::kBool).unsqueeze(-1);
  x.narrow(2, 0, 1).copy_(at::where(open, at::ones({1}), at::full({1}, -1.0f)));
  expect_near(run(block, x), at::where(open, run(plain, x), x), 1e-5);
  Meter meter;
  Context context;
  context.meter = &meter;
  block.forward(x, context);
  int64_t pairs = 0;
  for (const at::Tensor& place : open.squeeze(-1).nonzero().unbind(0))
    pairs += place[1].item<int64_t>() + 1;
  const int64_t went = open.sum().item<int64_t>();
  // k, v [8, 12] of all; q, o and the network of those that went; two products of 4 heads of 4.
  EXPECT_EQ(meter.macs(), 10 * (2 * 12 * 8 + 12) + went * (2 * 192 + 3 * 240) + pairs * 4 * 8);
}

TEST(TokenGates, GradientsAreThoseOfTheFunctionAndReachTheGates) {
  for (const Model& model : {text_model("decoder"), text_model("encoder")}) {
    Model soft = gated(model, {{"granularity", "token"}, {"estimator", "sigmoid"}});
    BrickPtr block = soft.root->slot("blocks")->slot("0").get();
    block->to(at::kDouble);
    const at::Tensor weights = random_tensor({2, 4, 12}, 9).to(at::kDouble);
    const auto f = [&](const at::Tensor& input) { return run(*block, input); };
    const at::Tensor x = random_tensor({2, 4, 12}, 8).to(at::kDouble);
    expect_near(autograd_gradient(f, x, weights), numeric_gradient(f, x, weights), 1e-5);

    Model hard = gated(model, {{"granularity", "token"}});
    hard.root->train();
    GateLog log;
    Context context;
    context.gate_log = &log;
    const at::Tensor ids = random_input(hard, 2, 5);
    const at::Tensor y = hard.forward(ids, context);
    expect_near(y.detach(), run(hard, ids), 1e-5);
    ASSERT_EQ(log.records().size(), 2u);
    const GateRecord& record = log.records()[1];
    EXPECT_EQ(record.path, "blocks.1.token_gate");
    EXPECT_EQ(to_string(record.decision.sizes()), "2 x 9 x 1");
    const Shape shape = {9, 12};
    const Brick& all = *model.root->slot("blocks")->slot("1");
    const int64_t keys = 2 * all.slot("attn")->slot("k").cost(shape).macs;
    expect_near(record.unit_macs, at::full({1}, double(all.cost(shape).macs - keys)));
    (y.square().mean() + budget_loss(batch_means(log, nullptr), 0.2)).backward();
    for (const auto& item : hard.root->named_parameters()) {
      if (!path_matches("**.token_gate.score.**", item.key())) continue;
      ASSERT_TRUE(item.value().grad().defined()) << item.key();
      EXPECT_GT(item.value().grad().abs().max().item<double>(), 0) << item.key();
    }
  }
}

TEST(TokenGates, CanBePriced) {
  for (const char* name : {"decoder", "encoder"}) {
    Model before = gated(text_model(name), {{"granularity", "token"}});
    Model model = run_pass(before, "calibrate-gates", calibrated(before, {{"shares", {0.7}}}, 64));
    ASSERT_EQ(model.sizes.size(), 3u);
    EXPECT_NEAR(model.sizes[0].quality.at("cost_share"), 0.7, 0.1);
    const TempDirectory folder;
    save_bundle(model, folder / "m.safetensors");
#if SLUICE_HAS_ENGINE
    const engine::Network network = engine::Network::open(folder / "m.safetensors");
    engine::Session session(network, {.batch = 4, .threads = 1});
    const at::Tensor x = random_input(model, 4, 3);
    for (int64_t size = 0; size < 3; ++size) {
      Meter counted, meter;
      const at::Tensor expected = run_size(model, x, size, &counted);
      at::Tensor y = at::empty_like(expected);
      session.reset();
      session.run({x.data_ptr<float>(), static_cast<size_t>(x.numel())},
                  {y.data_ptr<float>(), static_cast<size_t>(y.numel())},
                  {.meter = &meter, .size = size});
      EXPECT_LE(relative_error(y, expected), 1e-5) << size;
      EXPECT_EQ(meter.macs(), counted.macs()) << size;
    }
#endif
  }
}

TEST(TokenGates, FreezeToBlocksThatStayOrGo) {
  for (const Model& model : block_models()) {
    Model result = run_pass(model, "insert-gates", with({{"granularity", "token"}}));
    set_gate(result, "blocks.0.token_gate", -1);
    const auto frozen_and_sliced = [&] {
      Model frozen = run_pass(result, "freeze-gates", calibrated(result));
      const Model sliced = run_pass(frozen, "slice-channels", {});
      expect_equal_and_reloadable(frozen, sliced, "sliced");
#if SLUICE_HAS_ENGINE
      EXPECT_LE(engine_error(frozen, random_input(frozen, 2, 5)), 1e-5);
#endif
      return sliced;
    };
    Model sliced = frozen_and_sliced();
    EXPECT_EQ(sliced.root->slot("blocks")->slot("0")->kind(), "identity");
    EXPECT_EQ(sliced.root->slot("blocks")->slot("1")->kind(), "transformer_block");
    Model without = clone(model);
    without.root->slot("blocks")->slot("0").exchange(std::make_shared<Identity>());
    const at::Tensor x = random_input(without, 2, 5);
    expect_near(run(sliced, x), run(without, x), 1e-6);
    set_gate(result, "blocks.1.token_gate", -2);
    sliced = frozen_and_sliced();
    EXPECT_TRUE((sliced.root->slot("blocks")->slot("0")->kind() == "identity") !=
                (sliced.root->slot("blocks")->slot("1")->kind() == "identity"))
        << "one block stays";
  }
}

TEST(TokenGates, KeepTheirInputWhereNormsAreFolded) {
  for (const Model& model : block_models()) {
    const Model result = gated(model, {{"granularity", "token"}});
    expect_equal_and_reloadable(result, run_pass(result, "fold-norm", {}), "folded");
  }
}

TEST(TokenGates, AllClosedIsTheNetworkWithoutBlocks) {
  Model result = run_pass(text_model("decoder"), "insert-gates", with({{"granularity", "token"}}));
  set_gate(result, "blocks.0.token_gate", -1);
  set_gate(result, "blocks.1.token_gate", -1);
  expect_engine_agrees(result, true, "nothing goes through");
  Model without = text_model("decoder");
  for (const char* name : {"0", "1"})
    without.root->slot("blocks")->slot(name).exchange(std::make_shared<Identity>());
  const at::Tensor x = random_input(without, 2, 5);
  expect_near(run(result, x), run(without, x), 1e-6);
}

TEST(TokenGates, RefuseWhatHasNoMeaning) {
  const Model model = gated(text_model("decoder"), {{"granularity", "token"}});
  expect_error(Code::unsupported, "token_gate reads the stream",
               [&] { run_pass(model, "rotate-residual", {}); });
  expect_error(Code::unsupported, "meet a token_gate", [&] {
    run_pass(model, "add-exits", calibrated(model, {{"layers", {1}}, {"threshold", 0.01}}));
  });
  expect_error(Code::usage, "no transformer block", [] {
    run_pass(small_model("resnet", 2), "insert-gates", with({{"granularity", "token"}}));
  });
  expect_error(Code::usage, "is one of neurons", [] {
    run_pass(text_model("decoder"), "insert-gates",
             with({{"granularity", "token"}, {"decision", "top_k"}}));
  });
  expect_error(Code::config, "expected 1 unit, found 2", [] {
    Json spec = spec_of(*text_model("decoder").root->slot("blocks")->slot("0"));
    spec["slots"]["token_gate"] = {
        {"kind", "constant_mask"}, {"attributes", {{"units", 2}}}, {"slots", Json::object()}};
    make_brick(spec);
  });
}

// ---- heads ----

TEST(HeadGates, StartOpenAndTheModelReloads) {
  for (const Model& model : block_models()) {
    const Model result = run_pass(model, "insert-gates", with({{"granularity", "head"}}));
    expect_equal_and_reloadable(model, result, "open");
    const Json report = result.provenance.back().at("report");
    EXPECT_EQ(report.at("gates"), Json({"blocks.0.attn.head_gate", "blocks.1.attn.head_gate"}));
    const bool grouped =
        model.root->kind() == "decoder" || model.root->kind() == "vision_transformer";
    EXPECT_EQ(report.at("units"), grouped ? 4 : 8);
    expect_error(Code::usage, "no attention of ordinary linear layers", [&] {
      run_pass(result, "insert-gates", with({{"granularity", "head"}}));
    });
  }
}

TEST(HeadGates, TheEngineLeavesOutWhatTheLabCountsAsClosed) {
  for (const Model& model : block_models()) {
    for (const char* score : {"mlp", "linear"}) {
      Model result = gated(model, {{"granularity", "head"}, {"score", score}});
      expect_engine_agrees(result, false, model.root->kind() + " " + score);
      EXPECT_LT(metered(result, random_input(result, 3, 50)), 3 * result.cost().macs);
      expect_equal_and_reloadable(result, result, score);
    }
    if (model.root->kind() == "vision_transformer") continue;
    Model both = gated(gated(model, {{"granularity", "head"}}), {{"granularity", "neuron"}});
    expect_engine_agrees(both, false, model.root->kind() + " and neurons");
  }
}

TEST(HeadGates, ClosedOnesGiveNothingAndLossesSeeWhatTheySave) {
  Model model = gated(text_model("decoder"), {{"granularity", "head"}});
  auto& attention = model.root->slot("blocks")->slot("0")->slot("attn").as<Attention>();
  GateLog log;
  Context context;
  context.gate_log = &log;
  const at::Tensor x = random_tensor({2, 9, 12}, 4);
  const at::Tensor y = attention.forward(x, context);
  ASSERT_EQ(log.records().size(), 1u);
  const GateRecord& record = log.records()[0];
  EXPECT_EQ(to_string(record.decision.sizes()), "2 x 9 x 2");
  // q and o [16, 12] for 9 tokens, 45 pairs of 4 heads of 4 + 4, in two units.
  expect_near(record.unit_macs, at::full({2}, (9.0 * 384 + 45 * 32) / 2));
  // By hand: heads of the attention without a gate, weighed before o.
  const at::NoGradGuard no_grad;
  auto open = std::dynamic_pointer_cast<Attention>(clone(attention));
  open->slot("head_gate").exchange(nullptr);
  at::Tensor expected = at::zeros({2, 9, 12});
  for (int64_t unit = 0; unit < 2; ++unit) {
    auto one = std::dynamic_pointer_cast<Attention>(clone(*open));
    const at::Tensor mask = at::zeros({2});
    mask[unit] = 1;
    one->slot("head_gate").exchange(std::make_shared<ConstantMask>(mask));
    expected += run(*one, x) * record.decision.detach().narrow(-1, unit, 1);
  }
  expect_near(y.detach(), expected, 1e-5);
}

TEST(HeadGates, GradientsAreThoseOfTheFunctionAndReachTheGates) {
  Model soft = gated(text_model("decoder"), {{"granularity", "head"}, {"estimator", "sigmoid"}});
  BrickPtr attention = soft.root->slot("blocks")->slot("0")->slot("attn").get();
  attention->to(at::kDouble);
  const at::Tensor weights = random_tensor({2, 4, 12}, 9).to(at::kDouble);
  const auto f = [&](const at::Tensor& input) { return run(*attention, input); };
  const at::Tensor x = random_tensor({2, 4, 12}, 8).to(at::kDouble);
  expect_near(autograd_gradient(f, x, weights), numeric_gradient(f, x, weights), 1e-5);

  Model hard = gated(text_model("encoder"), {{"granularity", "head"}});
  hard.root->train();
  GateLog log;
  Context context;
  context.gate_log = &log;
  const at::Tensor y = hard.forward(random_input(hard, 2, 5), context);
  (y.square().mean() + budget_loss(batch_means(log, nullptr), 0.2)).backward();
  for (const auto& item : hard.root->named_parameters()) {
    if (!path_matches("**.head_gate.score.**", item.key())) continue;
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_GT(item.value().grad().abs().max().item<double>(), 0) << item.key();
  }
}

TEST(HeadGates, CanBePricedFrozenAndSliced) {
  for (const Model& model : text_models()) {
    const Model result = gated(model, {{"granularity", "head"}});
    const Model priced =
        run_pass(result, "calibrate-gates", calibrated(result, {{"shares", {0.9}}}, 64));
    EXPECT_NEAR(priced.sizes[0].quality.at("cost_share"), 0.9, 0.06);
    expect_equal_and_reloadable(priced, priced, "priced");
    const Model frozen = run_pass(result, "freeze-gates", calibrated(result));
    const int64_t open = frozen.provenance.back().at("report").at("open").get<int64_t>();
    const Model sliced = run_pass(frozen, "slice-channels", {});
    expect_equal_and_reloadable(frozen, sliced, "sliced");
    int64_t left = 0;
    for (const SlotRef& ref : walk(*sliced.root, "blocks.*.attn.k"))
      left += ref.slot->as<Linear>().outputs() / 4;
    EXPECT_EQ(left, open);
  }
}

TEST(HeadGates, AllClosedLeaveTheBiasOfTheOutput) {
  Model result = run_pass(text_model("encoder", {{"bias", true}}), "insert-gates",
                          with({{"granularity", "head"}}));
  set_gate(result, "blocks.0.attn.head_gate", -1);
  set_gate(result, "blocks.1.attn.head_gate", -1);
  expect_engine_agrees(result, true, "no head looks at anything");
  Brick& attention = *result.root->slot("blocks")->slot("0")->slot("attn");
  const at::Tensor bias = attention.slot("o").as<Linear>().bias;
  ASSERT_TRUE(bias.defined());
  const at::NoGradGuard no_grad;
  expect_near(run(attention, random_tensor({1, 4, 12}, 3)), bias.expand({1, 4, 12}), 0);
}

TEST(HeadGates, KeepTheirInputWhereNormsAreFolded) {
  for (const Model& model : block_models()) {
    const Model result = gated(model, {{"granularity", "head"}});
    expect_equal_and_reloadable(result, run_pass(result, "fold-norm", {}), "folded");
  }
}

TEST(HeadGates, RefuseWhatHasNoMeaning) {
  const Model model = text_model("decoder");
  const Model heads = gated(model, {{"granularity", "head"}});
  expect_error(Code::usage, "without a head gate", [&] {
    run_pass(heads, "insert-gates", with({{"granularity", "token"}}));
  });
  const Model tokens = gated(model, {{"granularity", "token"}});
  expect_error(Code::unsupported, "without a head gate", [&] {
    run_pass(tokens, "insert-gates", with({{"granularity", "head"}}));
  });
  expect_error(Code::unsupported, "freeze-gates first",
               [&] { run_pass(heads, "rotate-residual", {}); });
  Model packed = run_pass(heads, "quantize", with({{"slots", "blocks.*.attn.*"}}));
  const Brick& attention = *packed.root->slot("blocks")->slot("0")->slot("attn");
  EXPECT_EQ(attention.slot("k")->kind(), "quant_linear");
  EXPECT_EQ(attention.slot("q")->kind(), "linear");
  expect_engine_agrees(packed, false, "packed keys and values");
  expect_error(Code::usage, "is one of neurons", [&] {
    run_pass(model, "insert-gates", with({{"granularity", "head"}, {"decision", "top_k"}}));
  });
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
