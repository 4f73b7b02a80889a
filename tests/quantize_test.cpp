// Packed weights through the binary: from a trained bundle to the engine's answers.
#if SLUICE_WITH_LAB && SLUICE_WITH_ENGINE
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/bundle/bundle.h"
#include "tests/process.h"

namespace sluice::test {
namespace quantize_test {

using testing::HasSubstr;

class Quantize : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared = new TempDirectory("quantize");
    write_bytes(*shared / "plain.toml", R"(
[data]
name = "blobs"
train_limit = 600
test_limit = 200
[model]
name = "mlp"
hidden = [64]
[train]
steps = 80
batch = 20
)");
    const Finished trained =
        sluice({"train", *shared / "plain.toml", "-o", *shared / "model.safetensors"});
    ASSERT_EQ(trained.exit_code, 0) << trained.err;
  }
  static void TearDownTestSuite() {
    delete shared;
    shared = nullptr;
  }

  Finished run(Arguments arguments) {
    return sluice(std::move(arguments), {.directory = directory.path()});
  }
  Finished quantize(Arguments options) {
    Arguments arguments = {"transform", model, "-o", "packed.safetensors"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    return run(std::move(arguments));
  }
  void expect_failure(const Finished& finished, int exit_code, const std::string& words) {
    EXPECT_EQ(finished.exit_code, exit_code) << finished.out << finished.err;
    EXPECT_THAT(finished.err, HasSubstr(words));
    EXPECT_FALSE(file_exists(directory / "packed.safetensors"));
  }

  static TempDirectory* shared;
  const TempDirectory directory;
  const std::string model = *shared / "model.safetensors";
};

TempDirectory* Quantize::shared = nullptr;

TEST_F(Quantize, PacksLayersThatTheEngineRuns) {
  const Json result =
      json_of(quantize({"--pass", "quantize:skip=fc2", "--format", "i4-32", "--json"}));
  const Json& pass = result["passes"][0];
  EXPECT_EQ(pass["options"]["format"], "i4-32");
  EXPECT_GT(pass["report"]["layers"]["fc1"]["relative_rms"].get<double>(), 0.01);
  EXPECT_LT(pass["report"]["layers"]["fc1"]["relative_rms"].get<double>(), 0.2);
  EXPECT_EQ(pass["report"]["left"]["fc2"], "skipped");
  EXPECT_LT(pass["weight_bytes"]["after"].get<double>(),
            0.3 * pass["weight_bytes"]["before"].get<double>());

  const Finished inspected = run({"inspect", "packed.safetensors", "--check"});
  EXPECT_EQ(inspected.exit_code, 0) << inspected.err;
  EXPECT_THAT(inspected.out, HasSubstr("i4-32"));
  EXPECT_THAT(inspected.out, HasSubstr("quantize"));
  const Json evaluated =
      json_of(run({"eval", model, "packed.safetensors", "--limit", "200", "--json"}));
  EXPECT_NEAR(evaluated["models"][0]["accuracy"].get<double>(),
              evaluated["models"][1]["accuracy"].get<double>(), 0.05);
  EXPECT_EQ(evaluated["models"][0]["parameters"], evaluated["models"][1]["parameters"]);
  const Json bench = json_of(run({"bench", "packed.safetensors", "--batch", "2", "--threads", "1",
                                  "--rounds", "1", "--json"}));
  bool beside_libtorch = false;
  for (const Json& arm : bench["arms"]) {
    if (!arm["metrics"].contains("largest_difference")) continue;
    beside_libtorch = true;
    EXPECT_LT(arm["metrics"]["largest_difference"]["mean"].get<double>(), 1e-3);
  }
  EXPECT_TRUE(beside_libtorch);
}

TEST_F(Quantize, ShowsTheErrorOfEachLayer) {
  const Finished text = quantize(
      {"--pass", "quantize", "--format", "mixed", "--layers", "fc*", "--calibrate", "100"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("relative_rms"));
  EXPECT_THAT(text.out, testing::ContainsRegex("fc1 +64 +144"));
  EXPECT_THAT(text.out, HasSubstr("calibrated true"));
  EXPECT_THAT(text.out, HasSubstr("convolution_bytes 0"));
}

TEST_F(Quantize, ThereAndBackKeepsTheFunction) {
  ASSERT_EQ(quantize({"--pass", "quantize:format=ternary"}).exit_code, 0);
  const Json back = json_of(run({"transform", "packed.safetensors", "-o", "back.safetensors",
                                 "--pass", "dequantize", "--json"}));
  EXPECT_EQ(back["passes"][0]["largest_output_change"], 0.0);
  const Json evaluated =
      json_of(run({"eval", "packed.safetensors", "back.safetensors", "--limit", "200", "--json"}));
  EXPECT_NEAR(evaluated["models"][0]["loss"].get<double>(),
              evaluated["models"][1]["loss"].get<double>(), 1e-5);
}

TEST_F(Quantize, MistakesAreNamedAndNothingIsWritten) {
  expect_failure(quantize({"--pass", "quantize", "--format", "i4_32"}), 1, "did you mean 'i4-32'");
  expect_failure(quantize({"--pass", "quantize", "--layers", "fc9"}), 2, "no slot matches 'fc9'");
  expect_failure(quantize({"--pass", "fold-norm", "--format", "i8"}), 2, "'format'");
  expect_failure(quantize({"--pass", "quantize:activations=i3"}), 1, "activations");
  expect_failure(quantize({"--pass", "dequantize"}), 2, "no packed layer");
  expect_failure(quantize({"--pass", "quantize", "--calibrate", "0"}), 2, "--calibrate 0");
}

TEST_F(Quantize, WeightsThatAreNotNumbersAreNamed) {
  const bundle::Bundle opened = bundle::Bundle::open(model);
  const bundle::TensorView& weight = opened.tensor("fc1.weight");
  std::string bytes = read_bytes(model);
  const std::string values(reinterpret_cast<const char*>(weight.bytes.data()), 64);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes.data() + bytes.find(values), &nan, sizeof nan);
  write_bytes(directory / "nan.safetensors", bytes);
  const Finished finished =
      run({"transform", "nan.safetensors", "-o", "packed.safetensors", "--pass", "quantize"});
  expect_failure(finished, 1, "error [numeric]");
  EXPECT_THAT(finished.err, HasSubstr("fc1"));
}

}  // namespace quantize_test
}  // namespace sluice::test
#endif
