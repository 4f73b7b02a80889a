// sluice import and what runs its bundles, as a process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "sluice/base/json.h"
#include "sluice/bundle/bundle.h"
#include "sluice/bundle/import/testing.h"
#include "tests/process.h"

namespace sluice::test {
namespace import_test {

using testing::HasSubstr;
using testing::StartsWith;

Json golden(const std::string& name) {
  return read_json_file(std::string(SLUICE_SOURCE_DIR) + "/tests/golden/huggingface/" + name +
                        ".json");
}

/// Words a b c are ids 5 6 7, between <s> and </s>.
constexpr char kTokenizer[] = R"({"version": "1.0", "truncation": null, "padding": null,
  "added_tokens": [
    {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true},
    {"id": 2, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true}],
  "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
               {"SpecialToken": {"id": "</s>", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                       "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
  "decoder": null,
  "model": {"type": "WordLevel", "vocab": {"<s>": 0, "<unk>": 1, "</s>": 2, "a": 5, "b": 6, "c": 7},
            "unk_token": "<unk>"}})";

class ImportVerb : public testing::Test {
 protected:
  void SetUp() override {
    bundle::testing::write_model(golden("bert"), source);
    write_bytes(source + "/tokenizer.json", kTokenizer);
  }
  TempDirectory directory;
  const std::string source = directory / "tiny", model = directory / "tiny.safetensors";
};

TEST_F(ImportVerb, SaysWhatItMade) {
  const Finished text = sluice({"import", source, "-o", model, "--pooling", "mean"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("BertModel, 2 layers of width 32"));
  EXPECT_THAT(text.out, HasSubstr("tokenizer.json, in the file"));
  const Json json =
      json_of(sluice({"import", source, "-o", model, "--pooling", "mean", "--normalize",
                      "--context", "16", "--dtype", "bf16", "--json"}));
  EXPECT_EQ(json["kind"], "embed");
  EXPECT_EQ(json["context"], 16);
  EXPECT_EQ(json["tokenizer"], true);
  EXPECT_GT(json["parameters"].get<int64_t>(), 10000);
  const Json checked = json_of(sluice({"inspect", model, "--check", "--json"}));
  EXPECT_EQ(checked["check"]["tensors"], checked["check"]["verified"]);
  EXPECT_EQ(checked["check"]["verified"], bundle::Bundle::open(model).graph().tensors.size() + 1);
}

TEST_F(ImportVerb, FailsWithOneLineAndLeavesNothing) {
  const Finished finished = sluice({"import", source, "-o", model});
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_THAT(finished.err, StartsWith("sluice: error [usage]: "));
  EXPECT_THAT(finished.err, HasSubstr("--pooling"));
  write_bytes(source + "/config.json", R"({"architectures": ["BloomForCausalLM"]})");
  const Finished other = sluice({"import", source, "-o", model});
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.err, StartsWith("sluice: error [unsupported]: " + source + "/config.json"));
  EXPECT_EQ(std::count(other.err.begin(), other.err.end(), '\n'), 1) << other.err;
  EXPECT_EQ(directory.entries(), std::vector<std::string>{"tiny"});
  EXPECT_EQ(sluice({"import", source}).exit_code, 2);
  EXPECT_EQ(sluice({"import", directory / "none", "-o", model}).exit_code, 1);
}

#if SLUICE_WITH_ENGINE
TEST_F(ImportVerb, RunEmbedsTexts) {
  ASSERT_EQ(
      sluice({"import", source, "-o", model, "--pooling", "mean", "--context", "6"}).exit_code, 0);
  const Json json = json_of(
      sluice({"run", model, "--text", "a b", "--text", "c a b c a b c", "--text", "b", "--json"}));
  ASSERT_EQ(json["results"].size(), 3u);
  EXPECT_EQ(json["results"][0]["tokens"], 4);
  EXPECT_EQ(json["results"][0]["cut"], false);
  EXPECT_EQ(json["results"][1]["tokens"], 9);
  EXPECT_EQ(json["results"][1]["cut"], true);
  EXPECT_EQ(json["results"][0]["vector"].size(), 32u);
  const Finished alone = sluice({"run", model, "--text", "b"});
  EXPECT_EQ(alone.exit_code, 0) << alone.err;
  EXPECT_EQ(std::count(alone.out.begin(), alone.out.end(), '\n'), 1);
  EXPECT_NEAR(std::stod(alone.out), json["results"][2]["vector"][0].get<double>(), 1e-4);
}

TEST_F(ImportVerb, RunSaysWhatAModelOfTextTakes) {
  ASSERT_EQ(sluice({"import", source, "-o", model, "--pooling", "mean"}).exit_code, 0);
  const Finished picture = sluice({"run", model, directory / "x.png"});
  EXPECT_EQ(picture.exit_code, 2);
  EXPECT_THAT(picture.err, HasSubstr("takes text: give --text"));
  const std::string classifier = directory / "classifier.safetensors";
  write_linear_bundle(classifier);
  const Finished words = sluice({"run", classifier, "--text", "a"});
  EXPECT_EQ(words.exit_code, 1);
  EXPECT_THAT(words.err, HasSubstr("found one of kind 'classify'"));
}
#endif

#if SLUICE_WITH_LAB
TEST_F(ImportVerb, TransformAndTuneTakeImportedModels) {
  ASSERT_EQ(
      sluice({"import", source, "-o", model, "--pooling", "mean", "--context", "8"}).exit_code, 0);
  std::string text;
  for (int i = 0; i < 60; ++i) text += i % 3 == 0 ? "a b c a\n" : i % 3 == 1 ? "c\n" : "b b a\n";
  const std::string corpus = directory / "corpus.txt", small = directory / "small.safetensors",
                    tuned = directory / "tuned.safetensors";
  write_bytes(corpus, text);
  const Json cut =
      json_of(sluice({"transform", model, "-o", small, "--calibrate", corpus, "--pass",
                      "prune:granularity=neuron,score=activation", "--pass",
                      "prune:granularity=head,rate=0.25", "--pass", "slice-channels", "--json"}));
  EXPECT_LT(cut["passes"][2]["macs"]["after"], cut["passes"][2]["macs"]["before"]);
  const Json tune =
      json_of(sluice({"tune", small, "--teacher", model, "--text", corpus, "-o", tuned, "--steps",
                      "20", "--batch", "8", "--rate", "0.003", "--json"}));
  EXPECT_EQ(tune["steps"], 20);
  EXPECT_LT(tune["loss"]["output"]["after"], tune["loss"]["output"]["before"]);
  EXPECT_THAT(bundle::Bundle::open(tuned).provenance_json(), HasSubstr("\"tune\""));
#if SLUICE_WITH_ENGINE
  EXPECT_EQ(json_of(sluice({"run", tuned, "--text", "a b", "--json"}))["results"].size(), 1u);
#endif
  // Side paths in place of whole layers: only they learn, and fold into the layers.
  const std::string adapted = directory / "adapted.safetensors",
                    folded = directory / "folded.safetensors";
  ASSERT_EQ(sluice({"transform", small, "-o", adapted, "--pass", "add-lora:rank=2"}).exit_code, 0);
  const Json side =
      json_of(sluice({"tune", adapted, "--teacher", model, "--text", corpus, "-o", tuned, "--steps",
                      "20", "--batch", "8", "--rate", "0.01", "--only", "**.lora_*", "--json"}));
  EXPECT_LT(side["loss"]["output"]["after"], side["loss"]["output"]["before"]);
  ASSERT_EQ(sluice({"transform", tuned, "-o", folded, "--pass", "fold-lora"}).exit_code, 0);
  EXPECT_EQ(json_of(sluice({"inspect", folded, "--json"}))["macs"],
            json_of(sluice({"inspect", small, "--json"}))["macs"]);
  EXPECT_EQ(sluice({"tune", adapted, "--teacher", model, "--text", corpus, "-o", tuned, "--only",
                    "**.lora_c"})
                .exit_code,
            2);
  const Finished pictures =
      sluice({"tune", small, "--teacher", model, "--text", directory / "none.txt", "-o", tuned});
  EXPECT_EQ(pictures.exit_code, 1);
  EXPECT_THAT(pictures.err, HasSubstr("none.txt"));
}
#endif

}  // namespace import_test
}  // namespace sluice::test
