#include "sluice/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "sluice/base/test_error.h"
#include "sluice/text/pattern.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace tokenizer_test {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::string file_with(const std::string& model, const std::string& more = "") {
  return R"({"version":"1.0","model":)" + model + (more.empty() ? "" : "," + more) + "}";
}

const std::string kBpe = R"({"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"c":3},"merges":["a b"]})";

TEST(Tokenizer, MergesWhatTheFileSays) {
  const Tokenizer tokenizer = Tokenizer::parse(file_with(kBpe), "test");
  EXPECT_THAT(tokenizer.encode("abcab"), ElementsAre(2, 3, 2));
  EXPECT_THAT(tokenizer.encode(""), IsEmpty());
  EXPECT_THAT(tokenizer.encode("xyz"), IsEmpty())
      << "without an unknown token unknown characters vanish";
}

struct BadFile {
  const char* name;
  std::string text;
  Code code;
  const char* words;
};

std::vector<BadFile> bad_files() {
  const auto with = [](const char* more) { return file_with(kBpe, more); };
  std::string deep;
  for (int i = 0; i < 200; ++i) {
    deep += R"({"type":"Sequence","normalizers":[)";
  }
  return {
      {"empty", "", Code::format, "JSON"},
      {"not an object", "[1]", Code::config, "expected a table"},
      {"no model", R"({"version":"1.0"})", Code::config, "'model'"},
      {"version", R"({"version":"2.0","model":{}})", Code::unsupported, "version"},
      {"model type", file_with(R"({"type":"LSTM"})"), Code::unsupported, "'LSTM'"},
      {"vocabulary missing", file_with(R"({"type":"BPE","merges":[]})"), Code::config, "'vocab'"},
      {"vocabulary of another type", file_with(R"({"type":"BPE","vocab":[1],"merges":[]})"),
       Code::config, "'vocab'"},
      {"negative id", file_with(R"({"type":"BPE","vocab":{"a":-1},"merges":[]})"), Code::limit,
       "id -1"},
      {"huge id", file_with(R"({"type":"BPE","vocab":{"a":4294967295},"merges":[]})"), Code::limit,
       "4294967295"},
      {"id beyond 64 bits",
       file_with(R"({"type":"BPE","vocab":{"a":18446744073709551615},"merges":[]})"), Code::config,
       "2^32"},
      {"sparse ids", file_with(R"({"type":"BPE","vocab":{"a":200000000},"merges":[]})"),
       Code::limit, "highest id"},
      {"id as text", file_with(R"({"type":"BPE","vocab":{"a":"0"},"merges":[]})"), Code::config,
       "'a'"},
      {"token twice", file_with(R"({"type":"BPE","vocab":{"a":0,"a":1},"merges":[]})"),
       Code::format, "twice"},
      {"merge of a stranger", file_with(R"({"type":"BPE","vocab":{"a":0},"merges":["a z"]})"),
       Code::format, "'z'"},
      {"merge without result",
       file_with(R"({"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]})"), Code::format, "'ab'"},
      {"merge of three", file_with(R"({"type":"BPE","vocab":{"a":0},"merges":["a a a"]})"),
       Code::format, "merge 0"},
      {"merge of one", file_with(R"({"type":"BPE","vocab":{"a":0},"merges":[["a"]]})"),
       Code::format, "merge 0"},
      {"merges no array", file_with(R"({"type":"BPE","vocab":{"a":0},"merges":7})"), Code::config,
       "'merges'"},
      {"merge shorter than its prefix",
       file_with(
           R"({"type":"BPE","vocab":{"a":0},"merges":["a a"],"continuing_subword_prefix":"##"})"),
       Code::format, "shorter"},
      {"dropout", file_with(R"({"type":"BPE","vocab":{},"merges":[],"dropout":0.1})"),
       Code::unsupported, "dropout"},
      {"unigram without scores", file_with(R"({"type":"Unigram","vocab":["a"]})"), Code::config,
       "vocab[0]"},
      {"unigram unknown id", file_with(R"({"type":"Unigram","vocab":[["a",0]],"unk_id":1})"),
       Code::config, "unk_id"},
      {"unigram of a table", file_with(R"({"type":"Unigram","vocab":{"a":0}})"), Code::config,
       "'vocab'"},
      {"word piece without prefix",
       file_with(R"({"type":"WordPiece","vocab":{},"unk_token":"u","max_input_chars_per_word":9})"),
       Code::config, "continuing_subword_prefix"},
      {"normalizer type", with(R"("normalizer":{"type":"Shout"})"), Code::unsupported, "Shout"},
      {"normalizer without type", with(R"("normalizer":{})"), Code::config, "'type'"},
      {"normalizer no object", with(R"("normalizer":3)"), Code::config, "expected a table"},
      {"deep normalizers", with((R"("normalizer":)" + deep).c_str()), Code::format,
       "nested deeper"},
      {"sequence of nothing", with(R"("normalizer":{"type":"Sequence"})"), Code::config,
       "normalizers"},
      {"character map", with(R"("normalizer":{"type":"Precompiled","precompiled_charsmap":"!!"})"),
       Code::format, "base64"},
      {"short character map",
       with(R"("normalizer":{"type":"Precompiled","precompiled_charsmap":"AA=="})"), Code::format,
       "trie"},
      {"long trie",
       with(R"("normalizer":{"type":"Precompiled","precompiled_charsmap":"////fwAA"})"),
       Code::format, "trie"},
      {"open group",
       with(
           R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"(a"},"behavior":"Isolated","invert":false})"),
       Code::format, "'(a'"},
      {"open set",
       with(
           R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"[a"},"behavior":"Isolated","invert":false})"),
       Code::format, "without its ]"},
      {"nested set",
       with(
           R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"[a[b]]"},"behavior":"Isolated","invert":false})"),
       Code::unsupported, "set within a set"},
      {"verb",
       with(
           R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"(*NO_JIT)a"},"behavior":"Isolated","invert":false})"),
       Code::unsupported, "(*"},
      {"behavior",
       with(
           R"("pre_tokenizer":{"type":"Split","pattern":{"String":"a"},"behavior":"Eaten","invert":false})"),
       Code::config, "'Eaten'"},
      {"pattern",
       with(
           R"("pre_tokenizer":{"type":"Split","pattern":"a","behavior":"Isolated","invert":false})"),
       Code::config, "'pattern'"},
      {"two characters",
       with(R"("pre_tokenizer":{"type":"Metaspace","replacement":"ab","prepend_scheme":"first"})"),
       Code::config, "one character"},
      {"scheme",
       with(R"("pre_tokenizer":{"type":"Metaspace","replacement":"_","prepend_scheme":"last"})"),
       Code::config, "'last'"},
      {"length zero", with(R"("pre_tokenizer":{"type":"FixedLength","length":0})"), Code::config,
       "'length'"},
      {"template without its token",
       with(
           R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"X","type_id":0}}],"pair":[],"special_tokens":{}})"),
       Code::config, "'X'"},
      {"template id",
       with(
           R"("post_processor":{"type":"TemplateProcessing","single":[],"pair":[],"special_tokens":{"X":{"ids":[-1]}}})"),
       Code::limit, "ids"},
      {"processor pair",
       with(R"("post_processor":{"type":"BertProcessing","sep":["a",1],"cls":["b"]})"),
       Code::config, "'cls'"},
      {"decoder", with(R"("decoder":{"type":"Morse"})"), Code::unsupported, "Morse"},
      {"decoder strip", with(R"("decoder":{"type":"Strip","content":" ","start":-1,"stop":0})"),
       Code::config, "start"},
      {"added tokens", with(R"("added_tokens":{})"), Code::config, "added_tokens"},
      {"added token without content", with(R"("added_tokens":[{"id":1}])"), Code::config,
       "added_tokens[0]"},
      {"added token id", with(R"("added_tokens":[{"id":-1,"content":"x"}])"), Code::config, "'id'"},
      {"truncation", with(R"("truncation":{"max_length":-1,"strategy":"LongestFirst","stride":0})"),
       Code::config, "max_length"},
      {"truncation strategy",
       with(R"("truncation":{"max_length":1,"strategy":"Random","stride":0})"), Code::config,
       "Random"},
      {"padding", with(R"("padding":{"strategy":{"Fixed":1e30},"direction":"Right"})"),
       Code::config, "Fixed"},
      {"padding direction", with(R"("padding":{"strategy":"BatchLongest","direction":"Up"})"),
       Code::config, "Up"},
      {"broken text", "{\"model\":\"\xff\"}", Code::format, "JSON"},
  };
}

TEST(Tokenizer, RefusesBrokenFilesNamingTheField) {
  for (const BadFile& bad : bad_files()) {
    expect_error(
        bad.code, bad.words, [&] { Tokenizer::parse(bad.text, "test"); }, bad.name);
  }
  EXPECT_ERROR(Tokenizer::open("/no/such/tokenizer.json"), Code::missing, "tokenizer.json");
}

TEST(Tokenizer, EveryTruncationOfAFileIsAnError) {
  const std::string whole = file_with(
      kBpe,
      R"("normalizer":{"type":"NFC"},"added_tokens":[{"id":4,"content":"<s>","special":true}])");
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_TRUE(error_of([&] { Tokenizer::parse(whole.substr(0, size), "test"); }).has_value())
        << size;
  }
  Tokenizer::parse(whole, "test");
}

TEST(Tokenizer, MissingUnknownTokenIsAnErrorOnlyWhenNeeded) {
  const Tokenizer tokenizer = Tokenizer::parse(
      file_with(
          R"({"type":"WordPiece","vocab":{"a":0},"unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":10})"),
      "test");
  EXPECT_THAT(tokenizer.encode("a"), ElementsAre(0));
  EXPECT_ERROR(tokenizer.encode("b"), Code::missing, "[UNK]");
  EXPECT_THAT(tokenizer.encode("a"), ElementsAre(0)) << "an error leaves nothing behind";
}

TEST(Tokenizer, PatternThatNeverEndsGivesUp) {
  const Tokenizer tokenizer = Tokenizer::parse(
      file_with(
          kBpe,
          R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"(a+)+(a+)+(a+)+[cd]"},"behavior":"Isolated","invert":false})"),
      "test");
  EXPECT_ERROR(tokenizer.encode(std::string(400, 'a')), Code::limit, "gave up");
}

TEST(Tokenizer, StagesThatMultiplyTextsGiveUp) {
  std::string doubling;
  for (int i = 0; i < 60; ++i) {
    doubling += std::string(i > 0 ? "," : "") +
                R"({"type":"Replace","pattern":{"String":"a"},"content":"aa"})";
  }
  const Tokenizer normalizer = Tokenizer::parse(
      file_with(kBpe, R"("normalizer":{"type":"Sequence","normalizers":[)" + doubling + "]}"),
      "test");
  EXPECT_ERROR(normalizer.encode("a"), Code::limit, "makes more than");
  const Tokenizer decoder = Tokenizer::parse(
      file_with(kBpe, R"("decoder":{"type":"Sequence","decoders":[)" + doubling + "]}"), "test");
  EXPECT_ERROR(decoder.decode(std::vector<int32_t>{0}), Code::limit, "decoder makes");
}

TEST(Tokenizer, LongWordsTakeTimeThatGrowsWithTheirLength) {
  const Tokenizer tokenizer = Tokenizer::parse(file_with(kBpe), "test");
  std::string text;
  for (int i = 0; i < 300'000; ++i) {
    text += "ab";
  }
  EXPECT_EQ(tokenizer.encode(text).size(), 300'000u);
}

TEST(Tokenizer, BrokenTextCountsAsReplacementCharacters) {
  const Tokenizer tokenizer = Tokenizer::parse(
      file_with(R"({"type":"BPE","vocab":{"a":0,"b":1,"\ufffd":2},"merges":[]})"), "test");
  EXPECT_THAT(tokenizer.encode("a\xF0\x9F\x98z\xFF"
                               "b"),
              ElementsAre(0, 2, 2, 1));
  EncodeOptions options;
  options.offsets = true;
  const Encoding encoding = tokenizer.encode(
      "a\xF0\x9F\x98\xFF"
      "b",
      options);
  EXPECT_THAT(encoding.offsets,
              ElementsAre(ByteRange{0, 1}, ByteRange{1, 4}, ByteRange{4, 5}, ByteRange{5, 6}));
}

TEST(Tokenizer, UnknownIdsAreLeftOutOfText) {
  const Tokenizer tokenizer = Tokenizer::parse(file_with(kBpe), "test");
  EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{0, -5, 77, 2}), "a ab");
}

TEST(DecodeStream, HoldsBackUnfinishedCharacters) {
  const Tokenizer tokenizer = Tokenizer::parse(
      R"({"model":{"type":"BPE","vocab":{"â":0,"Ĥ":1,"¬":2,"a":3},"merges":[]},"decoder":{"type":"ByteLevel"}})",
      "test");
  DecodeStream stream = tokenizer.stream();
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.push(1), "");
  EXPECT_EQ(stream.push(2), "€");
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.push(3),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.flush(), "");
}

TEST(GgufTokenizer, RefusesBadMetadata) {
  GgufVocabulary good;
  good.model = "llama";
  good.tokens = {"<unk>", "a"};
  good.scores = {0, 0};
  good.types = {2, 1};
  Tokenizer::from_gguf(good, "test");
  const auto refuses = [&](Code code, const char* words, auto change) {
    GgufVocabulary bad = good;
    change(bad);
    expect_error(
        code, words, [&] { Tokenizer::from_gguf(bad, "test"); }, words);
  };
  refuses(Code::unsupported, "tokenizer.ggml.model", [](auto& v) { v.model = "bert"; });
  refuses(Code::format, "tokens is empty", [](auto& v) { v.tokens.clear(); });
  refuses(Code::shape, "scores", [](auto& v) { v.scores.pop_back(); });
  refuses(Code::shape, "token_type", [](auto& v) { v.types.push_back(1); });
  refuses(Code::format, "token_type[1] is 9", [](auto& v) { v.types[1] = 9; });
  refuses(Code::numeric, "score of token 1", [](auto& v) { v.scores[1] = std::stof("nan"); });
  refuses(Code::format, "bos_token_id is 2", [](auto& v) { v.begin_id = 2; });
  refuses(Code::format, "id is missing", [](auto& v) { v.add_end = true; });
  refuses(Code::format, "not UTF-8", [](auto& v) { v.tokens[1] = "\xFF"; });
  refuses(Code::unsupported, "tokenizer.ggml.pre", [](auto& v) {
    v.model = "gpt2";
    v.pre = "klingon";
  });
  refuses(Code::format, "merges[0]", [](auto& v) {
    v.model = "gpt2";
    v.merges = {"ab"};
  });
}

std::vector<std::string> matches(const std::string& expression, const std::string& text) {
  std::vector<Stretch> stretches;
  Pattern::regex(expression, "test").find(text, stretches);
  std::vector<std::string> found;
  for (const Stretch& stretch : stretches) {
    if (stretch.match) {
      found.push_back(text.substr(stretch.begin, stretch.end - stretch.begin));
    }
  }
  return found;
}

TEST(Pattern, MeansWhatRubyMeans) {
  EXPECT_THAT(matches(R"(\h+)", "xyz09aF g"), ElementsAre("09aF"));
  EXPECT_THAT(matches(R"(\s)", "a\u180Eb\u00A0c"), ElementsAre("\u00A0"));
  EXPECT_THAT(matches(R"([^\S\n]+)", " \n\t"), ElementsAre(" ", "\t"));
  EXPECT_THAT(matches(R"(^b$)", "a\nb\nc"), ElementsAre("b"));
  EXPECT_THAT(matches(R"((?m:a.b))", "a\nb"), ElementsAre("a\nb"));
  EXPECT_THAT(matches(R"(a{,2}b)", "aaab"), ElementsAre("aab"));
  EXPECT_THAT(matches(R"([]a]+)", "x]a]"), ElementsAre("]a]"));
  EXPECT_THAT(matches(R"(\p{^L}+)", "ab12"), ElementsAre("12"));
  EXPECT_THAT(matches(R"(\p{Han}+)", "a、漢字"), ElementsAre("漢字"));
  EXPECT_THAT(matches("", "ab"), ElementsAre("", "", ""));
}

TEST(Unicode, RepairsAsPythonDoes) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(repair_utf8("a\xFF"
                        "b"),
            "a" + r + "b");
  EXPECT_EQ(repair_utf8("\xE2\x82"), r);
  EXPECT_EQ(repair_utf8("\xED\xA0\x80"), r + r + r);
  EXPECT_EQ(repair_utf8("\xC0\xAF"), r + r);
  EXPECT_EQ(repair_utf8("\xF4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(repair_utf8("\xF0\x9F\x98\x80"), "\xF0\x9F\x98\x80");
}

}  // namespace tokenizer_test
}  // namespace sluice::text
