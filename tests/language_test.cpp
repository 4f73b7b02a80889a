// Decoders and encoders of text through run, eval and bench, as a process.
#if SLUICE_WITH_ENGINE
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "sluice/bundle/bundle.h"
#include "tests/process.h"
#include "tests/tiny_models.h"

namespace sluice::test {
namespace language_test {

using testing::HasSubstr;
using testing::StartsWith;

class Language : public testing::Test {
 protected:
  void SetUp() override {
    // Threads of tiny models would spend the tests waiting for each other on a busy machine.
    ::setenv("OMP_WAIT_POLICY", "passive", 1);
    write_tiny_model("llama", directory / "llama");
    ASSERT_EQ(sluice({"import", directory / "llama", "-o", decoder, "--block", "16"}).exit_code, 0);
  }
  void make_encoder() {
    write_tiny_model("bert", directory / "bert");
    ASSERT_EQ(sluice({"import", directory / "bert", "-o", encoder, "--pooling", "mean"}).exit_code,
              0);
  }
  void refuse(const Arguments& arguments, int exit_code, const std::string& words) {
    const Finished finished = sluice(arguments);
    EXPECT_EQ(finished.exit_code, exit_code) << finished.out << finished.err;
    EXPECT_THAT(finished.err, StartsWith("sluice: error ["));
    EXPECT_THAT(finished.err, HasSubstr(words));
    EXPECT_EQ(std::count(finished.err.begin(), finished.err.end(), '\n'), 1) << finished.err;
    EXPECT_EQ(finished.out, "");
  }
  TempDirectory directory;
  const std::string decoder = directory / "decoder.safetensors",
                    encoder = directory / "encoder.safetensors", text = directory / "text.txt";
};

TEST_F(Language, RunContinuesAPromptAndSaysHowFast) {
  const Finished shown = sluice({"run", decoder, "--prompt", "w3 w4 , w5", "--max-tokens", "6"});
  EXPECT_EQ(shown.exit_code, 0) << shown.err;
  EXPECT_THAT(shown.err, HasSubstr("prompt: 5 tokens"));
  EXPECT_THAT(shown.err, HasSubstr("MACs a token ran"));
  const Json json =
      json_of(sluice({"run", decoder, "--prompt", "w3 w4 , w5", "--max-tokens", "6", "--json"}));
  const Json result = json["results"][0];
  EXPECT_EQ(shown.out, result["text"].get<std::string>() + "\n");
  EXPECT_EQ(result["prompt_tokens"], 5);
  EXPECT_LE(result["generated_tokens"].get<int>(), 6);
  EXPECT_GT(json["macs_per_token"].get<int64_t>(), 10000);
  EXPECT_GT(json["cache_bytes"].get<int64_t>(), 0);
  EXPECT_GT(json["peak_memory_bytes"].get<int64_t>(), json["cache_bytes"].get<int64_t>());
  // The seed decides what is drawn.
  const auto drawn = [&](const char* seed) {
    return json_of(sluice({"run", decoder, "--prompt", "w3", "--max-tokens", "12", "--temperature",
                           "2", "--top-k", "30", "--top-p", "0.99", "--min-p", "0.001",
                           "--repeat-penalty", "1.1", "--seed", seed, "--json"}))["results"];
  };
  EXPECT_EQ(drawn("5"), drawn("5"));
  EXPECT_NE(drawn("5"), drawn("6"));
}

TEST_F(Language, PromptsFromFilesAndStdinRunAsABatch) {
  write_bytes(text, "w7 w8");
  const Json json = json_of(sluice({"run", decoder, "--prompt", "w3 w4", "--prompt-file", text,
                                    "--prompt-file", "-", "--max-tokens", "4", "--json"},
                                   {.stdin_path = text}));
  ASSERT_EQ(json["results"].size(), 3u);
  EXPECT_EQ(json["results"][1]["text"], json["results"][2]["text"]);
  const Finished alone = sluice({"run", decoder, "--prompt", "w7 w8", "--max-tokens", "4"});
  EXPECT_EQ(alone.out, json["results"][1]["text"].get<std::string>() + "\n");
  const Finished shown =
      sluice({"run", decoder, "--prompt", "w3", "--prompt-file", text, "--max-tokens", "4"});
  EXPECT_THAT(shown.out, StartsWith("prompt 1:\n"));
  EXPECT_THAT(shown.out, HasSubstr("\n\n" + text + ":\n" + alone.out));
}

TEST_F(Language, TheCommittedDecoderKnowsEnglish) {
  const std::string tiny = std::string(SLUICE_SOURCE_DIR) + "/models/tiny.safetensors",
                    stories = std::string(SLUICE_SOURCE_DIR) + "/CONTRIBUTING.md";
  const Json json = json_of(sluice({"eval", tiny, "--text", stories, "--json"}));
  const Json& model = json["models"][0];
  // 8 bits a byte know nothing, 4.5 the letters' frequencies; text of this kind it has never seen.
  EXPECT_LT(model["bits_per_byte"], 3.3);
  EXPECT_GT(model["bits_per_byte"], 1.5);
  const Json shown =
      json_of(sluice({"run", tiny, "--prompt", "And the king", "--max-tokens", "12", "--json"}));
  EXPECT_EQ(shown["results"][0]["generated_tokens"], 12);
}

TEST_F(Language, RunStopsAtAString) {
  const auto run = [&](const Arguments& more) {
    Arguments arguments{"run", decoder, "--prompt", "w3", "--max-tokens", "8", "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return json_of(sluice(arguments))["results"][0];
  };
  const std::string whole = run({})["text"];
  const size_t space = whole.find(' ', 3);
  ASSERT_NE(space, std::string::npos) << whole;
  // Begins in one token and ends in the next.
  const std::string stop = whole.substr(space - 1, 3);
  const Json stopped = run({"--stop", stop});
  EXPECT_EQ(stopped["finish"], "stop-string");
  EXPECT_EQ(stopped["text"], whole.substr(0, whole.find(stop)));
}

TEST_F(Language, ADraftProposesAndTheTextStays) {
  const std::string draft = directory / "draft.safetensors";
  ASSERT_EQ(sluice({"import", directory / "llama", "-o", draft, "--dtype", "i8"}).exit_code, 0);
  const Arguments plain{"run", decoder, "--prompt", "w3 w4", "--max-tokens", "20", "--json"};
  Arguments drafted = plain;
  drafted.insert(drafted.end(), {"--draft", draft, "--draft-tokens", "3"});
  const Json expected = json_of(sluice(plain)), found = json_of(sluice(drafted));
  EXPECT_EQ(found["results"], expected["results"]);
  EXPECT_FALSE(expected.contains("accepted_tokens"));
  EXPECT_GT(found["accepted_tokens"], 10);  // its weights are nearly the same
  EXPECT_LE(found["accepted_tokens"], found["proposed_tokens"]);
  drafted.erase(std::find(drafted.begin(), drafted.end(), "--json"));
  EXPECT_THAT(sluice(drafted).err, HasSubstr("proposed tokens were accepted"));
  make_encoder();
  refuse({"run", decoder, "--prompt", "w3", "--draft", encoder}, 2, "its tokenizer is not that of");
  refuse({"run", decoder, "--prompt", "w3", "--draft-size", "w50"}, 2, "no size 'w50'");
}

TEST_F(Language, RunRefusesWhatMakesNoSense) {
  const auto refuse_run = [&](const Arguments& more, int code, const std::string& words) {
    Arguments arguments{"run", decoder};
    arguments.insert(arguments.end(), more.begin(), more.end());
    refuse(arguments, code, words);
  };
  std::string longer;
  for (int i = 0; i < 70; ++i) longer += "w3 ";
  refuse_run({"--prompt", longer}, 1, "has 71 tokens; the context");
  refuse_run({"--prompt", "w3 \xff"}, 1, "--prompt: byte 3 (0xff) is not UTF-8");
  refuse_run({"--prompt", "w3", "--stop", ""}, 2, "stop string is empty");
  refuse_run({"--prompt", "w3", "--temperature", "-1"}, 2, "temperature -1");
  refuse_run({"--prompt", "w3", "--top-p", "0"}, 2, "top-p 0");
  refuse_run({"--prompt", "w3", "--repeat-penalty", "nan"}, 2, "repetition penalty nan");
  refuse_run({"--prompt-file", directory / "none"}, 1, "none");
  refuse_run({"--text", "w3"}, 2, "continues texts: give --prompt");
  refuse_run({"--text", "w3", "--prompt", "w4"}, 2, "not several");
  make_encoder();
  refuse({"run", encoder, "--prompt", "w3"}, 1, "found one of kind 'embed'");
}

TEST_F(Language, AnEmptyPromptIsWhatTheTokenizerMakesOfIt) {
  const Json json =
      json_of(sluice({"run", decoder, "--prompt", "", "--max-tokens", "2", "--json"}));
  EXPECT_EQ(json["results"][0]["prompt_tokens"], 1);  // <s>
}

TEST_F(Language, ATokenizerOfAnotherModelIsRefused) {
  // The ids of the decoder's tokenizer are cut off: the embedding has too few rows.
  bundle::Builder builder;
  const bundle::Value ids = builder.input("tokens", {4});
  builder.tensor("words", {20, 8}, std::vector<float>(160, 0.1f));
  const bundle::Value x = builder.node("embedding", "words", {ids}, {}, {{"weight", "words"}});
  const bundle::Value y = builder.node("attention", "attention", {x, x, x},
                                       {{"heads", int64_t{1}}, {"cache", int64_t{8}}});
  builder.output(builder.node("linear", "head", {y}, {}, {{"weight", "words"}}));
  bundle::Task task;
  task.kind = "generate";
  builder.set_task(task);
  builder.set_tokenizer(tiny_tokenizer(false));
  builder.write(directory / "mixed.safetensors");
  refuse({"run", directory / "mixed.safetensors", "--prompt", "w3"}, 1,
         "the tokenizer has ids up to 39, the network takes 0 to 19");
}

TEST_F(Language, EvalGivesPerplexityAndCostOfSeveralModels) {
  std::string words;
  for (int i = 0; i < 120; ++i) words += "w" + std::to_string(3 + i * i % 30) + " ";
  write_bytes(text, words);
  const Json json = json_of(sluice(
      {"eval", decoder, decoder, "--text", text, "--window", "32", "--stride", "16", "--json"}));
  ASSERT_EQ(json["models"].size(), 2u);
  const Json row = json["models"][0];
  EXPECT_EQ(row["tokens"], 120);
  EXPECT_EQ(row["bytes"], words.size());
  EXPECT_EQ(row["window"], 32);
  EXPECT_NEAR(row["perplexity"].get<double>(), std::exp(row["nats"].get<double>() / 120), 1e-9);
  EXPECT_NEAR(row["bits_per_byte"].get<double>(),
              row["nats"].get<double>() / std::log(2.0) / double(words.size()), 1e-9);
  EXPECT_EQ(row["nats"], json["models"][1]["nats"]);
  EXPECT_GT(row["macs_per_token"].get<double>(), 1000);
  const Finished table = sluice({"eval", decoder, "--text", text, "--max-tokens", "20"});
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_THAT(table.out, HasSubstr("bits/byte"));
  write_bytes(text, "w3 \xc3");
  refuse({"eval", decoder, "--text", text}, 1, "byte 3 (0xc3) is not UTF-8");
  write_bytes(text, "");
  refuse({"eval", decoder, "--text", text}, 2, "a text of 0 tokens");
  write_bytes(text, words);
  refuse({"eval", decoder, "--text", text, "--window", "100"}, 1, "window 100: the context");
  refuse({"eval", decoder, "--text", text, "--retrieval", text}, 2, "give one of");
  refuse({"eval", decoder}, 2, "--text FILE");
}

TEST_F(Language, EvalScoresRetrievalAndLabels) {
  make_encoder();
  write_tiny_retrieval_set(directory / "set");
  const Json json = json_of(sluice({"eval", encoder, "--retrieval", directory / "set", "--json"}));
  const Json row = json["models"][0];
  EXPECT_EQ(row["queries"], 2);
  EXPECT_EQ(row["documents"], 4);
  EXPECT_NEAR(row["recall_at_1"].get<double>(), 1, 1e-9);  // the same words
  EXPECT_NEAR(row["ndcg_at_10"].get<double>(), 1, 1e-9);
  EXPECT_GT(row["macs_per_text"].get<double>(), 1000);
  refuse({"eval", decoder, "--retrieval", directory / "set"}, 1, "expected a model that embeds");
  write_bytes(text, "{\"text\": \"w3\", \"label\": \"yes\"}\n");
  refuse({"eval", encoder, "--labelled", text}, 1, "expected a model that classifies");
}

TEST_F(Language, TextsAreClassifiedByLabel) {
  bundle::Builder builder;
  const bundle::Value ids = builder.input("tokens", {8});
  // w3 votes for the second class, all others for the first.
  std::vector<float> words(40 * 2, 0.0f);
  for (size_t i = 0; i < 40; ++i) words[2 * i] = 3;
  words[2 * 3] = 0, words[2 * 3 + 1] = 30;
  builder.tensor("words", {40, 2}, words);
  const bundle::Value x = builder.node("embedding", "words", {ids}, {}, {{"weight", "words"}});
  builder.output(builder.node("pool_rows", "pool", {x}));
  bundle::Task task;
  task.kind = "classify";
  task.labels = {"no", "yes"};
  builder.set_task(task);
  builder.set_tokenizer(tiny_tokenizer(false));
  const std::string model = directory / "votes.safetensors";
  builder.write(model);
  const Json json =
      json_of(sluice({"run", model, "--text", "w4 w3", "--text", "w5", "--top", "1", "--json"}));
  EXPECT_EQ(json["results"][0]["classes"][0]["label"], "yes");
  EXPECT_EQ(json["results"][1]["classes"][0]["label"], "no");
  write_bytes(
      text, "{\"text\": \"w4 w3\", \"label\": \"yes\"}\n{\"text\": \"w5\", \"label\": \"yes\"}\n");
  const Json row = json_of(sluice({"eval", model, "--labelled", text, "--json"}))["models"][0];
  EXPECT_DOUBLE_EQ(row["accuracy"].get<double>(), 0.5);
  EXPECT_GT(row["loss"].get<double>(), 0);
  write_bytes(text, "{\"text\": \"w4\", \"label\": \"perhaps\"}\n");
  refuse({"eval", model, "--labelled", text}, 2, "label 'perhaps' of text 1 is no class");
}

TEST_F(Language, BenchGivesAnEncoderIdsOfItsVocabulary) {
  make_encoder();
  const Finished finished =
      sluice({"bench", encoder, "--batch", "1,2", "--threads", "1", "--rounds", "2", "--json"});
  ASSERT_EQ(finished.exit_code, 0) << finished.err;
  const Json arms = json_of(finished).at("arms");
  ASSERT_GE(arms.size(), 2u);
  for (const Json& arm : arms)
    EXPECT_GT(arm.at("metrics").at("seconds").at("mean").get<double>(), 0) << arm;
}

TEST_F(Language, BenchCountsTokensAsLlamaBenchDoes) {
  const Json report = json_of(sluice({"bench", decoder, decoder, "--pp", "40", "--tg", "5",
                                      "--rounds", "3", "--threads", "1", "--json"}));
  ASSERT_EQ(report["arms"].size(), 4u);
  for (const char* key : {"slug", "machine", "bars", "limits", "verdict"})
    EXPECT_TRUE(report.contains(key)) << key;
  const Json prompt = report["arms"][0], generated = report["arms"][1];
  EXPECT_EQ(prompt["test"], "pp40");
  EXPECT_EQ(generated["test"], "tg5");
  EXPECT_EQ(prompt["metrics"]["tokens_per_second"]["n"], 3);
  // One row of logits for a prompt, one for each token that is generated.
  EXPECT_LT(prompt["metrics"]["macs_per_token"]["mean"].get<double>(),
            generated["metrics"]["macs_per_token"]["mean"].get<double>());
  const Finished table =
      sluice({"bench", decoder, "--pp", "8", "--tg", "0", "--rounds", "1", "--threads", "1"});
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_THAT(table.out, HasSubstr("pp8"));
  EXPECT_THAT(table.out, HasSubstr("GB/s read (measured)"));
  refuse({"bench", decoder, "--rounds", "1"}, 1, "the context is 64 tokens; pp512 needs more");
}

}  // namespace language_test
}  // namespace sluice::test
#endif
