// sluice tune --gate-budget through the binary: gates that learn what they may open.
#if SLUICE_WITH_LAB
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "tests/process.h"
#include "tests/tiny_models.h"

namespace sluice::test {
namespace gate_budget_test {

using testing::HasSubstr;

class GateBudgetVerb : public testing::Test {
 protected:
  void SetUp() override {
    std::string text;
    for (int i = 0; i < 900; ++i) text += "w" + std::to_string(3 + i * i % 30) + " ";
    write_bytes(directory / "text", text);
    write_tiny_model("qwen3", directory / "source", 32);
    ASSERT_EQ(run({"import", "source", "-o", "dense"}).exit_code, 0);
  }

  Finished run(const Arguments& arguments) {
    return sluice(arguments, {.directory = directory.path()});
  }
  /// IN with the teacher and text of all runs, and more.
  Finished tune(const std::string& in, const Arguments& more) {
    Arguments arguments{"tune",  in,        "--teacher", "dense",    "--text", "text",    "-o",
                        "tuned", "--batch", "4",         "--tokens", "8",      "--steps", "80"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
  void insert(const std::string& gates, const std::string& out) {
    const Finished finished =
        run({"transform", "dense", "-o", out, "--pass", "insert-gates:" + gates});
    ASSERT_EQ(finished.exit_code, 0) << finished.err;
  }

  TempDirectory directory;
};

TEST_F(GateBudgetVerb, DecodersLearnToOpenTheShareThatIsAsked) {
  for (const char* granularity : {"neuron", "token", "head"}) {
    SCOPED_TRACE(granularity);
    insert(std::string("granularity=") + granularity, "gated");
    const Finished finished = tune("gated", {"--gate-budget", "0.5", "--gate-weight", "30",
                                             "--gate-rate", "0.05", "--rate", "1e-3", "--json"});
    ASSERT_EQ(finished.exit_code, 0) << finished.err;
    const Json gates = json_of(finished)["gates"];
    EXPECT_EQ(gates["budget"], 0.5);
    EXPECT_EQ(gates["weight"], 30);
    EXPECT_EQ(gates["rate"], 0.05);
    EXPECT_EQ(gates["open"]["before"], 1);
    EXPECT_NEAR(gates["open"]["after"].get<double>(), 0.5, 0.15);
    EXPECT_THAT(run({"inspect", "tuned", "--json"}).out, HasSubstr("\"budget\""));
#if SLUICE_WITH_ENGINE
    // The engine skips what they close.
    const auto cost = [&](const char* file) {
      const Json found = json_of(run({"eval", file, "--text", "text", "--json"}));
      return found["models"][0]["macs_per_token"].get<double>();
    };
    EXPECT_LT(cost("tuned"), cost("gated"));
#endif
  }
}

TEST_F(GateBudgetVerb, TheTableAndTheProgressSayWhatIsOpen) {
  insert("granularity=neuron", "gated");
  const Finished finished = tune("gated", {"--gate-budget", "0.9", "--only", "**.neuron_gate.**"});
  ASSERT_EQ(finished.exit_code, 0) << finished.err;
  EXPECT_THAT(finished.out, HasSubstr("gates' MACs, budget 0.9"));
  EXPECT_THAT(finished.err, HasSubstr(", open "));
}

TEST_F(GateBudgetVerb, PicturesToo) {
  write_bytes(directory / "net.toml", R"(
[data]
name = "blobs"
train_limit = 400
test_limit = 100
[model]
name = "resnet"
widths = [4, 8]
blocks = 1
[train]
steps = 20
batch = 20
)");
  ASSERT_EQ(run({"train", "net.toml", "-o", "net"}).exit_code, 0);
  ASSERT_EQ(run({"transform", "net", "-o", "gated", "--pass", "insert-gates"}).exit_code, 0);
  make_directories(directory / "pictures");
  for (int i = 0; i < 200; ++i) {
    std::string bytes = "P5\n12 12\n255\n";
    for (int j = 0; j < 144; ++j) bytes += static_cast<char>((j * (i % 7 + 1) + i * 31) % 256);
    write_bytes(directory / ("pictures/" + std::to_string(i) + ".pgm"), bytes);
  }
  const Finished finished =
      run({"tune", "gated", "--teacher", "net", "--pictures", "pictures", "-o", "tuned", "--batch",
           "8", "--steps", "100", "--gate-budget", "0.5", "--gate-rate", "0.02", "--json"});
  ASSERT_EQ(finished.exit_code, 0) << finished.err;
  EXPECT_NEAR(json_of(finished)["gates"]["open"]["after"].get<double>(), 0.5, 0.15);
}

TEST_F(GateBudgetVerb, RefusesWhatCannotBeABudget) {
  insert("granularity=neuron", "gated");
  const auto refused = [&](const std::string& in, const Arguments& more, const std::string& why) {
    const Finished finished = tune(in, more);
    EXPECT_EQ(finished.exit_code, 2) << finished.out;
    EXPECT_THAT(finished.err, HasSubstr(why));
  };
  for (const char* budget : {"0", "1.5", "nan"})
    refused("gated", {"--gate-budget", budget}, "expected a share above 0 and up to 1");
  refused("gated", {"--gate-budget", "0.5", "--gate-weight", "nan"}, "expected a number above 0");
  refused("gated", {"--gate-budget", "0.5", "--gate-rate", "0"}, "expected a number above 0");
  refused("gated", {"--gate-weight", "1"}, "--gate-budget");
  refused("gated", {"--gate-budget", "half"}, "--gate-budget");
  refused("dense", {"--gate-budget", "0.5"}, "dense: gate budget: the network has no gates");
  insert("granularity=neuron,decision=top_k", "fixed");
  refused("fixed", {"--gate-budget", "0.5"}, "can learn how much it opens");
  refused("gated", {"--gate-budget", "0.5", "--only", "**.up.weight"},
          "can learn how much it opens");
  ASSERT_EQ(run({"transform", "gated", "-o", "priced", "--pass", "calibrate-gates:shares=[0.98]",
                 "--calibrate", "text:32"})
                .exit_code,
            0);
  refused("priced", {"--gate-budget", "0.5"}, "priced has 3 sizes");
  EXPECT_FALSE(file_exists(directory / "tuned"));
}

}  // namespace gate_budget_test
}  // namespace sluice::test
#endif
