// Nested transformers: widths of feed-forward networks, layer by layer, and depth; in the engine's
// sequences, too.
#include "sluice/base/json.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/pass/subnet.h"
#include "sluice/lab/train/distill.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/network.h"
#endif

namespace sluice::lab {
namespace nest_text_test {

using namespace testing;  // NOLINT: test helpers
using ::testing::ElementsAre;

constexpr int64_t kLayers = 3, kContext = 12, kWords = 50;

Model decoder(bool tied = true) {
  Model model = make_model("decoder",
                           {{"vocab", kWords},
                            {"layers", kLayers},
                            {"width", 16},
                            {"heads", 2},
                            {"ffn", 24},
                            {"context", kContext},
                            {"block", 8},
                            {"tied", tied},
                            {"init_std", 0.2}},
                           5);
  model.root->eval();
  return model;
}

std::vector<std::string> names_of(const Model& model) {
  std::vector<std::string> names;
  for (const auto& entry : model.sizes) names.push_back(entry.name);
  return names;
}

TEST(NestText, MixesWidthsLayerByLayer) {
  const Model model = decoder();
  Model nested =
      run_pass(model, "nest",
               with({{"widths", {0.25, 0.5, 1}}, {"knobs", "blocks"}, {"mixtures", "graded"}}));
  EXPECT_THAT(names_of(nested),
              ElementsAre("maaa", "maab", "mabb", "mbbb", "mbbc", "mbcc", "mccc"));
  const auto& blocks = nested.root->slot("blocks");
  const auto rows = [&](const char* block) {
    return blocks->slot(block)->slot("ffn")->slot("up").as<NestedLinear>().sizes().rows;
  };
  EXPECT_THAT(rows("0"), ElementsAre(6, 6, 6, 12, 12, 12, 24));
  EXPECT_THAT(rows("2"), ElementsAre(6, 12, 12, 12, 24, 24, 24));
  expect_equal_and_reloadable(model, nested, "mixtures");

  // Any other mixture of the same weights, by name.
  const at::Tensor x = random_input(nested, 2, 4);
  const at::Tensor whole = run_size(nested, x, -1), half = run_size(nested, x, 3);
  Model other = run_pass(
      nested, "set-sizes",
      with({{"widths", {0.25, 0.5, 1}}, {"knobs", "blocks"}, {"sizes", {"mcba", "mbbb"}}}));
  EXPECT_THAT(names_of(other), ElementsAre("mbbb", "mcba", "mccc"));
  EXPECT_TRUE(at::equal(run_size(other, x, 0), half));
  EXPECT_TRUE(at::equal(run_size(other, x, 2), whole));
  other = run_pass(nested, "set-sizes", with({{"widths", {0.125, 1}}}));  // never trained
  EXPECT_THAT(names_of(other), ElementsAre("w12.5", "w100"));

  const auto refuse = [&](Code code, const char* words, const Model& of, Json options) {
    expect_error(code, words, [&] { run_pass(of, "set-sizes", with(options)); });
  };
  refuse(Code::state, "not nested", model, Json::object());
  refuse(Code::usage, "no sub-network 'mabx'", nested, {{"knobs", "blocks"}, {"sizes", {"mabx"}}});
  refuse(Code::usage, "leave depths out", nested,
         {{"knobs", "blocks"}, {"mixtures", "graded"}, {"depths", {1, 3}}});
  refuse(Code::config, "unknown 'grade', did you mean 'graded'", nested, {{"mixtures", "grade"}});
}

TEST(NestText, DepthAloneLeavesTheLayersAndSharesNormAndHead) {
  for (const bool tied : {true, false}) {
    const Model model = decoder(tied);
    Model nested = run_pass(model, "nest", with({{"widths", {1}}, {"depths", {1, 2, 3}}}));
    EXPECT_THAT(names_of(nested), ElementsAre("w100-d1", "w100-d2", "w100-d3"));
    EXPECT_EQ((*nested.root->slot("blocks")).kind(), "nested_chain");
    const at::Tensor x = random_input(nested, 2, 4);
    for (int64_t depth = 1; depth <= kLayers; ++depth) {
      // The same network with that many layers.
      Model cut = clone(model);
      for (int64_t i = depth; i < kLayers; ++i) {
        auto& block = *cut.root->slot("blocks")->slot(std::to_string(i));
        block.slot("attn").exchange(nullptr);
        block.slot("ffn").exchange(nullptr);
      }
      EXPECT_LE(relative_error(run_size(nested, x, depth - 1), run(cut, x)), kEqual) << depth;
    }
  }
  Model turned = run_pass(decoder(), "rotate-residual", with({{"by", "columns"}}));
  expect_error(Code::unsupported, "turns the stream", [&] {
    run_pass(turned, "nest", with({{"depths", {1, 3}}}));
  });
}

TEST(NestText, GradientsOfAShorterSizeReachWhatItRuns) {
  Model nested = run_pass(decoder(), "nest", with({{"widths", {0.5, 1}}, {"depths", {2, 3}}}));
  nested.root->train();
  Context context;
  context.size = 0;  // w50-d2
  ASSERT_EQ(nested.sizes[0].name, "w50-d2");
  nested.forward(random_input(nested, 2, 4), context).square().sum().backward();
  for (const auto& [name, value] : named_state(*nested.root)) {
    if (name.starts_with("blocks.2.")) {
      EXPECT_FALSE(value.grad().defined()) << name;
    } else {
      ASSERT_TRUE(value.grad().defined()) << name;
      EXPECT_GT(value.grad().abs().max().item<double>(), 0) << name;
    }
  }
  // Neurons that the size leaves out get none.
  const auto& up = nested.root->slot("blocks")->slot("0")->slot("ffn")->slot("up");
  EXPECT_EQ(up.as<NestedLinear>().weight.grad().narrow(0, 12, 12).abs().max().item<double>(), 0);
}

TEST(NestText, ASizeLearnsFromTheWholeNetwork) {
  const Model teacher = decoder();
  Model student = run_pass(teacher, "nest", with({{"widths", {0.5, 1}}, {"depths", {1, 3}}}));
  Distiller distiller(teacher, {});
  const at::Tensor x = random_input(student, 4, 9);
  DistillBatch batch{x, {}};
  EXPECT_LT(distiller.loss(student, batch).output, 1e-6);  // the whole one is the teacher
  batch.size = 0;
  const double before = distiller.loss(student, batch).output;
  EXPECT_GT(before, 1e-3);
  TuneOptions options;
  options.steps = 20;
  options.optimizer.rate = 1e-3;
  tune(
      student, distiller, [&](int64_t) { return batch; }, options);
  student.root->eval();
  EXPECT_LT(distiller.loss(student, batch).output, 0.9 * before);
}

#if SLUICE_HAS_ENGINE
TEST(NestText, SequencesInPiecesAreWhatTheLabComputesAtTheMeteredCost) {
  for (const bool tied : {true, false}) {
    Model nested =
        run_pass(decoder(tied), "nest", with({{"widths", {0.25, 1}}, {"depths", {1, 2, 3}}}));
    const TempDirectory folder;
    save_bundle(nested, folder / "nested.safetensors");
    const auto network = engine::Network::open(folder / "nested.safetensors");
    const at::Tensor ids = probe_input(nested, 1, 3, 8);
    ASSERT_EQ(ids.size(1), 8);
    const at::Tensor floats = ids.to(at::kFloat).contiguous();
    engine::Session session(network, {.batch = 1, .threads = 1, .sequences = true});
    for (size_t i = 0; i < nested.sizes.size(); ++i) {
      Meter lab_meter, engine_meter;
      const at::Tensor expected = run_size(nested, ids, int64_t(i), &lab_meter)[0];
      session.reset();
      int64_t at = 0;
      for (const int64_t tokens : {4, 1, 2, 1}) {
        std::vector<float> found(size_t(tokens * kWords));
        session.run_tokens({floats.data_ptr<float>() + at, size_t(tokens)}, found, {&tokens, 1},
                           {.meter = &engine_meter, .size = int64_t(i)});
        const at::Tensor rows = at::from_blob(found.data(), {tokens, kWords});
        EXPECT_LE(relative_error(rows, expected.narrow(0, at, tokens)), 1e-4)
            << nested.sizes[i].name << " at " << at;
        at += tokens;
      }
      const auto macs_of = [](const Meter& meter, const std::string& part) {
        int64_t sum = 0;
        for (const auto& entry : meter.entries())
          if (entry.path.find(part) != std::string::npos) sum += entry.macs;
        return sum;
      };
      for (const std::string part : {".ffn.up", ".ffn.gate", ".ffn.down", ".attn.q", ".attn.o"}) {
        EXPECT_EQ(macs_of(engine_meter, part), macs_of(lab_meter, part))
            << nested.sizes[i].name << part;
        EXPECT_GT(macs_of(lab_meter, part), 0);
      }
    }
    // A deeper size has no cache of rows that a shorter one computed.
    session.reset();
    const int64_t one = 1;
    std::vector<float> found(size_t{kWords});
    const auto step = [&](int64_t size) {
      session.run_tokens({floats.data_ptr<float>(), 1}, found, {&one, 1}, {.size = size});
    };
    step(0);
    expect_error(Code::state, "runs 'blocks.1.attn", [&] { step(5); });
    step(1);
    session.reset();
    step(5);
    step(0);
  }
}
#endif

}  // namespace nest_text_test
}  // namespace sluice::lab
