#include "sluice/engine/text/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "sluice/base/test_error.h"
#include "sluice/engine/text/test_models.h"

namespace sluice::engine {
namespace generator_test {

using ::testing::ElementsAre;
using testing::Model;
using testing::NetworkBuilder;

std::vector<int32_t> random_prompt(uint64_t seed, int64_t length) {
  NetworkBuilder random(seed);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < length; ++i)
    ids.push_back(static_cast<int32_t>(random.pick(0, testing::kDecoderWords - 1)));
  return ids;
}

/// Token by token, with all logits of every row.
std::vector<int32_t> slow_greedy(const Network& network, std::vector<int32_t> ids, int64_t count) {
  Session session(network, {.batch = 1, .threads = 1, .sequences = true});
  std::vector<float> logits(size_t(testing::kDecoderWords));
  std::vector<int32_t> found;
  for (size_t i = 0; std::ssize(found) < count; ++i) {
    session.run_tokens(std::vector<float>{float(ids[i])}, logits, std::vector<int64_t>{1});
    if (i + 1 < ids.size()) continue;
    found.push_back(int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    ids.push_back(found.back());
  }
  return found;
}

TEST(Generator, PromptsOfAnyLengthInAnyBatchContinueAsAlone) {
  const Model model = testing::random_decoder({.tokens = 5});
  const Network network(model.bundle);
  std::vector<GenerationRequest> requests;
  std::vector<std::vector<int32_t>> expected;
  for (uint64_t i = 0; i < 5; ++i) {
    const int64_t count = int64_t(3 + 4 * i % 9);
    requests.push_back({.prompt = random_prompt(i, int64_t(1 + 4 * i)), .max_tokens = count});
    expected.push_back(slow_greedy(network, requests.back().prompt, count));
  }
  for (const int64_t batch : {1, 2, 5, 8}) {
    Generator generator(network, nullptr, {.batch = batch, .threads = batch > 2 ? 2 : 1});
    for (int round = 0; round < 2; ++round) {
      const auto results = generator.run(requests);
      ASSERT_EQ(results.size(), 5u);
      for (size_t i = 0; i < 5; ++i) {
        EXPECT_EQ(results[i].tokens, expected[i]) << "batch " << batch << ", prompt " << i;
        EXPECT_EQ(results[i].finish, Finish::max_tokens);
        EXPECT_EQ(results[i].prompt_tokens, int64_t(1 + 4 * i));
      }
    }
    const GenerationStatistics& s = generator.statistics();
    EXPECT_EQ(s.prompt_tokens, 1 + 5 + 9 + 13 + 17);
    int64_t generated = 0;
    for (const auto& tokens : expected) generated += std::ssize(tokens);
    EXPECT_EQ(s.decoded_tokens, generated - 5);
    EXPECT_GT(s.macs, 0);
  }
}

/// Of two sizes: in size 0 token i is followed by i + 1, in size 1 by i + 2.
Model two_sizes(int64_t words) {
  NetworkBuilder net(1);
  const auto n = static_cast<size_t>(words);
  std::vector<float> one(n * n, 0.0f);
  for (size_t i = 0; i < n; ++i) one[i * n + i] = 1;
  net.tensor("words", {words, words}, one);
  const bundle::Value x =
      net.builder().node("embedding", "words", {net.input({4})}, {}, {{"weight", "words"}});
  const bundle::Value y = net.node("attention", "attention", {x, x, x},
                                   {{"heads", int64_t{1}}, {"cache", int64_t{64}}});
  net.tensor("little", {1}, {1e-3f});
  const bundle::Value sum = net.node(
      "add", "sum", {net.builder().node("scale", "less", {y}, {}, {{"scale", "little"}}), x});
  std::vector<bundle::Value> heads;
  for (const size_t step : {size_t{1}, size_t{2}}) {
    std::vector<float> follows(n * n, 0.0f);
    for (size_t i = 0; i < n; ++i) follows[(i + step) % n * n + i] = 8;
    const std::string name = "head" + std::to_string(step);
    net.tensor(name, {words, words}, follows);
    heads.push_back(net.builder().node("linear", name, {sum}, {}, {{"weight", name}}));
  }
  return net.finish(
      net.node("size_switch", "switch", heads, {{"choice", std::vector<int64_t>{0, 1}}}));
}

TEST(Generator, PromptsMayHaveASizeOfTheirOwn) {
  const Model model = two_sizes(40);
  const Network network(model.bundle);
  // Prompts that end at different times: some runs have both kinds of rows.
  std::vector<GenerationRequest> requests;
  for (int32_t i = 0; i < 5; ++i)
    requests.push_back(
        {.prompt = std::vector<int32_t>(size_t(1 + 3 * i), 10 + i), .max_tokens = 3 + i % 2});
  for (const int64_t batch : {1, 2, 5}) {
    for (const auto& [size, prompt_size] : {std::pair(0, 1), std::pair(1, 0)}) {
      Generator generator(network, nullptr,
                          {.batch = batch, .threads = 1, .size = size, .prompt_size = prompt_size});
      const auto results = generator.run(requests);
      for (int32_t i = 0; i < 5; ++i) {
        int32_t token = 10 + i + 1 + prompt_size;
        for (const int32_t found : results[size_t(i)].tokens) {
          EXPECT_EQ(found, token) << "batch " << batch << ", prompt " << i;
          token += 1 + size;
        }
      }
      const GenerationStatistics& s = generator.statistics();
      EXPECT_GT(s.decode_macs, 0);
      EXPECT_LT(s.decode_macs, s.macs);
      EXPECT_EQ(s.prompt_tokens, 1 + 4 + 7 + 10 + 13);
    }
  }
  Generator wrong(network, nullptr, {.size = 0, .prompt_size = 2});
  EXPECT_ERROR(wrong.run(requests), Code::usage, "size");
}

TEST(Generator, ComputesLogitsOnlyWhereATokenIsChosen) {
  const Model model = testing::random_decoder({.tokens = 8});
  const Network network(model.bundle);
  Generator generator(network, nullptr, {.batch = 1, .threads = 1});
  const auto macs = [&](int64_t prompt) {
    const std::vector<GenerationRequest> requests{
        {.prompt = random_prompt(1, prompt), .max_tokens = 1}};
    generator.run(requests);
    return generator.statistics().macs;
  };
  // The first layer, and of the second queries, keys and values; the rest is for one row.
  const int64_t width = testing::kDecoderWidth, products = (4 + 4 + 3) * width * width,
                keys = (9 + 10 + 11 + 12 + 13 + 14 + 15 + 16) * 2 * 2 * width;
  EXPECT_EQ(macs(16) - macs(8), 8 * products + keys);
}

TEST(Generator, HasMemoryForOneRowOfLogits) {
  const Model model = testing::random_decoder({.tokens = 32, .words = 3000});
  Generator generator(Network(model.bundle), nullptr, {});
  EXPECT_LT(generator.session().arena_bytes(), 32 * 3000 * 4 / 2);
}

TEST(Generator, StopTokensAndTheContextEndASequence) {
  const Model model = testing::random_decoder({.tokens = 4, .context = 12});
  const Network network(model.bundle);
  const auto prompt = random_prompt(3, 6);
  const auto tokens = slow_greedy(network, prompt, 6);
  Generator generator(network, nullptr, {});
  EXPECT_EQ(generator.context(), 12);
  EXPECT_EQ(generator.block(), 4);
  std::vector<GenerationRequest> requests{{.prompt = prompt, .max_tokens = 100}};
  auto result = generator.run(requests)[0];
  EXPECT_EQ(result.finish, Finish::context);
  // The last one was chosen, but has no place in the cache.
  EXPECT_EQ(result.tokens.size(), 7u);
  requests[0].stop_tokens = {tokens[2]};
  const auto first = std::find(tokens.begin(), tokens.end(), tokens[2]);
  result = generator.run(requests)[0];
  EXPECT_EQ(result.finish, Finish::stop_token);
  EXPECT_EQ(result.tokens, std::vector<int32_t>(tokens.begin(), first));
}

/// Every token has one successor: what is generated is known.
class Chain : public ::testing::Test {
 protected:
  // As a byte-level vocabulary writes it: C3 and A9 are the two bytes of an e with an acute.
  const std::vector<std::string> words{"A", "\u00c3", "\u00a9", "E", "N", "D", "\u0120B", "C"};
  const text::Tokenizer tokenizer = testing::byte_level(words);
  const Model model = testing::chain(std::ssize(words), {1, 2, 3, 4, 5, 6, 7, 0});
  const Network network{model.bundle};
  Generator generator{network, &tokenizer, {.batch = 2, .threads = 1}};
};

TEST_F(Chain, TextComesInWholeCharactersAndStopsBeforeAStopStringThatTokensCut) {
  std::vector<GenerationRequest> requests{{.prompt = {7}, .max_tokens = 20, .stop = {"ND B"}}};
  std::vector<std::string> pieces;
  const auto results = generator.run(requests, [&](const GeneratedPiece& piece) {
    pieces.emplace_back(piece.text);
    return true;
  });
  EXPECT_EQ(results[0].text, "A\u00e9E");
  EXPECT_EQ(results[0].finish, Finish::stop_string);
  EXPECT_EQ(results[0].tokens, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_THAT(pieces, ElementsAre("A", "", "\u00e9", "E", "", "", ""));
}

TEST_F(Chain, WhatWasHeldBackIsGivenAtTheEnd) {
  std::vector<GenerationRequest> requests{
      {.prompt = {2}, .max_tokens = 2, .stop = {"END"}},
      {.prompt = {7}, .max_tokens = 2},
  };
  std::string streamed;
  const auto results = generator.run(requests, [&](const GeneratedPiece& piece) {
    if (piece.request == 0) streamed += piece.text;
    return true;
  });
  EXPECT_EQ(results[0].text, "EN");
  EXPECT_EQ(streamed, "EN");
  EXPECT_EQ(results[0].finish, Finish::max_tokens);
  EXPECT_EQ(results[1].text, "A\uFFFD");  // half a character
}

TEST_F(Chain, SequencesEndAtDifferentTimesAndPlacesAreUsedAgain) {
  std::vector<GenerationRequest> requests;
  for (int32_t i = 0; i < 8; ++i)
    requests.push_back({.prompt = {i}, .max_tokens = 30, .stop_tokens = {7}});
  const auto results = generator.run(requests);
  const std::string all = "A\u00e9END B";
  EXPECT_EQ(results[7].text, all);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(results[i].finish, Finish::stop_token) << i;
    EXPECT_EQ(results[i].tokens.size(), (6 - i) % 8) << i;
  }
}

TEST_F(Chain, ACallbackMayEndARequest) {
  std::vector<GenerationRequest> requests{{.prompt = {7}}, {.prompt = {7}, .max_tokens = 9}};
  const auto results = generator.run(
      requests, [](const GeneratedPiece& piece) { return piece.request > 0 || piece.token < 2; });
  EXPECT_EQ(results[0].finish, Finish::cancelled);
  EXPECT_EQ(results[0].tokens.size(), 3u);
  EXPECT_EQ(results[1].tokens.size(), 9u);
}

TEST_F(Chain, RefusesRequestsThatMakeNoSenseBeforeComputing) {
  const auto refuse = [&](GenerationRequest request, Code code, const std::string& words) {
    const std::vector<GenerationRequest> requests{{.prompt = {1}}, std::move(request)};
    bool called = false;
    expect_error(code, words, [&] {
      generator.run(requests, [&](const GeneratedPiece&) { return called = true; });
    });
    EXPECT_FALSE(called);
  };
  refuse({.prompt = {}}, Code::usage, "prompt 2 is empty");
  refuse({.prompt = {1, 8}}, Code::shape, "token 8");
  refuse({.prompt = {-1}}, Code::shape, "token -1");
  refuse({.prompt = std::vector<int32_t>(65, 1)}, Code::limit, "65 tokens; the context");
  refuse({.prompt = {1}, .max_tokens = 0}, Code::usage, "at most 0 tokens");
  refuse({.prompt = {1}, .stop = {""}}, Code::usage, "stop string is empty");
  refuse({.prompt = {1}, .sampling = {.top_p = 2}}, Code::usage, "top-p 2");
  Generator blind(network, nullptr, {});
  EXPECT_ERROR(blind.run(std::vector<GenerationRequest>{{.prompt = {1}, .stop = {"x"}}}),
               Code::usage, "need a tokenizer");
}

TEST(GeneratorOf, OnlyDecodersThatKeepState) {
  NetworkBuilder image(1);
  const Model classifier = image.finish(image.linear("head", image.input({8}), 3));
  EXPECT_ERROR(Generator(Network(classifier.bundle), nullptr, {}), Code::unsupported,
               "expected a decoder");
  const Model plain = testing::random_decoder({.tokens = 8, .context = 0});
  EXPECT_ERROR(Generator(Network(plain.bundle), nullptr, {}), Code::unsupported,
               "keeps nothing from run to run");
}

}  // namespace generator_test
}  // namespace sluice::engine
