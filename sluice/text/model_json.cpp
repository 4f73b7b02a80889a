#include <utility>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/text/model.h"
#include "sluice/text/stage_json.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

Vocabulary read_vocabulary(const Json& json, const std::string& what) {
  const Json* table = present(json, "vocab", what);
  if (table == nullptr || !table->is_object()) {
    fail(Code::config, "{}: 'vocab': expected a table of tokens and ids, found {}", what,
         table == nullptr ? "nothing" : table->type_name());
  }
  Vocabulary vocabulary;
  for (const auto& item : table->items()) {
    if (!item.value().is_number_integer() ||
        (item.value().is_number_unsigned() && item.value().get<uint64_t>() >> 32 != 0)) {
      fail(Code::config, "{}: vocab: the id of {} is no whole number below 2^32", what,
           shown(item.key()));
    }
    vocabulary.add(item.key(), item.value().get<int64_t>(), what);
  }
  vocabulary.finish(what);
  return vocabulary;
}

std::string text_or_empty(const Json& json, std::string_view key, const std::string& what) {
  return present(json, key, what) == nullptr ? "" : json_get<std::string>(json, key, what);
}

bool flag(const Json& json, std::string_view key, const std::string& what) {
  return present(json, key, what) != nullptr && json_get<bool>(json, key, what);
}

std::unique_ptr<Model> read_bpe(const Json& json, const std::string& what) {
  const Json* list = present(json, "merges", what);
  if (list == nullptr || !list->is_array()) {
    fail(Code::config, "{}: 'merges': expected an array, found {}", what,
         list == nullptr ? "nothing" : list->type_name());
  }
  if (present(json, "dropout", what) != nullptr && json_get<double>(json, "dropout", what) != 0) {
    fail(Code::unsupported, "{}: 'dropout' makes ids random; set it to null", what);
  }
  std::vector<MergeText> merges;
  merges.reserve(list->size());
  size_t index = 0;
  for (const Json& merge : *list) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      merges.push_back(
          {merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>()});
    } else if (merge.is_string()) {
      const std::string_view line = merge.get_ref<const std::string&>();
      if (line.starts_with("#version")) {
        continue;
      }
      const size_t space = line.find(' ');
      if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
        fail(Code::format, "{}: merge {}: expected two tokens and a space, found {}", what, index,
             shown(line));
      }
      merges.push_back({line.substr(0, space), line.substr(space + 1)});
    } else {
      fail(Code::format, "{}: merge {}: expected two tokens, found {}", what, index,
           merge.type_name());
    }
    ++index;
  }
  BpeOptions options;
  options.has_unknown = present(json, "unk_token", what) != nullptr;
  options.unknown = text_or_empty(json, "unk_token", what);
  options.continuing_prefix = text_or_empty(json, "continuing_subword_prefix", what);
  options.end_suffix = text_or_empty(json, "end_of_word_suffix", what);
  options.fuse_unknown = flag(json, "fuse_unk", what);
  options.byte_fallback = flag(json, "byte_fallback", what);
  options.ignore_merges = flag(json, "ignore_merges", what);
  return make_bpe(read_vocabulary(json, what), merges, options, what);
}

std::unique_ptr<Model> read_unigram(const Json& json, const std::string& what) {
  const Json* list = present(json, "vocab", what);
  if (list == nullptr || !list->is_array()) {
    fail(Code::config, "{}: 'vocab': expected an array of [token, score]", what);
  }
  Vocabulary vocabulary;
  std::vector<double> scores;
  for (const Json& entry : *list) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number()) {
      fail(Code::config, "{}: vocab[{}]: expected [token, score]", what, scores.size());
    }
    vocabulary.add(entry[0].get_ref<const std::string&>(), static_cast<int64_t>(scores.size()),
                   what);
    scores.push_back(entry[1].get<double>());
  }
  vocabulary.finish(what);
  const auto unknown = present(json, "unk_id", what) == nullptr
                           ? -1
                           : static_cast<int32_t>(bounded(
                                 json, "unk_id", 0, static_cast<int64_t>(scores.size()) - 1, what));
  return make_unigram(std::move(vocabulary), std::move(scores), unknown,
                      flag(json, "byte_fallback", what), what);
}

}  // namespace

std::unique_ptr<Model> make_model(const Json& json, const std::string& what) {
  std::string type;
  if (present(json, "type", what) != nullptr) {
    type = json_get<std::string>(json, "type", what);
  } else if (present(json, "merges", what) != nullptr) {
    type = "BPE";
  } else if (present(json, "max_input_chars_per_word", what) != nullptr) {
    type = "WordPiece";
  } else if (const Json* vocabulary = present(json, "vocab", what); vocabulary != nullptr) {
    type = vocabulary->is_array() ? "Unigram" : "WordLevel";
  }
  if (type == "BPE") {
    return read_bpe(json, what);
  }
  if (type == "Unigram") {
    return read_unigram(json, what);
  }
  if (type == "WordPiece") {
    return make_word_piece(read_vocabulary(json, what),
                           json_get<std::string>(json, "unk_token", what),
                           json_get<std::string>(json, "continuing_subword_prefix", what),
                           bounded(json, "max_input_chars_per_word", 0, int64_t{1} << 40, what));
  }
  if (type == "WordLevel") {
    return make_word_level(read_vocabulary(json, what),
                           json_get<std::string>(json, "unk_token", what));
  }
  unknown_type(type, what, "BPE, WordPiece, WordLevel, Unigram");
}

}  // namespace sluice::text
