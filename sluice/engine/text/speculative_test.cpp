#include "sluice/engine/text/speculative.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "sluice/base/test_error.h"
#include "sluice/engine/text/generator.h"
#include "sluice/engine/text/test_models.h"

namespace sluice::engine {
namespace speculative_test {

using testing::Model;
using testing::NetworkBuilder;

std::vector<GenerationRequest> some_requests(const Sampling& sampling = {}) {
  NetworkBuilder random(9);
  std::vector<GenerationRequest> requests;
  for (int64_t i = 0; i < 5; ++i) {
    GenerationRequest request;
    request.max_tokens = 4 + 5 * i;
    request.sampling = sampling;
    for (int64_t k = 0; k < 1 + 4 * i; ++k)
      request.prompt.push_back(int32_t(random.pick(0, testing::kDecoderWords - 1)));
    requests.push_back(std::move(request));
  }
  return requests;
}

TEST(Speculative, GreedyTextIsTheSameWhateverIsProposed) {
  const Model model = testing::random_decoder({.tokens = 6}),
              other = testing::random_decoder({.tokens = 9, .layers = 1}, 6);
  const Network network(model.bundle), stranger(other.bundle);
  const auto requests = some_requests();
  const auto expected = Generator(network, nullptr, {.batch = 2}).run(requests);
  for (const Network* draft : {&network, &stranger}) {
    for (const int64_t batch : {1, 3}) {
      for (const int64_t tokens : {1, 4, 5}) {
        Generator generator(
            network, nullptr,
            {.batch = batch, .draft = draft, .draft_tokens = tokens, .adapt = false});
        const auto found = generator.run(requests);
        const GenerationStatistics& s = generator.statistics();
        for (size_t i = 0; i < requests.size(); ++i) {
          EXPECT_EQ(found[i].tokens, expected[i].tokens) << i;
          EXPECT_EQ(found[i].finish, expected[i].finish);
        }
        EXPECT_GT(s.proposed, 0);
        if (draft == &network) {
          EXPECT_EQ(s.accepted, s.proposed);
        } else {
          EXPECT_LT(s.accepted, s.proposed);
        }
      }
    }
  }
}

TEST(Speculative, ASizeProposesInTheCachesOfTheWhole) {
  const Model model = testing::random_decoder({.tokens = 6, .layers = 4, .depths = {1, 2, 4}});
  const Network network(model.bundle);
  const auto requests = some_requests();
  const auto expected = Generator(network, nullptr, {.batch = 2}).run(requests);
  for (const int64_t size : {0, 1, 2}) {
    for (const int64_t batch : {1, 3}) {
      for (const bool adapt : {false, true}) {
        Generator generator(
            network, nullptr,
            {.batch = batch, .draft = &network, .draft_size = size, .adapt = adapt});
        const auto found = generator.run(requests);
        const GenerationStatistics& s = generator.statistics();
        for (size_t i = 0; i < requests.size(); ++i) {
          EXPECT_EQ(found[i].tokens, expected[i].tokens) << i << ", size " << size;
          EXPECT_EQ(found[i].finish, expected[i].finish);
        }
        if (!adapt) {
          EXPECT_GT(s.proposed, 0);
        }
        if (size == 2) {
          EXPECT_EQ(s.accepted, s.proposed);
        }
        // No second cache.
        EXPECT_EQ(
            generator.session().state_bytes(),
            Session(network, {.batch = batch, .sequences = true, .last_rows = 1}).state_bytes());
      }
    }
  }
  // Nothing of a long prompt is computed twice: what the draft adds is the runs of its proposals.
  const std::vector<GenerationRequest> longer{
      {.prompt = std::vector<int32_t>(50, 3), .max_tokens = 6}};
  Generator plain(network, nullptr, {}),
      drafted(network, nullptr,
              {.draft = &network, .draft_size = 0, .draft_tokens = 1, .adapt = false});
  plain.run(longer);
  drafted.run(longer);
  EXPECT_LT(double(drafted.statistics().macs), 1.35 * double(plain.statistics().macs));
}

TEST(DraftLength, IsWhatPays) {
  DraftLength cheap(8, 0.1), dear(8, 0.95);
  EXPECT_GT(cheap.next(), 1);
  EXPECT_EQ(dear.next(), 0);
  const int64_t before = cheap.next();
  for (int i = 0; i < 40; ++i) cheap.learn(4, 4);
  EXPECT_GT(cheap.acceptance(), 0.95);
  EXPECT_GT(cheap.next(), before);
  EXPECT_LE(cheap.next(), 8);
  for (int i = 0; i < 100; ++i) cheap.learn(4, 0);
  EXPECT_LT(cheap.acceptance(), 0.05);
  int proposed = 0;  // still tried, more and more seldom
  for (int i = 0; i < 400; ++i) {
    const int64_t now = cheap.next();
    EXPECT_LE(now, 1);
    proposed += now > 0;
    cheap.learn(now, 0);
  }
  EXPECT_GE(proposed, 3);
  EXPECT_LE(proposed, 8);
  for (int i = 0; i < 100; ++i) cheap.learn(1, 1);
  EXPECT_GT(cheap.next(), 1);
  // Those behind a refused one count for nothing.
  DraftLength a(8, 0.1), b(8, 0.1);
  for (int i = 0; i < 50; ++i) {
    a.learn(2, 1);
    b.learn(8, 1);
  }
  EXPECT_DOUBLE_EQ(a.acceptance(), b.acceptance());
  EXPECT_NEAR(a.acceptance(), 0.5, 0.05);
}

TEST(Speculative, StopsWhereTheTextWouldStopAnyway) {
  // 0 1 2 3 4 0 ..; the draft agrees.
  const Model model = testing::chain(5, {1, 2, 3, 4, 0}, 8, 16);
  const Network network(model.bundle);
  Generator generator(network, nullptr, {.draft = &network, .draft_tokens = 6, .adapt = false});
  const std::vector<GenerationRequest> requests{
      {.prompt = {0}, .max_tokens = 100, .stop_tokens = {3}},
      {.prompt = {0}, .max_tokens = 3},
      {.prompt = {0}, .max_tokens = 100},
  };
  const auto results = generator.run(requests);
  EXPECT_EQ(results[0].tokens, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(results[0].finish, Finish::stop_token);
  EXPECT_EQ(results[1].tokens, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(results[1].finish, Finish::max_tokens);
  EXPECT_EQ(results[2].tokens.size(), 16u);
  EXPECT_EQ(results[2].finish, Finish::context);
}

TEST(Speculative, FewerRunsOfTheLargeNetwork) {
  const Model model = testing::chain(5, {1, 2, 3, 4, 0}, 8, 64);
  const Network network(model.bundle);
  Generator plain(network, nullptr, {}),
      drafted(network, nullptr, {.draft = &network, .adapt = false});
  const std::vector<GenerationRequest> requests{{.prompt = {0, 1}, .max_tokens = 41}};
  plain.run(requests);
  drafted.run(requests);
  // The prompt's run gives one token, then each run four proposals and one more.
  EXPECT_EQ(drafted.statistics().proposed, 32);
  EXPECT_EQ(drafted.statistics().accepted, 32);
  EXPECT_EQ(drafted.statistics().decoded_tokens, plain.statistics().decoded_tokens);
}

/// Largest difference between frequencies that the two should have alike, in standard deviations.
double deviations(const std::map<int32_t, int>& a, const std::map<int32_t, int>& b, int n) {
  double most = 0;
  std::map<int32_t, int> all = a;
  all.insert(b.begin(), b.end());
  for (const auto& [token, ignored] : all) {
    const double x = a.contains(token) ? a.at(token) : 0, y = b.contains(token) ? b.at(token) : 0,
                 p = (x + y) / (2.0 * n);
    most = std::max(most, std::abs(x - y) / std::sqrt(2 * n * p * (1 - p) + 1));
  }
  return most;
}

TEST(Speculative, VerifiedTokensAreDistributedAsTheTarget) {
  const std::vector<std::vector<double>> targets{
      {0.1, 0.2, 0.3, 0.4}, {0.7, 0.0, 0.3, 0.0}, {0.0, 1.0, 0.0, 0.0}, {0.25, 0.25, 0.25, 0.25}};
  const std::vector<std::vector<double>> drafts{
      {0.4, 0.3, 0.2, 0.1}, {0.0, 0.5, 0.0, 0.5}, {0.5, 0.5, 0.0, 0.0}, {0.25, 0.25, 0.25, 0.25}};
  constexpr int kDraws = 40000;
  std::vector<double> residual;
  for (size_t i = 0; i < targets.size(); ++i) {
    Sampler proposing({.temperature = 1, .seed = i}), checking({.temperature = 1, .seed = 100 + i});
    std::vector<int> counts(4);
    int accepted = 0;
    for (int k = 0; k < kDraws; ++k) {
      const int32_t proposed = draw_index(drafts[i], proposing.uniform());
      const Verdict verdict = verify(proposed, drafts[i], targets[i], checking, residual);
      accepted += verdict.accepted;
      ++counts[size_t(verdict.token)];
    }
    double expected = 0;
    for (size_t t = 0; t < 4; ++t) {
      expected += std::min(targets[i][t], drafts[i][t]);
      EXPECT_NEAR(counts[t] / double(kDraws), targets[i][t], 0.01) << i << ", token " << t;
      if (targets[i][t] == 0) {
        EXPECT_EQ(counts[t], 0);
      }
    }
    EXPECT_NEAR(accepted / double(kDraws), expected, 0.01) << i;
  }
}

TEST(Speculative, SampledTextIsDistributedAsWithoutADraft) {
  const Model model = testing::random_decoder({.tokens = 6, .words = 12}),
              other = testing::random_decoder({.tokens = 6, .layers = 1, .words = 12}, 6);
  const Network network(model.bundle), stranger(other.bundle);
  constexpr int kRuns = 3000;
  std::vector<GenerationRequest> requests;
  for (uint64_t seed = 0; seed < kRuns; ++seed)
    requests.push_back({.prompt = {3, 1},
                        .max_tokens = 4,
                        .sampling = {.temperature = 0.9, .top_k = 8, .seed = seed}});
  const auto counts_of = [&](const Network* draft, const std::vector<GenerationRequest>& given,
                             const Network& large, int64_t size = -1, bool adapt = false) {
    Generator generator(large, nullptr,
                        {.batch = 16,
                         .threads = 1,
                         .draft = draft,
                         .draft_size = size,
                         .draft_tokens = 3,
                         .adapt = adapt});
    std::vector<std::map<int32_t, int>> counts(5);
    for (const Generated& g : generator.run(given)) {
      for (size_t i = 0; i < 4; ++i) ++counts[i][g.tokens[i]];
      ++counts[4][g.tokens[2] * 12 + g.tokens[3]];  // what follows what
    }
    return counts;
  };
  const auto plain = counts_of(nullptr, requests, network);
  for (auto& request : requests) request.sampling.seed += 100000;
  for (const bool adapt : {false, true}) {
    const auto drafted = counts_of(&stranger, requests, network, -1, adapt);
    for (size_t i = 0; i < 5; ++i) EXPECT_LT(deviations(plain[i], drafted[i], kRuns), 4.5) << i;
  }
  // A size of the network itself, in its caches; its weights are the same.
  const Model sizes = testing::random_decoder({.tokens = 6, .words = 12, .depths = {1, 2}});
  const Network nested(sizes.bundle);
  const auto own = counts_of(&nested, requests, nested, 0);
  for (size_t i = 0; i < 5; ++i) EXPECT_LT(deviations(plain[i], own[i], kRuns), 4.5) << i;
  // The measure sees another distribution.
  for (auto& request : requests) request.sampling.temperature = 1.3;
  EXPECT_GT(deviations(plain[1], counts_of(&stranger, requests, network)[1], kRuns), 4.5);
}

TEST(Speculative, RefusesWhatDoesNotFit) {
  const Model model = testing::random_decoder({.tokens = 6}),
              words = testing::random_decoder({.tokens = 6, .words = 12}),
              forgetful = testing::random_decoder({.tokens = 6, .context = 0});
  const Network network(model.bundle), other(words.bundle), stateless(forgetful.bundle);
  const auto make = [&](const Network& draft, int64_t tokens) {
    Generator(network, nullptr, {.draft = &draft, .draft_tokens = tokens});
  };
  EXPECT_ERROR(make(other, 4), Code::shape, "logits [T,50]");
  EXPECT_ERROR(make(network, 0), Code::usage, "expected 1 to 5");
  EXPECT_ERROR(make(network, 6), Code::usage, "expected 1 to 5");
  EXPECT_ERROR(make(stateless, 4), Code::unsupported, "cannot go back");
  const Model sizes = testing::random_decoder({.tokens = 6, .depths = {1, 2}});
  const Network nested(sizes.bundle);
  EXPECT_ERROR(Generator(nested, nullptr, {.draft = &nested, .draft_size = 2}), Code::usage,
               "size 2 to propose with; it has 2");
  EXPECT_ERROR(Generator(network, nullptr, {.draft = &network, .draft_size = 3}), Code::usage,
               "size 3");
}

}  // namespace speculative_test
}  // namespace sluice::engine
