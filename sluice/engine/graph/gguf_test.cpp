// What goes through GGUF computes the same and reads text the same.
#include <gtest/gtest.h>

#include <algorithm>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/export/export.h"
#include "sluice/bundle/gguf/vocabulary.h"
#include "sluice/bundle/import/gguf.h"
#include "sluice/bundle/import/testing.h"
#include "sluice/engine/graph/network.h"
#include "sluice/text/tokenizer.h"

namespace sluice::engine {
namespace gguf_test {

using bundle::Bundle;
using bundle::ExportOptions;
using bundle::gguf::Vocabulary;

const std::string kGolden = std::string(SLUICE_SOURCE_DIR) + "/tests/golden/";

std::vector<float> logits(const std::string& path, const std::vector<float>& ids) {
  const Network network = Network::open(path);
  Session session(network, {.batch = 1, .threads = 1, .sequences = true});
  const size_t rows = size_t(network.input_shape()[0]);
  std::vector<float> out(rows * size_t(network.output_shape().back()));
  session.run_tokens(ids, out, std::vector{int64_t(ids.size())});
  out.resize(ids.size() * size_t(network.output_shape().back()));
  return out;
}

/// Pairs of rotary columns side by side and half a head apart are the same model, whose logits
/// transformers computed.
TEST(GgufModel, RowsAreWovenForLlamaAndBack) {
  for (const char* name : {"llama", "llama_llama3", "qwen3"}) {
    const Json document = read_json_file(kGolden + "huggingface/" + name + ".json");
    const TempDirectory folder;
    bundle::testing::write_model(document, folder / "source");
    bundle::import_hugging_face(folder / "source", folder / "model");
    bundle::export_gguf(Bundle::open(folder / "model"), folder / "model.gguf");
    bundle::import_gguf(folder / "model.gguf", folder / "again");
    const auto ids = document["ids"].get<std::vector<float>>();
    const auto expected = document["logits"].get<std::vector<double>>();
    const auto found = logits(folder / "again", ids);
    ASSERT_EQ(found.size(), expected.size());
    double largest = 0;
    for (size_t i = 0; i < found.size(); ++i)
      largest = std::max(largest, std::abs(found[i] - expected[i]));
    EXPECT_LT(largest, 1e-4) << name;
  }
}

std::vector<std::string> corpus() {
  std::vector<std::string> lines;
  for (const Json& line : read_json_file(kGolden + "tokenizers/corpus.json"))
    if (line.is_string()) lines.push_back(line.get<std::string>());
  return lines;
}

text::GgufVocabulary as_text(const Vocabulary& v) {
  return {v.model,      v.pre,       v.tokens,   v.scores,
          v.types,      v.merges,    v.begin_id, v.end_ids.empty() ? -1 : v.end_ids[0],
          v.unknown_id, v.add_begin, v.add_end,  v.add_space_prefix};
}

TEST(GgufVocabulary, ByteLevelTokenizersGoOverAndBack) {
  for (const char* name : {"gpt2", "llama3"}) {
    const std::string json = read_text_file(kGolden + "tokenizers/" + name + ".json");
    const auto before = text::Tokenizer::parse(json, name);
    const Vocabulary vocabulary = bundle::gguf::vocabulary_of(json, 2000, name, nullptr);
    EXPECT_EQ(vocabulary.tokens.size(), 2000u);
    const auto gguf = text::Tokenizer::from_gguf(as_text(vocabulary), name);
    const auto after = text::Tokenizer::parse(bundle::gguf::tokenizer_json(vocabulary, name), name);
    for (const std::string& line : corpus()) {
      const auto ids = before.encode(line);
      EXPECT_EQ(gguf.encode(line), ids) << name << ": " << line;
      EXPECT_EQ(after.encode(line), ids) << name << ": " << line;
      EXPECT_EQ(after.decode(ids), before.decode(ids));
    }
  }
}

TEST(GgufVocabulary, QwensNormalizerIsNotDroppedInSilence) {
  std::vector<std::string> notes;
  const std::string json = read_text_file(kGolden + "tokenizers/qwen.json");
  EXPECT_EQ(bundle::gguf::vocabulary_of(json, 1500, "qwen", &notes).pre, "qwen2");
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find("NFC"), std::string::npos);
}

TEST(GgufVocabulary, SentencePieceBecomesMergesWithTheSameIds) {
  const Json json = read_json_file(kGolden + "tokenizers/gguf-llama.json");
  Vocabulary vocabulary;
  vocabulary.model = "llama";
  vocabulary.tokens = json["tokens"].get<std::vector<std::string>>();
  vocabulary.scores = json["scores"].get<std::vector<float>>();
  vocabulary.types = json["types"].get<std::vector<int32_t>>();
  vocabulary.unknown_id = 0;
  const auto gguf = text::Tokenizer::from_gguf(as_text(vocabulary), "gguf");
  const std::string text = bundle::gguf::tokenizer_json(vocabulary, "gguf");
  const auto converted = text::Tokenizer::parse(text, "converted");
  for (const std::string& line : corpus()) {
    const auto ids = gguf.encode(line);
    EXPECT_EQ(converted.encode(line), ids) << line;
    EXPECT_EQ(converted.decode(ids), gguf.decode(ids)) << line;
  }
  // And back: other scores in the same order, so the same ids.
  const Vocabulary back =
      bundle::gguf::vocabulary_of(text, int64_t(vocabulary.tokens.size()), "converted", nullptr);
  EXPECT_EQ(back.tokens, vocabulary.tokens);
  const auto again = text::Tokenizer::from_gguf(as_text(back), "back");
  for (const std::string& line : corpus()) EXPECT_EQ(again.encode(line), gguf.encode(line));
}

TEST(GgufVocabulary, WhatTheOtherSideCannotSayIsRefused) {
  const auto refused = [](const char* name, const std::function<void(Json&)>& change,
                          const char* words) {
    Json json = read_json_file(kGolden + "tokenizers/" + name + ".json");
    change(json);
    EXPECT_ERROR(bundle::gguf::vocabulary_of(json.dump(), 3000, name, nullptr), Code::unsupported,
                 words);
  };
  refused(
      "bert", [](Json&) {}, "field 'model.type'");
  refused(
      "unigram", [](Json&) {}, "field 'model.type'");
  refused(
      "llama2", [](Json&) {}, "field 'model.merges'");  // not every pair is there
  refused(
      "roberta", [](Json&) {}, "field 'added_tokens.lstrip'");
  refused(
      "roberta",
      [](Json& j) {
        for (Json& token : j["added_tokens"]) token["lstrip"] = false;
        j["pre_tokenizer"]["add_prefix_space"] = false;
      },
      "field 'post_processor'");
  refused(
      "gpt2",
      [](Json& j) {
        j["normalizer"] = {{"type", "Lowercase"}};
      },
      "field 'normalizer'");
  refused(
      "gpt2", [](Json& j) { j["pre_tokenizer"]["add_prefix_space"] = true; },
      "field 'pre_tokenizer'");
  refused(
      "llama3", [](Json& j) { j["model"]["ignore_merges"] = false; },
      "field 'model.ignore_merges'");
  refused(
      "gpt2", [](Json& j) { j["added_tokens"][0]["lstrip"] = true; },
      "field 'added_tokens.lstrip'");
  Vocabulary equal{"llama", "", {"a", "b", "ab", "ba"}, {0, 0, -1, -1}, {1, 1, 1, 1}, {}};
  for (int i = 0; i < 256; ++i) {
    equal.tokens.push_back(fmt::format("<0x{:02X}>", i));
    equal.scores.push_back(0);
    equal.types.push_back(6);
  }
  EXPECT_ERROR(bundle::gguf::tokenizer_json(equal, "x"), Code::unsupported, "the same score");
  equal.scores[3] = -2;
  equal.tokens[3] = "bc";
  EXPECT_ERROR(bundle::gguf::tokenizer_json(equal, "x"), Code::unsupported, "letter 'c'");
}

}  // namespace gguf_test
}  // namespace sluice::engine
