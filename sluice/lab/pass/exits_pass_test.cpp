// add-exits and calibrate-exits: equal outputs where nobody leaves, sizes that spend what their
// table says, in the lab and in the engine.
#include "sluice/base/random.h"
#include "sluice/bundle/size_choice.h"
#include "sluice/lab/brick/early_exit_decoder.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/pass/pass.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/network.h"
#endif

namespace sluice::lab {
namespace exits_pass_test {

using namespace testing;  // NOLINT: test helpers

constexpr int64_t kVocabulary = 23, kBlock = 8, kContext = 40;
constexpr double kNever = 2;  // above every confidence

Model decoder(const std::string& variant = "plain", uint64_t seed = 3) {
  Json options = {{"vocab", kVocabulary}, {"layers", 6},    {"width", 12},
                  {"heads", 3},           {"ffn", 10},      {"context", kContext},
                  {"block", kBlock},      {"init_std", 0.4}};
  if (variant == "untied") {
    options["heads"] = 6;
    options["kv_heads"] = 2;
    options["head_dim"] = 4;
    options["window"] = 5;
    options["tied"] = false;
    options["qk_norm"] = true;
  }
  if (variant == "learned") {  // as GPT-2: layer norms, positions of its own
    options["norm"] = "layer";
    options["positions"] = "learned";
    options["gated"] = false;
    options["bias"] = true;
  }
  Model model = make_model("decoder", options, seed);
  model.task.kind = "generate";
  model.root->eval();
  return model;
}

at::Tensor tokens(int64_t batch, int64_t count, uint64_t seed) {
  return (random_tensor({batch, count}, seed).abs() * 1000).to(at::kLong).remainder(kVocabulary);
}

const EarlyExitDecoder& root_of(const Model& model) {
  return dynamic_cast<const EarlyExitDecoder&>(*model.root);
}

/// Sizes of these thresholds and the whole network.
Model with_thresholds(const Model& plain, Json options, std::vector<ExitThresholds> thresholds) {
  options["threshold"] = kNever;
  Model model = run_pass(plain, "add-exits", with(std::move(options)));
  auto& exits = dynamic_cast<ExitNetwork&>(*model.root);
  thresholds.emplace_back(static_cast<size_t>(exits.exit_count()));
  model.sizes.clear();
  for (size_t i = 0; i < thresholds.size(); ++i)
    model.sizes.push_back({fmt::format("s{}", i), 0, {}});
  exits.set_exit_sizes(std::move(thresholds));
  return model;
}

TEST(AddExits, WhereNobodyLeavesADecoderIsExactlyWhatItWas) {
  for (const std::string variant : {"plain", "untied", "learned"}) {
    for (const std::string heads : {"shared", "own"}) {
      Model plain = decoder(variant);
      Model model = run_pass(plain, "add-exits",
                             with({{"layers", {2, 4}}, {"heads", heads}, {"threshold", kNever}}));
      const at::Tensor ids = tokens(3, 7, 5);
      const at::Tensor expected = testing::run(plain, ids);
      Meter dense, whole, never;
      run_size(plain, ids, -1, &dense);
      EXPECT_TRUE(at::equal(run_size(model, ids, 1, &whole), expected)) << variant << heads;
      EXPECT_TRUE(at::equal(run_size(model, ids, 0, &never), expected)) << variant << heads;
      EXPECT_EQ(whole.macs(), dense.macs());
      EXPECT_EQ(never.macs(), dense.macs() + 2 * 3 * 7 * 12 * kVocabulary);  // two more heads
      ASSERT_EQ(model.sizes.size(), 2u);
      EXPECT_EQ(model.sizes[0].name, "exits");
      EXPECT_EQ(model.sizes[1].name, "dense");
    }
  }
}

TEST(AddExits, TokensLeaveWhereTheyAreSureAndLaterOnesSeeThem) {
  Model model = with_thresholds(decoder(), {{"layers", {2, 4}}}, {{0.3, 0.35}});
  const auto& root = root_of(model);
  const at::NoGradGuard no_grad;
  const at::Tensor ids = tokens(1, 12, 9);
  Context context;
  context.size = 0;
  const auto found = root.run(ids, context);
  for (const int64_t layers : {2, 4, 6})
    EXPECT_GT((found.layers == layers).sum().item<int64_t>(), 0) << layers << found.layers;
  // From the definition: what left stays what it was.
  at::Tensor x = root.embedded(ids, context);
  for (int64_t layer = 0; layer < 6; ++layer) {
    const at::Tensor next = (*root.slot("blocks")).slots()[size_t(layer)]->forward(x, context);
    x = at::where((found.layers > layer).unsqueeze(-1), next, x);
    const at::Tensor said = root.logits(root.slot("norm").forward(x, context), context);
    for (int64_t t = 0; t < 12; ++t) {
      if (found.layers[0][t].item<int64_t>() != layer + 1) continue;
      expect_near(found.logits[0][t], said[0][t], 1e-4);
      const double sure = prediction_score(said[0][t], "confidence").item<double>();
      if (layer < 5) {
        EXPECT_GE(sure, layer == 1 ? 0.3 : 0.35);
      }
    }
  }
  const auto shorter = root.run(ids.narrow(1, 0, 5), context);
  expect_near(shorter.logits, found.logits.narrow(1, 0, 5), 1e-5);
}

TEST(AddExits, ScoresThatAreNoNumbersLeave) {
  Model model = with_thresholds(decoder(), {{"layers", {2}}}, {{kNever}});
  const at::NoGradGuard no_grad;
  walk(*model.root, "blocks.1.ffn.down").front().slot->as<Linear>().weight[0][0] =
      std::numeric_limits<float>::quiet_NaN();
  Context context;
  context.size = 0;
  const auto found = root_of(model).run(tokens(1, 4, 1), context);
  EXPECT_TRUE((found.layers == 2).all().item<bool>()) << found.layers;
}

TEST(AddExits, ReloadsFromAFileWithItsSizes) {
  for (const std::string heads : {"shared", "own"}) {
    Model model = with_thresholds(decoder("untied"), {{"layers", {1, 3}}, {"heads", heads}},
                                  {{0.3, std::nullopt}, {std::nullopt, 0.4}});
    const TempDirectory folder;
    save_bundle(model, folder / "m.safetensors");
    Model loaded = load_model(folder / "m.safetensors");
    const at::Tensor ids = tokens(2, 6, 2);
    for (const int64_t size : {0, 1, 2})
      EXPECT_TRUE(at::equal(run_size(loaded, ids, size), run_size(model, ids, size)));
    EXPECT_EQ(loaded.cost().macs, model.cost().macs);
  }
}

TEST(AddExits, AChainOfAnyReferenceNetworkStaysWhatItWas) {
  for (const std::string name : {"resnet", "convnet", "mlp", "vit"}) {
    for (const std::string gate : {"confidence", "entropy", "margin"}) {
      Model plain = small_model(name, 3);
      Model model = run_pass(
          plain, "add-exits",
          with({{"every", 1}, {"gate", gate}, {"threshold", gate == "entropy" ? 1.0 : kNever}}));
      const auto& exits = dynamic_cast<const ExitNetwork&>(*model.root);
      EXPECT_GE(exits.exit_count(), 1) << name;
      const at::Tensor x = random_input(plain, 9, 4);
      const at::Tensor expected = testing::run(plain, x);
      Meter dense, whole, never;
      run_size(plain, x, -1, &dense);
      EXPECT_LE(relative_error(run_size(model, x, 1, &whole), expected), 1e-6) << name;
      EXPECT_LE(relative_error(run_size(model, x, 0, &never), expected), 1e-6) << name;
      EXPECT_EQ(whole.macs(), dense.macs()) << name;
      EXPECT_GT(never.macs(), dense.macs()) << name;
      const TempDirectory folder;
      save_bundle(model, folder / "m.safetensors");
      Model loaded = load_model(folder / "m.safetensors");
      EXPECT_TRUE(at::equal(run_size(loaded, x, 0), run_size(model, x, 0))) << name;
    }
  }
}

TEST(AddExits, HeadsOfTheirOwnSayNearlyWhatTheLastOneDoes) {
  Model plain = small_model("resnet", 3, {{"width", 8}, {"blocks", 2}, {"stages", 2}});
  Model fresh = run_pass(plain, "add-exits", with({{"layers", {3}}, {"threshold", 0.0}}));
  Model fitted =
      run_pass(plain, "add-exits", calibrated(plain, {{"layers", {3}}, {"threshold", 0.0}}, 400));
  const at::Tensor x = random_input(plain, 200, 8);
  // Up to a number for all classes, which a softmax does not see.
  const auto centred = [](const at::Tensor& y) { return y - y.mean(1, true); };
  const at::Tensor wanted = centred(testing::run(plain, x));
  const double before = relative_error(centred(run_size(fresh, x, 0)), wanted),
               after = relative_error(centred(run_size(fitted, x, 0)), wanted);
  EXPECT_LT(after, 0.5 * before);
  const Json report = fitted.provenance.back().at("report");
  EXPECT_TRUE(report.at("fitted").get<bool>());
  EXPECT_LT(report.at("residual")[0].get<double>(), 0.8);
}

/// The shares in the table are what the meter finds on the half that took no part.
void expect_table(Model& model, const PassInput& input, int64_t first, double target_slack) {
  const at::Tensor held_out = input.calibration.narrow(0, first, input.calibration.size(0) - first);
  Meter dense;
  const at::Tensor said = run_size(model, held_out, -1, &dense).argmax(-1);
  double before = 0;
  for (size_t i = 0; i + 1 < model.sizes.size(); ++i) {
    Meter meter;
    const at::Tensor own = run_size(model, held_out, int64_t(i), &meter).argmax(-1);
    const auto& quality = model.sizes[i].quality;
    const double share = double(meter.macs()) / double(dense.macs());
    EXPECT_NEAR(quality.at("cost_share"), share, 1e-9);
    EXPECT_EQ(quality.at("cost_rows"), double(said.numel()));
    EXPECT_NEAR(quality.at("agreement"), (own == said).to(at::kDouble).mean().item<double>(), 1e-9);
    EXPECT_GE(share, before);
    before = share;
    const double target = std::stod(model.sizes[i].name.substr(4)) / 100;
    EXPECT_NEAR(share, target, target_slack) << model.sizes[i].name;
  }
  EXPECT_EQ(model.sizes.back().quality.at("cost_share"), 1);
  EXPECT_FALSE(model.sizes.back().quality.contains("cost_rows"));
}

TEST(CalibrateExits, ADecodersSizesSpendTheirShares) {
  Model plain = decoder();
  PassInput input = with({{"layers", {2, 4}}, {"shares", {0.75, 0.9}}});
  input.calibration = tokens(60, kBlock, 6).to(at::kFloat);
  input.batch = 16;
  Model model = run_pass(plain, "add-exits", input);
  ASSERT_EQ(model.sizes.size(), 3u);
  EXPECT_EQ(model.sizes[0].name, "exit75");
  expect_table(model, input, 30, 0.06);
  EXPECT_EQ(model.provenance.back().at("report").at("measured_on").get<int64_t>(), 30 * kBlock);
}

TEST(CalibrateExits, AChainsSizesSpendTheirShares) {
  Model plain = small_model("resnet", 3, {{"width", 8}, {"blocks", 2}, {"stages", 2}});
  const PassInput input = calibrated(plain, {{"every", 1}, {"shares", {0.6, 0.8}}}, 400);
  Model model = run_pass(plain, "add-exits", input);
  expect_table(model, input, 300, 0.08);
  // Once more, to other shares.
  PassInput again = input;
  again.options = {{"shares", {0.7}}};
  Model other = run_pass(model, "calibrate-exits", again);
  ASSERT_EQ(other.sizes.size(), 2u);
  expect_table(other, again, 200, 0.08);
}

TEST(CalibrateExits, ServesTrainedGatesAsWell) {
  const at::NoGradGuard no_grad;
  for (const std::string rule : {"mass", "threshold"}) {
    auto chain = std::make_shared<ExitChain>(rule);
    chain->append("fc1", std::make_shared<Linear>(6, 10));
    const auto gate = std::make_shared<ExitGate>();
    gate->weight.copy_(at::tensor({4.0f, -0.5f, 2.0f, -0.5f}).view({1, 4}));
    chain->append_exit(std::make_shared<Linear>(10, 3), gate);
    chain->append("relu1", std::make_shared<Activation>("relu"));
    chain->append("fc2", std::make_shared<Linear>(10, 40));
    chain->append_exit(std::make_shared<Linear>(40, 3), clone(*gate));
    chain->append("fc3", std::make_shared<Linear>(40, 3));
    Model model;
    model.root = chain;
    model.input_shape = {6};
    model.task = {"classify", "made-up", {"a", "b", "c"}, 0, 1};
    for (const SlotRef& ref : walk(*model.root))
      if (auto* layer = dynamic_cast<Linear*>(ref.slot->get().get()))
        fill_normal(layer->weight, 0.4, derive_seed(7, ref.path));
    const PassInput input = calibrated(model, {{"shares", {0.6, 0.9}}}, 1600);
    Model sized = run_pass(model, "calibrate-exits", input);
    expect_table(sized, input, 800, 0.1);
    // Threshold 0 for all is the rule itself.
    Model zero = run_pass(model, "calibrate-exits", with({{"threshold", 0.0}}));
    const at::Tensor x = random_input(model, 50, 3);
    EXPECT_TRUE(at::equal(run_size(zero, x, 0), testing::run(model, x))) << rule;
    EXPECT_FALSE(at::equal(run_size(zero, x, 1), testing::run(model, x))) << rule;
  }
}

TEST(AddExits, SaysWhatDoesNotFit) {
  const Model plain = decoder();
  const auto refuse = [&](Code code, const std::string& text, Json options) {
    expect_error(code, text, [&] { run_pass(plain, "add-exits", with(std::move(options))); });
  };
  refuse(Code::usage, "give calibration inputs, or a threshold", Json::object());
  refuse(Code::config, "from 1 to 5", {{"layers", {2, 6}}, {"threshold", 0.5}});
  refuse(Code::config, "from 1 to 5", {{"layers", {2, 2}}, {"threshold", 0.5}});
  refuse(Code::config, "none with every=6", {{"every", 6}, {"threshold", 0.5}});
  refuse(Code::config, "heads", {{"heads", "none"}, {"threshold", 0.5}});
  refuse(Code::config, "known: confidence", {{"gate", "variance"}, {"threshold", 0.5}});
  refuse(Code::config, "same thing", {{"threshold", 0.5}, {"shares", {0.5}}});
  PassInput input = with({{"shares", {0.01}}});
  input.calibration = tokens(8, kBlock, 6).to(at::kFloat);
  expect_error(Code::limit, "as early as it can", [&] { run_pass(plain, "add-exits", input); });
  input.options = {{"shares", {1.0}}};
  expect_error(Code::config, "between 0 and 1", [&] { run_pass(plain, "add-exits", input); });
  const Model once = run_pass(plain, "add-exits", with({{"threshold", 0.5}}));
  expect_error(Code::unsupported, "exits already", [&] {
    run_pass(once, "add-exits", with({{"threshold", 0.5}}));
  });
  expect_error(Code::unsupported, "has no exits", [&] {
    run_pass(plain, "calibrate-exits", with({{"threshold", 0.5}}));
  });
  expect_error(Code::unsupported, "run it at that size", [&] {
    run_pass(once, "pick-size", with({{"size", "exits"}}));
  });
  expect_error(Code::unsupported, "seen from outside",
               [&] { run_pass(once, "rotate-residual", with(Json::object())); });
  const Model encoder = make_model("encoder", {{"vocab", 9}, {"layers", 2}, {"width", 8}}, 1);
  expect_error(Code::unsupported, "exits go behind", [&] {
    run_pass(encoder, "add-exits", with({{"threshold", 0.5}}));
  });
  expect_error(Code::config, "only a decoder's are", [&] {
    run_pass(small_model("mlp", 1), "add-exits", with({{"heads", "shared"}, {"threshold", 0.5}}));
  });
  auto& exits = dynamic_cast<ExitNetwork&>(*once.root);
  expect_error(Code::config, "the last size is the whole network", [&] {
    exits.set_exit_sizes({{0.5, 0.5}, {0.5, std::nullopt}});
  });
  expect_error(Code::config, "finite", [&] {
    exits.set_exit_sizes({{std::nan(""), 0.5}, {std::nullopt, std::nullopt}});
  });
}

#if SLUICE_HAS_ENGINE

/// The bytes stay as long as the network looks at them.
struct InEngine {
  explicit InEngine(const Model& model)
      : bytes(bytes_of(model)), network(bundle::Bundle::parse(bytes, "test", {})) {}
  static std::vector<std::byte> bytes_of(const Model& model) {
    bundle::Builder builder;
    lower(model, builder);
    return builder.bytes();
  }
  const std::vector<std::byte> bytes;
  const engine::Network network;
};

// Text through one cache in runs of any length, tokens leaving at all depths: what the lab computes
// over the whole text, metered alike.
TEST(AddExits, TheEngineGeneratesStepByStepAsTheLabReadsTheText) {
  for (const std::string variant : {"plain", "untied", "learned"}) {
    for (const std::string heads : {"shared", "own"}) {
      Model model =
          with_thresholds(decoder(variant), {{"layers", {2, 4}}, {"heads", heads}},
                          {{0.3, 0.35}, {std::nullopt, 0.3}, {0.3, std::nullopt}, {-1, -1}});
      const InEngine engine(model);
      const engine::Network& network = engine.network;
      constexpr int64_t kBatch = 3, kTokens = 18;
      const at::Tensor ids = tokens(kBatch, kTokens, 12);
      for (int64_t size = 0; size < 5; ++size) {
        Meter lab_meter;
        const at::Tensor expected = run_size(model, ids, size, &lab_meter);
        for (const int threads : {1, 2}) {
          engine::Session session(network,
                                  {.batch = kBatch, .threads = threads, .sequences = true});
          ASSERT_EQ(session.sizes(), 5);
          Meter meter;
          int64_t done = 0;
          for (const int64_t count : {5, 1, 1, 3, 1, 7}) {
            const at::Tensor part = ids.narrow(1, done, count).to(at::kFloat).contiguous();
            std::vector<float> found(static_cast<size_t>(kBatch * count * kVocabulary));
            session.run_tokens({part.data_ptr<float>(), static_cast<size_t>(part.numel())}, found,
                               std::vector<int64_t>(kBatch, count),
                               {.meter = &meter, .size = size});
            expect_near(at::from_blob(found.data(), {kBatch, count, kVocabulary}, at::kFloat),
                        expected.narrow(1, done, count), 1e-3);
            done += count;
          }
          EXPECT_EQ(done, kTokens);
          EXPECT_EQ(meter.macs(), lab_meter.macs()) << variant << heads << " size " << size;
        }
      }
    }
  }
}

TEST(AddExits, TheEnginesLastSizeIsTheDecoderToTheBit) {
  const Model plain = decoder("untied");
  const InEngine dense_engine(plain),
      exits_engine(run_pass(plain, "add-exits", with({{"layers", {2, 4}}, {"threshold", kNever}})));
  const engine::Network &dense = dense_engine.network, &exits = exits_engine.network;
  const at::Tensor ids = tokens(1, kBlock, 4).to(at::kFloat).contiguous();
  const std::vector<int64_t> rows = {kBlock};
  const auto run = [&](const engine::Network& network, int64_t size, int64_t wanted, Meter& meter) {
    engine::Session session(network,
                            {.batch = 1, .threads = 1, .sequences = true, .last_rows = wanted});
    std::vector<float> found(static_cast<size_t>((wanted ? wanted : kBlock) * kVocabulary));
    session.run_tokens({ids.data_ptr<float>(), size_t(kBlock)}, found, rows,
                       {.meter = &meter, .size = size});
    return found;
  };
  for (const int64_t wanted : {0, 1}) {
    Meter a, b, c;
    const auto expected = run(dense, -1, wanted, a);
    EXPECT_EQ(run(exits, -1, wanted, b), expected);
    EXPECT_EQ(run(exits, 0, wanted, c), expected);
    // A run that wants the last row computes the head for no other.
    // Only the last layer's projection and feed-forward network still see all of them.
    const int64_t layer = 24 * 12 + 3 * 12 * 10;
    EXPECT_EQ(b.macs(), a.macs() + (wanted > 0 ? (kBlock - 1) * layer : 0)) << wanted;
    EXPECT_GT(c.macs(), b.macs());
  }
}

TEST(AddExits, TheEngineRunsChainsAsTheLabDoes) {
  for (const std::string name : {"resnet", "convnet", "mlp", "vit"}) {
    Model plain = small_model(name, 5);
    const PassInput input = calibrated(plain, {{"every", 1}, {"threshold", kNever}}, 40);
    Model model = run_pass(plain, "add-exits", input);
    auto& exits = dynamic_cast<ExitNetwork&>(*model.root);
    const auto count = static_cast<size_t>(exits.exit_count());
    const at::Tensor x = random_input(plain, 17, 6);
    Context context;
    const at::NoGradGuard no_grad;
    const at::Tensor scores = exits.exit_table(x, context).confidence;
    ExitThresholds middle, first(count), none(count);
    for (size_t i = 0; i < count; ++i)  // between two scores, not on one
      middle.emplace_back(scores.select(1, int64_t(i)).median().item<double>() + 1e-4);
    first[0] = middle[0];
    exits.set_exit_sizes({middle, first, ExitThresholds(count, -1.0), none});
    model.sizes = {{"a", 0, {}}, {"b", 0, {}}, {"c", 0, {}}, {"dense", 0, {}}};
    const InEngine engine(model);
    const engine::Network& network = engine.network;
    for (const int64_t batch : {17, 1}) {
      engine::Session session(network, {.batch = batch, .threads = 1});
      for (int64_t size = 0; size < 4; ++size) {
        Meter meter, lab_meter;
        const at::Tensor expected = run_size(model, x, size, &lab_meter);
        at::Tensor found = at::empty_like(expected);
        const int64_t each = x.numel() / 17, classes = expected.size(1);
        for (int64_t i = 0; i < 17; i += batch)
          session.run({x.data_ptr<float>() + i * each, size_t(batch * each)},
                      {found.data_ptr<float>() + i * classes, size_t(batch * classes)}, batch,
                      {.meter = &meter, .size = size});
        EXPECT_LE(relative_error(found, expected), 1e-5) << name << size;
        EXPECT_EQ(meter.macs(), lab_meter.macs()) << name << " size " << size;
      }
    }
  }
}

#endif

}  // namespace exits_pass_test
}  // namespace sluice::lab
