// What a request may spend, through the binary: sizes made by surgery, chosen by share and by time,
// and drawn against quality.
#if SLUICE_WITH_LAB && SLUICE_WITH_ENGINE
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "tests/process.h"
#include "tests/tiny_models.h"

namespace sluice::test {
namespace budget_test {

using testing::ElementsAre;
using testing::HasSubstr;

class Budget : public testing::Test {
 protected:
  void SetUp() override {
    std::string book;
    for (int i = 0; i < 400; ++i) book += "w" + std::to_string(3 + i * i % 30) + " ";
    write_bytes(directory / "book.txt", book);
  }
  Finished run(const Arguments& arguments) {
    return sluice(arguments, {.directory = directory.path()});
  }
  Json report(Arguments arguments) {
    arguments.push_back("--json");
    const Finished finished = run(arguments);
    EXPECT_EQ(finished.exit_code, 0) << finished.out << finished.err;
    return finished.exit_code == 0 ? json_of(finished) : Json();
  }
  std::string failure(const Arguments& arguments, int code = 1) {
    const Finished finished = run(arguments);
    EXPECT_EQ(finished.exit_code, code) << finished.out << finished.err;
    return finished.err;
  }
  /// A tiny imported network, and one of three sizes made of it.
  void make(const std::string& kind, int64_t context) {
    write_tiny_model(kind, directory / "source", context);
    Arguments import{"import", "source", "-o", "dense.safetensors"};
    if (kind == "bert") import.insert(import.end(), {"--pooling", "mean", "--normalize"});
    ASSERT_EQ(run(import).exit_code, 0);
    const Finished made =
        run({"transform", "dense.safetensors", "-o", "sizes.safetensors", "--pass",
             "sparsify-activations:keep=[0.3,0.6,1]", "--calibrate", "book.txt"});
    ASSERT_EQ(made.exit_code, 0) << made.err;
  }

  TempDirectory directory;
};

TEST_F(Budget, ADecoderRunsTheBestSizeThatFits) {
  make("qwen3", 64);
  const Json table = report({"inspect", "sizes.safetensors", "--sizes"})["sizes"];
  ASSERT_EQ(table.size(), 3u);
  EXPECT_EQ(table[0]["name"], "keep30");
  EXPECT_EQ(table[2]["name"], "dense");
  EXPECT_EQ(table[2]["cost"], 1.0);
  const double half = table[1]["cost"].get<double>();
  EXPECT_LT(table[0]["cost"].get<double>(), half);

  const Arguments prompt{"run", "sizes.safetensors", "--prompt", "w4 w9 w7", "--max-tokens", "4"};
  const auto with = [&](Arguments more) {
    more.insert(more.begin(), prompt.begin(), prompt.end());
    return more;
  };
  const Json fits = report(with({"--budget", std::to_string(half + 1e-6)}));
  EXPECT_EQ(fits["budget"]["size"], "keep60");
  EXPECT_EQ(fits["budget"]["expected_share"], half);
  EXPECT_LT(fits["budget"]["share"].get<double>(), 1.0);
  EXPECT_GT(fits["budget"]["seconds"].get<double>(), 0.0);
  const Json dense = report(prompt), one = report(with({"--budget", "1"}));
  EXPECT_EQ(one["budget"]["size"], "dense");
  EXPECT_EQ(one["macs"], dense["macs"]);
  EXPECT_LT(fits["macs_per_token"].get<double>(), dense["macs_per_token"].get<double>());
  EXPECT_EQ(report(with({"--budget-ms", "1e6"}))["budget"]["size"], "dense");
  EXPECT_THAT(run(with({"--budget", "1"})).err, HasSubstr("size dense: 1.00 of the largest"));

  EXPECT_THAT(failure(with({"--budget", "0.01"})), HasSubstr("the cheapest, 'keep30', costs"));
  EXPECT_THAT(failure(with({"--budget-ms", "1e-6"})), HasSubstr("no size takes 1e-06 ms a token"));
  EXPECT_THAT(failure({"run", "dense.safetensors", "--prompt", "w4", "--budget", "0.5"}, 2),
              HasSubstr("sparsify-activations:keep="));
  EXPECT_THAT(failure(with({"--budget", "0.5", "--size", "dense"}), 2), HasSubstr("--size"));
}

TEST_F(Budget, ACurveOfPerplexityIsDrawnAndKept) {
  make("qwen3", 64);
  const Json curve = report({"eval", "sizes.safetensors", "--text", "book.txt", "--window", "32",
                             "--budget-curve", "--save", "measured.safetensors"})["models"];
  ASSERT_EQ(curve.size(), 3u);
  EXPECT_EQ(curve[0]["size"], "keep30");
  EXPECT_EQ(curve[2]["share"], 1.0);
  EXPECT_LT(curve[0]["share"].get<double>(), curve[1]["share"].get<double>());
  const Json whole = report({"eval", "dense.safetensors", "--text", "book.txt", "--window", "32"});
  EXPECT_NEAR(curve[2]["perplexity"].get<double>(), whole["models"][0]["perplexity"].get<double>(),
              0.01);
  const Json table = report({"inspect", "measured.safetensors", "--sizes"})["sizes"];
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(table[i]["quality"]["perplexity"], curve[i]["perplexity"]);
    EXPECT_GT(table[i]["quality"]["seconds"].get<double>(), 0.0);
  }
  EXPECT_EQ(run({"inspect", "measured.safetensors", "--check"}).exit_code, 0);
  EXPECT_THAT(
      run({"eval", "sizes.safetensors", "--text", "book.txt", "--window", "32", "--budget-curve"})
          .out,
      HasSubstr("cost"));
  EXPECT_THAT(failure({"eval", "dense.safetensors", "--text", "book.txt", "--budget-curve"}, 2),
              HasSubstr("one size only"));
  EXPECT_THAT(failure({"eval", "sizes.safetensors", "--text", "book.txt", "--budget-curve",
                       "--picture", "curve.png"},
                      2),
              HasSubstr(".svg or .html"));
}

TEST_F(Budget, AnEncoderIsSearchedWithAndDrawn) {
  make("bert", 0);
  write_tiny_retrieval_set(directory / "glosses");
  const Finished drawn = run({"eval", "sizes.safetensors", "--retrieval", "glosses",
                              "--budget-curve", "--picture", "curve.html", "--json"});
  if ((drawn.out + drawn.err).find("gnuplot") != std::string::npos) GTEST_SKIP() << "no gnuplot";
  ASSERT_EQ(drawn.exit_code, 0) << drawn.err;
  const Json curve = json_of(drawn)["models"];
  ASSERT_EQ(curve.size(), 3u);
  EXPECT_LT(curve[0]["macs_per_text"].get<double>(), curve[2]["macs_per_text"].get<double>());
  EXPECT_THAT(read_bytes(directory / "curve.html"), HasSubstr("ndcg_at_10 against metered cost"));

  const Arguments words{"run", "sizes.safetensors", "--text", "w4 w5 w6 w7"};
  const auto with = [&](Arguments more) {
    more.insert(more.begin(), words.begin(), words.end());
    return more;
  };
  EXPECT_EQ(report(with({"--size", "0"}))["budget"]["size"], "keep30");
  const Json whole = report(with({"--budget", "1"}));
  EXPECT_EQ(whole["budget"]["size"], "dense");
  EXPECT_EQ(whole["budget"]["share"], 1.0);
  EXPECT_THAT(failure(with({"--budget", "0.01"})), HasSubstr("no size costs 0.01"));
}

TEST_F(Budget, ADecoderWithExitsSpendsWhatItsTableExpects) {
  write_tiny_model("qwen3", directory / "source", 64);
  ASSERT_EQ(run({"import", "source", "-o", "dense.safetensors"}).exit_code, 0);
  const Json made = report({"transform", "dense.safetensors", "-o", "exits.safetensors", "--pass",
                            "add-exits:layers=1,shares=[0.75,0.9]", "--calibrate", "book.txt"});
  EXPECT_LT(made["passes"][0]["largest_output_change"].get<double>(), 1e-6);
  const Json sizes = made["passes"][0]["report"]["sizes"];
  ASSERT_EQ(sizes.size(), 2u);
  const Json table = report({"inspect", "exits.safetensors", "--sizes"})["sizes"];
  ASSERT_EQ(table.size(), 3u);
  EXPECT_EQ(table[0]["name"], "exit75");
  EXPECT_EQ(table[0]["cost"], sizes[0]["cost_share"]);
  EXPECT_EQ(table[0]["quality"]["cost_rows"], made["passes"][0]["report"]["measured_on"]);
  EXPECT_EQ(table[2]["cost"], 1.0);
  EXPECT_FALSE(table[2]["quality"].contains("cost_rows"));
  EXPECT_THAT(run({"inspect", "exits.safetensors", "--sizes"}).out, HasSubstr("exact"));

  const Arguments prompt{"run", "exits.safetensors", "--prompt", "w4 w9 w7", "--max-tokens", "4"};
  const auto with = [&](Arguments more) {
    more.insert(more.begin(), prompt.begin(), prompt.end());
    return more;
  };
  const double cheap = table[0]["cost"].get<double>();
  const Json fits = report(with({"--budget", std::to_string(cheap + 1e-6)}));
  EXPECT_EQ(fits["budget"]["size"], "exit75");
  EXPECT_EQ(fits["budget"]["expected_share"], cheap);
  // Without a choice, and with all that may be spent, it is the dense decoder in every number.
  const Json plain =
      report({"run", "dense.safetensors", "--prompt", "w4 w9 w7", "--max-tokens", "4"});
  for (const Json& whole : {report(prompt), report(with({"--budget", "1"}))}) {
    EXPECT_EQ(whole["decode_macs_per_token"], plain["decode_macs_per_token"]);
    EXPECT_EQ(whole["results"][0]["tokens"], plain["results"][0]["tokens"]);
  }
  EXPECT_EQ(report(with({"--budget-ms", "1e6"}))["budget"]["size"], "dense");
  const Json read = report(with({"--size", "exit75", "--prompt-size", "dense"}));
  EXPECT_EQ(read["prompt_size"], "dense");
  EXPECT_EQ(read["results"][0]["tokens"][0], plain["results"][0]["tokens"][0]);
  EXPECT_THAT(failure(with({"--budget", "0.1"})), HasSubstr("the cheapest, 'exit75', costs"));
  EXPECT_THAT(failure(with({"--prompt-size", "large"}), 2), HasSubstr("no size 'large'"));

  const Json curve = report({"eval", "exits.safetensors", "--text", "book.txt", "--window", "32",
                             "--budget-curve", "--save", "measured.safetensors"})["models"];
  ASSERT_EQ(curve.size(), 3u);
  EXPECT_EQ(curve[2]["share"], 1.0);
  EXPECT_LT(curve[0]["share"].get<double>(), curve[1]["share"].get<double>());
  EXPECT_NEAR(curve[0]["share"].get<double>(), cheap, 0.15);
  const Json saved = report({"inspect", "measured.safetensors", "--sizes"})["sizes"];
  EXPECT_EQ(saved[0]["cost"], curve[0]["share"]);
  // Costs are of the tokens that are timed, perplexity is of the whole text.
  EXPECT_EQ(saved[0]["quality"]["cost_rows"], 64);
  EXPECT_EQ(saved[2]["quality"]["perplexity"], curve[2]["perplexity"]);

  EXPECT_THAT(failure({"transform", "dense.safetensors", "-o", "x.safetensors", "--pass",
                       "add-exits:layers=1,shares=[0.2]", "--calibrate", "book.txt"}),
              HasSubstr("as early as it can"));
  EXPECT_THAT(failure({"transform", "dense.safetensors", "-o", "x.safetensors", "--pass",
                       "add-exits:layers=1"},
                      2),
              HasSubstr("give calibration inputs, or a threshold"));
}

TEST_F(Budget, AClassifierWithExitsKeepsItsAccuracyForLess) {
  write_bytes(directory / "net.toml", R"(
[data]
name = "blobs"
train_limit = 600
test_limit = 200
[model]
name = "resnet"
widths = [4, 8, 8]
blocks = 2
[train]
steps = 40
batch = 20
)");
  ASSERT_EQ(run({"train", "net.toml", "-o", "net.safetensors"}).exit_code, 0);
  const Finished made = run({"transform", "net.safetensors", "-o", "exits.safetensors", "--pass",
                             "add-exits:every=1,shares=[0.6,0.8]", "--calibrate", "500"});
  ASSERT_EQ(made.exit_code, 0) << made.err;
  const Json curve = report({"eval", "exits.safetensors", "--budget-curve"})["models"];
  const Json plain = report({"eval", "net.safetensors"})["models"];
  ASSERT_EQ(curve.size(), 3u);
  EXPECT_EQ(curve[2]["accuracy"], plain[0]["accuracy"]);
  EXPECT_EQ(curve[2]["macs_per_sample"], plain[0]["macs_per_sample"]);
  EXPECT_LT(curve[0]["share"].get<double>(), curve[1]["share"].get<double>());
  EXPECT_NEAR(curve[0]["share"].get<double>(), 0.6, 0.12);
  EXPECT_GT(curve[1]["accuracy"].get<double>(), plain[0]["accuracy"].get<double>() - 0.1);
  const Json ran = report({"run", "exits.safetensors", "--sample", "1", "--budget", "0.95"});
  EXPECT_THAT(ran["budget"]["size"].get<std::string>(), testing::StartsWith("exit"));
  EXPECT_EQ(
      report({"transform", "exits.safetensors", "-o", "other.safetensors", "--pass",
              "calibrate-exits:shares=[0.7]", "--calibrate", "500"})["passes"][0]["report"]["sizes"]
          .size(),
      1u);
}

TEST_F(Budget, APictureIsClassifiedWithinABudget) {
  write_bytes(directory / "plain.toml", R"(
[data]
name = "blobs"
train_limit = 600
test_limit = 200
[model]
name = "mlp"
hidden = [32]
[train]
steps = 60
batch = 20
[nest]
widths = [0.25, 0.5, 1.0]
)");
  ASSERT_EQ(run({"train", "plain.toml", "-o", "many.safetensors"}).exit_code, 0);
  const Json ran = report({"run", "many.safetensors", "--sample", "1", "--budget", "0.5"});
  EXPECT_THAT(ran["budget"]["size"].get<std::string>(), testing::AnyOf("w25", "w50"));
  EXPECT_EQ(ran["results"][0]["size"], ran["budget"]["size"]);
  EXPECT_THAT(run({"run", "many.safetensors", "--sample", "1", "--budget", "0.3"}).out,
              HasSubstr("size w25: 0.25 of the largest"));
  EXPECT_THAT(failure({"run", "many.safetensors", "--sample", "1", "--budget", "0.1"}),
              HasSubstr("the cheapest, 'w25', costs 0.25"));
  const Json curve = report({"eval", "many.safetensors", "--limit", "100", "--budget-curve"});
  ASSERT_EQ(curve["models"].size(), 3u);
  EXPECT_EQ(curve["models"][1]["share"], 0.5);
}

}  // namespace budget_test
}  // namespace sluice::test
#endif
