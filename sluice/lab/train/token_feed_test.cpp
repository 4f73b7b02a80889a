#include "sluice/lab/train/token_feed.h"

#include <gmock/gmock.h>
#include <torch/types.h>

#include <cmath>
#include <numeric>
#include <set>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/lab/train/train_testing.h"

namespace sluice::lab {
namespace token_feed_test {

constexpr int64_t kVocabulary = 50;

/// A text in which every id follows from the one before: 0 1 2 ... 49 1 2 ...
data::TokenFile counting(const TempDirectory& temp, int64_t train, int64_t held_out) {
  data::TokenWriter writer({.vocabulary = kVocabulary});
  for (const auto& [split, count] :
       {std::pair(data::TextSplit::train, train), std::pair(data::TextSplit::held_out, held_out)}) {
    if (count < 1) continue;
    std::vector<int32_t> ids(static_cast<size_t>(count - 1));  // the separator comes before
    for (size_t i = 0; i < ids.size(); ++i)
      ids[i] = 1 + static_cast<int32_t>(i % (kVocabulary - 1));
    writer.add(split, ids, ids.size(), "counting");
  }
  writer.write(temp / "tokens");
  return data::TokenFile::open(temp / "tokens");
}

TEST(TokenFeed, EachEpochSeesWindowsOnceAndLabelsAreTheNextIds) {
  const TempDirectory temp;
  TokenFeed feed(counting(temp, 8 * 12 + 5, 0), data::TextSplit::train, 8, c10::kCPU);
  EXPECT_EQ(feed.count(), 11);
  const Batch batch = feed.at_step(0, 11, 3);
  EXPECT_EQ(batch.inputs.sizes(), at::IntArrayRef({11, 8}));
  EXPECT_TRUE(batch.inputs.narrow(1, 1, 7).equal(batch.labels.narrow(1, 0, 7)));
  std::set<int64_t> first_ids;
  for (int64_t i = 0; i < 11; ++i) first_ids.insert(batch.inputs[i][0].item<int64_t>());
  EXPECT_EQ(first_ids.size(), 11u);
  // A part of a batch is those rows of it; another feed, epoch by epoch, gives the same.
  TokenFeed again(counting(temp, 8 * 12 + 5, 0), data::TextSplit::train, 8, c10::kCPU);
  const Batch later = feed.at_step(5, 7, 3);  // goes over the end of an epoch
  EXPECT_TRUE(again.at_step(5, 7, 3, 2, 3).inputs.equal(later.inputs.narrow(0, 2, 3)));
  EXPECT_FALSE(feed.at_step(0, 11, 4).inputs.equal(batch.inputs));
  EXPECT_FALSE(feed.at_step(1, 11, 3).inputs.equal(batch.inputs));
}

TEST(TokenFeed, TakesATextOfOneWindowAndRefusesLess) {
  const TempDirectory temp;
  TokenFeed feed(counting(temp, 9, 0), data::TextSplit::train, 8, c10::kCPU);
  EXPECT_EQ(feed.count(), 1);
  EXPECT_TRUE(feed.at_step(3, 2, 1).inputs.equal(torch::arange(8).expand({2, 8})));
  expect_error(Code::config, "9 training tokens, a window of context 9 needs 10",
               [&] { TokenFeed(counting(temp, 9, 0), data::TextSplit::train, 9, c10::kCPU); });
  expect_error(Code::config, "0 held-out tokens",
               [&] { TokenFeed(counting(temp, 9, 0), data::TextSplit::held_out, 8, c10::kCPU); });
}

Model small_decoder(uint64_t seed = 3) {
  return make_model("decoder",
                    {{"vocab", kVocabulary},
                     {"layers", 1},
                     {"width", 16},
                     {"heads", 2},
                     {"ffn", 32},
                     {"context", 8}},
                    seed);
}

TrainOptions quick(int64_t steps) {
  TrainOptions o;
  o.steps = steps;
  o.batch = 8;
  o.title = "";
  o.log_every = 5;
  o.optimizer = {
      .kind = "muon", .rate = 2e-2, .momentum = 0.95, .weight_decay = 0.01, .beta2 = 0.95};
  o.clip = 1;
  return o;
}

TEST(TextTraining, LearnsWhatFollowsAndTellsHeldOutLoss) {
  const TempDirectory temp;
  const auto file = counting(temp, 400, 60);
  Model model = small_decoder();
  TokenFeed feed(file, data::TextSplit::train, 8, c10::kCPU);
  TrainOptions options = quick(40);
  options.validate_every = 15;
  options.tokens_per_sample = 8;
  TrainHooks hooks;
  hooks.validate = [&] { return evaluate_text(model, file, data::TextSplit::held_out, 8).loss; };
  std::vector<int64_t> points, checks;
  double speed = 0;
  hooks.on_point = [&](const CurvePoint& point, double tokens_per_second) {
    points.push_back(point.step);
    speed = tokens_per_second;
  };
  hooks.on_validation = [&](const ValidationPoint& point) { checks.push_back(point.step); };
  Trainer trainer(model, feed, options, hooks);
  const TrainResult result = trainer.run();
  EXPECT_LT(result.validation.back().loss, 1.5);  // log(50) = 3.9 at the start
  EXPECT_GT(result.curve.back().accuracy, 0.5);
  EXPECT_EQ(points.size(), 8u);
  EXPECT_THAT(checks, ::testing::ElementsAre(15, 30, 40));
  EXPECT_GT(speed, 0);
}

TEST(TextTraining, HeldOutLossIsTheMeanOverAllWindows) {
  const TempDirectory temp;
  const auto file = counting(temp, 20, 30);
  Model model = small_decoder();
  const TextEvaluation whole =
      evaluate_text(model, file, data::TextSplit::held_out, 8, 0, false, 2);
  EXPECT_EQ(whole.tokens, 29);
  std::vector<int64_t> ids(30);
  file.read(data::TextSplit::held_out, 0, ids);
  const torch::NoGradGuard no_grad;
  double sum = 0;
  for (int64_t first = 0; first < 29; first += 8) {
    const int64_t n = std::min<int64_t>(8, 29 - first);
    const auto window =
        torch::tensor(std::vector<int64_t>(ids.begin() + first, ids.begin() + first + n));
    Context context;
    const auto logits = model.forward(window.unsqueeze(0), context)[0].log_softmax(1);
    for (int64_t i = 0; i < n; ++i)
      sum -= logits[i][ids[static_cast<size_t>(first + i + 1)]].item<double>();
  }
  EXPECT_NEAR(whole.loss, sum / 29, 1e-5);
  EXPECT_EQ(evaluate_text(model, file, data::TextSplit::held_out, 8, 11).tokens, 11);
  expect_error(Code::config, "nothing to predict",
               [&] { evaluate_text(model, counting(temp, 20, 1), data::TextSplit::held_out, 8); });
}

TEST(TextTraining, AccumulatedGradientsAreThoseOfTheWholeBatch) {
  const TempDirectory temp;
  const auto file = counting(temp, 300, 0);
  auto train = [&](int64_t micro) {
    Model model = small_decoder();
    TokenFeed feed(file, data::TextSplit::train, 8, c10::kCPU);
    TrainOptions options = quick(6);
    options.optimizer = {.kind = "sgd", .rate = 0.1};  // linear in the gradient
    options.micro_batch = micro;
    Trainer trainer(model, feed, options);
    const double loss = trainer.run().curve.back().loss;
    return std::pair(loss, named_state(*model.root));
  };
  const auto [whole, state] = train(0);
  const auto [parts, other] = train(3);  // 3 + 3 + 2
  EXPECT_NEAR(whole, parts, 1e-5);
  for (size_t i = 0; i < state.size(); ++i)
    EXPECT_TRUE(at::allclose(state[i].second, other[i].second, 1e-4, 1e-5)) << state[i].first;
}

TEST(TextTraining, ResumesToTheSameBytesAndRefusesAnotherFingerprint) {
  const TempDirectory temp;
  const auto file = counting(temp, 300, 40);
  TrainOptions options = quick(12);
  options.micro_batch = 4;
  options.fingerprint = "one";
  options.validate_every = 3;
  const auto trainer_of = [&](Model& model, TokenFeed& feed, const TrainOptions& o) {
    TrainHooks hooks;
    hooks.validate = [&] { return evaluate_text(model, file, data::TextSplit::held_out, 8).loss; };
    return Trainer(model, feed, o, hooks);
  };
  Model whole = small_decoder();
  TokenFeed feed(file, data::TextSplit::train, 8, c10::kCPU);
  const TrainResult uninterrupted = trainer_of(whole, feed, options).run();
  options.checkpoint = temp / "c";
  Model begun = small_decoder();
  trainer_of(begun, feed, options).run(7);
  Model model = small_decoder(99);
  Trainer resumed = trainer_of(model, feed, options);
  resumed.load_checkpoint(options.checkpoint);
  const TrainResult result = resumed.run();
  testing::expect_same_state(*whole.root, *model.root);
  ASSERT_EQ(result.validation.size(), uninterrupted.validation.size());
  for (size_t i = 0; i < result.validation.size(); ++i)
    EXPECT_EQ(result.validation[i].loss, uninterrupted.validation[i].loss);

  options.fingerprint = "two";
  Trainer other = trainer_of(model, feed, options);
  expect_error(Code::config, "fingerprint", [&] { other.load_checkpoint(options.checkpoint); });
}

TEST(TextTraining, StopsAtNanNamingStepAndTensorAndKeepsTheGoodCheckpoint) {
  const TempDirectory temp;
  const auto file = counting(temp, 300, 0);
  Model model = small_decoder();
  TokenFeed feed(file, data::TextSplit::train, 8, c10::kCPU);
  TrainOptions options = quick(20);
  options.checkpoint = temp / "c";
  options.checkpoint_every = 2;
  std::string good;
  TrainHooks hooks;
  hooks.after_step = [&](int64_t step) {
    if (step != 5) return;
    good = read_text_file(options.checkpoint);
    const torch::NoGradGuard no_grad;
    for (auto& [name, tensor] : named_state(*model.root))
      if (name == "blocks.0.ffn.up.weight") tensor.view(-1)[3] = std::nanf("");
  };
  Trainer trainer(model, feed, options, hooks);
  // The checkpoint due after step 5 notices first.
  expect_error(Code::numeric, "after step 5 of 20 parameter blocks.0.ffn.up.weight is not finite",
               [&] { trainer.run(); });
  EXPECT_EQ(read_text_file(options.checkpoint), good);

  options.checkpoint_every = 20;
  Model second = small_decoder();
  hooks.after_step = [&](int64_t step) {
    const torch::NoGradGuard no_grad;
    if (step == 4) named_state(*second.root)[0].second.fill_(INFINITY);
  };
  Trainer stops(second, feed, options, hooks);
  expect_error(Code::numeric, "at step 5 of 20; parameter embed", [&] { stops.run(); });
}

}  // namespace token_feed_test
}  // namespace sluice::lab
