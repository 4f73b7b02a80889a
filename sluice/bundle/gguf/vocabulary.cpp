#include "sluice/bundle/gguf/vocabulary.h"

#include <algorithm>
#include <unordered_map>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/bundle/gguf/expressions.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::gguf {
namespace {

const std::string kPrefix = "tokenizer.ggml.";

std::string text_or(const File& file, const std::string& key, const std::string& fallback) {
  return file.has(key) ? file.text(key) : fallback;
}
bool flag_or(const File& file, const std::string& key, bool fallback) {
  return file.has(key) ? file.flag(key) : fallback;
}

void require_sizes(const File& file, const Vocabulary& v) {
  const auto require = [&](size_t found, const char* key) {
    if (found != v.tokens.size())
      fail(Code::shape, "{}: expected an entry for each of {} tokens, found {}",
           file.field(kPrefix + key), v.tokens.size(), found);
  };
  require(v.types.size(), "token_type");
  if (v.model == "llama") require(v.scores.size(), "scores");
  for (size_t i = 0; i < v.tokens.size(); ++i)
    if (!is_utf8(v.tokens[i]))
      fail(Code::format, "{}: entry {} is not UTF-8", file.field(kPrefix + "tokens"), i);
}

/// The ends of the UTF-8 characters of a text.
std::vector<size_t> character_ends(std::string_view text) {
  std::vector<size_t> ends;
  for (size_t i = 1; i <= text.size(); ++i)
    if (i == text.size() || (static_cast<unsigned char>(text[i]) & 0xC0) != 0x80) ends.push_back(i);
  return ends;
}

struct ScoredMerge {
  float score;
  size_t left_size;
  int64_t token;
  std::string_view left, right;
};

/// The pairs that SentencePiece may join, best first: those of a token one after the other, the
/// longest left part first.
Json scored_merges(const Vocabulary& v, const std::string& what) {
  std::unordered_map<std::string_view, int64_t> ids;
  for (size_t i = 0; i < v.tokens.size(); ++i)
    if (v.types[i] == kNormal || v.types[i] == kUserDefined || v.types[i] == kUnused)
      ids.emplace(v.tokens[i], static_cast<int64_t>(i));
  std::vector<ScoredMerge> merges;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    const std::string_view token = v.tokens[i];
    const auto it = ids.find(token);
    if (it == ids.end() || it->second != static_cast<int64_t>(i) || v.types[i] == kUserDefined)
      continue;
    const std::vector<size_t> ends = character_ends(token);
    size_t begin = 0;
    for (const size_t end : ends) {
      const std::string_view letter = token.substr(begin, end - begin);
      // An unused token is padding: whether it can be joined at all hardly matters to anyone.
      if (!ids.count(letter) && v.types[i] != kUnused)
        fail(Code::unsupported,
             "{}: token {} '{}': its letter '{}' is no token, so that no list of merges makes it",
             what, i, printable(token, 40), printable(letter, 20));
      begin = end;
    }
    for (size_t k = 0; k + 1 < ends.size(); ++k) {
      const auto left = token.substr(0, ends[k]), right = token.substr(ends[k]);
      if (ids.count(left) && ids.count(right))
        merges.push_back({v.scores[i], k, static_cast<int64_t>(i), left, right});
    }
  }
  std::ranges::stable_sort(merges, [](const ScoredMerge& a, const ScoredMerge& b) {
    if (a.score != b.score) return a.score > b.score;
    if (a.token != b.token) return a.token < b.token;
    return a.left_size > b.left_size;
  });
  Json list = Json::array();
  for (size_t i = 0; i < merges.size(); ++i) {
    if (i > 0 && merges[i].score == merges[i - 1].score && merges[i].token != merges[i - 1].token)
      fail(Code::unsupported,
           "{}: tokens {} '{}' and {} '{}' have the same score, {}: a list of "
           "merges cannot say that the one further left comes first",
           what, merges[i - 1].token,
           printable(v.tokens[static_cast<size_t>(merges[i - 1].token)], 40), merges[i].token,
           printable(v.tokens[static_cast<size_t>(merges[i].token)], 40), merges[i].score);
    list.push_back(Json::array({merges[i].left, merges[i].right}));
  }
  return list;
}

Json added_tokens(const Vocabulary& v) {
  Json list = Json::array();
  for (size_t i = 0; i < v.tokens.size(); ++i)
    if (v.types[i] == kControl || v.types[i] == kUserDefined)
      list.push_back({{"id", i},
                      {"content", v.tokens[i]},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", false},
                      {"special", v.types[i] == kControl}});
  return list;
}

/// What stands before and behind every text.
Json frame(const Vocabulary& v) {
  if (!v.add_begin && !v.add_end) return nullptr;
  Json single = Json::array(), pair = Json::array(), special = Json::object();
  const auto add = [&](Json& list, int64_t id, int type) {
    const std::string& token = v.tokens[static_cast<size_t>(id)];
    list.push_back({{"SpecialToken", {{"id", token}, {"type_id", type}}}});
    special[token] = {{"id", token}, {"ids", Json::array({id})}, {"tokens", Json::array({token})}};
  };
  const auto sequence = [](const char* id, int type) {
    return Json{{"Sequence", {{"id", id}, {"type_id", type}}}};
  };
  for (int type = 0; type < 2; ++type) {
    if (v.add_begin) add(pair, v.begin_id, type);
    pair.push_back(sequence(type == 0 ? "A" : "B", type));
    if (v.add_end) add(pair, v.end_ids[0], type);
    if (type == 0) single = pair;
  }
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", special}};
}

Json byte_level(bool expression) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", expression}};
}

Json pre_tokenizer(std::string_view expression) {
  if (expression == kGpt2) return byte_level(true);
  return {{"type", "Sequence"},
          {"pretokenizers", Json::array({{{"type", "Split"},
                                          {"pattern", {{"Regex", expression}}},
                                          {"behavior", "Isolated"},
                                          {"invert", false}},
                                         byte_level(false)})}};
}

void require_all_bytes(const Vocabulary& v, const std::string& what) {
  int64_t bytes = 0;
  for (size_t i = 0; i < v.tokens.size(); ++i) bytes += v.types[i] == kByte;
  if (bytes != 256)
    fail(Code::unsupported, "{}: {} tokens are bytes; expected all 256", what, bytes);
}

}  // namespace

Vocabulary read_vocabulary(const File& file) {
  Vocabulary v;
  v.model = text_or(file, kPrefix + "model", "none");
  if (v.model == "none" || v.model == "no_vocab") return v;
  if (v.model != "gpt2" && v.model != "llama")
    fail(Code::unsupported, "{}: expected gpt2 or llama, found '{}'", file.field(kPrefix + "model"),
         printable(v.model, 40));
  v.pre = text_or(file, kPrefix + "pre", v.model == "gpt2" ? "default" : "");
  v.tokens = file.texts(kPrefix + "tokens");
  if (v.tokens.empty())
    fail(Code::format, "{}: expected tokens, found none", file.field(kPrefix + "tokens"));
  if (file.has(kPrefix + "token_type")) {
    for (const int64_t type : file.integers(kPrefix + "token_type", kNormal, kByte))
      v.types.push_back(static_cast<int32_t>(type));
  } else {
    v.types.assign(v.tokens.size(), kNormal);
  }
  if (v.model == "llama") v.scores = file.numbers(kPrefix + "scores");
  if (v.model == "gpt2") v.merges = file.texts(kPrefix + "merges");
  require_sizes(file, v);
  const int64_t last = static_cast<int64_t>(v.tokens.size()) - 1;
  const auto id = [&](const char* key, int64_t fallback) {
    const std::string name = kPrefix + key + "_token_id";
    // -1 as u32: none.
    if (!file.has(name) || file.integer(name, INT64_MIN, INT64_MAX) == UINT32_MAX) return fallback;
    return file.integer(name, 0, last);
  };
  v.begin_id = id("bos", v.model == "llama" && last >= 1 ? 1 : -1);
  v.unknown_id = id("unknown", v.model == "llama" ? 0 : -1);
  for (const int64_t end : {id("eos", v.model == "llama" && last >= 2 ? 2 : -1), id("eot", -1)})
    if (end >= 0 && std::ranges::find(v.end_ids, end) == v.end_ids.end()) v.end_ids.push_back(end);
  v.add_begin = flag_or(file, kPrefix + "add_bos_token", v.model == "llama");
  v.add_end = flag_or(file, kPrefix + "add_eos_token", false);
  v.add_space_prefix = flag_or(file, kPrefix + "add_space_prefix", true);
  if (v.add_begin && v.begin_id < 0)
    fail(Code::config, "{}: true, but there is no bos_token_id",
         file.field(kPrefix + "add_bos_token"));
  if (v.add_end && v.end_ids.empty())
    fail(Code::config, "{}: true, but there is no eos_token_id",
         file.field(kPrefix + "add_eos_token"));
  return v;
}

void write_vocabulary(const Vocabulary& v, Writer& writer) {
  writer.set(kPrefix + "model", std::string_view(v.model));
  if (v.tokens.empty()) return;
  if (!v.pre.empty()) writer.set(kPrefix + "pre", std::string_view(v.pre));
  writer.set(kPrefix + "tokens", std::span<const std::string>(v.tokens));
  if (v.model == "llama") writer.set(kPrefix + "scores", std::span<const float>(v.scores));
  writer.set(kPrefix + "token_type", std::span<const int32_t>(v.types));
  if (v.model == "gpt2") writer.set(kPrefix + "merges", std::span<const std::string>(v.merges));
  const auto id = [&](const char* key, int64_t value) {
    if (value >= 0) writer.set(kPrefix + key + "_token_id", static_cast<uint32_t>(value));
  };
  id("bos", v.begin_id);
  if (!v.end_ids.empty()) id("eos", v.end_ids[0]);
  if (v.end_ids.size() > 1) id("eot", v.end_ids[1]);
  id("unknown", v.unknown_id);
  writer.set(kPrefix + "add_bos_token", v.add_begin);
  writer.set(kPrefix + "add_eos_token", v.add_end);
  if (v.model == "llama") writer.set(kPrefix + "add_space_prefix", v.add_space_prefix);
}

std::string tokenizer_json(const Vocabulary& v, const std::string& what) {
  Json ids = Json::object();
  for (size_t i = 0; i < v.tokens.size(); ++i)
    if (!ids.emplace(v.tokens[i], i).second)
      fail(Code::unsupported, "{}: token {} '{}' is there twice", what, i,
           printable(v.tokens[i], 40));
  Json model = {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"ignore_merges", false}};
  Json root = {{"version", "1.0"},
               {"truncation", nullptr},
               {"padding", nullptr},
               {"normalizer", nullptr},
               {"pre_tokenizer", nullptr},
               {"post_processor", frame(v)},
               {"added_tokens", added_tokens(v)}};
  if (v.model == "gpt2") {
    const Expression* expression = find_expression(v.pre);
    if (!expression)
      fail(Code::unsupported, "{}: key 'tokenizer.ggml.pre': expected {}, found '{}'", what,
           known_expressions(), printable(v.pre, 40));
    Json merges = Json::array();
    for (size_t i = 0; i < v.merges.size(); ++i) {
      const size_t space = v.merges[i].find(' ', 1);
      if (space == std::string::npos || !is_utf8(v.merges[i]))
        fail(Code::format,
             "{}: key 'tokenizer.ggml.merges': entry {}: expected two tokens and a "
             "space, found '{}'",
             what, i, printable(v.merges[i], 40));
      merges.push_back(Json::array({v.merges[i].substr(0, space), v.merges[i].substr(space + 1)}));
    }
    model["merges"] = std::move(merges);
    model["ignore_merges"] = expression->ignore_merges;
    root["pre_tokenizer"] = pre_tokenizer(expression->text);
    root["decoder"] = byte_level(true);
  } else {
    require_all_bytes(v, what);
    model["merges"] = scored_merges(v, what);
    model["byte_fallback"] = true;
    model["fuse_unk"] = true;
    if (v.unknown_id >= 0) model["unk_token"] = v.tokens[static_cast<size_t>(v.unknown_id)];
    const Json replace = {
        {"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpaceMark}};
    Json decoders =
        Json::array({{{"type", "Replace"}, {"pattern", {{"String", kSpaceMark}}}, {"content", " "}},
                     {{"type", "ByteFallback"}},
                     {{"type", "Fuse"}}});
    root["normalizer"] = replace;
    if (v.add_space_prefix) {
      root["normalizer"] = {
          {"type", "Sequence"},
          {"normalizers", Json::array({{{"type", "Prepend"}, {"prepend", kSpaceMark}}, replace})}};
      decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    }
    root["decoder"] = {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
  }
  model["vocab"] = std::move(ids);
  root["model"] = std::move(model);
  return root.dump();
}

}  // namespace sluice::bundle::gguf
