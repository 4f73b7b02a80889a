#include "sluice/text/train_bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/test_error.h"
#include "sluice/text/tokenizer.h"

namespace sluice::text {
namespace train_bpe_test {

std::string train(const std::vector<std::string>& texts, BpeTrainOptions options) {
  std::vector<TrainingText> views;
  for (const std::string& text : texts) {
    views.push_back({text, "text"});
  }
  return train_bpe(views, options);
}

BpeTrainOptions of_size(int64_t vocabulary) {
  BpeTrainOptions options;
  options.vocabulary = vocabulary;
  return options;
}

std::vector<std::string> merges_of(const std::string& json) {
  std::vector<std::string> merges;
  const Json document = parse_json(json, "trained");
  for (const Json& pair : document["model"]["merges"]) {
    merges.push_back(pair[0].get<std::string>() + " " + pair[1].get<std::string>());
  }
  return merges;
}

TEST(TrainBpe, MergesTheMostFrequentPairFirstAndTheSmallerIdsOfEqualOnes) {
  // ab 4 times; then cd and the blank with ab 2 times each, bc only once more: its b went into ab.
  const std::string json = train({"ab ab ab", "abcd cd bc"}, of_size(257 + 3));
  EXPECT_THAT(merges_of(json), ::testing::ElementsAre("a b", "c d", "\u0120 ab"));
}

TEST(TrainBpe, CountsOverlappingPairsOnce) {
  const std::string json = train({"aaaa aaaa"}, of_size(257 + 2));
  EXPECT_THAT(merges_of(json), ::testing::ElementsAre("a a", "aa aa"));
}

TEST(TrainBpe, EncodesAndDecodesWhatItNeverSaw) {
  std::string text;
  for (int i = 0; i < 40; ++i) {
    text += "the cat sat on the mat; the hat of the cat. ";
  }
  const std::string json = train({text}, of_size(270));
  const Tokenizer tokenizer = Tokenizer::parse(json, "trained");
  EXPECT_EQ(tokenizer.id_limit(), 270);
  EXPECT_EQ(tokenizer.token_to_id("<|endoftext|>"), 0);
  const std::string other = "Zwölf Boxkämpfer\n\tjagen 日本<|endoftext|>the\x01";
  const std::vector<int32_t> ids = tokenizer.encode(other);
  EXPECT_EQ(tokenizer.decode(ids, false), other);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 0), 1);
  EXPECT_EQ(tokenizer.encode(" the").size(), 1u);
}

TEST(TrainBpe, DoesNotDependOnOrderOrThreads) {
  std::mt19937 random(7);
  std::vector<std::string> texts;
  for (int i = 0; i < 50; ++i) {
    std::string text;
    for (int word = 0; word < 60; ++word) {
      text += ' ';
      for (unsigned size = 1 + random() % 6; size > 0; --size) {
        text += static_cast<char>('a' + random() % 5);
      }
    }
    texts.push_back(text);
  }
  BpeTrainOptions options = of_size(500);
  options.threads = 1;
  const std::string one = train(texts, options);
  std::shuffle(texts.begin(), texts.end(), random);
  options.threads = 3;
  EXPECT_EQ(train(texts, options), one);
}

TEST(TrainBpe, EqualsTheReferenceLibrary) {
  const std::string root = SLUICE_SOURCE_DIR;
  const std::string json = train({read_text_file(root + "/LICENSE")}, of_size(700));
  const std::string golden = read_text_file(root + "/tests/golden/tokenizers/trained.json");
  EXPECT_EQ(parse_json(json, "trained")["model"], parse_json(golden, "golden")["model"]);
}

TEST(TrainBpe, CutsEndlessWords) {
  const std::string json = train({std::string(100'000, 'x')}, of_size(257 + 12));
  EXPECT_EQ(merges_of(json).size(), 12u);
  expect_error(Code::config, "fills only 269",
               [&] { train({std::string(100'000, 'x')}, of_size(300)); });
}

TEST(TrainBpe, RefusesWhatIsNoText) {
  expect_error(Code::missing, "the 0 texts are empty", [] { train({}, {}); });
  expect_error(Code::missing, "the 2 texts are empty", [] { train({"", ""}, {}); });
  expect_error(Code::format, "text: a zero byte at offset 3", [] {
    train({"good", std::string("abc\0d", 5)}, {});
  });
  expect_error(Code::format, "byte 0xFF at offset 2 is not UTF-8", [] { train({"ab\xFF"}, {}); });
  expect_error(Code::config, "vocabulary of 256 tokens: expected 257",
               [] { train({"abc"}, of_size(256)); });
  expect_error(Code::config, "choose at most 257", [] { train({"abc"}, of_size(258)); });
  BpeTrainOptions twice;
  twice.special_tokens = {"<s>", "<s>"};
  expect_error(Code::config, "named twice", [&] { train({"abc"}, twice); });
}

}  // namespace train_bpe_test
}  // namespace sluice::text
