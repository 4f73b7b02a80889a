// tokenizer.json as a GGUF vocabulary: what its stages say must be what llama.cpp does.
#include <algorithm>
#include <map>
#include <optional>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/bundle/gguf/expressions.h"
#include "sluice/bundle/gguf/vocabulary.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::gguf {
namespace {

std::string brief(const Json& value) {
  return printable(value.dump(-1, ' ', false, Json::error_handler_t::replace), 120);
}

/// object[key], null when it is not there.
const Json& part(const Json& object, const char* key) {
  static const Json kNone;
  if (!object.is_object()) return kNone;
  const auto it = object.find(key);
  return it == object.end() ? kNone : *it;
}

bool is_type(const Json& stage, const char* type) { return part(stage, "type") == type; }

class TokenizerJsonReader {
 public:
  TokenizerJsonReader(std::string_view text, int64_t rows, const std::string& what)
      : what_(what), rows_(rows), root_(parse_json(text, what)) {}

  Vocabulary read(std::vector<std::string>* notes) {
    const Json& model = part(root_, "model");
    const bool bpe = is_type(model, "BPE") ||
                     (part(model, "type").is_null() && part(model, "merges").is_array());
    if (!bpe) refuse("model.type", part(model, "type"), "GGUF decoders have BPE only");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (!part(model, key).is_null() && part(model, key) != "")
        refuse(std::string("model.") + key, part(model, key), "GGUF has no key for it");
    read_tokens(part(model, "vocab"));
    read_merges(part(model, "merges"));
    read_added();
    pad();
    if (part(model, "byte_fallback") == true)
      read_sentence_piece(model);
    else
      read_byte_level(model, notes);
    read_frame(part(root_, "post_processor"));
    return std::move(v_);
  }

 private:
  [[noreturn]] void refuse(const std::string& field, const Json& found, const char* why) const {
    fail(Code::unsupported, "{}: field '{}': found {}; {}", what_, field, brief(found), why);
  }

  void read_tokens(const Json& vocab) {
    if (!vocab.is_object()) refuse("model.vocab", vocab, "expected a table of tokens and ids");
    for (const auto& [token, id] : vocab.items()) place(token, id, "model.vocab");
  }

  /// Puts a token at its id; the text is that of the last who says.
  void place(const std::string& token, const Json& id, const char* field) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= rows_)
      fail(Code::shape, "{}: field '{}': token '{}': expected an id from 0 to {}, found {}", what_,
           field, printable(token, 40), rows_ - 1, brief(id));
    const size_t at = static_cast<size_t>(id.get<int64_t>());
    if (v_.tokens.size() <= at) {
      v_.tokens.resize(at + 1);
      v_.types.resize(at + 1, 0);
    }
    if (v_.types[at] != 0 && v_.tokens[at] != token)
      fail(Code::unsupported, "{}: field '{}': tokens '{}' and '{}' have the id {}", what_, field,
           printable(v_.tokens[at], 40), printable(token, 40), at);
    v_.tokens[at] = token;
    v_.types[at] = kNormal;
    ids_[token] = static_cast<int64_t>(at);
  }

  void read_merges(const Json& merges) {
    if (!merges.is_array()) refuse("model.merges", merges, "expected a list");
    for (const Json& merge : merges) {
      std::string left, right;
      if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      } else if (merge.is_string()) {
        const auto line = merge.get<std::string>();
        const size_t space = line.find(' ');
        if (line.starts_with("#version")) continue;
        if (space == line.npos) refuse("model.merges", merge, "expected two tokens and a space");
        left = line.substr(0, space);
        right = line.substr(space + 1);
      } else {
        refuse("model.merges", merge, "expected two tokens");
      }
      pairs_.emplace_back(left, right);
    }
  }

  void read_added() {
    const Json& added = part(root_, "added_tokens");
    if (added.is_null()) return;
    if (!added.is_array()) refuse("added_tokens", added, "expected a list");
    for (const Json& token : added) {
      if (!part(token, "content").is_string())
        refuse("added_tokens", token, "expected a text as 'content'");
      for (const char* flag : {"lstrip", "rstrip", "single_word"})
        if (part(token, flag) == true)
          refuse(std::string("added_tokens.") + flag, token, "GGUF has no key for it");
      const auto content = part(token, "content").get<std::string>();
      place(content, part(token, "id"), "added_tokens");
      v_.types[static_cast<size_t>(ids_.at(content))] =
          part(token, "special") == true ? kControl : kUserDefined;
    }
  }

  void read_byte_level(const Json& model, std::vector<std::string>* notes) {
    v_.model = "gpt2";
    if (!part(model, "unk_token").is_null())
      refuse("model.unk_token", part(model, "unk_token"), "byte-level BPE has none in GGUF");
    const Expression& expression = read_expression(part(root_, "pre_tokenizer"));
    v_.pre = expression.pre;
    if ((part(model, "ignore_merges") == true) != expression.ignore_merges)
      refuse("model.ignore_merges", part(model, "ignore_merges"),
             "llama.cpp decides by the expression, and the other way");
    const Json& normalizer = part(root_, "normalizer");
    if (is_type(normalizer, "NFC")) {
      if (notes)
        notes->push_back("normalizer NFC: llama.cpp has none; text not in NFC gets other ids");
    } else if (!normalizer.is_null()) {
      refuse("normalizer", normalizer, "byte-level BPE has none in GGUF");
    }
    if (!is_type(part(root_, "decoder"), "ByteLevel"))
      refuse("decoder", part(root_, "decoder"), "expected ByteLevel");
    for (const auto& [left, right] : pairs_) v_.merges.push_back(left + " " + right);
  }

  const Expression& read_expression(const Json& stage) const {
    std::string text;
    const Json& list = part(stage, "pretokenizers");
    const Json* bytes = &stage;
    if (is_type(stage, "Sequence") && list.is_array() && list.size() == 2) {
      const Json &split = list[0], &pattern = part(part(split, "pattern"), "Regex");
      if (is_type(split, "Split") && pattern.is_string() && part(split, "behavior") == "Isolated" &&
          part(split, "invert") != true)
        text = pattern.get<std::string>();
      bytes = &list[1];
    }
    const bool own = part(*bytes, "use_regex") != false;
    if (text.empty() && own) text = kGpt2;
    if (!is_type(*bytes, "ByteLevel") || part(*bytes, "add_prefix_space") == true ||
        own != (bytes == &stage))
      text.clear();
    for (const Expression& expression : kExpressions)
      if (expression.text == text) return expression;
    refuse("pre_tokenizer", stage, "llama.cpp knows the expressions of GPT-2, Llama 3 and Qwen2");
  }

  void read_sentence_piece(const Json& model) {
    v_.model = "llama";
    for (size_t i = 0; i < v_.tokens.size(); ++i)
      if (v_.tokens[i].size() == 6 && v_.tokens[i].starts_with("<0x") && v_.tokens[i][5] == '>')
        v_.types[i] = kByte;
    if (const Json& unknown = part(model, "unk_token"); unknown.is_string()) {
      const auto it = ids_.find(unknown.get<std::string>());
      if (it == ids_.end()) refuse("model.unk_token", unknown, "it is no token");
      v_.unknown_id = it->second;
      v_.types[static_cast<size_t>(it->second)] = kUnknown;
    }
    // Of every token the rank of its first merge: SentencePiece joins the best score first.
    v_.scores.assign(v_.tokens.size(), 0);
    float rank = 0;
    std::map<std::string, float> scores;
    for (const auto& [left, right] : pairs_)
      if (scores.emplace(left + right, rank).second) rank -= 1;
    for (const auto& [token, score] : scores)
      if (const auto it = ids_.find(token); it != ids_.end())
        v_.scores[static_cast<size_t>(it->second)] = score;
    // Read back, stage by stage, it must be what was given.
    for (const bool prefix : {true, false}) {
      v_.add_space_prefix = prefix;
      const Json back = parse_json(tokenizer_json(v_, what_), what_);
      if (part(back, "normalizer") != part(root_, "normalizer")) continue;
      if (!part(root_, "pre_tokenizer").is_null())
        refuse("pre_tokenizer", part(root_, "pre_tokenizer"), "SentencePiece has none in GGUF");
      if (part(back, "decoder") != part(root_, "decoder"))
        refuse("decoder", part(root_, "decoder"), "llama.cpp decodes otherwise");
      require_same_merges(part(part(back, "model"), "merges"));
      return;
    }
    refuse("normalizer", part(root_, "normalizer"),
           "llama.cpp writes spaces as U+2581 and may put one in front, no more");
  }

  /// SentencePiece joins any two pieces that make a token, in the order of these tokens.
  void require_same_merges(const Json& back) const {
    std::vector<std::pair<std::string, std::string>> a = pairs_, b;
    for (const Json& merge : back)
      b.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    bool same = a.size() == b.size();
    for (size_t i = 0; same && i < a.size(); ++i)
      same = a[i].first + a[i].second == b[i].first + b[i].second;
    std::ranges::sort(a);
    std::ranges::sort(b);
    if (!same || a != b)
      fail(Code::unsupported,
           "{}: field 'model.merges': {} merges; scores, as GGUF has them, allow {}: every pair "
           "that makes a token",
           what_, a.size(), b.size());
  }

  void read_frame(const Json& stage) {
    const Json* found = &stage;
    if (is_type(stage, "Sequence")) {
      found = nullptr;
      for (const Json& inner : part(stage, "processors")) {
        if (is_type(inner, "ByteLevel")) continue;
        if (found) refuse("post_processor", stage, "GGUF adds one token before and one behind");
        found = &inner;
      }
    }
    if (!found || found->is_null() || is_type(*found, "ByteLevel")) return;
    const Json& single = part(*found, "single");
    if (!is_type(*found, "TemplateProcessing") || !single.is_array())
      refuse("post_processor", stage, "GGUF adds one token before and one behind");
    bool text = false;
    for (const Json& piece : single) {
      if (piece.contains("Sequence")) {
        text = true;
        continue;
      }
      const Json& name = part(part(piece, "SpecialToken"), "id");
      const auto it = name.is_string() ? ids_.find(name.get<std::string>()) : ids_.end();
      bool& add = text ? v_.add_end : v_.add_begin;
      if (it == ids_.end() || add)
        refuse("post_processor", stage, "GGUF adds one token before and one behind");
      add = true;
      if (text)
        v_.end_ids = {it->second};
      else
        v_.begin_id = it->second;
    }
  }

  /// Ids without a token get one that no text has.
  void pad() {
    v_.tokens.resize(static_cast<size_t>(rows_));
    v_.types.resize(static_cast<size_t>(rows_), 0);
    for (size_t i = 0; i < v_.tokens.size(); ++i) {
      if (v_.types[i] != 0) continue;
      v_.tokens[i] = fmt::format("[PAD{}]", i);
      v_.types[i] = kUnused;
    }
  }

  const std::string& what_;
  int64_t rows_;
  Json root_;
  Vocabulary v_;
  std::map<std::string, int64_t> ids_;
  std::vector<std::pair<std::string, std::string>> pairs_;
};

}  // namespace

Vocabulary vocabulary_of(std::string_view text, int64_t rows, const std::string& what,
                         std::vector<std::string>* notes) {
  return TokenizerJsonReader(text, rows, what).read(notes);
}

}  // namespace sluice::bundle::gguf
