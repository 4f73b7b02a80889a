#include "sluice/lab/brick/exit_decoder.h"

#include "sluice/lab/model/exit_model.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/network.h"
#endif

namespace sluice::lab {
namespace exit_decoder_test {

using namespace testing;  // NOLINT: test helpers

constexpr int64_t kVocabulary = 23, kBlock = 7, kContext = 24;

Json decoder_options(bool other = false) {
  Json options = {{"vocab", kVocabulary}, {"layers", 4},    {"width", 12},
                  {"heads", 3},           {"ffn", 10},      {"context", kContext},
                  {"block", kBlock},      {"init_std", 0.3}};
  if (other) {
    options["heads"] = 6;
    options["kv_heads"] = 2;
    options["head_dim"] = 4;
    options["window"] = 5;
    options["tied"] = false;
    options["qk_norm"] = true;
  }
  return options;
}

Model small(bool other = false, uint64_t seed = 3) {
  const Model decoder = make_model("decoder", decoder_options(other), seed);
  Model model =
      with_exits(decoder, {.stop_threshold = 0.8, .exit_threshold = 0.55, .stop_token = 5}, seed);
  const at::NoGradGuard no_grad;
  auto& root = dynamic_cast<ExitDecoder&>(*model.root);
  root.slot("controller").as<Linear>().weight.copy_(random_tensor({3, 12}, seed + 1) * 0.7);
  for (const SlotRef& ref : walk(*model.root, "exits.*")) {
    ref.slot->as<Linear>().weight.copy_(random_tensor({kVocabulary, 12}, ++seed + 20));
  }
  model.root->eval();
  return model;
}

const ExitDecoder& root_of(const Model& model) {
  return dynamic_cast<const ExitDecoder&>(*model.root);
}

at::Tensor tokens(int64_t batch, int64_t count, uint64_t seed) {
  return (random_tensor({batch, count}, seed).abs() * 1000).to(at::kLong).remainder(kVocabulary);
}

TEST(ExitDecoder, AtWholeDepthIsTheDecoder) {
  for (const bool other : {false, true}) {
    Model decoder = make_model("decoder", decoder_options(other), 3);
    decoder.root->eval();
    Model model = small(other);
    const at::Tensor ids = tokens(2, 6, 5);
    expect_near(testing::run(model, ids), testing::run(decoder, ids), 1e-5);
    Context context;
    const auto states = root_of(model).states(ids, context);
    expect_near(root_of(model).logits(3, states.back(), context), testing::run(decoder, ids), 1e-5);
  }
}

/// Each token by itself, from the definition: a list of inputs of every layer, of which those that
/// left stay what they were.
TEST(ExitDecoder, RowsThatLeftAreSeenAsTheyWereInEveryLaterLayer) {
  Model model = small();
  const ExitDecoder& root = root_of(model);
  const at::NoGradGuard no_grad;
  const at::Tensor ids = tokens(1, 8, 9);
  Context context;
  const auto found = root.run(ids, 3, root.by_controller(context), context);
  EXPECT_LT(found.layers.min().item<int64_t>(), 4);
  EXPECT_EQ(found.layers[0].narrow(0, 0, 3).min().item<int64_t>(), 4);
  at::Tensor x = root.embedded(ids, context);
  for (int64_t layer = 0; layer < 4; ++layer) {
    const at::Tensor next = (*root.slot("blocks")).slots()[size_t(layer)]->forward(x, context);
    x = at::where((found.layers > layer).unsqueeze(-1), next, x);
    const at::Tensor said = root.logits(layer, x, context);
    for (int64_t t = 0; t < 8; ++t) {
      const bool leaves = found.layers[0][t].item<int64_t>() == layer + 1;
      if (leaves && !found.stopped[0][t].item<bool>()) {
        expect_near(found.logits[0][t], said[0][t], 1e-4);
      }
    }
  }
  // What came first does not change with what comes later: the cache of the engine relies on it.
  const auto shorter = root.run(ids.narrow(1, 0, 5), 3, root.by_controller(context), context);
  expect_near(shorter.logits, found.logits.narrow(1, 0, 5), 1e-5);
}

TEST(ExitDecoder, StopsWithTheStopToken) {
  Model model = small();
  const ExitDecoder& root = root_of(model);
  const at::NoGradGuard no_grad;
  Context context;
  const auto stop = [](int64_t layer, const at::Tensor& h, const at::Tensor&) {
    return at::full({h.size(0)}, layer == 1 ? 0 : 2, at::kLong);
  };
  const auto found = root.run(tokens(2, 4, 2), 2, stop, context);
  EXPECT_TRUE(found.stopped.narrow(1, 2, 2).all().item<bool>());
  EXPECT_FALSE(found.stopped.narrow(1, 0, 2).any().item<bool>());
  EXPECT_TRUE((found.logits.narrow(1, 2, 2).argmax(-1) == 5).all().item<bool>());
  EXPECT_TRUE((found.layers.narrow(1, 2, 2) == 2).all().item<bool>());
}

TEST(ExitDecoder, MetersRowsThatAreThere) {
  Model model = small();
  const ExitDecoder& root = root_of(model);
  const at::NoGradGuard no_grad;
  const auto macs = [&](int64_t leave_after) {
    Meter meter;
    Context context;
    context.meter = &meter;
    root.run(
        tokens(1, 1, 2), 0,
        [&](int64_t layer, const at::Tensor& h, const at::Tensor&) {
          return at::full({h.size(0)}, layer == leave_after ? 1 : 2, at::kLong);
        },
        context);
    return meter.macs();
  };
  // A layer of one token: q, k, v, o of 12 x 12, three ffn matrices of 12 x 10, one key of 3 heads.
  const int64_t keys = 2 * 144, layer = 4 * 144 + 360 + 24;
  EXPECT_EQ(macs(9), 4 * layer + 12 * kVocabulary);
  EXPECT_EQ(macs(0), layer + 3 * keys + 12 * kVocabulary);
  EXPECT_EQ(macs(2), 3 * layer + keys + 12 * kVocabulary);
}

TEST(ExitDecoder, ReloadsFromAFile) {
  const Model model = small(true);
  expect_equal_and_reloadable(model, clone(model), "exit decoder");
}

TEST(ExitDecoder, SaysWhatDoesNotFit) {
  expect_error(Code::config, "exit_threshold of exit_decoder",
               [] { ExitDecoder(8, {.exit_threshold = 0.3}); });
  const Model encoder = make_model("encoder", {{"vocab", 9}, {"layers", 2}, {"width", 8}}, 1);
  expect_error(Code::unsupported, "expected a decoder", [&] { with_exits(encoder, {}, 1); });
  Model model = small();
  dynamic_cast<ExitDecoder&>(*model.root).options.stop_token = kVocabulary;
  expect_error(Code::config, "stop_token", [&] { model.root->check_slots(); });
  Context context;
  context.size = 2;
  expect_error(Code::usage, "size 2", [&] { model.forward(tokens(1, 3, 1), context); });
}

#if SLUICE_HAS_ENGINE

// Prompts at whole depth, then tokens that may leave, in runs of any length, through one cache.
TEST(ExitDecoder, TheEngineContinuesAsTheLabComputes) {
  for (const bool other : {false, true}) {
    Model model = small(other, other ? 7 : 3);
    const ExitDecoder& root = root_of(model);
    const at::NoGradGuard no_grad;
    bundle::Builder builder;
    lower(model, builder);
    const std::vector<std::byte> bytes = builder.bytes();
    const engine::Network network(bundle::Bundle::parse(bytes, "test", {}));
    constexpr int64_t kBatch = 3, kPrompt = 5, kTokens = 18;
    const at::Tensor ids = tokens(kBatch, kTokens, 12);
    Context context;
    Meter lab_meter, prompt_meter;
    context.meter = &lab_meter;
    const auto expected = root.run(ids, kPrompt, root.by_controller(context), context);
    const auto shares = expected.layers.narrow(1, kPrompt, kTokens - kPrompt);
    EXPECT_LT(shares.min().item<int64_t>(), 4);
    EXPECT_EQ(shares.max().item<int64_t>(), 4);
    for (const int threads : {1, 2}) {
      engine::Session session(network, {.batch = kBatch, .threads = threads, .sequences = true});
      ASSERT_EQ(session.sizes(), 2);
      Meter meter;
      int64_t done = 0;
      for (const int64_t count : {5, 1, 1, 3, 1, 7}) {
        const at::Tensor part = ids.narrow(1, done, count).to(at::kFloat).contiguous();
        std::vector<float> found(static_cast<size_t>(kBatch * count * kVocabulary));
        const std::vector<int64_t> counts(kBatch, count);
        session.run_tokens({part.data_ptr<float>(), static_cast<size_t>(part.numel())}, found,
                           counts, {.meter = &meter, .size = done < kPrompt ? 1 : 0});
        expect_near(at::from_blob(found.data(), {kBatch, count, kVocabulary}, at::kFloat),
                    expected.logits.narrow(1, done, count), 1e-3);
        done += count;
      }
      EXPECT_EQ(done, kTokens);
      EXPECT_EQ(meter.macs(), lab_meter.macs());
    }
  }
}

TEST(ExitDecoder, SizesInTheFileAreExitsAndTheWhole) {
  Model model = small();
  const TempDirectory folder;
  save_bundle(model, folder / "m.safetensors");
  const engine::Network network = engine::Network::open(folder / "m.safetensors");
  ASSERT_EQ(network.bundle().sizes().size(), 2u);
  EXPECT_EQ(network.bundle().sizes()[0].name, "exits");
  EXPECT_EQ(network.bundle().sizes()[0].macs, model.cost().macs);
  // Without a choice nothing leaves.
  engine::Session session(network, {.batch = 1, .sequences = true});
  const at::Tensor ids = tokens(1, 6, 4);
  const at::Tensor floats = ids.to(at::kFloat).contiguous();
  std::vector<float> found(6 * kVocabulary);
  session.run_tokens({floats.data_ptr<float>(), 6}, found, std::vector<int64_t>{6});
  expect_near(at::from_blob(found.data(), {1, 6, kVocabulary}, at::kFloat),
              testing::run(model, ids), 1e-3);
}

#endif

}  // namespace exit_decoder_test
}  // namespace sluice::lab
