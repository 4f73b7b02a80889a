// Decoders of many sizes through the binary: trained, or made of an imported one, and run.
#if SLUICE_WITH_LAB && SLUICE_WITH_ENGINE
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "tests/process.h"
#include "tests/tiny_models.h"

namespace sluice::test {
namespace nested_text_test {

using testing::HasSubstr;

const char* const kConfig = R"(
[data]
text = "./texts"
held_out = 0.3
[tokenizer]
vocab = 280
[model]
name = "decoder"
layers = 2
width = 16
heads = 2
ffn = 32
context = 32
[train]
steps = 30
batch = 8
[train.optimizer]
kind = "muon"
rate = 1e-2
[nest]
widths = [0.25, 1.0]
depths = [1, 2]
sampling = "all"
)";

class NestedText : public testing::Test {
 protected:
  Finished run(const Arguments& arguments) {
    return sluice(arguments, {.directory = directory.path()});
  }
  Json json(const Arguments& arguments) {
    const Finished finished = run(arguments);
    EXPECT_EQ(finished.exit_code, 0) << finished.err;
    return json_of(finished);
  }
  std::string failure(const Arguments& arguments) {
    const Finished finished = run(arguments);
    EXPECT_NE(finished.exit_code, 0) << finished.out;
    return finished.err;
  }
  /// Its words with and without proposals by `size`.
  void expect_the_same_text(const std::string& model, const std::string& prompt,
                            const std::string& size) {
    const Arguments plain{"run", model, "--prompt", prompt, "--max-tokens", "20", "--json"};
    Arguments drafted = plain;
    drafted.insert(drafted.end(), {"--draft-size", size, "--draft-tokens", "3"});
    const Json expected = json(plain), found = json(drafted);
    EXPECT_EQ(found["results"], expected["results"]);
    EXPECT_GT(found["proposed_tokens"].get<int>(), 0);
    EXPECT_LE(found["accepted_tokens"], found["proposed_tokens"]);
  }

  TempDirectory directory;
};

TEST_F(NestedText, TrainedSizesAreListedRunAndPropose) {
  write_bytes(directory / "t.toml", kConfig);
  make_directories(directory / "texts");
  for (int file = 0; file < 10; ++file) {
    std::string text;
    for (int line = 0; line < 8; ++line)
      text += "so " + std::to_string(file) + " cats met the " + std::to_string(line) + " hats\n";
    write_bytes(directory / ("texts/" + std::to_string(file)), text);
  }
  const Json trained = json({"train", "t.toml", "-o", "m.safetensors", "--json"});
  ASSERT_EQ(trained["sizes"].size(), 4u);
  EXPECT_LT(trained["curve"].back()["loss"], trained["curve"].front()["loss"]);
  Json sizes = json({"inspect", "m.safetensors", "--sizes", "--json"})["sizes"];
  EXPECT_EQ(sizes[3]["cost"], 1.0);
  EXPECT_LT(sizes[0]["cost"], sizes[3]["cost"]);
  for (Json& size : sizes) size.erase("cost");  // the share, which a reader computes from all MACs
  EXPECT_EQ(sizes, trained["sizes"]);
  EXPECT_EQ(sizes[0]["name"], "w25-d1");
  EXPECT_EQ(sizes[3]["name"], "w100-d2");
  EXPECT_EQ(sizes[3]["quality"]["loss"], trained["held_out"]["loss"]);
  for (const Json& size : sizes) EXPECT_LT(size["quality"]["loss"].get<double>(), 6.0);

  int64_t before = 0;
  for (const Json& size : sizes) {
    const Json ran = json({"run", "m.safetensors", "--prompt", "so 3 cats", "--max-tokens", "8",
                           "--size", size["name"], "--json"});
    EXPECT_GT(ran["macs_per_token"], before);
    before = ran["macs_per_token"];
  }
  expect_the_same_text("m.safetensors", "so 3 cats", "w25-d1");

  EXPECT_THAT(failure({"train", "t.toml", "-o", "no", "--set", "nest.calibration=10"}),
              HasSubstr("[nest]: calibration is for batch norms"));
  EXPECT_THAT(failure({"train", "t.toml", "-o", "no", "--set", "nest.depths=[1,3]"}),
              HasSubstr("[nest]: "));
  EXPECT_THAT(failure({"train", "t.toml", "-o", "no", "--set", "nest.sampling=one"}),
              HasSubstr("uniform, all, sandwich"));
  EXPECT_THAT(failure({"run", "m.safetensors", "--prompt", "so", "--size", "w50-d1"}),
              HasSubstr("no size 'w50-d1'"));
}

TEST_F(NestedText, AnImportedDecoderIsNestedMixedAndTuned) {
  write_tiny_model("llama", directory / "llama");
  ASSERT_EQ(run({"import", directory / "llama", "-o", "m.safetensors"}).exit_code, 0);
  const Json nested = json({"transform", "m.safetensors", "-o", "n.safetensors", "--pass",
                            "nest:widths=[0.25,0.5,1],knobs=blocks,mixtures=graded", "--json"});
  EXPECT_LT(nested["passes"][0]["largest_output_change"].get<double>(), 1e-3);
  const Json sizes = json({"inspect", "n.safetensors", "--sizes", "--json"})["sizes"];
  ASSERT_EQ(sizes.size(), 5u);
  EXPECT_EQ(sizes[1]["name"], "mab");
  expect_the_same_text("n.safetensors", "w3 w4", "mab");

  ASSERT_EQ(run({"transform", "n.safetensors", "-o", "other.safetensors", "--pass",
                 "set-sizes:widths=[0.5,1],knobs=blocks,sizes=[\"mba\"]"})
                .exit_code,
            0);
  EXPECT_EQ(json({"inspect", "other.safetensors", "--sizes", "--json"})["sizes"][0]["name"], "mba");

  ASSERT_EQ(run({"transform", "m.safetensors", "-o", "d.safetensors", "--pass",
                 "nest:widths=[0.5,1],depths=[1,2]"})
                .exit_code,
            0);
  std::string text;
  for (int i = 0; i < 600; ++i) text += "w" + std::to_string(3 + i * i % 30) + " ";
  write_bytes(directory / "text", text);
  const Json tuned = json({"tune", "d.safetensors", "--teacher", "m.safetensors", "--text", "text",
                           "-o", "tuned.safetensors", "--steps", "40", "--batch", "4", "--tokens",
                           "8", "--rate", "3e-3", "--json"});
  const Json& losses = tuned["loss"]["sizes"];
  ASSERT_EQ(losses.size(), 4u);
  EXPECT_EQ(losses[0]["name"], "w50-d1");
  EXPECT_LT(losses[0]["after"], losses[0]["before"]);
  expect_the_same_text("tuned.safetensors", "w3 w4", "w50-d1");
}

}  // namespace nested_text_test
}  // namespace sluice::test
#endif
