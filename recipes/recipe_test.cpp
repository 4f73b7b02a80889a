#include "recipes/recipe.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <set>

#include "recipes/embedded.h"
#include "recipes/registry.h"
#include "sluice/base/config.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/lab/train/fast_blas.h"

namespace sluice::recipes {
namespace recipe_test {

class Environment : public ::testing::Environment {
  void SetUp() override {
    lab::use_fast_blas();
    set_progress_style(ProgressStyle::quiet);
  }
};
const auto* const environment = ::testing::AddGlobalTestEnvironment(new Environment);

Report sample() {
  Report report;
  for (const double v : {90.0, 92.0}) report.add("system", "system", "accuracy", v);
  for (const double v : {91.0, 93.0}) report.add("dense", "baseline", "accuracy", v);
  for (const double v : {80.0, 82.0}) report.add("random", "control", "accuracy", v);
  report.add("system", "system", "macs", 40);
  report.add("dense", "baseline", "macs", 100);
  return report;
}

Json declared(const std::string& extra = "") {
  return parse_toml(R"(
[[bar]]
name = "accuracy"
claim = "close"
arm = "system"
metric = "accuracy"
op = "diff"
against = {arm = "dense", metric = "accuracy"}
relation = ">="
bound = -1.0
[[bar]]
name = "cost"
claim = "half"
arm = "system"
metric = "macs"
op = "ratio"
against = {arm = "dense", metric = "macs"}
relation = "<="
bound = 0.5
scales = ["small"]
[[control]]
bar = "accuracy"
arm = "random"
)" + extra,
                    "test");
}

TEST(Judge, ComparesMeansAndIncludesTheBoundItself) {
  const auto judged = judge(sample(), declared(), "small");
  ASSERT_EQ(judged.at("bars").size(), 2u);
  EXPECT_DOUBLE_EQ(judged.at("bars")[0].at("value").get<double>(), -1);
  EXPECT_TRUE(judged.at("bars")[0].at("met").get<bool>());
  EXPECT_DOUBLE_EQ(judged.at("bars")[1].at("value").get<double>(), 0.4);
  EXPECT_DOUBLE_EQ(judged.at("controls")[0].at("value").get<double>(), -11);
  EXPECT_TRUE(judged.at("controls")[0].at("fails").get<bool>());
  EXPECT_EQ(judged.at("verdict"), "met");
}

TEST(Judge, MissesWhenABarIsMissedOrAControlPasses) {
  auto worse = sample();
  worse.arm("system", "system").metrics["accuracy"] = {89, 90};
  EXPECT_EQ(judge(worse, declared(), "small").at("verdict"), "missed");
  auto strong = sample();
  strong.arm("random", "control").metrics["accuracy"] = {92, 92};
  const auto judged = judge(strong, declared(), "small");
  EXPECT_TRUE(judged.at("bars")[0].at("met").get<bool>());
  EXPECT_FALSE(judged.at("controls")[0].at("fails").get<bool>());
  EXPECT_EQ(judged.at("verdict"), "missed");
}

TEST(Judge, JudgesOnlyWhatTheScaleDeclares) {
  EXPECT_EQ(judge(sample(), declared(), "tiny").at("bars").size(), 1u);
  const auto extra = "scales = [\"full\"]\n";  // belongs to the last table, the control
  EXPECT_TRUE(judge(sample(), declared(extra), "small").at("controls").empty());
  EXPECT_EQ(judge(sample(), declared(extra), "full").at("controls").size(), 1u);
}

TEST(Judge, RefusesWhatItCannotJudge) {
  auto with = [](auto change) {
    auto toml = declared();
    change(toml);
    judge(sample(), toml, "small");
  };
  expect_error(Code::config, "no arm 'sytsem'",
               [&] { with([](Json& t) { t["bar"][0]["arm"] = "sytsem"; }); });
  expect_error(Code::config, "no metric 'loss'; it has: accuracy, macs",
               [&] { with([](Json& t) { t["bar"][0]["metric"] = "loss"; }); });
  expect_error(Code::config, "no metric",
               [&] { with([](Json& t) { t["bar"][0]["against"]["metric"] = "loss"; }); });
  expect_error(Code::config, "relation",
               [&] { with([](Json& t) { t["bar"][0]["relation"] = ">"; }); });
  expect_error(Code::config, "op 'sum'", [&] { with([](Json& t) { t["bar"][0]["op"] = "sum"; }); });
  expect_error(Code::config, "needs against",
               [&] { with([](Json& t) { t["bar"][0].erase("against"); }); });
  expect_error(Code::config, "remove 'against'",
               [&] { with([](Json& t) { t["bar"][0]["op"] = "value"; }); });
  expect_error(Code::config, "bound", [&] { with([](Json& t) { t["bar"][0].erase("bound"); }); });
  expect_error(Code::config, "bonud", [&] { with([](Json& t) { t["bar"][0]["bonud"] = 1; }); });
  expect_error(Code::config, "twice",
               [&] { with([](Json& t) { t["bar"][1]["name"] = "accuracy"; }); });
  expect_error(Code::config, "no bar 'x'",
               [&] { with([](Json& t) { t["control"][0]["bar"] = "x"; }); });
  expect_error(Code::config, "own arm",
               [&] { with([](Json& t) { t["control"][0]["arm"] = "system"; }); });
  expect_error(Code::config, "no bar is judged",
               [&] { with([](Json& t) { t.erase("bar"), t.erase("control"); }); });
  auto nan = sample();
  nan.arm("system", "system").metrics["accuracy"] = {std::nan("")};
  expect_error(Code::numeric, "accuracy", [&] { judge(nan, declared(), "small"); });
  auto zero = sample();
  zero.arm("dense", "baseline").metrics["macs"] = {0};
  expect_error(Code::numeric, "which is 0", [&] { judge(zero, declared(), "small"); });
}

TEST(Report, KeepsArmsInOrderAndRefusesAChangeOfRole) {
  auto report = sample();
  EXPECT_EQ(report.arms[1].name, "dense");
  EXPECT_EQ(report.find("nothing"), nullptr);
  expect_error(Code::internal, "is a baseline", [&] { report.arm("dense", "control"); });
  expect_error(Code::internal, "role 'boss'", [&] { report.arm("new", "boss"); });
}

TEST(Catalogue, Lists129SystemsOnceEach) {
  std::set<std::string> slugs, ids;
  const std::set<std::string> families{"dynamic",    "elastic", "experts", "binary",
                                       "adaptation", "layers",  "insight", "science"};
  for (const auto& entry : catalogue()) {
    slugs.insert(entry.slug);
    ids.insert(entry.id);
    EXPECT_TRUE(families.contains(entry.family)) << entry.slug;
    EXPECT_FALSE(entry.title.empty()) << entry.slug;
  }
  EXPECT_EQ(slugs.size(), 129u);
  EXPECT_EQ(ids.size(), 129u);
}

TEST(Catalogue, EveryRecipeIsInItAndHasSettings) {
  for (const auto& slug : runnable()) {
    EXPECT_NE(find_in_catalogue(slug), nullptr) << slug;
    EXPECT_TRUE(embedded_recipes().contains(slug)) << slug;
  }
  for (const auto& [slug, text] : embedded_recipes())
    EXPECT_THAT(runnable(), ::testing::Contains(slug));
}

TEST(Catalogue, PageShowsStatesFromCommittedResults) {
  const TempDirectory root("catalogue");
  make_directories(root / "recipes/elastic/lottery-ticket");
  write_text_file(root / "recipes/elastic/lottery-ticket/README.md", "x");
  make_directories(root / "docs/results");
  auto judged = judge(sample(), declared(), "small");
  auto put = [&](const std::string& slug, const std::string& scale, const std::string& verdict) {
    Json report{{"slug", slug},
                {"scale", scale},
                {"bars", judged["bars"]},
                {"controls", judged["controls"]},
                {"limits", Json::object()},
                {"verdict", verdict}};
    if (slug == "muon") {  // two settings raced in the engine: the cheaper one is shown
      const auto metric = [](double mean) { return Json{{"mean", mean}, {"std", 0}, {"n", 1}}; };
      report["limits"]["race_batch"] = 64;
      report["arms"] = {
          {{"name", "dense"}, {"role", "baseline"}, {"metrics", {{"macs_alone", metric(0.1)}}}},
          {{"name", "mine"},
           {"role", "system"},
           {"metrics",
            {{"macs_alone_at_3", metric(0.5)},
             {"time_alone_at_3", metric(0.625)},
             {"macs_batched_at_3", metric(0.75)},
             {"time_batched_at_3", metric(1.25)},
             {"macs_alone_at_9", metric(0.9)}}}}};
    }
    write_text_file(root / ("docs/results/" + slug + ".json"), report.dump());
  };
  put("lottery-ticket", "small", "met");
  put("muon", "full", "missed");
  Json full{{"seeds", {1}}, {"bars", judged["bars"]}, {"verdict", "missed"}};
  full["bars"][1]["met"] = false;
  write_text_file(root / "docs/results/muon-full.json", full.dump());
  put("selu", "tiny", "met");  // too small to count
  const auto page = catalogue_markdown(root.path());
  EXPECT_NE(page.find("129 systems: 1 work, 1 missed a bar, 127 not yet."), std::string::npos);
  EXPECT_NE(page.find("| S012 | [lottery-ticket](../recipes/elastic/lottery-ticket/README.md) | "
                      "elastic | works |  | close: -1 "
                      "(>= -1); half: 0.4 (<= 0.5) |"),
            std::string::npos)
      << page.substr(0, 3000);
  EXPECT_NE(
      page.find("| S026 | muon | layers | missed | 0.62 (0.50) alone, 1.25 (0.75) with 64 | "),
      std::string::npos);
  EXPECT_NE(page.find("(<= 0.5). At full scale (1 seed): missed cost |"), std::string::npos);
  EXPECT_NE(page.find("| S033 | selu | layers | not yet |  | "), std::string::npos);
}

TEST(Reproduce, NamesTheNearestSystemAndTheScales) {
  auto with = [](const std::string& slug, const std::string& scale) {
    Report report;
    RunOptions options;
    options.slug = slug;
    options.scale = scale;
    reproduce(options, report);
  };
  expect_error(Code::usage, "did you mean 'lottery-ticket'",
               [&] { with("lotery-ticket", "tiny"); });
  expect_error(Code::usage, "has no recipe yet", [&] { with("ra3", "tiny"); });
  expect_error(Code::usage, "it has: tiny, small, full", [&] { with("lottery-ticket", "huge"); });
}

/// Every registered recipe, at scale tiny: the report's schema, and that all it declares refers to
/// what it measures.
class RecipeMatrix : public ::testing::TestWithParam<std::string> {};

TEST_P(RecipeMatrix, RunsAtTinyScaleAndReportsBySchema) {
  const std::string slug = GetParam();
  RunOptions options;
  options.slug = slug;
  options.scale = "tiny";
  options.command = "test";
  Report collected;
  Json report;
  try {
    report = reproduce(options, collected);
  } catch (const Error& error) {
    if (error.code() == Code::missing) GTEST_SKIP() << error.what();
    throw;
  }
  for (const char* key :
       {"slug", "id", "family", "scale", "date", "commit", "command", "machine", "data", "seeds",
        "arms", "bars", "controls", "limits", "figures", "notes", "verdict"})
    EXPECT_TRUE(report.contains(key)) << key;
  EXPECT_EQ(report.at("slug"), slug);
  EXPECT_EQ(report.at("scale"), "tiny");
  for (const char* key : {"cpu", "isa", "threads", "memory"})
    EXPECT_TRUE(report.at("machine").contains(key)) << key;
  EXPECT_FALSE(report.at("data").empty());
  EXPECT_FALSE(report.at("seeds").empty());
  EXPECT_THAT(report.at("verdict").get<std::string>(), ::testing::AnyOf("met", "missed"));

  std::set<std::string> roles, arms;
  for (const auto& arm : report.at("arms")) {
    roles.insert(arm.at("role").get<std::string>());
    arms.insert(arm.at("name").get<std::string>());
    for (const auto& [name, metric] : arm.at("metrics").items()) {
      EXPECT_TRUE(metric.at("mean").is_number()) << name;
      EXPECT_GE(metric.at("std").get<double>(), 0) << name;
      EXPECT_GE(metric.at("n").get<int64_t>(), 1) << name;
    }
  }
  EXPECT_EQ(roles, (std::set<std::string>{"baseline", "control", "system"}))
      << "one run measures all three";

  // Bars and controls refer to arms that tiny has too, but for data that only scale full runs.
  const auto only_full = [](const auto& entry) {
    return entry.contains("scales") && entry.at("scales") == nlohmann::json{"full"};
  };
  const auto toml = declared_settings(slug);
  std::set<std::string> names;
  for (const auto& bar : toml.at("bar")) {
    names.insert(bar.at("name").get<std::string>());
    if (only_full(bar)) continue;
    EXPECT_TRUE(arms.contains(bar.at("arm").get<std::string>())) << bar;
    if (bar.contains("against")) {
      EXPECT_TRUE(arms.contains(bar.at("against").at("arm").get<std::string>())) << bar;
    }
  }
  EXPECT_FALSE(toml.at("control").empty());
  for (const auto& control : toml.at("control")) {
    EXPECT_TRUE(names.contains(control.at("bar").get<std::string>())) << control;
    // A control may say that scale tiny, which trains nothing, has no arm for it.
    const std::vector<std::string> all{"tiny"};
    if (!std::ranges::count(control.value("scales", all), "tiny")) continue;
    EXPECT_TRUE(arms.contains(control.at("arm").get<std::string>())) << control;
  }
  EXPECT_THAT(report_text(report), ::testing::HasSubstr("verdict: "));
}

INSTANTIATE_TEST_SUITE_P(All, RecipeMatrix, ::testing::ValuesIn(runnable()), [](const auto& info) {
  std::string name = info.param;
  for (auto& c : name)
    if (c == '-') c = '_';
  return name;
});

}  // namespace recipe_test
}  // namespace sluice::recipes
