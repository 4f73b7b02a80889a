#include "sluice/base/json.h"

#include "sluice/base/file.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"

namespace sluice {
namespace json_test {

using ::testing::ElementsAre;

TEST(ParseJson, KeepsValuesAndOrder) {
  const std::string text =
      R"({"z":1,"a":[true,null,-2,1.5,"x\u00e9",{}],"m":{"k":18446744073709551615}})";
  EXPECT_EQ(parse_json(text, "t").dump(),
            R"({"z":1,"a":[true,null,-2,1.5,"xé",{}],"m":{"k":18446744073709551615}})");
  EXPECT_EQ(parse_json(" 7 \n", "t"), Json(7));
}

struct Bad {
  std::string text;
  const char* message;
};

TEST(ParseJson, RefusesMalformedText) {
  const Bad cases[] = {
      {"", "byte 0"},
      {"{", "not valid JSON"},
      {"{\"a\":1,}", "byte 7"},
      {"[1,2", "not valid JSON"},
      {"{} x", "byte 3"},
      {"{}{}", "byte 2"},
      {"{'a':1}", "byte 1"},
      {"// c\n1", "byte 0"},
      {"nul", "not valid JSON"},
      {"01", "byte 1"},
      {"1e999", "number overflow"},
      {"NaN", "byte 0"},
      {"\"\xff\"", "UTF-8"},
      {"\"\\ud800\"", "surrogate"},
      {"\"a\nb\"", "control character"},
      {std::string("{}\0junk", 7), "byte 2: a zero byte"},
      {"{\"a\":1,\"b\":{\"c\":1,\"c\":2}}", "the key 'c' is there twice"},
      {"{\"a\":1,\"\\u0061\":2}", "the key 'a' is there twice"},
  };
  for (const Bad& c : cases) {
    SCOPED_TRACE(c.text);
    expect_error(Code::format, c.message, [&] { parse_json(c.text, "model.json"); });
    expect_error(Code::format, "model.json: byte ", [&] { parse_json(c.text, "model.json"); });
  }
}

TEST(ParseJson, NamesTheOffsetOfADuplicate) {
  expect_error(Code::format, "byte 9", [&] { parse_json(R"({"a":1,"a":2})", "t"); });
}

TEST(ParseJson, SameKeyInDifferentTablesIsFine) {
  EXPECT_EQ(parse_json(R"({"a":{"a":[{"a":1},{"a":2}]}})", "t")["a"]["a"][1]["a"], 2);
}

TEST(ParseJson, HoldsTheDepthLimitExactly) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_NO_THROW(parse_json(nested(64), "t"));
  expect_error(Code::format, "byte 64: nested deeper than 64",
               [&] { parse_json(nested(65), "t"); });
  expect_error(Code::format, "nested deeper", [&] { parse_json(nested(1000000), "t"); });
  EXPECT_NO_THROW(parse_json("[[1]]", "t", 2));
  expect_error(Code::format, "nested deeper than 2", [&] { parse_json("[{\"a\":[]}]", "t", 2); });
}

TEST(ParseJson, ShortensHugeTokensInMessages) {
  const auto error = error_of([] { parse_json("\"" + std::string(1000000, 'x'), "t"); });
  ASSERT_TRUE(error.has_value());
  EXPECT_LT(std::string(error->what()).size(), 400U);
}

TEST(ParseJson, MessagesAreOneLineOfPlainText) {
  const std::string twice = R"({"a\n\u001b[2J":1,"a\n\u001b[2J":2})";
  expect_error(Code::format, "the key 'a\\x0a\\x1b[2J' is there twice",
               [&] { parse_json(twice, "t"); });
  expect_error(Code::config, "unknown key 'b\\x0a'",
               [] { json_require_known_keys(parse_json(R"({"b\n":1})", "t"), {"a"}, "t"); });
}

TEST(ParseJson, ManyKeysStayFast) {
  std::string text = "{";
  for (int i = 0; i < 50000; ++i) {
    text += "\"key" + std::to_string(i) + "\":0,";
  }
  text.back() = '}';
  EXPECT_EQ(parse_json(text, "t").size(), 50000U);
}

TEST(ParseJson, EveryPrefixIsAnErrorNotACrash) {
  const std::string text = R"({"a":[1,-2.5e3,true,null,"\u00e9\n"],"b":{"c":{}}})";
  for (size_t length = 0; length < text.size(); ++length) {
    expect_error(Code::format, "t: byte", [&] { parse_json(text.substr(0, length), "t"); });
  }
}

TEST(ReadJsonFile, NamesTheFile) {
  const TempDirectory directory;
  write_text_file(directory / "a.json", "{\"a\":}");
  expect_error(Code::format, "a.json: byte 5", [&] { read_json_file(directory / "a.json"); });
  expect_error(Code::missing, "b.json", [&] { read_json_file(directory / "b.json"); });
}

TEST(JsonGet, ConvertsOnlyWhatLosesNothing) {
  const Json j = parse_json(
      R"({"b":true,"i":3,"d":1.0,"s":"x","is":[1,2],"ds":[1,2.5],"ss":["a"],"n":null,
          "big":9223372036854775808,"max":9223372036854775807,"mixed":[1,"a"]})",
      "t");
  EXPECT_TRUE(json_get<bool>(j, "b", "t"));
  EXPECT_EQ(json_get<int64_t>(j, "i", "t"), 3);
  EXPECT_EQ(json_get<int64_t>(j, "max", "t"), INT64_MAX);
  EXPECT_DOUBLE_EQ(json_get<double>(j, "i", "t"), 3.0);
  EXPECT_EQ(json_get<std::string>(j, "s", "t"), "x");
  EXPECT_THAT(json_get<std::vector<int64_t>>(j, "is", "t"), ElementsAre(1, 2));
  EXPECT_THAT(json_get<std::vector<double>>(j, "ds", "t"), ElementsAre(1, 2.5));
  EXPECT_THAT(json_get<std::vector<std::string>>(j, "ss", "t"), ElementsAre("a"));
  EXPECT_TRUE(json_get<Json>(j, "n", "t").is_null());

  expect_error(Code::config, "'d': expected an integer, found a number: 1.0",
               [&] { json_get<int64_t>(j, "d", "t"); });
  expect_error(Code::config, "below 2^63", [&] { json_get<int64_t>(j, "big", "t"); });
  expect_error(Code::config, "expected an integer", [&] { json_get<int64_t>(j, "b", "t"); });
  expect_error(Code::config, "expected true or false", [&] { json_get<bool>(j, "i", "t"); });
  expect_error(Code::config, "expected a number", [&] { json_get<double>(j, "s", "t"); });
  expect_error(Code::config, "expected a string", [&] { json_get<std::string>(j, "i", "t"); });
  expect_error(Code::config, "expected an array",
               [&] { json_get<std::vector<int64_t>>(j, "i", "t"); });
  expect_error(Code::config, "'mixed[1]'",
               [&] { json_get<std::vector<int64_t>>(j, "mixed", "t"); });
  expect_error(Code::config, "a.toml: the key 'none' is missing",
               [&] { json_get<std::string>(j, "none", "a.toml"); });
  expect_error(Code::config, "expected a table", [&] { json_get<std::string>(Json(3), "x", "t"); });
}

TEST(JsonGetOr, DefaultsOnlyForAbsentKeys) {
  const Json j = parse_json(R"({"i":3,"n":null})", "t");
  EXPECT_EQ(json_get_or<int64_t>(j, "i", 5, "t"), 3);
  EXPECT_EQ(json_get_or<int64_t>(j, "x", 5, "t"), 5);
  expect_error(Code::config, "found null", [&] { json_get_or<int64_t>(j, "n", 5, "t"); });
}

TEST(JsonRequireKnownKeys, NamesTheNearestAndAllKnown) {
  const Json j = parse_json(R"({"epochs":3,"bach":2})", "t");
  EXPECT_NO_THROW(json_require_known_keys(j, {"epochs", "bach"}, "t"));
  expect_error(Code::config,
               "run.toml: unknown key 'bach', did you mean 'batch'?; known: epochs, batch", [&] {
                 json_require_known_keys(j, {"epochs", "batch"}, "run.toml");
               });
  expect_error(Code::config, "known: none", [&] { json_require_known_keys(j, {}, "t"); });
  expect_error(Code::config, "expected a table",
               [&] { json_require_known_keys(Json::array(), {"a"}, "t"); });
}

}  // namespace json_test
}  // namespace sluice
