#include "sluice/base/config.h"

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/base/utf8.h"

namespace sluice {
namespace config_test {

TEST(ParseToml, ConvertsEveryKindInFileOrder) {
  const Json j = parse_toml(R"(
name = "tiny"
seeds = [1, 2]
rate = 1e-3
on = true
[train]
epochs = 3
batch = { size = 8, drop = false }
[[bars]]
bound = -1
[[bars]]
bound = 2
)",
                            "t");
  EXPECT_EQ(
      j.dump(),
      R"({"name":"tiny","seeds":[1,2],"rate":0.001,"on":true,)"
      R"("train":{"epochs":3,"batch":{"size":8,"drop":false}},"bars":[{"bound":-1},{"bound":2}]})");
  EXPECT_EQ(parse_toml("", "t"), Json::object());
}

TEST(ParseToml, NamesLineAndColumnOfErrors) {
  expect_error(Code::config, "run.toml:2:", [&] { parse_toml("a = 1\nb = = 2\n", "run.toml"); });
  expect_error(Code::config, "run.toml:2:", [&] { parse_toml("a = 1\na = 2\n", "run.toml"); });
  expect_error(Code::config, "run.toml:1:", [&] { parse_toml("a = \"\xff\"", "run.toml"); });
}

TEST(ParseToml, MessagesAreOneLineOfPlainText) {  // toml++ sees to it
  for (const char* text : {"a = 1\n\"a\\n\\u001B[2J\" = 1\n\"a\\n\\u001B[2J\" = 2\n",
                           "a\x1b[2J = 1", "[\"t\\n\"]\nx = 1\n[\"t\\n\"]\nx = 1\n"}) {
    const auto error = error_of([&] { parse_toml(text, "t"); });
    ASSERT_TRUE(error.has_value()) << text;
    EXPECT_TRUE(is_plain_text(error->what())) << error->what();
  }
}

TEST(ParseToml, RefusesWhatJsonCannotHold) {
  expect_error(Code::config, "t:2:5: dates", [&] { parse_toml("x = 1\nd = 2024-01-01", "t"); });
  expect_error(Code::config, "dates", [&] { parse_toml("d = 10:00:00", "t"); });
  expect_error(Code::config, "dates", [&] { parse_toml("d = [2024-01-01T10:00:00Z]", "t"); });
  expect_error(Code::config, "finite", [&] { parse_toml("d = inf", "t"); });
  expect_error(Code::config, "finite", [&] { parse_toml("d = nan", "t"); });
}

TEST(ParseToml, RefusesHostileNesting) {
  const auto repeat = [](const std::string& text, int n) {
    std::string result;
    for (int i = 0; i < n; ++i) {
      result += text;
    }
    return result;
  };
  expect_error(Code::config,
               "t:1:", [&] { parse_toml("a = " + repeat("[", 100) + repeat("]", 100), "t"); });
  expect_error(Code::config, "t:1:", [&] { parse_toml("a = " + repeat("[", 100000), "t"); });
  expect_error(Code::config, "t:1:", [&] { parse_toml("a = " + repeat("{a=", 100000), "t"); });
  expect_error(Code::config, "nested deeper",
               [&] { parse_toml(repeat("a.", 100) + "b = 1", "t"); });
  expect_error(Code::config, "nested deeper",
               [&] { parse_toml(repeat("a.", 1000000) + "b = 1", "t"); });
  expect_error(Code::config, "nested deeper",
               [&] { parse_toml("[" + repeat("a.", 1000000) + "b]", "t"); });
  expect_error(Code::config, "nested deeper",
               [&] { parse_toml("[" + repeat("\"[\".", 1000000) + "b]", "t"); });
}

TEST(ParseToml, HoldsTheDepthLimit) {
  const auto nested = [](size_t depth) {
    return "a = " + std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_NO_THROW(parse_toml(nested(63), "t"));
  expect_error(Code::config, "t:1: nested deeper than 64", [&] { parse_toml(nested(65), "t"); });
}

TEST(ParseToml, DotsInTextAreNotNesting) {
  const std::string dots(2000, '.');
  EXPECT_EQ(parse_toml("a = \"\"\"[[[\\\"\"\"\"", "t")["a"], "[[[\"");
  EXPECT_EQ(parse_toml("a = \"" + dots + "\"\n# " + dots + "\nb = '''" + dots + "'''", "t")["a"],
            dots);
}

TEST(ReadTomlFile, NamesTheFile) {
  const TempDirectory directory;
  write_text_file(directory / "a.toml", "a = ");
  expect_error(Code::config, "a.toml:1:", [&] { read_toml_file(directory / "a.toml"); });
  expect_error(Code::missing, "b.toml", [&] { read_toml_file(directory / "b.toml"); });
}

TEST(MergeJson, MergesTablesAndReplacesTheRest) {
  const Json base = parse_json(R"({"a":{"x":1,"y":2},"l":[1,2],"s":1})", "t");
  const Json over = parse_json(R"({"a":{"y":3,"z":4},"l":[9],"s":{"t":1},"n":0})", "t");
  EXPECT_EQ(merge_json(base, over).dump(),
            R"({"a":{"x":1,"y":3,"z":4},"l":[9],"s":{"t":1},"n":0})");
  EXPECT_EQ(merge_json(base, Json::object()), base);
}

TEST(SetByPath, ReadsValuesAsTomlElseAsText) {
  Json j = parse_json(R"({"train":{"epochs":1}})", "t");
  set_by_path(j, "train.epochs=3");
  set_by_path(j, "train.rate = 1e-3");
  set_by_path(j, "model.name=resnet");
  set_by_path(j, "widths=[1, 2]");
  set_by_path(j, "on=true");
  set_by_path(j, "quoted=\"3\"");
  set_by_path(j, "date=2024-01-01");
  set_by_path(j, "empty=");
  set_by_path(j, "expression=a=b");
  EXPECT_EQ(
      j.dump(),
      R"({"train":{"epochs":3,"rate":0.001},"model":{"name":"resnet"},"widths":[1,2],"on":true,)"
      R"("quoted":"3","date":"2024-01-01","empty":"","expression":"a=b"})");
}

TEST(SetByPath, TextCannotSmuggleFurtherKeysIn) {
  Json j = Json::object();
  set_by_path(j, "a=1\nb=2");
  EXPECT_EQ(j.dump(), R"({"a":"1\nb=2"})");
}

TEST(SetByPath, RefusesWhatHasNoPlace) {
  Json j = parse_json(R"({"a":1})", "t");
  expect_error(Code::usage, "key=value", [&] { set_by_path(j, "a"); });
  expect_error(Code::usage, "empty key", [&] { set_by_path(j, "=1"); });
  expect_error(Code::usage, "empty key", [&] { set_by_path(j, "a..b=1"); });
  expect_error(Code::usage, "'a' is not a table", [&] { set_by_path(j, "a.b=1"); });
  EXPECT_EQ(j.dump(), R"({"a":1})");
}

}  // namespace config_test
}  // namespace sluice
