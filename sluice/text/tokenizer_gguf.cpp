#include <utility>

#include "sluice/base/error.h"
#include "sluice/text/tokenizer_impl.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

enum Type : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// The expressions behind tokenizer.ggml.pre.
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

std::string_view expression_of(const std::string& pre, const std::string& what) {
  if (pre.empty() || pre == "default" || pre == "gpt-2" || pre == "gpt2") {
    return kGpt2Expression;
  }
  if (pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3") {
    return kLlama3;
  }
  if (pre == "qwen2" || pre == "stablelm2") {
    return kQwen2;
  }
  fail(Code::unsupported, "{}: tokenizer.ggml.pre is {}; known: default, gpt-2, llama-bpe, qwen2",
       what, shown(pre));
}

int32_t checked_id(int64_t id, size_t tokens, std::string_view key, const std::string& what) {
  if (id < -1 || id >= static_cast<int64_t>(tokens)) {
    fail(Code::format, "{}: {} is {} in a vocabulary of {} tokens", what, key, id, tokens);
  }
  return static_cast<int32_t>(id);
}

}  // namespace

Tokenizer Tokenizer::from_gguf(const GgufVocabulary& given, const std::string& what) {
  const bool byte_level = given.model == "gpt2";
  if (!byte_level && given.model != "llama") {
    fail(Code::unsupported, "{}: tokenizer.ggml.model is {}; known: gpt2, llama", what,
         shown(given.model));
  }
  const size_t count = given.tokens.size();
  if (count == 0) {
    fail(Code::format, "{}: tokenizer.ggml.tokens is empty", what);
  }
  if (!given.types.empty() && given.types.size() != count) {
    fail(Code::shape, "{}: tokenizer.ggml.token_type has {} entries for {} tokens", what,
         given.types.size(), count);
  }
  const int32_t begin = checked_id(given.begin_id, count, "tokenizer.ggml.bos_token_id", what);
  const int32_t end = checked_id(given.end_id, count, "tokenizer.ggml.eos_token_id", what);
  int32_t unknown = checked_id(given.unknown_id, count, "tokenizer.ggml.unknown_token_id", what);
  if ((given.add_begin && begin < 0) || (given.add_end && end < 0)) {
    fail(Code::format, "{}: a token is to be added at the {}, but its id is missing", what,
         given.add_begin && begin < 0 ? "beginning" : "end");
  }
  Vocabulary vocabulary;
  std::vector<AddedToken> added;
  std::vector<bool> mergeable(count, false);
  for (size_t id = 0; id < count; ++id) {
    const std::string& token = given.tokens[id];
    if (valid_utf8_prefix(token) != token.size()) {
      fail(Code::format, "{}: tokenizer.ggml.tokens[{}] is not UTF-8", what, id);
    }
    vocabulary.add(token, static_cast<int64_t>(id), what);
    const int32_t type = given.types.empty() ? kNormal : given.types[id];
    if (type < kNormal || type > kByte) {
      fail(Code::format, "{}: tokenizer.ggml.token_type[{}] is {}; expected 1 to 6", what, id,
           type);
    }
    if (type == kUnknown && unknown < 0) {
      unknown = static_cast<int32_t>(id);
    }
    mergeable[id] = type == kNormal || type == kUnused || type == kUserDefined;
    if (type == kControl || type == kUserDefined) {
      AddedToken special;
      special.content = token;
      special.special = type == kControl;
      special.normalized = false;
      added.push_back(std::move(special));
    }
  }
  vocabulary.finish(what);

  auto impl = std::make_shared<Impl>();
  if (byte_level) {
    std::vector<MergeText> merges;
    merges.reserve(given.merges.size());
    for (const std::string& merge : given.merges) {
      const std::string_view line = merge;
      const size_t space = line.find(' ', 1);
      if (space == std::string_view::npos) {
        fail(Code::format,
             "{}: tokenizer.ggml.merges[{}]: expected two tokens and a space, found {}", what,
             merges.size(), shown(line));
      }
      merges.push_back({line.substr(0, space), line.substr(space + 1)});
    }
    BpeOptions options;
    // Llama 3 takes a word that is a token as it is.
    options.ignore_merges = expression_of(given.pre, what) == kLlama3;
    impl->model = make_bpe(std::move(vocabulary), merges, options, what);
    impl->pre_tokenizer = make_byte_level_split(expression_of(given.pre, what), what);
    impl->decoder = make_byte_level_decoder();
  } else {
    if (given.scores.size() != count) {
      fail(Code::shape, "{}: tokenizer.ggml.scores has {} entries for {} tokens", what,
           given.scores.size(), count);
    }
    impl->model =
        make_scored_bpe(std::move(vocabulary), given.scores, std::move(mergeable), unknown, what);
    impl->normalizer = make_sentence_piece_normalizer(given.add_space_prefix);
    impl->decoder = make_sentence_piece_decoder(given.add_space_prefix);
  }
  impl->added.add(added, *impl->model, impl->normalizer.get(), what);
  if (given.add_begin || given.add_end) {
    impl->post_processor = make_frame(given.add_begin ? begin : -1, given.add_end ? end : -1);
  }
  return Tokenizer(std::move(impl));
}

}  // namespace sluice::text
