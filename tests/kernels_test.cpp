// `sluice bench kernels` as a process: tables, the report and its pictures, at sizes that say
// nothing about speed.
#if SLUICE_WITH_ENGINE
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/base/json.h"
#include "tests/process.h"

namespace sluice::test {
namespace kernels_test {

using testing::Contains;
using testing::HasSubstr;
using testing::Not;

Arguments quick(Arguments more) {
  Arguments arguments{"bench", "kernels", "--quick", "--rounds", "3", "--threads", "1"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(BenchKernels, PrintsContendersBarsAndNotes) {
  const Finished finished = sluice(quick({"--only", "gemm f32,gemv f32"}));
  EXPECT_EQ(finished.exit_code, 0) << finished.err;
  EXPECT_THAT(finished.out, HasSubstr("gemv f32\n"));
  EXPECT_THAT(finished.out, HasSubstr("oneDNN"));
  EXPECT_THAT(finished.out, HasSubstr("of limit"));
  EXPECT_THAT(finished.out, HasSubstr("gemm-direct"));
  EXPECT_THAT(finished.out, HasSubstr("the times mean nothing"));
  EXPECT_THAT(finished.out, Not(HasSubstr("differs from ours")));
  EXPECT_THAT(finished.err, HasSubstr("rounds"));
}

TEST(BenchKernels, MeasuresAsOnAProcessorWithAvx2Alone) {
  const Finished finished = sluice(quick({"--only", "gemm i8,gemv i8", "--isa", "avx2", "--json"}));
  if (finished.exit_code != 0 && finished.err.find("limiting to avx2") != std::string::npos) {
    GTEST_SKIP() << finished.err;  // a processor without AVX2
  }
  const Json report = json_of(finished);
  EXPECT_EQ(report["machine"]["isa"], "avx2");
  EXPECT_EQ(report["limits"]["int8_gops_threads_1"], 0);
  EXPECT_NE(sluice(quick({"--isa", "avx9"})).exit_code, 0);
}

TEST(BenchKernels, ReportFollowsTheSchemaOfAllReports) {
  const Json report = json_of(sluice(quick({"--only", "gemm f32", "--json"})));
  for (const char* key :
       {"slug", "id", "family", "scale", "date", "commit", "command", "machine", "data", "seeds",
        "arms", "bars", "controls", "limits", "figures", "notes", "verdict"}) {
    EXPECT_TRUE(report.contains(key)) << key;
  }
  EXPECT_EQ(report["slug"], "kernels");
  EXPECT_EQ(report["scale"], "tiny");
  std::vector<std::string> arms;
  for (const Json& arm : report["arms"]) {
    arms.push_back(arm["name"]);
    EXPECT_EQ(arm["metrics"]["seconds"]["n"], 3);
    EXPECT_GT(arm["metrics"]["seconds"]["median"].get<double>(), 0);
    EXPECT_EQ(arm["role"], arm["kind"] == "ours" ? "system" : "baseline");
  }
  ASSERT_FALSE(report["bars"].empty());
  bool all_met = true;
  for (const Json& bar : report["bars"]) {
    EXPECT_THAT(arms, Contains(bar["arm"].get<std::string>()));
    EXPECT_THAT(arms, Contains(bar["against"]["arm"].get<std::string>()));
    const double value = bar["value"], bound = bar["bound"];
    EXPECT_EQ(bar["met"].get<bool>(), bar["relation"] == "<=" ? value <= bound : value >= bound);
    all_met = all_met && bar["met"].get<bool>();
  }
  EXPECT_EQ(report["verdict"], all_met ? "met" : "missed");
  EXPECT_GT(report["limits"]["f32_gflops_threads_1"].get<double>(), 0);
}

TEST(BenchKernels, WritesTheReportAndItsPicturesAndKeepsOtherCases) {
  const TempDirectory directory;
  const std::string out = directory / "results", file = out + "/kernels.json";
  const Finished first = sluice(quick({"--only", "gathered-conv out,gemv i8", "--out", out}));
  ASSERT_EQ(first.exit_code, 0) << first.err;
  const Json before = parse_json(read_bytes(file), file);
  const size_t arms = before["arms"].size();
  EXPECT_GT(arms, 0u);
  for (const Json& figure : before["figures"]) {
    EXPECT_THAT(read_bytes(out + "/" + figure.get<std::string>()), HasSubstr("<svg"));
  }
  const Finished second = sluice(quick({"--only", "xnor-conv", "--out", out, "--keep"}));
  ASSERT_EQ(second.exit_code, 0) << second.err;
  const Json after = parse_json(read_bytes(file), file);
  EXPECT_GT(after["arms"].size(), arms);
  for (size_t i = 0; i < arms; ++i) {
    EXPECT_EQ(after["arms"][i], before["arms"][i])
        << "what was measured before comes back as it was";
  }
  const char* read = "read_gb_per_second_threads_1";
  EXPECT_GT(before["limits"][read].get<double>(), 0);
  EXPECT_NEAR(after["limits"][read].get<double>(), before["limits"][read].get<double>(), 1e-6)
      << "a limit that the new part did not measure";
  const Finished third = sluice(quick({"--only", "xnor-conv", "--out", out}));
  ASSERT_EQ(third.exit_code, 0) << third.err;
  EXPECT_LT(parse_json(read_bytes(file), file)["arms"].size(), arms);
}

TEST(BenchKernels, RefusesToKeepWhatItDidNotWrite) {
  const TempDirectory directory;
  write_bytes(directory / "kernels.json", R"({"slug": "other"})");
  const Finished finished =
      sluice(quick({"--only", "xnor-conv", "--out", directory.path(), "--keep"}));
  EXPECT_EQ(finished.exit_code, 1);
  EXPECT_THAT(finished.err, HasSubstr("kernels.json"));
  EXPECT_EQ(read_bytes(directory / "kernels.json"), R"({"slug": "other"})");
}

TEST(BenchKernels, ListsItsCases) {
  const Finished text = sluice({"bench", "kernels", "--list"});
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_THAT(text.out, HasSubstr("gemv i4-32 4096x4096 batch 1\n"));
  EXPECT_THAT(text.out, HasSubstr("xnor-conv 256->256 3x3 14x14\n"));
  const Json cases = json_of(sluice({"bench", "kernels", "--list", "--only", "*i4-32 ", "--json"}));
  for (const Json& name : cases["cases"]) {
    EXPECT_THAT(name.get<std::string>(), HasSubstr("i4-32 "));
  }
}

}  // namespace kernels_test
}  // namespace sluice::test
#endif
